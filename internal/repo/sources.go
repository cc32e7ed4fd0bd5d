package repo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"lifeboat/internal/dr"
	"lifeboat/internal/repo/idxcache"
)

// source is a pack manifest in which a writer looks for units.
type source struct {
	*index
	carried bool        // needed by the parent
	used    atomic.Bool // holds units of the new snapshot
	skip    sync.Map    // groups that could not be read now
	liar    atomic.Bool // a group is not what the index says
	// hurt: the manifest is not whole, and units are found in its sound packs only,
	// those that are not in without. A snapshot names another manifest of these in
	// its place (replaceHurt).
	hurt    bool
	without map[uint32]bool
}

const (
	// maxSources bounds the pack manifests in which units are looked for.
	maxSources = 256
	// sourceTries is how many snapshots of another system are tried until one is
	// valid.
	sourceTries = 4
)

func (w *Writer) findSources(ctx context.Context) error { return w.findIn(ctx, true) }

// findWhole is findSources that leaves out pack manifests which are not whole.
func (w *Writer) findWhole(ctx context.Context) error { return w.findIn(ctx, false) }

func (w *Writer) findIn(ctx context.Context, hurtToo bool) error {
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
		if r.knownBad(p.Digest) {
			return fmt.Errorf("parent %s: it was found not to be complete: %w", p.ID.Short(), ErrParentDamaged)
		}
		ixs, err := r.idx.getAll(ctx, w.opts.Parent.needs)
		if err != nil && about(err) {
			return fmt.Errorf("parent %s: %w: %w", w.opts.Parent.ID.Short(), err, ErrParentDamaged)
		}
		if err != nil {
			return fmt.Errorf("parent %s: %w", w.opts.Parent.ID.Short(), err)
		}
		var foreign []*index
		for _, ix := range ixs { // all of them, so that they are given back
			w.sources = append(w.sources, &source{index: ix, carried: true})
			if !ix.allRead() {
				foreign = append(foreign, ix)
			}
		}
		known := r.badPacks()
		for _, ix := range ixs {
			bad, err := known.of(ix)
			if err != nil {
				return err
			}
			if len(bad) > 0 { // an examination that was cut off has found it
				return fmt.Errorf("parent %s: packs of pack manifest %s were found damaged: %w", p.ID.Short(), ix.need.Digest, ErrParentDamaged)
			}
		}
		if len(foreign) > 0 {
			r.inheritRead(foreign)
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
		if !seen[n.Digest] && (hurtToo || !lost[n.Digest]) && len(seen) < maxSources {
			seen[n.Digest] = true
			more = append(more, n)
		}
	}
	return w.addSources(ctx, more, lost, hurtToo)
}

// addSources opens indexes. What cannot be opened only costs sending again. Of
// what is not whole the sound packs are used, or with hurtToo unset nothing.
func (w *Writer) addSources(ctx context.Context, list []need, lost map[digest.Digest]bool, hurtToo bool) error {
	found, known := make([]*source, len(list)), w.repo.badPacks()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(fetchParallel)
	for i, n := range list {
		g.Go(func() error {
			ix, err := w.repo.idx.get(gctx, n)
			switch {
			case err == nil:
				found[i] = &source{index: ix}
				bad, err := known.of(ix)
				if err != nil || !lost[n.Digest] && len(bad) == 0 {
					return err
				}
				if !hurtToo {
					found[i] = nil
					w.repo.idx.put(ix)
					return nil
				}
				return w.lookHurt(gctx, found[i], bad)
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
		m, err := w.repo.primary().GetManifest(ctx, n.tag())
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
	places, _, err := r.listPlaces(ctx, "")
	if err != nil {
		return nil, err
	}
	newest := map[dr.System][]place{}
	for _, p := range places {
		newest[p.system] = append(newest[p.system], p)
	}
	var tries [][]place
	for _, list := range newest {
		slices.Reverse(list)
		tries = append(tries, list[:min(len(list), sourceTries)])
	}
	found := make([]*Snapshot, len(tries))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(listParallel)
	for i, list := range tries {
		g.Go(func() error {
			for _, p := range list {
				s, _, err := r.readPlace(gctx, p)
				if err != nil {
					return err
				}
				if s != nil {
					found[i] = s
					return nil
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	var out []need
	for _, s := range found {
		if s != nil && s.System != w.opts.System {
			w.others = append(w.others, s)
		}
		if s != nil {
			out = append(out, s.needs...)
		}
	}
	return out, nil
}

// Others returns the newest snapshot of each other system, as far as they verify:
// what units are looked for in beside the parent. Copied snapshots may be among
// them.
func (w *Writer) Others() []*Snapshot { return w.others }

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
		group, ok, err := s.locate(ref)
		if err != nil {
			// The file is disposable: it is made anew by the next writer, and until
			// then its units are sent again.
			if errors.Is(err, idxcache.ErrDamaged) {
				w.repo.idx.drop(s.index)
			}
			continue
		}
		if !ok {
			continue
		}
		if s.wasRead(group) {
			w.hint.Store(int64(at))
			return s, nil
		}
		list = append(list, unread{s, group})
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

// errElsewhere: a mirror gave what the primary did not, so one's own copy has to
// be stored there.
var errElsewhere = errors.New("the primary registry does not give it")

func (w *Writer) readToProve(s *source, group uint32) error {
	if s.wasRead(group) {
		return nil
	}
	body, g, elsewhere, err := w.repo.findGroup(w.ctx, s.index, group)
	if err != nil {
		return err
	}
	if elsewhere {
		return errElsewhere
	}
	w.mu.Lock()
	w.stats.BytesRead += int64(g.Sealed)
	w.mu.Unlock()
	err = w.repo.proveGroup(s.index, group, g, body)
	if err != nil && !s.liar.Swap(true) {
		// Nothing new relies upon the manifest from now on.
		if p, perr := s.Pack(g.Pack); perr == nil {
			w.repo.notePack(p.Digest, false)
		}
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
		if loc, ok, err := s.Lookup(id); err == nil && ok && s.usable(loc.Group) && s.wasRead(loc.Group) {
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
