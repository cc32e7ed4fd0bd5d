package repo

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"

	"lifeboat/internal/dr"
	"lifeboat/internal/repo/idxcache"
)

// usage says what of each pack the visible snapshots use. Its indexes stay
// mapped until close; beside them it holds one bit a unit and about 200 bytes a
// pack.
type usage struct {
	repo *Repo
	// manifests are those that snapshots need, oldest first; byDigest finds them.
	manifests []*usedManifest
	byDigest  map[digest.Digest]*usedManifest
	packs     []*usedPack
	byPack    map[[sha256.Size]byte]*usedPack
	// cover are manifests that together name every pack.
	cover []*coverIndex
}

// usedManifest is a pack manifest that snapshots need.
type usedManifest struct {
	need
	home  dr.System // of the first snapshot that needs it
	snaps []*Snapshot
	packs []*usedPack
	// pinned: something needs it that cannot be relocated.
	pinned bool
}

// coverIndex is an open index with a bit for each unit that is live.
type coverIndex struct {
	*index
	live []uint64
}

func (c *coverIndex) isLive(unit uint32) bool { return c.live[unit/64]&(1<<(unit%64)) != 0 }

// usedPack is one pack, whichever manifests name it.
type usedPack struct {
	idxcache.Pack
	in    *coverIndex // that it is number ... of
	names []*usedManifest
	// live is how many sealed bytes hold live units, by their share of each group;
	// zero only where no unit is live at all.
	live int64
	// unproven is how many sealed bytes lie in groups of another host that this
	// host has not read.
	unproven int64
	pinned   bool
	order    int // of the first manifest that names it, and within
}

func (p *usedPack) dead() int64 { return max(p.Size-p.live, 0) }

func (u *usage) close() {
	for _, c := range u.cover {
		u.repo.idx.put(c.index)
	}
	u.cover = nil
}

// newUsage opens the indexes of what snapshots need. A manifest that cannot be
// opened is pinned, and so is everything that shares a pack with it: what is in
// it is not known.
func (r *Repo) newUsage(ctx context.Context, snaps []*Snapshot) (*usage, error) {
	u := &usage{repo: r, byDigest: map[digest.Digest]*usedManifest{}, byPack: map[[sha256.Size]byte]*usedPack{}}
	for _, s := range snaps {
		for _, n := range s.needs {
			m := u.byDigest[n.Digest]
			if m == nil {
				m = &usedManifest{need: n, home: s.System}
				u.byDigest[n.Digest] = m
				u.manifests = append(u.manifests, m)
			}
			m.snaps = append(m.snaps, s)
		}
	}
	// The largest first: those that were merged name the packs of many.
	type sized struct {
		m     *usedManifest
		packs int
	}
	var list []sized
	for _, m := range u.manifests {
		n, err := u.count(ctx, m)
		if err != nil {
			u.close()
			return nil, err
		}
		if n > 0 {
			list = append(list, sized{m, n})
		}
	}
	slices.SortStableFunc(list, func(a, b sized) int { return cmp.Compare(b.packs, a.packs) })
	for _, l := range list {
		if err := u.add(ctx, l.m); err != nil {
			u.close()
			return nil, err
		}
	}
	u.arrange()
	return u, nil
}

