package tree

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"lifeboat/internal/catalog"
	"lifeboat/internal/dr"
)

// Bounds of a window: what is asked for in one Fetch.
const (
	windowBytes = 32 << 20
	windowUnits = 4096
	windowFiles = 256 // open at the same time, of one window
)

// dest is where a unit goes.
type dest struct {
	file *file
	off  int64
}

// window gathers units until it is worth fetching them together. Several
// windows are on their way at a time.
type window struct {
	a     *applier
	g     *errgroup.Group
	index map[dr.UnitID]int
	refs  []dr.UnitRef
	dests [][]dest
	bytes int64
	files int

	mu   sync.Mutex
	open map[*file]struct{}
}

func (w *window) opened(f *file) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open[f] = struct{}{}
}

func (w *window) closed(f *file) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.open, f)
}

// add asks for a unit. It waits while too much is on its way.
func (w *window) add(ctx context.Context, d dest, ref catalog.Ref) error {
	d.file.pending.Add(1)
	i, ok := w.index[ref.ID]
	if !ok {
		i = len(w.refs)
		w.index[ref.ID] = i
		w.refs = append(w.refs, ref.Unit())
		w.dests = append(w.dests, nil)
		w.bytes += ref.Len
	}
	w.dests[i] = append(w.dests[i], d)
	if w.bytes >= windowBytes || len(w.refs) >= windowUnits || w.files >= windowFiles {
		w.flush(ctx)
	}
	return ctx.Err()
}

// flush sends the window on its way.
func (w *window) flush(ctx context.Context) {
	refs, dests := w.refs, w.dests
	w.refs, w.dests, w.bytes, w.files = nil, nil, 0, 0
	clear(w.index)
	if len(refs) > 0 {
		w.g.Go(func() error { return w.a.bring(ctx, refs, dests) })
	}
}

// bring gets units, from the old tree where they are there, and writes them.
func (a *applier) bring(ctx context.Context, refs []dr.UnitRef, dests [][]dest) error {
	deliver := func(w *writerState, i int, data []byte, fetched int64) error {
		for _, d := range dests[i] {
			if err := d.file.arrive(w, d.off, data); err != nil {
				return err
			}
			a.progress(int64(len(data)), fetched)
			fetched = 0
		}
		return ctx.Err()
	}
	var missing []dr.UnitRef
	var at []int
	w := a.writer()
	for i, ref := range refs {
		data := a.copyOf(w, ref)
		if data == nil {
			missing, at = append(missing, ref), append(at, i)
			continue
		}
		a.copied.Add(int64(len(data)))
		if err := deliver(w, i, data, 0); err != nil {
			a.done(w)
			return err
		}
	}
	a.done(w)
	if len(missing) == 0 {
		return nil
	}
	var arrived atomic.Int64
	err := a.fetch(ctx, missing, func(i int, data []byte) error {
		if len(data) != int(missing[i].Len) {
			return fmt.Errorf("unit %v has %d bytes, not %d: %w", missing[i].ID, len(data), missing[i].Len, dr.ErrTampered)
		}
		arrived.Add(1)
		w := a.writer()
		defer a.done(w)
		return deliver(w, at[i], data, int64(len(data)))
	}, func(i int, err error) error {
		arrived.Add(1)
		w := a.writer()
		defer a.done(w)
		for _, d := range dests[at[i]] {
			d.file.lose(err)
			if err := d.file.release(w); err != nil {
				return err
			}
		}
		return ctx.Err()
	})
	if err == nil && arrived.Load() != int64(len(missing)) {
		err = fmt.Errorf("%d of %d units came", arrived.Load(), len(missing))
	}
	return err
}

// fetch gets units; lost is told those that are passed over.
func (a *applier) fetch(ctx context.Context, refs []dr.UnitRef, fn func(int, []byte) error, lost func(int, error) error) error {
	if s := a.o.salvage; s != nil {
		return s.Fetch(ctx, refs, fn, lost)
	}
	return a.src.Fetch(ctx, refs, fn)
}

// copyOf reads a unit from where the old tree had it, or returns nil. It may
// have been overwritten since, so it is hashed before it is believed.
func (a *applier) copyOf(w *writerState, ref dr.UnitRef) []byte {
	pos, ok := a.plan.copies[ref.ID]
	if !ok {
		return nil
	}
	dir, name, err := w.dirs.parent(pos.path)
	if err != nil {
		return nil
	}
	fd, err := openRegular(dir, name)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	if cap(w.buf) < int(ref.Len) {
		w.buf = make([]byte, ref.Len)
	}
	data := w.buf[:ref.Len]
	n, err := preadFull(fd, data, pos.off)
	if err != nil || n < len(data) || a.o.UnitID(data) != ref.ID {
		return nil
	}
	return data
}
