package repo

import (
	"container/list"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"

	"lifeboat/internal/dr"
	"lifeboat/internal/repo/idxcache"
	"lifeboat/internal/store"
)

// cachedGroups bounds the opened groups that a reader keeps, in bytes.
const cachedGroups = 64 << 20

// Reader gives the units of one snapshot back. Every unit is compared with its
// id before it is handed on (invariant 10). Safe for concurrent use. Close
// frees it.
type Reader struct {
	repo *Repo
	snap *Snapshot

	ixs atomic.Pointer[[]*index] // replaced as a whole, under mu

	damaged sync.Map // digests of packs that were found so

	elsewhereOnce sync.Once // looked for other places of the snapshot
	elsewhereMore bool

	mu     sync.Mutex
	old    []*index // replaced, still in use by somebody
	groups map[groupKey]*list.Element
	order  *list.List // of *cachedGroup, most recent first
	size   int
	busy   map[groupKey]*fetching
	broken map[groupKey]brokenGroup // groups that cannot be had; nil: not remembered
}

type groupKey struct {
	ix    *index
	group uint32
}

type cachedGroup struct {
	key  groupKey
	body []byte
}

type fetching struct {
	done chan struct{}
	body []byte
	err  error
}

// NewReader opens the indexes of the pack manifests that a snapshot needs, from
// the cache where they are there. Errors name the manifest and wrap
// dr.ErrTampered where it does not verify or is gone.
func (r *Repo) NewReader(ctx context.Context, snap *Snapshot) (*Reader, error) {
	rd := r.readerOf(snap, nil)
	ixs, err := r.idx.getAll(ctx, snap.needs)
	if err != nil && about(err) && ctx.Err() == nil {
		// It may lie elsewhere by now, or still where it lay before.
		if rd.elsewhere(ctx) {
			return rd, nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open snapshot %s (%s): %w", snap.ID.Short(), snap.Tag, err)
	}
	rd.ixs.Store(&ixs)
	return rd, nil
}

// readerOf makes a reader of open indexes, which it gives back when it is closed.
func (r *Repo) readerOf(snap *Snapshot, ixs []*index) *Reader {
	rd := &Reader{
		repo: r, snap: snap,
		groups: map[groupKey]*list.Element{}, order: list.New(), busy: map[groupKey]*fetching{},
	}
	rd.ixs.Store(&ixs)
	return rd
}

// Snapshot is what the reader reads.
func (rd *Reader) Snapshot() *Snapshot { return rd.snap }

// Close frees the reader and remembers which foreign groups were read. No other
// call may run or follow.
func (rd *Reader) Close() {
	rd.mu.Lock()
	defer rd.mu.Unlock()
	for _, ix := range slices.Concat(rd.indexes(), rd.old) {
		if err := rd.repo.saveRead(ix); err != nil {
			rd.repo.log.Warn("what was read is not remembered", "error", err)
		}
		rd.repo.idx.put(ix)
	}
	rd.ixs.Store(&[]*index{})
	rd.old, rd.groups = nil, nil
	rd.order.Init()
}

// Root returns the root record, compared with what the commit record says.
func (rd *Reader) Root(ctx context.Context) (*dr.Root, error) {
	b, err := rd.Unit(ctx, rd.snap.Root)
	if err != nil {
		return nil, fmt.Errorf("root record: %w", err)
	}
	var root dr.Root
	if err := json.Unmarshal(b, &root); err != nil {
		return nil, fmt.Errorf("root record of snapshot %s: %w: %w", rd.snap.ID.Short(), err, dr.ErrTampered)
	}
	s := rd.snap
	switch {
	case root.Format != dr.RootFormat:
		return nil, fmt.Errorf("root record of snapshot %s: format %d; this version of Lifeboat knows %d, use a newer one", s.ID.Short(), root.Format, dr.RootFormat)
	case root.Repo != rd.repo.ID() || root.System != s.System || root.Site != s.Site || root.Epoch != s.Epoch || root.Kind != s.Kind || !root.Created.Equal(s.Created):
		return nil, fmt.Errorf("root record of snapshot %s is not what its commit record says: %w", s.ID.Short(), dr.ErrTampered)
	}
	return &root, nil
}

// Unit returns the bytes of a unit. Opened groups are kept, up to 64 MiB, so
// that neighbours cost nothing. The caller must not write to what it gets. The
// error names unit and snapshot and wraps dr.ErrTampered where what is stored
// does not verify.
func (rd *Reader) Unit(ctx context.Context, ref dr.UnitRef) ([]byte, error) {
	data, err := rd.tryUnit(ctx, ref)
	if err != nil && about(err) && ctx.Err() == nil && rd.elsewhere(ctx) {
		data, err = rd.tryUnit(ctx, ref)
	}
	if err == nil {
		return data, nil
	}
	return nil, fmt.Errorf("unit %s of snapshot %s (%s): %w", ref.ID, rd.snap.ID.Short(), rd.snap.Tag, err)
}

func (rd *Reader) tryUnit(ctx context.Context, ref dr.UnitRef) (data []byte, err error) {
	for try := range unitTries {
		if data, err = rd.unit(ctx, ref, try == unitTries-1); err == nil {
			return data, nil
		}
		if ctx.Err() != nil || errors.Is(err, store.ErrNotFound) {
			break
		}
	}
	return nil, err
}

// unitTries is how often all places of a unit are tried: what was altered on
// the way once need not be the second time.
const unitTries = 2

// unit tries every pack manifest that has a unit. The last try remembers which packs
// are damaged.
func (rd *Reader) unit(ctx context.Context, ref dr.UnitRef, last bool) ([]byte, error) {
	var errs []error
	for i := range rd.indexes() {
		ix, loc, ok, err := rd.lookup(ctx, i, ref.ID)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if !ok {
			continue
		}
		data, err := rd.unitAt(ctx, ix, loc, ref)
		if err == nil {
			return data, nil
		}
		if ctx.Err() != nil {
			return nil, err
		}
		if last {
			rd.noteDamaged(ix, loc.Group, err)
		}
		errs = append(errs, err) // another manifest may have it too
	}
	if len(errs) == 0 {
		return nil, tampered("none of its pack manifests has it")
	}
	return nil, &placesError{errs}
}

// noteDamaged remembers, as a verification does, that this host has found a pack
// damaged: check names it, and repair mends it. Both read it again before they
// believe it. What is not there at all they see for themselves.
func (rd *Reader) noteDamaged(ix *index, group uint32, err error) {
	if !errors.Is(err, dr.ErrTampered) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, store.ErrDigestMismatch) {
		return
	}
	g, err := ix.Group(group)
	if err != nil {
		return // the index's cache is what is damaged, and is made anew
	}
	p, err := ix.Pack(g.Pack)
	if err != nil {
		return
	}
	if _, told := rd.damaged.LoadOrStore(p.Digest, true); !told {
		rd.repo.notePack(p.Digest, false)
	}
}

