package repo

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/singleflight"

	"lifeboat/internal/dr"
	"lifeboat/internal/pack"
	"lifeboat/internal/repo/journal"
)

// ErrParentDamaged: the parent of a new snapshot lacks something in the
// registry. It wraps dr.ErrTampered. A writer without a parent still works: it
// reads and sends what is missing.
var ErrParentDamaged = fmt.Errorf("the snapshot to build on is not whole in the registry: %w", dr.ErrTampered)

// errClosed: the writer was closed or its context ended.
var errClosed = errors.New("the writer is closed")

// WriterOptions say what a writer writes.
type WriterOptions struct {
	System dr.System
	// Parent is the snapshot that the new one builds on; nil for none. All its
	// pack manifests stay needed, so references may be taken over from it.
	Parent *Snapshot
	// Exact promises that every unit taken over from Parent is named by HaveAll
	// or Reuse; pack manifests of Parent of which nothing is used are let go.
	Exact bool
	// Progress is told after each step what was done so far; may be nil. Calls
	// do not overlap.
	Progress func(Stats)
}

// Stats is what a writer did so far.
type Stats struct {
	// BytesPut is what was given to Put; BytesNew what of it the repository did
	// not have; BytesSent what went to the registry for it.
	BytesPut, BytesNew, BytesSent int64
	// UnitsNew and UnitsKnown count the calls of Put.
	UnitsNew, UnitsKnown int64
	// Packs is the number of packs sent, BytesRead what was read to make sure
	// that another host's units are what they are said to be.
	Packs, BytesRead int64
}

// limits say when a writer makes what it sent findable by pushing a pack
// manifest, so that a run cut off goes on from there.
type limits struct {
	bytes    int64         // sent since the last manifest
	units    int           // put since the last manifest; bounds memory
	interval time.Duration // since the last manifest …
	atLeast  int64         // … if at least so many bytes were sent
	needs    int           // pack manifests of a snapshot
}

func defaultLimits() limits {
	return limits{bytes: 2 << 30, units: 128 << 10, interval: 10 * time.Minute, atLeast: 64 << 20, needs: maxNeeds}
}

// uploadParallel is how many packs are sent at a time.
const uploadParallel = 3

// Writer takes units and makes a snapshot of them. Put may be called by any
// number of goroutines; it deduplicates, and blocks while compression or the
// registry are behind. Memory is bounded: a few packs, and the ids of what was
// put since the last pack manifest.
//
// Nothing is visible before Commit (invariant 1). A writer that is closed or
// killed at any point leaves only blobs and pack manifests that no snapshot
// names; the same host uses them again (invariant 8).
type Writer struct {
	repo   *Repo
	opts   WriterOptions
	limits limits
	effort effort
	ctx    context.Context
	cancel context.CancelCauseFunc
	tasks  *errgroup.Group

	others  []*Snapshot // newest of each other system; set once
	srcMu   sync.RWMutex
	sources []*source
	hint    atomic.Int64 // where the last unit was found: its neighbours are there too
	proving singleflight.Group
	spare   [groupClasses]sync.Pool // of *pack.Group

	// gate: Put holds it shared, Flush alone. groups and packs count what is
	// between Put and the registry.
	gate   sync.RWMutex
	groups sync.WaitGroup
	packs  sync.WaitGroup
	queue  chan *pack.Group
	send   chan finished

	mu    sync.Mutex
	fresh map[dr.UnitID]struct{} // put and in no pack manifest yet
	open  [2]*pack.Group         // compressible and not
	stats Stats

	asm     sync.Mutex
	builder *pack.Builder
	bufs    chan []byte

	pushMu   sync.Mutex // one manifest at a time
	doneMu   sync.Mutex
	done     []pack.Info // sent and in no pack manifest yet
	doneSize int64
	doneN    int
	lastPush time.Time
	// journal holds what is in done; oldJournals what a pack manifest that could
	// not be pushed was to name. journalLost: there is none, or no more.
	journal     *journal.Journal
	oldJournals []*journal.Journal
	journalLost bool

	progressMu sync.Mutex
}

// NewWriter begins a snapshot. It enrols this host if need be, and opens the
// indexes in which units are looked for: the parent's, those that interrupted
// runs of this host left, and those of the newest snapshot of each other system.
// ctx must live as long as the writer. Errors: ErrParentDamaged, ErrRevoked,
// those of the store.
func (r *Repo) NewWriter(ctx context.Context, o WriterOptions) (*Writer, error) {
	if _, err := dr.ParseSystem(string(o.System)); err != nil {
		return nil, err
	}
	w, err := r.newWriter(ctx, o, (*Writer).findSources)
	if err != nil {
		return nil, fmt.Errorf("begin snapshot: %w", err)
	}
	return w, nil
}

