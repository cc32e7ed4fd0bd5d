package idxcache

import (
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
)

// window is what is counted at a time, in bytes: what the kernel maps around a page
// that is touched, where it has it.
const window = 64 << 10

// Resident bounds how much of the index files that were opened with it is in
// memory. The kernel would keep what was touched, for it does not know that it
// will hardly be touched again, and it counts as this program's: a terabyte in
// pieces of 32 KiB has two gigabytes of index. Safe for concurrent use.
type Resident struct {
	limit   int64 // windows
	touched atomic.Int64

	mu   sync.Mutex
	open map[*Index]struct{}
}

// NewResident returns a bound of about limit bytes for all files together.
func NewResident(limit int64) *Resident {
	return &Resident{limit: max(1, limit/window), open: map[*Index]struct{}{}}
}

func (r *Resident) add(x *Index) {
	if r != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.open[x] = struct{}{}
	}
}

// remove forgets an index, so that it can be unmapped.
func (r *Resident) remove(x *Index) {
	if r != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.open, x)
	}
}

// more counts a window that was not in memory.
func (r *Resident) more() error {
	if r.touched.Add(1) <= r.limit {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.touched.Load() <= r.limit {
		return nil // somebody else gave it back meanwhile
	}
	for x := range r.open {
		if err := x.giveBack(); err != nil {
			return err
		}
	}
	r.touched.Store(0)
	return nil
}

// touch counts the windows that hold n bytes at off.
func (x *Index) touch(off, n int64) error {
	if x.touched == nil {
		return nil
	}
	for i := off / window; i <= (off+n-1)/window; i++ {
		word, bit := &x.touched[i/64], uint64(1)<<(i%64)
		if word.Load()&bit != 0 {
			continue
		}
		if err := x.resident.more(); err != nil {
			return err
		}
		word.Or(bit)
	}
	return nil
}

// giveBack lets the kernel take the memory of the file, whose content comes again
// when it is touched.
func (x *Index) giveBack() error {
	if err := syscall.Madvise(x.m, syscall.MADV_DONTNEED); err != nil {
		return fmt.Errorf("give back memory of an index cache: %w", err)
	}
	for i := range x.touched {
		x.touched[i].Store(0)
	}
	return nil
}
