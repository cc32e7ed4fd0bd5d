package idxcache

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"

	"lifeboat/internal/dr"
	"lifeboat/internal/pack"
)

// sortBatch is how many units are sorted in memory at a time, 16 bytes each;
// more are sorted in several passes over the file.
const sortBatch = 1 << 20

// Builder makes a cache file from the parts of an index, which it takes as a
// pack.Visitor. Not safe for concurrent use.
type Builder struct {
	key    [32]byte
	name   string
	f      *os.File
	w      *summing
	head   header
	packs  []byte
	groups []byte
	offset uint32 // of the next unit in its group
	batch  int
}

var _ pack.Visitor = (*Builder)(nil)

// NewBuilder begins the cache file name for the index of a manifest. key is
// local to the repository. Abort or Finish ends it.
func NewBuilder(name string, key [32]byte, repo dr.RepoID, manifest [32]byte) (*Builder, error) {
	return newBuilder(name, key, repo, manifest, sortBatch)
}

func newBuilder(name string, key [32]byte, repo dr.RepoID, manifest [32]byte, batch int) (*Builder, error) {
	f, err := os.CreateTemp(filepath.Dir(name), ".index-*.tmp") // mode 0600
	if err != nil {
		return nil, fmt.Errorf("create index cache: %w", err)
	}
	b := &Builder{key: key, name: name, f: f, head: header{repo: repo, manifest: manifest}, batch: batch}
	b.w = newSumming(f, key)
	if _, err := f.Write(make([]byte, headerSize)); err != nil {
		b.Abort()
		return nil, fmt.Errorf("create index cache: %w", err)
	}
	return b, nil
}

// Abort gives the file up. It does nothing after Finish.
func (b *Builder) Abort() {
	if b.f != nil {
		_ = b.f.Close()           // given up
		_ = os.Remove(b.f.Name()) // a leftover is removed by Prune
		b.f = nil
	}
}

// Pack implements pack.Visitor.
func (b *Builder) Pack(p pack.Info, groups int) error {
	if uint64(b.head.groups)+uint64(groups) > math.MaxUint32 {
		return fmt.Errorf("index of more than %d groups: %w", uint32(math.MaxUint32), dr.ErrTampered)
	}
	r := b.packs
	r = append(r, p.Digest[:]...)
	r = binary.LittleEndian.AppendUint64(r, uint64(p.Size))
	r = binary.LittleEndian.AppendUint32(r, uint32(p.Header.Generation))
	r = append(r, p.Header.Salt[:]...)
	r = binary.LittleEndian.AppendUint32(r, b.head.groups)
	r = binary.LittleEndian.AppendUint32(r, uint32(groups))
	b.packs = r
	b.head.packs++
	return nil
}

// Group implements pack.Visitor.
func (b *Builder) Group(g pack.GroupInfo, units int) error {
	if uint64(b.head.units)+uint64(units) > math.MaxUint32 {
		return fmt.Errorf("index of more than %d units: %w", uint32(math.MaxUint32), dr.ErrTampered)
	}
	for _, n := range []uint32{b.head.packs - 1, g.Offset, g.Sealed, g.Plain, b.head.units, uint32(units)} {
		b.groups = binary.LittleEndian.AppendUint32(b.groups, n)
	}
	b.head.groups++
	b.offset = 0
	return nil
}

// Unit implements pack.Visitor.
func (b *Builder) Unit(u dr.UnitRef) error {
	var r [unitRecord]byte
	copy(r[:], u.ID[:])
	binary.LittleEndian.PutUint32(r[32:], u.Len)
	binary.LittleEndian.PutUint32(r[36:], b.offset)
	binary.LittleEndian.PutUint32(r[40:], b.head.groups-1)
	b.offset += u.Len
	b.head.units++
	if _, err := b.w.Write(r[:]); err != nil {
		return fmt.Errorf("write index cache: %w", err)
	}
	return nil
}

// Finish completes the file and puts it in its place, replacing one that is
// there. host is who signed the index, manifest the bytes of the pack manifest.
func (b *Builder) Finish(host dr.HostID, manifest []byte) error {
	defer b.Abort()
	b.head.host = host
	b.head.manifestSize = uint32(len(manifest))
	if err := b.finish(manifest); err != nil {
		return fmt.Errorf("write index cache: %w", err)
	}
	name := b.f.Name()
	if err := b.f.Close(); err != nil {
		return fmt.Errorf("write index cache: %w", err)
	}
	if err := os.Rename(name, b.name); err != nil {
		return fmt.Errorf("write index cache: %w", err)
	}
	b.f = nil
	return nil
}