// newWriter is NewWriter with another way to find what units are looked for in.
func (r *Repo) newWriter(ctx context.Context, o WriterOptions, find func(*Writer, context.Context) error) (*Writer, error) {
	if err := r.refreshKeys(ctx); err != nil {
		return nil, err
	}
	if err := r.enrolForWriting(ctx); err != nil {
		return nil, err
	}
	w := &Writer{
		repo: r, opts: o, limits: defaultLimits(), fresh: map[dr.UnitID]struct{}{}, lastPush: time.Now(),
		queue: make(chan *pack.Group), send: make(chan finished), bufs: make(chan []byte, uploadParallel+2),
	}
	err := w.resume(ctx)
	if err == nil {
		err = find(w, ctx)
	}
	if err != nil {
		w.release()
		return nil, err
	}
	cctx, cancel := context.WithCancelCause(ctx)
	w.cancel = cancel
	w.tasks, w.ctx = errgroup.WithContext(cctx)
	queue := w.queue
	for range runtime.GOMAXPROCS(0) {
		w.tasks.Go(func() error { return w.compress(queue) })
	}
	for range uploadParallel {
		w.tasks.Go(w.upload)
	}
	return w, nil
}

// Close ends the writer and frees it. What was put and not committed is given
// up; what was sent is used by the next run of this host. It may be called more than once.
func (w *Writer) Close() {
	w.cancel(errClosed)
	w.gate.Lock() // no Put and no Flush is sending any more
	queue := w.queue
	w.queue = nil
	w.gate.Unlock()
	if queue == nil {
		return
	}
	close(queue)
	w.groups.Wait()
	close(w.send)
	_ = w.tasks.Wait() // its error was given to whoever called Put, Flush or Commit
	w.closeJournals()
	w.release()
}

func (w *Writer) release() {
	w.srcMu.Lock()
	defer w.srcMu.Unlock()
	for _, s := range w.sources {
		if err := w.repo.saveRead(s.index); err != nil {
			w.repo.log.Warn("what was read is not remembered", "error", err)
		}
		w.repo.idx.put(s.index)
	}
	w.sources = nil
}

// failure is why the writer cannot go on, nil if it can.
func (w *Writer) failure(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if w.ctx.Err() != nil {
		return context.Cause(w.ctx)
	}
	return nil
}

// Put gives a unit of 1 byte to 8 MiB to the repository; data is copied. The
// unit is stored durably only when Flush or Commit has succeeded. A unit that
// the repository has is not sent; one that only another host claims to have is
// read once to make sure (docs/adr/0002). After an error of the pipeline every
// call returns it.
func (w *Writer) Put(ctx context.Context, data []byte) (dr.UnitRef, error) {
	if len(data) == 0 || len(data) > dr.MaxUnit {
		return dr.UnitRef{}, fmt.Errorf("put unit: %d bytes, want 1 to %d: %w", len(data), dr.MaxUnit, dr.ErrUsage)
	}
	ref := dr.UnitRef{ID: w.repo.UnitID(data), Len: uint32(len(data))}
	w.gate.RLock()
	defer w.gate.RUnlock()
	if err := w.failure(ctx); err != nil {
		return ref, fmt.Errorf("put unit: %w", err)
	}
	if w.isFresh(ref.ID) {
		w.count(false, len(data))
		return ref, nil
	}
	s, err := w.find(ctx, ref, true)
	if err != nil {
		return ref, fmt.Errorf("put unit: %w", err)
	}
	if s != nil {
		s.used.Store(true)
		w.count(false, len(data))
		return ref, nil
	}
	full := w.add(ref, data)
	if full == nil {
		return ref, nil
	}
	w.groups.Add(1)
	select {
	case w.queue <- full:
		return ref, nil
	case <-w.ctx.Done():
		w.groups.Done()
		return ref, fmt.Errorf("put unit: %w", context.Cause(w.ctx))
	case <-ctx.Done():
		// The group is lost, so the writer cannot go on.
		w.cancel(ctx.Err())
		w.groups.Done()
		return ref, fmt.Errorf("put unit: %w", ctx.Err())
	}
}

func (w *Writer) isFresh(id dr.UnitID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, ok := w.fresh[id]
	return ok
}

func (w *Writer) count(isNew bool, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.countLocked(isNew, n)
}

func (w *Writer) countLocked(isNew bool, n int) {
	w.stats.BytesPut += int64(n)
	if isNew {
		w.stats.UnitsNew++
		w.stats.BytesNew += int64(n)
	} else {
		w.stats.UnitsKnown++
	}
}

// add appends a unit to an open group and returns a group that is full, if any.
func (w *Writer) add(ref dr.UnitRef, data []byte) (full *pack.Group) {
	kind := 0
	if !pack.Compressible(data) {
		kind = 1
	}
	var alone *pack.Group
	if len(data) >= pack.GroupSize/2 { // a group of its own, copied outside the lock
		alone = w.newGroup(len(data))
		alone.Sorted = kind == 0
		alone.Add(ref.ID, data)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.fresh[ref.ID]; ok { // somebody else put it meanwhile
		w.countLocked(false, len(data))
		if alone != nil {
			w.recycle(alone)
		}
		return nil
	}
	w.fresh[ref.ID] = struct{}{}
	w.countLocked(true, len(data))
	if alone != nil {
		return alone
	}
	g := w.open[kind]
	if g == nil {
		g = w.newGroup(0)
	} else if !g.Fits(len(data)) {
		full, g = g, w.newGroup(0)
	}
	g.Sorted = kind == 0
	g.Add(ref.ID, data)
	w.open[kind] = g
	return full
}

// Stats returns what was done so far.
func (w *Writer) Stats() Stats {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stats
}

func (w *Writer) progress() {
	if w.opts.Progress == nil {
		return
	}
	w.progressMu.Lock()
	defer w.progressMu.Unlock()
	w.opts.Progress(w.Stats())
}
