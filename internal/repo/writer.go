package repo

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/singleflight"

	"lifeboat/internal/dr"
	"lifeboat/internal/pack"
	"lifeboat/internal/repo/idxcache"
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
	ctx    context.Context
	cancel context.CancelCauseFunc
	tasks  *errgroup.Group

	srcMu   sync.RWMutex
	sources []*source
	hint    atomic.Int64 // where the last unit was found: its neighbours are there too
	proving singleflight.Group
	spare   sync.Pool // of *pack.Group

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

	progressMu sync.Mutex
}

// source is a pack manifest in which a writer looks for units.
type source struct {
	*index
	carried bool        // needed by the parent
	used    atomic.Bool // holds units of the new snapshot
	skip    sync.Map    // groups that could not be read now
	liar    atomic.Bool // a group is not what the index says
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
	if err := r.refreshKeys(ctx); err != nil {
		return nil, fmt.Errorf("begin snapshot: %w", err)
	}
	if err := r.enrolForWriting(ctx); err != nil {
		return nil, fmt.Errorf("begin snapshot: %w", err)
	}
	w := &Writer{
		repo: r, opts: o, limits: defaultLimits(), fresh: map[dr.UnitID]struct{}{}, lastPush: time.Now(),
		queue: make(chan *pack.Group), send: make(chan finished), bufs: make(chan []byte, uploadParallel+2),
	}
	if err := w.findSources(ctx); err != nil {
		w.release()
		return nil, fmt.Errorf("begin snapshot: %w", err)
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

const (
	// maxSources bounds the pack manifests in which units are looked for.
	maxSources = 256
	// sourceTries is how many snapshots of another system are tried until one is
	// valid.
	sourceTries = 4
)

func (w *Writer) findSources(ctx context.Context) error {
	r := w.repo
	lost, err := r.state.listLost()
	if err != nil {
		return err
	}
	if p := w.opts.Parent; p != nil {
		for _, d := range p.Needs {
			if lost[d] {
				return fmt.Errorf("parent %s: pack manifest %s was found not to be whole: %w", p.ID.Short(), d, ErrParentDamaged)
			}
		}
		ixs, err := r.idx.getAll(ctx, w.opts.Parent.needs)
		if err != nil && about(err) {
			return fmt.Errorf("parent %s: %w: %w", w.opts.Parent.ID.Short(), err, ErrParentDamaged)
		}
		if err != nil {
			return fmt.Errorf("parent %s: %w", w.opts.Parent.ID.Short(), err)
		}
		for _, ix := range ixs {
			w.sources = append(w.sources, &source{index: ix, carried: true})
		}
	}
	pending, err := w.pendingManifests(ctx)
	if err != nil {
		return err
	}
	others, err := w.otherSystems(ctx)
	if err != nil {
		return err
	}
	seen := map[digest.Digest]bool{}
	for _, s := range w.sources {
		seen[s.need.Digest] = true
	}
	var more []need
	for _, n := range append(pending, others...) {
		if !seen[n.Digest] && !lost[n.Digest] && len(seen) < maxSources {
			seen[n.Digest] = true
			more = append(more, n)
		}
	}
	return w.addSources(ctx, more)
}

// addSources opens indexes. What cannot be opened only costs sending again.
func (w *Writer) addSources(ctx context.Context, list []need) error {
	found := make([]*source, len(list))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(fetchParallel)
	for i, n := range list {
		g.Go(func() error {
			ix, err := w.repo.idx.get(gctx, n)
			switch {
			case err == nil:
				found[i] = &source{index: ix}
			case about(err):
				w.repo.log.Warn("not used for deduplication", "manifest", n.Digest, "error", err)
			default:
				return err
			}
			return nil
		})
	}
	err := g.Wait()
	for _, s := range found {
		if s != nil {
			w.sources = append(w.sources, s)
		}
	}
	return err
}

// pendingManifests returns what interrupted runs of this host left.
func (w *Writer) pendingManifests(ctx context.Context) ([]need, error) {
	list, err := w.repo.state.listPending()
	if err != nil {
		return nil, err
	}
	var out []need
	for d := range list {
		n := need{Digest: d}
		m, err := w.repo.st.GetManifest(ctx, n.tag())
		switch {
		case err == nil && m.Digest == d:
			n.Size = int64(len(m.Body))
			out = append(out, n)
		case err == nil || about(err): // collected meanwhile
			if err := w.repo.state.dropPending(d); err != nil {
				return nil, err
			}
		default:
			return nil, err
		}
	}
	return out, nil
}

// otherSystems returns what the newest valid snapshot of each system needs.
func (w *Writer) otherSystems(ctx context.Context) ([]need, error) {
	r := w.repo
	names, err := r.st.Tags(ctx, Tag{Class: ClassSnapshot}.prefix())
	if err != nil {
		return nil, err
	}
	tags, _ := parseTags(names)
	newest := map[dr.System][]Tag{}
	for _, t := range tags {
		newest[t.System] = append(newest[t.System], t)
	}
	var tries [][]Tag
	for _, list := range newest {
		slices.Reverse(list)
		tries = append(tries, list[:min(len(list), sourceTries)])
	}
	found := make([][]need, len(tries))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(listParallel)
	for i, list := range tries {
		g.Go(func() error {
			for _, t := range list {
				s, err := r.snapshot(gctx, t)
				if err == nil {
					found[i] = s.needs
					return nil
				}
				if !about(err) {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return slices.Concat(found...), nil
}

// Close ends the writer and frees it. What was put and not committed is given
// up; what was sent and named by a pack manifest is used by the next run of
// this host. It may be called more than once.
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
		w.groups.Done()
		w.cancel(ctx.Err())
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
		alone = &pack.Group{}
		alone.Add(ref.ID, data)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.fresh[ref.ID]; ok { // somebody else put it meanwhile
		w.countLocked(false, len(data))
		return nil
	}
	w.fresh[ref.ID] = struct{}{}
	w.countLocked(true, len(data))
	if alone != nil {
		return alone
	}
	g := w.open[kind]
	if g == nil {
		g = w.newGroup()
	} else if !g.Fits(len(data)) {
		full, g = g, w.newGroup()
	}
	g.Add(ref.ID, data)
	w.open[kind] = g
	return full
}

// find looks for a unit among what is stored. A unit of another host that was
// never read is read now if prove says so, and is not found else.
func (w *Writer) find(ctx context.Context, ref dr.UnitRef, prove bool) (*source, error) {
	w.srcMu.RLock()
	sources := w.sources
	w.srcMu.RUnlock()
	type unread struct {
		s     *source
		group uint32
	}
	var list []unread
	hint := int(w.hint.Load())
	for k := range sources {
		at := (hint + k) % len(sources)
		s := sources[at]
		loc, ok, err := s.Lookup(ref.ID)
		if err != nil {
			// The file is disposable: it is made anew by the next writer, and until
			// then its units are sent again.
			if errors.Is(err, idxcache.ErrDamaged) {
				w.repo.idx.drop(s.index)
			}
			continue
		}
		if !ok || loc.Len != ref.Len {
			continue
		}
		if s.wasRead(loc.Group) {
			w.hint.Store(int64(at))
			return s, nil
		}
		list = append(list, unread{s, loc.Group})
	}
	if !prove {
		return nil, nil
	}
	for _, u := range list {
		ok, err := w.prove(ctx, u.s, u.group)
		if err != nil {
			return nil, err
		}
		if ok {
			return u.s, nil
		}
	}
	return nil, nil
}

// prove reads a group of another host once and compares all its units with
// their ids. false means that it is not used: one's own copy is stored instead.
func (w *Writer) prove(ctx context.Context, s *source, group uint32) (bool, error) {
	if s.liar.Load() {
		return false, nil
	}
	if _, skip := s.skip.Load(group); skip {
		return false, nil
	}
	key := fmt.Sprintf("%s/%d", s.need.Digest, group)
	_, err, _ := w.proving.Do(key, func() (any, error) { return nil, w.readToProve(s, group) })
	if err == nil {
		return true, nil
	}
	if ferr := w.failure(ctx); ferr != nil {
		return false, ferr
	}
	s.skip.Store(group, true)
	w.repo.log.Warn("a group of another host is not used for deduplication", "manifest", s.need.Digest, "group", group, "error", err)
	return false, nil
}

func (w *Writer) readToProve(s *source, group uint32) error {
	if s.wasRead(group) {
		return nil
	}
	body, g, err := w.repo.readGroup(w.ctx, s.index, group)
	if err != nil {
		return err
	}
	w.mu.Lock()
	w.stats.BytesRead += int64(g.Sealed)
	w.mu.Unlock()
	err = w.repo.proveGroup(s.index, group, g, body)
	if err != nil && !s.liar.Swap(true) {
		// Nothing new relies upon the manifest from now on.
		return errors.Join(err, w.repo.state.setLost(s.need.Digest, true))
	}
	return err
}

// Have reports whether Put of this unit would send nothing and read nothing.
func (w *Writer) Have(id dr.UnitID) bool {
	if w.isFresh(id) {
		return true
	}
	w.srcMu.RLock()
	defer w.srcMu.RUnlock()
	for _, s := range w.sources {
		if loc, ok, err := s.Lookup(id); err == nil && ok && s.wasRead(loc.Group) {
			return true
		}
	}
	return false
}

// HaveAll reports whether all units are in the repository and may be relied
// upon without reading them; then the snapshot may reference them although
// they were not put.
func (w *Writer) HaveAll(refs []dr.UnitRef) bool {
	ok, err := w.reuse(context.Background(), refs, false)
	return ok && err == nil
}

// Reuse is HaveAll, and reads what only another host claims to have.
func (w *Writer) Reuse(ctx context.Context, refs []dr.UnitRef) (bool, error) {
	ok, err := w.reuse(ctx, refs, true)
	if err != nil {
		return false, fmt.Errorf("reuse units: %w", err)
	}
	return ok, nil
}

func (w *Writer) reuse(ctx context.Context, refs []dr.UnitRef, prove bool) (bool, error) {
	w.gate.RLock()
	defer w.gate.RUnlock()
	found := make([]*source, 0, len(refs))
	for _, ref := range refs {
		if w.isFresh(ref.ID) {
			continue
		}
		s, err := w.find(ctx, ref, prove)
		if err != nil || s == nil {
			return false, err
		}
		found = append(found, s)
	}
	for _, s := range found {
		s.used.Store(true)
	}
	return true, nil
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