func (rd *Reader) indexes() []*index {
	if ixs := rd.ixs.Load(); ixs != nil {
		return *ixs
	}
	return nil
}

// lookup asks index number i for a unit. A cache file that turns out to be
// damaged is made anew once.
func (rd *Reader) lookup(ctx context.Context, i int, id dr.UnitID) (*index, idxcache.Location, bool, error) {
	ix := rd.indexes()[i]
	loc, ok, err := ix.Lookup(id)
	if err == nil || !errors.Is(err, idxcache.ErrDamaged) {
		return ix, loc, ok, err
	}
	rd.repo.log.Warn("index cache is made anew", "manifest", ix.need.Digest, "error", err)
	rd.repo.idx.drop(ix)
	fresh, err := rd.repo.idx.get(ctx, ix.need)
	if err != nil {
		return nil, loc, false, err
	}
	rd.mu.Lock()
	ixs := slices.Clone(rd.indexes())
	rd.old = append(rd.old, ixs[i])
	ixs[i] = fresh
	rd.ixs.Store(&ixs)
	rd.mu.Unlock()
	loc, ok, err = fresh.Lookup(id)
	return fresh, loc, ok, err
}

func (rd *Reader) unitAt(ctx context.Context, ix *index, loc idxcache.Location, ref dr.UnitRef) ([]byte, error) {
	body, err := rd.group(ctx, groupKey{ix, loc.Group})
	if err != nil {
		return nil, err
	}
	return rd.repo.cutUnit(ix, body, loc, ref)
}

// cutUnit takes a unit out of an opened group and compares it with its id.
func (r *Repo) cutUnit(ix *index, body []byte, loc idxcache.Location, ref dr.UnitRef) ([]byte, error) {
	end := uint64(loc.Offset) + uint64(loc.Len)
	if loc.Len != ref.Len || end > uint64(len(body)) {
		return nil, tampered("pack manifest %s has it with another length", ix.need.Digest)
	}
	data := body[loc.Offset:end:end]
	if r.UnitID(data) != ref.ID {
		return nil, tampered("pack manifest %s promises it where other bytes are", ix.need.Digest)
	}
	return data, nil
}

// group returns an opened group, fetching it once however many ask.
func (rd *Reader) group(ctx context.Context, k groupKey) ([]byte, error) {
	for {
		rd.mu.Lock()
		if e := rd.groups[k]; e != nil {
			rd.order.MoveToFront(e)
			rd.mu.Unlock()
			return e.Value.(*cachedGroup).body, nil
		}
		if b := rd.broken[k]; b.tries >= unitTries {
			rd.mu.Unlock()
			return nil, b.err
		}
		f := rd.busy[k]
		if f == nil {
			f = &fetching{done: make(chan struct{})}
			rd.busy[k] = f
			rd.mu.Unlock()
			rd.fetch(ctx, k, f)
			return f.body, f.err
		}
		rd.mu.Unlock()
		select {
		case <-f.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if f.err == nil {
			return f.body, nil
		}
		// The other caller may have failed because it was cancelled: try again.
		if !errors.Is(f.err, context.Canceled) && !errors.Is(f.err, context.DeadlineExceeded) {
			return nil, f.err
		}
	}
}

func (rd *Reader) fetch(ctx context.Context, k groupKey, f *fetching) {
	body, g, elsewhere, err := rd.repo.findGroup(ctx, k.ix, k.group)
	if err == nil && !elsewhere {
		rd.note(k, g, body)
	}
	f.body, f.err = body, err
	rd.mu.Lock()
	defer rd.mu.Unlock()
	delete(rd.busy, k)
	close(f.done)
	if err != nil {
		rd.remember(k, err)
		return
	}
	rd.groups[k] = rd.order.PushFront(&cachedGroup{k, body})
	rd.size += len(body)
	for rd.size > cachedGroups && rd.order.Len() > 1 {
		last := rd.order.Remove(rd.order.Back()).(*cachedGroup)
		delete(rd.groups, last.key)
		rd.size -= len(last.body)
	}
}

// note proves a foreign group while it is at hand, so that this host need not
// send its units again when it writes them (docs/adr/0002). A lie in it does
// not concern the units that are true.
func (rd *Reader) note(k groupKey, g idxcache.Group, body []byte) {
	if k.ix.read == nil || k.ix.wasRead(k.group) {
		return
	}
	if err := rd.repo.proveGroup(k.ix, k.group, g, body); err != nil {
		rd.repo.log.Warn("a group is not used for deduplication", "error", err)
	}
}