func (b *Builder) finish(manifest []byte) error {
	if err := b.w.flush(); err != nil {
		return err
	}
	filter, err := b.sort()
	if err != nil {
		return err
	}
	for _, section := range [][]byte{filter, b.packs, b.groups, manifest} {
		if _, err := b.w.Write(section); err != nil {
			return err
		}
	}
	sums, err := b.w.finish()
	if err != nil {
		return err
	}
	b.head.sumsCount = uint32(len(sums) / sumSize)
	if _, err := b.f.Write(sums); err != nil {
		return err
	}
	head := b.head.encode()
	sum := mac(b.key, head, sums)
	_, err = b.f.WriteAt(append(head, sum[:]...), 0)
	return err
}

// sort writes the sorted section, reading the units back from the file as often
// as it takes to keep only a batch of them in memory, and returns the filter.
func (b *Builder) sort() ([]byte, error) {
	n := int(b.head.units)
	b.head.filters = uint32(max(1, (n*filterBits+8*filterBlock-1)/(8*filterBlock)))
	filter := make([]byte, int(b.head.filters)*filterBlock)
	// Ids are uniform, so ranges of equal width hold about equally many units.
	passes := uint64((n + b.batch - 1) / b.batch)
	if passes == 0 {
		return filter, nil
	}
	width := math.MaxUint64/passes + 1 // 0 means all
	type entry struct {
		prefix uint64
		pos    uint32
	}
	list := make([]entry, 0, min(n, b.batch+b.batch/8))
	for p := range passes {
		list = list[:0]
		err := b.scan(func(pos uint32, id []byte) {
			if x := prefix(id); passes == 1 || x/width == p {
				list = append(list, entry{x, pos})
			}
			if p == 0 {
				addTo(filter, b.head.filters, id)
			}
		})
		if err != nil {
			return nil, err
		}
		slices.SortFunc(list, func(a, b entry) int {
			return cmp.Or(cmp.Compare(a.prefix, b.prefix), cmp.Compare(a.pos, b.pos))
		})
		var r [sortRecord]byte
		for _, e := range list {
			binary.BigEndian.PutUint64(r[:], e.prefix)
			binary.LittleEndian.PutUint32(r[8:], e.pos)
			if _, err := b.w.Write(r[:]); err != nil {
				return nil, err
			}
		}
		if err := b.w.flush(); err != nil {
			return nil, err
		}
	}
	return filter, nil
}

// scan calls fn for each unit written so far.
func (b *Builder) scan(fn func(pos uint32, id []byte)) error {
	src := io.NewSectionReader(b.f, headerSize, int64(b.head.units)*unitRecord)
	r := bufio.NewReaderSize(src, 1<<20)
	var rec [unitRecord]byte
	for pos := range b.head.units {
		if _, err := io.ReadFull(r, rec[:]); err != nil {
			return fmt.Errorf("read back: %w", err)
		}
		fn(pos, rec[:32])
	}
	return nil
}

func addTo(filter []byte, blocks uint32, id []byte) {
	block, bits := probe(id, blocks)
	b := filter[int(block)*filterBlock:][:filterBlock]
	for range filterProbe {
		bit := bits & (8*filterBlock - 1)
		b[bit/8] |= 1 << (bit % 8)
		bits >>= 9
	}
}

// summing writes to a file and keeps the checksum of each block of blockSize.
type summing struct {
	w    *bufio.Writer
	key  [32]byte
	cur  bytes.Buffer
	sums []byte
}

func newSumming(w io.Writer, key [32]byte) *summing {
	return &summing{w: bufio.NewWriterSize(w, 256<<10), key: key}
}

func (s *summing) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		n := min(len(p), blockSize-s.cur.Len())
		s.cur.Write(p[:n])
		if s.cur.Len() == blockSize {
			s.sum()
		}
		if _, err := s.w.Write(p[:n]); err != nil {
			return 0, err
		}
		p = p[n:]
	}
	return total, nil
}

func (s *summing) sum() {
	x := blockSum(s.key, uint64(len(s.sums)/sumSize), s.cur.Bytes())
	s.sums = append(s.sums, x[:]...)
	s.cur.Reset()
}

func (s *summing) flush() error { return s.w.Flush() }

func (s *summing) finish() ([]byte, error) {
	if s.cur.Len() > 0 {
		s.sum()
	}
	return s.sums, s.w.Flush()
}

// IsMissing reports whether Open failed because a file has to be made (anew).
func IsMissing(err error) bool { return errors.Is(err, os.ErrNotExist) || errors.Is(err, ErrDamaged) }
