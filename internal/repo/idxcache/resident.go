package idxcache

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"
)

// around is what kernels map at least around a page that is touched, in bytes, where
// they have it.
const around = 64 << 10

// Resident bounds how much of the index files that were opened with it is in
// memory. The kernel would keep what was touched, for it does not know that it
// will hardly be touched again, and it counts as this program's: a terabyte in
// pieces of 32 KiB has two gigabytes of index. Safe for concurrent use.
//
// How much comes with a page that is touched is the kernel's choice: 64 KiB, or all
// of a large folio, up to what one page table maps. So it is asked
// (/proc/self/pagemap), not assumed.
type Resident struct {
	limit, page int64 // in pages; bytes of one

	mu      sync.Mutex
	pages   int64 // that are in memory, of all
	open    map[*Index]struct{}
	pagemap *os.File // nil: cannot be asked
	raw     []byte   // entries of it
	sink    byte
}

// NewResident returns a bound of about limit bytes for all files together. What
// one page table maps (2 MiB) can be above it for a moment.
func NewResident(limit int64) *Resident {
	page := int64(os.Getpagesize())
	return &Resident{limit: max(around, limit) / page, page: page, raw: make([]byte, page+2*entry), open: map[*Index]struct{}{}}
}

// add begins to count an index of which nothing is looked at yet.
func (r *Resident) add(x *Index) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.open) == 0 {
		r.pagemap, _ = os.Open("/proc/self/pagemap") // without it, around is assumed
	}
	pages := (int64(len(x.m)) + r.page - 1) / r.page
	x.touched = make([]atomic.Uint64, (pages+63)/64)
	r.open[x] = struct{}{}
}

// settle gives back what opening an index has touched.
func (r *Resident) settle(x *Index) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.giveBack(x)
}

// remove forgets an index, so that it can be unmapped.
func (r *Resident) remove(x *Index) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, counted := r.open[x]; !counted {
		return
	}
	for i := range x.touched {
		r.pages -= int64(bits.OnesCount64(x.touched[i].Load()))
	}
	delete(r.open, x)
	if len(r.open) == 0 && r.pagemap != nil {
		_ = r.pagemap.Close() // only read
		r.pagemap = nil
	}
}

// touch brings the pages that hold n bytes at off into memory, and counts what came
// with them.
func (x *Index) touch(off, n int64) error {
	if x.resident == nil {
		return nil
	}
	page := x.resident.page
	for i := off / page; i <= (off+n-1)/page; i++ {
		if x.touched[i/64].Load()&(1<<(i%64)) != 0 {
			continue
		}
		if err := x.resident.bring(x, i); err != nil {
			return err
		}
	}
	return nil
}

// bring is touch of one page that is not counted.
func (r *Resident) bring(x *Index, i int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sink += x.m[i*r.page] // now it is there
	r.count(x, i)
	if r.pages <= r.limit {
		return nil
	}
	for x := range r.open {
		if err := r.giveBack(x); err != nil {
			return err
		}
	}
	return nil
}

// entry is the size of an entry in bytes, of a page table as of its description.
const entry = 8

// count marks what came into memory with page i. That is most often what is around
// it, and at most what its page table maps, which takes longer to look at.
func (r *Resident) count(x *Index, i int64) {
	r.mark(x, i)
	base := int64(uintptr(unsafe.Pointer(unsafe.SliceData(x.m)))) / r.page // in pages of the address space
	all := (int64(len(x.m)) + r.page - 1) / r.page
	first, end := span(base, i, around/r.page, all)
	least, most := span(base, i, r.page/entry, all)
	more, asked := r.look(x, base, max(least, first-1), min(most, end+1))
	if more && (first > least || end < most) {
		_, asked = r.look(x, base, least, most)
	}
	if asked {
		return
	}
	for p := first; p < end; p++ {
		r.mark(x, p)
	}
}

// look marks what is in memory of the pages from first to before end, and reports
// whether the first or the last of them is and was not marked yet.
func (r *Resident) look(x *Index, base, first, end int64) (more, ok bool) {
	if r.pagemap == nil {
		return false, false
	}
	buf := r.raw[:(end-first)*entry]
	if _, err := r.pagemap.ReadAt(buf, (base+first)*entry); err != nil {
		return false, false
	}
	for p := first; p < end; p++ {
		if binary.NativeEndian.Uint64(buf[(p-first)*entry:])>>63 != 0 && r.mark(x, p) {
			more = more || p == first || p == end-1
		}
	}
	return more, true
}

// span is the aligned run of n pages of the address space in which page i of a
// mapping lies, as far as it belongs to the mapping, which has all pages from base on.
func span(base, i, n, all int64) (first, end int64) {
	n = max(1, n)
	begin := (base+i)/n*n - base
	return max(0, begin), min(all, begin+n)
}

// mark counts a page, and reports whether it was not counted before.
func (r *Resident) mark(x *Index, page int64) bool {
	bit := uint64(1) << (page % 64)
	if x.touched[page/64].Or(bit)&bit != 0 {
		return false
	}
	r.pages++
	return true
}

// giveBack lets the kernel take the memory of the file, whose content comes again
// when it is touched.
func (r *Resident) giveBack(x *Index) error {
	if err := syscall.Madvise(x.m, syscall.MADV_DONTNEED); err != nil {
		return fmt.Errorf("give back memory of an index cache: %w", err)
	}
	for i := range x.touched {
		r.pages -= int64(bits.OnesCount64(x.touched[i].Load()))
		x.touched[i].Store(0)
	}
	return nil
}
