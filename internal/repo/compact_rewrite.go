package repo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"lifeboat/internal/dr"
	"lifeboat/internal/pack"
	"lifeboat/internal/repo/idxcache"
)

// compactionRuns is what pending manifests of compaction are noted under, in
// place of a system.
const compactionRuns dr.System = "*compaction"

// errNotWhole: something that compaction has to read does not verify.
var errNotWhole = errors.New("it cannot be rewritten")

// rewriter stores the live units of packs again. What an interrupted run of this
// host has stored is found and used.
type rewriter struct {
	repo  *Repo
	w     *Writer
	count *counter // of what component.cost says is read
}

func (r *Repo) newRewriter(ctx context.Context) (*rewriter, error) {
	w, err := r.newWriter(ctx, WriterOptions{System: compactionRuns}, func(w *Writer, ctx context.Context) error {
		pending, err := r.state.listPending()
		if err != nil {
			return err
		}
		list, err := w.pendingManifests(ctx)
		if err != nil {
			return err
		}
		// What other runs have left may be large, and would be named as a whole.
		list = slices.DeleteFunc(list, func(n need) bool { return pending[n.Digest] != compactionRuns })
		return w.addSources(ctx, list, nil, false)
	})
	if err != nil {
		return nil, err
	}
	return &rewriter{repo: r, w: w}, nil
}

// component stores what is live of the chosen packs of a component, makes sure
// of those that are kept, and pushes one manifest of all of them. zero where
// nothing is live at all. errNotWhole where a unit or group does not verify.
func (rw *rewriter) component(ctx context.Context, c *component) (n need, read int64, err error) {
	for _, p := range c.kept {
		if p.unproven > 0 {
			if err := rw.prove(ctx, p); err != nil {
				return n, read, err
			}
			read += p.unproven
			rw.count.add(p.unproven)
		}
	}
	for _, p := range c.chosen {
		if p.live == 0 {
			continue
		}
		got, err := rw.pack(ctx, p)
		read += got
		rw.count.add(p.live) // as in component.cost
		if err != nil {
			return n, read, err
		}
	}
	if n, err = rw.w.finishPacks(ctx, c.kept); err == nil {
		err = rw.holdsAll(ctx, c, n)
	}
	return n, read, err
}

