package repo

import (
	"cmp"
	"slices"

	"lifeboat/internal/pack"
)

const (
	// smallPack is the size, in bytes, below which a pack counts as small.
	smallPack = pack.TargetSize / 4
	// manySmall is how many small packs of one system are worth joining, if their
	// bytes do not fill a pack before.
	manySmall = 64
	// worthSnapshot is how many bytes must come back for each snapshot that is
	// relocated, and worthPack what a pack less counts: requests cost too.
	worthSnapshot = 16 << 10
	worthPack     = 64 << 10
)

// CompactOptions say when packs are rewritten.
type CompactOptions struct {
	// MaxUnused is the share of the bytes of needed packs that may be unused
	// afterwards, 0 to 1.
	MaxUnused float64
	// MaxRepack bounds the bytes that one run reads to rewrite packs, 0 means no
	// bound. What is left is for the next run; at least one pack is rewritten.
	MaxRepack int64

	// eager does what it can, whether worth it or not: for tests with few bytes.
	eager bool
}

// Compaction is what compaction found and did.
type Compaction struct {
	// Bytes are those of the packs that snapshots need, Unused what of them no
	// snapshot uses, Packs and Small how many there are and how many of these are
	// small.
	Bytes, Unused int64
	Packs, Small  int
	// Chosen packs are rewritten; ChosenBytes are theirs, and LiveBytes what of
	// them is used and stored again. Removed packs hold nothing that is used.
	Chosen, Removed        int
	ChosenBytes, LiveBytes int64
	// Proving is what has to be read of other hosts' packs that stay, before this
	// host may vouch for them.
	Proving int64
	// Snapshots are to be relocated; Relocated were.
	Snapshots, Relocated int
	// Dropped counts older tags of relocated snapshots that were removed.
	Dropped int
	// Read and Sent are the bytes that went over the wire.
	Read, Sent int64
	// Left are packs that are worth rewriting and were left to the next run.
	Left int
	// Unchanged: nothing has changed since a run that found nothing to do, so
	// nothing was looked at.
	Unchanged bool
	// Problems are snapshots and packs that were left as they are because they
	// are not whole.
	Problems []Problem
}

// component is what is rewritten in one go: manifests that share packs that are
// chosen, and those packs.
type component struct {
	manifests []*usedManifest
	chosen    []*usedPack
	kept      []*usedPack
	snaps     []*Snapshot
}

// choose picks the packs to rewrite: those of which the most is dead, until no
// more is unused than may be, and small ones where there are many. Packs without
// anything live come for nothing.
func (u *usage) choose(o CompactOptions, result *Compaction) []*component {
	var eligible []*usedPack
	small := map[string][]*usedPack{}
	for _, p := range u.packs {
		result.Packs++
		result.Bytes += p.Size
		result.Unused += p.dead()
		if p.Size < smallPack {
			result.Small++
		}
		if p.pinned {
			continue
		}
		eligible = append(eligible, p)
		if p.Size < smallPack {
			home := string(p.names[0].home)
			small[home] = append(small[home], p)
		}
	}
	want := map[*usedPack]bool{}
	slices.SortStableFunc(eligible, func(a, b *usedPack) int {
		return cmp.Compare(float64(b.dead())/float64(b.Size), float64(a.dead())/float64(a.Size))
	})
	allowed := result.Bytes
	if o.MaxUnused < 1 {
		allowed = int64(float64(result.Bytes-result.Unused) * o.MaxUnused / (1 - o.MaxUnused))
	}
	unused := result.Unused
	for _, p := range eligible {
		if unused <= allowed || p.dead() <= p.Size/20 { // padding and rounding are no gain
			break
		}
		want[p] = true
		unused -= p.dead()
	}
	for _, list := range small {
		size := int64(0)
		for _, p := range list {
			size += p.live
		}
		if len(list) < 2 || len(list) < manySmall && size < pack.TargetSize && !o.eager {
			continue
		}
		for _, p := range list {
			want[p] = true
		}
	}
	return u.affordable(want, o, result)
}

// affordable makes components of what is wanted, the most gain for what is read
// first, until the bound is reached.
func (u *usage) affordable(want map[*usedPack]bool, o CompactOptions, result *Compaction) []*component {
	list := u.components(want)
	slices.SortStableFunc(list, func(a, b *component) int {
		return cmp.Compare(float64(b.gain())/float64(1+b.cost()), float64(a.gain())/float64(1+a.cost()))
	})
	var out []*component
	concerned := map[*Snapshot]bool{}
	defer func() { result.Snapshots = len(concerned) }()
	budget := o.MaxRepack
	for _, c := range list {
		if c.gain()+worthPack*int64(len(c.chosen)-1) < worthSnapshot*int64(len(c.snaps)) && !o.eager {
			continue
		}
		if o.MaxRepack > 0 && c.cost() > budget {
			result.Left += c.trim(budget, len(out) == 0)
		}
		if len(c.chosen) == 0 || len(c.kept)+len(c.chosen) > pack.MaxPacks {
			result.Left += len(c.chosen)
			continue
		}
		budget -= c.cost()
		out = append(out, c)
		c.count(result)
		for _, s := range c.snaps {
			concerned[s] = true
		}
	}
	return out
}