// count returns how many packs a manifest names, 0 where it cannot be opened.
func (u *usage) count(ctx context.Context, m *usedManifest) (int, error) {
	ix, err := u.repo.idx.get(ctx, m.need)
	if err != nil && unwalkable(err) {
		u.repo.log.Warn("a pack manifest cannot be opened and is left as it is", "manifest", m.Digest, "error", err)
		m.pinned = true
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer u.repo.idx.put(ix)
	return ix.Packs(), nil
}

// add takes up the packs of a manifest, and its index where it is the first to
// name one of them.
func (u *usage) add(ctx context.Context, m *usedManifest) error {
	ix, err := u.repo.idx.get(ctx, m.need)
	if err != nil {
		return err
	}
	var cover *coverIndex
	defer func() {
		if cover == nil {
			u.repo.idx.put(ix)
		}
	}()
	for i := range uint32(ix.Packs()) {
		p, err := ix.Pack(i)
		if err != nil {
			return err
		}
		known := u.byPack[p.Digest]
		if known == nil {
			if cover == nil {
				cover = &coverIndex{index: ix, live: make([]uint64, (ix.Units()+63)/64)}
				u.cover = append(u.cover, cover)
			}
			known = &usedPack{Pack: p, in: cover}
			u.byPack[p.Digest] = known
		} else if same, err := sameGroups(packUse{known.in.index, known.Pack}, packUse{ix, p}); err != nil || !same {
			// Two indexes that speak of one pack differently: one of them lies.
			known.pinned, m.pinned = true, true
			if err != nil {
				return err
			}
		}
		unread, err := ix.unread(p)
		if err != nil {
			return err
		}
		if len(known.names) == 0 || unread < known.unproven {
			known.unproven = unread
		}
		known.names = append(known.names, m)
		m.packs = append(m.packs, known)
	}
	return nil
}

// unread is how many sealed bytes of a pack lie in groups that may not be relied
// upon yet.
func (ix *index) unread(p idxcache.Pack) (n int64, err error) {
	if ix.own {
		return 0, nil
	}
	for g := range p.Groups {
		if ix.wasRead(p.FirstGroup + g) {
			continue
		}
		info, err := ix.Group(p.FirstGroup + g)
		if err != nil {
			return 0, err
		}
		n += int64(info.Sealed)
	}
	return n, nil
}

// arrange orders the packs by age: what was written together lies together.
func (u *usage) arrange() {
	n := 0
	for _, m := range u.manifests {
		for _, p := range m.packs {
			if p.order == 0 {
				n++
				p.order = n
				u.packs = append(u.packs, p)
			}
		}
	}
}

// mark notes that a unit is used, wherever it lies.
func (u *usage) mark(id dr.UnitID) error {
	for _, c := range u.cover {
		err := c.Positions(id, func(unit uint32) { c.live[unit/64] |= 1 << (unit % 64) })
		if err != nil {
			u.repo.idx.drop(c.index)
			return fmt.Errorf("index cache of %s, which the next run makes anew: %w", c.need.Digest, err)
		}
	}
	return nil
}

// pin keeps manifests from being replaced: whatever lists them cannot be told
// where their units went.
func (u *usage) pin(list []digest.Digest) {
	for _, d := range list {
		if m := u.byDigest[d]; m != nil {
			m.pinned = true
		}
	}
}

// measure computes what of each pack is live, and which packs must stay.
func (u *usage) measure() error {
	for _, p := range u.packs {
		for _, m := range p.names {
			p.pinned = p.pinned || m.pinned
		}
		p.live = 0
		for i := range p.Groups {
			g, err := p.in.Group(p.FirstGroup + i)
			if err != nil {
				return err
			}
			live, err := p.in.livePlain(g)
			if err != nil {
				return err
			}
			if g.Plain > 0 { // rounded up: a share of less than a byte is not nothing
				p.live += (int64(g.Sealed)*live + int64(g.Plain) - 1) / int64(g.Plain)
			}
		}
	}
	return nil
}

// livePlain is how many bytes of a group's body live units have.
func (c *coverIndex) livePlain(g idxcache.Group) (n int64, err error) {
	err = c.eachLive(g, func(ref dr.UnitRef) error {
		n += int64(ref.Len)
		return nil
	})
	return n, err
}

// eachLive calls fn for each live unit of a group.
func (c *coverIndex) eachLive(g idxcache.Group, fn func(dr.UnitRef) error) error {
	units, err := c.UnitsOf(g)
	if err != nil {
		return err
	}
	for i, ref := range units {
		if !c.isLive(g.FirstUnit + uint32(i)) {
			continue
		}
		if err := fn(ref); err != nil {
			return err
		}
	}
	return nil
}

// eachLive calls fn for each live unit of a pack.
func (p *usedPack) eachLive(fn func(dr.UnitRef) error) error {
	for i := range p.Groups {
		g, err := p.in.Group(p.FirstGroup + i)
		if err == nil {
			err = p.in.eachLive(g, fn)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
