package catalog

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/zeebo/blake3"

	"lifeboat/internal/dr"
)

// Sizes of pages and of the units of the page table. A writer may change them
// without a new format version; readers know only the bounds in page.go.
//
// A change of one entry sends its page and its unit of the page table again, so
// both are small: with pages of 64 KiB, 300 files that lie scattered among
// 30,000 would send the whole catalog. Smaller pages than these make the page
// table grow by as much as the pages save.
const (
	// minPage is the size in bytes below which no page ends; most end before
	// meanPage and none with more than one entry goes beyond maxPage.
	minPage  = 1 << 10
	meanPage = 1536
	maxPage  = 16 << 10
	// typicalPath stands for the path in an entry's size, which prefix sharing
	// would make depend on the entry before.
	typicalPath = 16

	// minTable and meanTable are pages of a unit of the page table. From every
	// tableStep units on it has twice as many, so that no catalog needs more
	// units than a reader takes.
	minTable, meanTable = 64, 128
	tableStep           = 512
)

// boundaries decides where pages and units of the page table end: by chance, but
// by one that is the same each time, from a keyed hash of a path. What comes
// before decides only how likely it is; so after an entry that was added or taken
// away the next ends soon fall where they fell before. The key keeps
// page sizes from telling which names a tree has.
type boundaries struct {
	hash *blake3.Hasher
}

func newBoundaries(cutKey [32]byte) boundaries {
	h, err := blake3.NewKeyed(cutKey[:])
	if err != nil {
		// NewKeyed refuses nothing but keys that are not of 32 bytes.
		panic(err)
	}
	return boundaries{h}
}

// draw returns two numbers from 0 to below 1 that only the path decides.
func (b boundaries) draw(path string) (page, table float64) {
	b.hash.Reset()
	// Hasher.WriteString never fails.
	_, _ = b.hash.WriteString(path)
	var sum [32]byte
	b.hash.Sum(sum[:0])
	number := func(b []byte) float64 { return float64(binary.LittleEndian.Uint64(b)>>11) / (1 << 53) }
	return number(sum[:8]), number(sum[8:])
}

// endsPage reports whether a page that has size bytes with e, which takes entry
// of them, ends after it.
func (b boundaries) endsPage(e *Entry, entry, size int) bool {
	if size < minPage {
		return false
	}
	chance, _ := b.draw(e.Path)
	own := max(1, entry-len(e.Path)) + typicalPath
	return chance < likely(own, size, minPage, meanPage)
}

// endsTable reports whether a unit of the page table, the one after done others,
// ends after its page number n, whose first path is given.
func (b boundaries) endsTable(first string, n, done int) bool {
	shift := min(done/tableStep, 5)
	least, mean := minTable<<shift, meanTable<<shift
	if n < least {
		return false
	}
	_, chance := b.draw(first)
	return chance < likely(1, n, least, mean)
}

// likely is how likely something that has reached size ends with its last part:
// so that half lies between least and mean, and few go far beyond it.
func likely(part, size, least, mean int) float64 {
	l := float64(part) / float64(mean-least)
	if size > mean {
		l *= 4
	}
	return math.Min(l, 1)
}

// errTooLarge: a catalog has more pages than a reader takes.
var errTooLarge = fmt.Errorf("the tree has more entries than a catalog can list: %w", dr.ErrUsage)