// components joins manifests that share a wanted pack.
func (u *usage) components(want map[*usedPack]bool) []*component {
	of := map[*usedManifest]*component{}
	var list []*component
	for _, p := range u.packs { // oldest first
		if !want[p] {
			continue
		}
		var c *component
		for _, m := range p.names {
			switch have := of[m]; {
			case have == nil && c == nil:
				c = &component{}
				list = append(list, c)
				fallthrough
			case have == nil:
				c.manifests = append(c.manifests, m)
				of[m] = c
			case c == nil:
				c = have
			case have != c:
				for _, other := range have.manifests {
					of[other] = c
				}
				c.manifests = append(c.manifests, have.manifests...)
				c.chosen = append(c.chosen, have.chosen...)
				have.manifests, have.chosen = nil, nil
			}
		}
		c.chosen = append(c.chosen, p)
	}
	list = slices.DeleteFunc(list, func(c *component) bool { return len(c.manifests) == 0 })
	for _, c := range joinSmall(list) {
		c.settle()
	}
	return slices.DeleteFunc(list, func(c *component) bool { return len(c.manifests) == 0 })
}

// joinSmall joins components of one system that hold little: their packs are
// to become one.
func joinSmall(list []*component) []*component {
	open := map[string]*component{}
	for _, c := range list {
		size := int64(0)
		for _, p := range c.chosen {
			size += p.live
		}
		if size >= smallPack {
			continue
		}
		home := string(c.manifests[0].home)
		into := open[home]
		if into == nil || len(into.manifests)+len(c.manifests) > 4*maxNeeds {
			open[home] = c
			continue
		}
		into.manifests = append(into.manifests, c.manifests...)
		into.chosen = append(into.chosen, c.chosen...)
		c.manifests, c.chosen = nil, nil
	}
	return list
}

// settle fills in what follows from manifests and chosen packs.
func (c *component) settle() {
	chosen := map[*usedPack]bool{}
	for _, p := range c.chosen {
		chosen[p] = true
	}
	seen := map[*usedPack]bool{}
	snaps := map[*Snapshot]bool{}
	c.kept, c.snaps = nil, nil
	for _, m := range c.manifests {
		for _, p := range m.packs {
			if !seen[p] && !chosen[p] {
				c.kept = append(c.kept, p)
			}
			seen[p] = true
		}
		for _, s := range m.snaps {
			if !snaps[s] {
				snaps[s] = true
				c.snaps = append(c.snaps, s)
			}
		}
	}
	byOrder := func(a, b *usedPack) int { return cmp.Compare(a.order, b.order) }
	slices.SortFunc(c.kept, byOrder)
	slices.SortFunc(c.chosen, byOrder)
	// Kept packs without anything live need not be named any more.
	c.kept = slices.DeleteFunc(c.kept, func(p *usedPack) bool { return p.live == 0 })
}

// cost is what has to be read: the live part of chosen packs, and what of the
// others this host has not read yet and has to vouch for.
func (c *component) cost() (n int64) {
	for _, p := range c.chosen {
		n += p.live
	}
	return n + c.proving()
}

func (c *component) proving() (n int64) {
	for _, p := range c.kept {
		n += p.unproven
	}
	return n
}

func (c *component) gain() (n int64) {
	for _, p := range c.chosen {
		n += p.dead()
	}
	return n
}

// trim leaves chosen packs out, those that cost most for what they give first,
// until the rest is affordable; one stays if it must. It returns how many.
func (c *component) trim(budget int64, atLeastOne bool) (left int) {
	order := slices.Clone(c.chosen)
	slices.SortStableFunc(order, func(a, b *usedPack) int { return cmp.Compare(a.live, b.live) })
	cost := c.proving()
	var keep []*usedPack
	for _, p := range order {
		if cost+p.live > budget && (len(keep) > 0 || !atLeastOne) {
			left++
			continue
		}
		keep = append(keep, p)
		cost += p.live
	}
	c.chosen = keep
	c.settle()
	return left
}

func (c *component) count(result *Compaction) {
	for _, p := range c.chosen {
		if p.live == 0 {
			result.Removed++
		} else {
			result.Chosen++
		}
		result.ChosenBytes += p.Size
		result.LiveBytes += p.live
	}
	result.Proving += c.proving()
}
