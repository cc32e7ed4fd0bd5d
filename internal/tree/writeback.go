package tree

import (
	"errors"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	// writebackBytes is after how much the disk is given something to do: often
	// enough that little is left for the end, rarely enough that the commits of
	// the file system's journal do not count.
	writebackBytes = 64 << 20
	// writebackEntry is what a new name counts besides its content, in bytes:
	// inode, name, and the block that is allocated when it goes out.
	writebackEntry = 8 << 10
)

// writeback makes durable what was written while more of it comes. Left alone the
// kernel gathers up to a tenth of the memory before it begins, and the sync at
// the end waits for a disk that was idle until then. Safe for concurrent use.
type writeback struct {
	fd   int          // in the file system, open until wait has returned
	off  bool         // the caller makes it durable
	held atomic.Int64 // bytes since the last one began

	running sync.Mutex // held by the one that is under way
	wg      sync.WaitGroup
	mu      sync.Mutex
	err     error
}

// wrote counts n bytes that were written.
func (w *writeback) wrote(n int64) {
	if w.off || w.held.Add(n) < writebackBytes || !w.running.TryLock() {
		return
	}
	w.held.Store(0)
	w.wg.Go(func() {
		defer w.running.Unlock()
		w.note(unix.Syncfs(w.fd))
	})
}

// note keeps an error: the kernel tells each descriptor once of a page that could
// not be written.
func (w *writeback) note(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.err = errors.Join(w.err, err)
}

// wait returns when none is under way, with the errors of all.
func (w *writeback) wait() error {
	w.wg.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}
