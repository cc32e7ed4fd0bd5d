package tree

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// DefaultBudget is the memory for secured bytes of one system, in bytes.
const DefaultBudget = 128 << 20

// budgetSegment is how much of a budget is mapped at a time.
const budgetSegment = 8 << 20

// Budget is memory for what is secured while frozen, shared by all trees of a
// system. It lies outside the garbage-collected heap and is mapped before the
// freeze, so that taking from it costs a copy and no more. Safe for concurrent
// use.
type Budget struct {
	limit int64

	mu       sync.Mutex
	segments [][]byte
	cur, off int
	wanted   int64 // prepared for
	holders  int   // captures that may hold parts
}

// NewBudget returns a budget of limit bytes, DefaultBudget if limit is not
// positive. No memory is taken yet.
func NewBudget(limit int64) *Budget {
	if limit <= 0 {
		limit = DefaultBudget
	}
	return &Budget{limit: limit}
}

// Prepare maps and touches memory for n bytes more, up to the limit. Called
// before the freeze with an estimate; more is mapped when it is needed.
func (b *Budget) Prepare(n int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.wanted += n
	if int64(len(b.segments))*budgetSegment >= min(b.wanted, b.limit) {
		return nil
	}
	// The buffers of the pre-copy go back to the system first: they and this
	// together would be the most memory that a snapshot takes.
	debug.FreeOSMemory()
	for int64(len(b.segments))*budgetSegment < min(b.wanted, b.limit) {
		if err := b.mapMore(); err != nil {
			return err
		}
	}
	runtime.GC() // whoever bounds the heap by what there is beside it does so after each collection
	return nil
}

// drop gives the memory of a part that was taken back to the system, save for
// pages that it shares with others. The part must not be read any more; its room
// in the budget stays used.
func (b *Budget) drop(part []byte) error {
	page := uintptr(os.Getpagesize())
	at := uintptr(unsafe.Pointer(unsafe.SliceData(part)))
	from, to := (page-at%page)%page, uintptr(len(part))-(at+uintptr(len(part)))%page
	if uintptr(len(part)) < page || from >= to {
		return nil
	}
	if err := unix.Madvise(part[from:to], unix.MADV_DONTNEED); err != nil {
		return fmt.Errorf("give back memory for secured bytes: %w", err)
	}
	return nil
}

func (b *Budget) mapMore() error {
	size := min(budgetSegment, b.limit-int64(len(b.segments))*budgetSegment)
	if size <= 0 {
		return unix.ENOMEM
	}
	m, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("map memory for secured bytes: %w", err)
	}
	// Large pages make touching it several times cheaper; kernels that know
	// neither advice take the page faults when bytes are copied.
	_ = unix.Madvise(m, unix.MADV_HUGEPAGE)
	_ = unix.Madvise(m, unix.MADV_POPULATE_WRITE)
	b.segments = append(b.segments, m)
	return nil
}

// take returns memory for n bytes in one or more parts, or nil when that would
// pass the limit.
func (b *Budget) take(n int64) [][]byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	free := b.limit - int64(b.cur)*budgetSegment - int64(b.off)
	if n > free {
		return nil
	}
	var parts [][]byte
	for n > 0 {
		if b.cur == len(b.segments) {
			if b.mapMore() != nil {
				// No memory is the same as no budget. What was taken so far
				// stays unused until release.
				return nil
			}
		}
		seg := b.segments[b.cur]
		k := min(int64(len(seg)-b.off), n)
		if k > 0 {
			parts = append(parts, seg[b.off:b.off+int(k):b.off+int(k)])
			b.off += int(k)
			n -= k
		}
		if b.off == len(seg) {
			b.cur, b.off = b.cur+1, 0
		}
	}
	return parts
}

// hold and release count the trees that use the budget; with the last one the
// memory goes back to the system.
func (b *Budget) hold() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.holders++
}

func (b *Budget) release() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.holders--; b.holders > 0 {
		return
	}
	for _, m := range b.segments {
		_ = unix.Munmap(m)
	}
	b.segments, b.cur, b.off, b.wanted = nil, 0, 0, 0
}