// holdsAll makes sure that every live unit of the manifests that are to be replaced
// is in the new one before anything is relocated there: older tags go after that
// (invariant 2).
func (rw *rewriter) holdsAll(ctx context.Context, c *component, n need) error {
	var ix *index
	if n != (need{}) {
		var err error
		if ix, err = rw.repo.idx.get(ctx, n); err != nil {
			return err
		}
		defer rw.repo.idx.put(ix)
	}
	seen := map[*usedPack]bool{}
	for _, m := range c.manifests {
		for _, p := range m.packs {
			if seen[p] {
				continue
			}
			seen[p] = true
			err := p.eachLive(func(ref dr.UnitRef) error {
				if ix != nil {
					loc, ok, err := ix.Lookup(ref.ID)
					if err != nil || ok && loc.Len == ref.Len {
						return err
					}
				}
				return fmt.Errorf("unit %s of pack %s is used and would not be in what takes its place (%s): %w", ref.ID, digestOf(p.Digest), n.Digest, errNotWhole)
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// prove reads the groups of a pack of another host that this host has not read:
// the new index bears this host's signature.
func (rw *rewriter) prove(ctx context.Context, p *usedPack) error {
	err := rw.groups(ctx, p, func(group uint32, _ idxcache.Group) (bool, error) {
		return !p.in.wasRead(group), nil
	}, func(group uint32, g idxcache.Group, body []byte) error {
		return rw.repo.proveGroup(p.in.index, group, g, body)
	})
	if err != nil {
		return err
	}
	return rw.repo.saveRead(p.in.index)
}

// pack reads the groups of a pack that hold live units and puts these.
func (rw *rewriter) pack(ctx context.Context, p *usedPack) (read int64, err error) {
	wanted := func(_ uint32, g idxcache.Group) (bool, error) {
		n, err := p.in.livePlain(g)
		return n > 0, err
	}
	err = rw.groups(ctx, p, wanted, func(_ uint32, g idxcache.Group, body []byte) error {
		read += int64(g.Sealed)
		units, err := p.in.UnitsOf(g)
		if err != nil {
			return err
		}
		at := 0
		for i, ref := range units {
			end := at + int(ref.Len)
			if end > len(body) {
				return fmt.Errorf("unit %s: %w", ref.ID, tampered("its group is shorter than the index says"))
			}
			if p.in.isLive(g.FirstUnit + uint32(i)) {
				data := body[at:end]
				if rw.repo.UnitID(data) != ref.ID {
					return fmt.Errorf("unit %s: %w", ref.ID, tampered("other bytes are where the index promises it"))
				}
				if _, err := rw.w.Put(ctx, data); err != nil {
					return err
				}
			}
			at = end
		}
		return nil
	})
	return read, err
}

// groups reads the groups of a pack that are wanted, neighbours in one request.
func (rw *rewriter) groups(ctx context.Context, p *usedPack, wanted func(uint32, idxcache.Group) (bool, error), use func(uint32, idxcache.Group, []byte) error) error {
	r := rw.repo
	o, err := r.opener(ctx, p.Header)
	if err != nil {
		return err
	}
	var run []uint32
	var first, last idxcache.Group
	flush := func() error {
		if len(run) == 0 {
			return nil
		}
		err := r.readRun(ctx, p, o, run, first, last, use)
		run = run[:0]
		return err
	}
	for i := range p.Groups {
		group := p.FirstGroup + i
		g, err := p.in.Group(group)
		if err != nil {
			return err
		}
		ok, err := wanted(group, g)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		if len(run) > 0 && g.Offset-(last.Offset+last.Sealed) > fetchGap {
			if err := flush(); err != nil {
				return err
			}
		}
		if len(run) == 0 {
			first = g
		}
		run, last = append(run, group), g
	}
	return flush()
}

// readRun reads groups of a pack that lie close to each other.
func (r *Repo) readRun(ctx context.Context, p *usedPack, o *pack.Opener, run []uint32, first, last idxcache.Group, use func(uint32, idxcache.Group, []byte) error) (err error) {
	fail := func(err error) error {
		if unwalkable(err) {
			return fmt.Errorf("pack %s: %w: %w", digestOf(p.Digest), errNotWhole, err)
		}
		return fmt.Errorf("pack %s: %w", digestOf(p.Digest), err)
	}
	src, err := r.st.GetBlob(ctx, digestOf(p.Digest), p.Size, int64(first.Offset), int64(last.Offset)+int64(last.Sealed)-int64(first.Offset))
	if err != nil {
		return fail(err)
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	at := first.Offset
	var sealed, body []byte
	for _, group := range run {
		g, err := p.in.Group(group)
		if err != nil {
			return err
		}
		if _, err := io.CopyN(io.Discard, src, int64(g.Offset-at)); err != nil {
			return fail(err)
		}
		if cap(sealed) < int(g.Sealed) {
			sealed = make([]byte, g.Sealed)
		}
		sealed = sealed[:g.Sealed]
		if _, err := io.ReadFull(src, sealed); err != nil {
			return fail(err)
		}
		at = g.Offset + g.Sealed
		if body, err = o.Open(body[:0], int(g.Number), sealed, int(g.Plain)); err != nil {
			return fail(err)
		}
		if err := use(group, g, body); err != nil {
			if unwalkable(err) {
				return fail(err)
			}
			return err
		}
	}
	return nil
}

// finishPacks sends what was put and pushes one manifest that names the packs
// that were made for it, those of earlier runs in which units were found, and
// those that are kept.
func (w *Writer) finishPacks(ctx context.Context, kept []*usedPack) (need, error) {
	w.gate.Lock()
	defer w.gate.Unlock()
	if err := w.drain(ctx); err != nil {
		return need{}, err
	}
	w.pushMu.Lock()
	defer w.pushMu.Unlock()
	infos, journals := w.takeDone()
	type place struct {
		ix *idxcache.Index
		p  idxcache.Pack
	}
	var named []place
	seen := map[[32]byte]bool{}
	add := func(ix *idxcache.Index, p idxcache.Pack) {
		if !seen[p.Digest] {
			seen[p.Digest] = true
			named = append(named, place{ix, p})
		}
	}
	for _, p := range kept {
		add(p.in.Index, p.Pack)
	}
	for _, s := range w.needed() {
		for i := range uint32(s.Packs()) {
			p, err := s.Pack(i)
			if err != nil {
				return need{}, err
			}
			add(s.Index, p)
		}
		s.used.Store(false) // for this component
	}
	var packs []blob
	for _, n := range named {
		packs = append(packs, blob{digestOf(n.p.Digest), n.p.Size})
	}
	packs = append(packs, infoPacks(infos)...)
	if len(packs) == 0 {
		return need{}, nil
	}
	if len(packs) > pack.MaxPacks {
		return need{}, fmt.Errorf("%d packs are too many for one manifest: %w", len(packs), errNotWhole)
	}
	s, err := w.pushManifest(ctx, packs, func(v pack.Visitor) error {
		for _, n := range named {
			if err := visitCached(v, n.ix, n.p); err != nil {
				return err
			}
		}
		return visit(v, infos)
	})
	if err != nil {
		w.giveBack(infos, journals)
		return need{}, err
	}
	w.removeJournals(journals)
	// The next component stores what it needs by itself: to find it here would
	// mean to name all these packs.
	w.repo.idx.put(s.index)
	w.mu.Lock()
	clear(w.fresh)
	w.mu.Unlock()
	return s.need, nil
}
