package repo

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"

	"lifeboat/internal/dr"
	"lifeboat/internal/pack"
	"lifeboat/internal/repo/idxcache"
	"lifeboat/internal/store"
)

// maxLostUnits bounds how many lost units are looked for at a time; what is
// beyond is left to the next round.
const maxLostUnits = 1 << 20

// mending is one round in which units are put together anew.
type mending struct {
	p    *repairer
	x    *Examination
	w    *Writer
	want map[dr.UnitID]uint32
	// lacks counts the units that each snapshot loses; where a list is lost,
	// nobody knows how many there are besides.
	lost map[*Snapshot][]dr.UnitID
	got  map[dr.UnitID]bool
	// instead has what is left of damaged manifests.
	instead map[digest.Digest]*source
	// worse: more turned out to be damaged while that was put together.
	worse bool
	units int
	bytes int64
	// others of them came from other repositories.
	others     int
	otherBytes int64
}

// units heals what no exact copy could: the units of damaged packs and manifests
// are taken from wherever they are sound, put together anew, and snapshots
// relocated there. more says that another round may heal more.
func (p *repairer) units(ctx context.Context, x *Examination) (more bool, err error) {
	m := &mending{p: p, x: x, want: map[dr.UnitID]uint32{}, lost: map[*Snapshot][]dr.UnitID{}, got: map[dr.UnitID]bool{}, instead: map[digest.Digest]*source{}}
	hurt, err := m.collect(ctx)
	if err != nil || len(hurt) == 0 {
		return false, err
	}
	if m.w, err = p.repo.newWriter(ctx, WriterOptions{System: hurt[0].System}, (*Writer).findWhole); err != nil {
		return false, err
	}
	defer m.w.Close()
	// What only lacks its index is put together first: nothing of it need be found
	// elsewhere. The rest of damaged packs is worth storing again only where a
	// snapshot gets something back.
	if err := m.salvage(ctx, hurt, true); err != nil {
		return false, err
	}
	if err := m.find(ctx); err != nil {
		return false, err
	}
	if !slices.ContainsFunc(hurt, m.gains) {
		return false, nil
	}
	if err := m.salvage(ctx, hurt, false); err != nil {
		return false, err
	}
	if m.worse { // what that loses is counted, and looked for
		if hurt, err = m.collect(ctx); err != nil {
			return false, err
		}
		if err := m.find(ctx); err != nil {
			return false, err
		}
	}
	m.tell()
	if err := m.w.Flush(ctx); err != nil {
		return false, err
	}
	carriers := m.w.needed()
	for _, s := range hurt {
		moved, err := m.move(ctx, s, carriers)
		if err != nil {
			return false, err
		}
		more = more || moved
	}
	return more, nil
}

// collect lists the snapshots that are hit, and the units that they lose.
func (m *mending) collect(ctx context.Context) (hurt []*Snapshot, err error) {
	clear(m.lost)
	for i := range m.x.inv.snaps {
		s := &m.x.inv.snaps[i]
		if !m.x.concerned(s) {
			continue
		}
		seen := map[dr.UnitID]bool{}
		w := &lossWalk{x: m.x, snap: s, clean: newCleanPages(), fn: func(*Snapshot, Loss) error { return nil }}
		w.lost = func(ref dr.UnitRef) {
			if len(m.want) < maxLostUnits {
				m.want[ref.ID] = ref.Len
			}
			if !seen[ref.ID] && len(seen) < maxLostUnits {
				seen[ref.ID] = true
				m.lost[s] = append(m.lost[s], ref.ID)
			}
		}
		if err := w.run(ctx); err != nil {
			return nil, fmt.Errorf("what %s loses: %w", s.Tag, err)
		}
		if len(m.lost[s]) > 0 || s.Lacks > 0 || slices.ContainsFunc(s.Needs, m.x.harm.touches) {
			hurt = append(hurt, s)
		}
	}
	return hurt, nil
}

// salvage puts together what is left of the damaged manifests that the snapshots
// need: a manifest of the packs that are whole, and anew what can be read of the
// others.
//
// unusable chooses those that cannot be opened as they are stored, else the others.
func (m *mending) salvage(ctx context.Context, hurt []*Snapshot, unusable bool) error {
	done := map[digest.Digest]bool{}
	for _, s := range hurt {
		for _, n := range s.needs {
			if _, bad := m.x.harm.unusable(n.Digest); done[n.Digest] || bad != unusable || !m.x.harm.touches(n.Digest) {
				continue
			}
			done[n.Digest] = true
			ix, err := m.p.repo.idx.get(ctx, n)
			if err != nil && about(err) {
				continue // what it held is known by what is lost
			}
			if err != nil {
				return err
			}
			err = m.rest(ctx, ix)
			m.p.repo.idx.put(ix)
			if err != nil {
				return fmt.Errorf("put together what is left of pack manifest %s: %w", n.Digest, err)
			}
		}
	}
	return nil
}

// rest puts together what is left of one manifest.
func (m *mending) rest(ctx context.Context, ix *index) error {
	var whole []idxcache.Pack
	for i := range uint32(ix.Packs()) {
		p, err := ix.Pack(i)
		if err != nil {
			return err
		}
		ok, err := m.sound(ctx, ix, i, p)
		if err != nil {
			return err
		}
		if ok {
			whole = append(whole, p)
			continue
		}
		for g := range p.Groups {
			if err := m.group(ctx, ix, p.FirstGroup+g); err != nil {
				return err
			}
		}
	}
	if len(whole) == 0 {
		return nil
	}
	var packs []blob
	for _, p := range whole {
		packs = append(packs, blob{digestOf(p.Digest), p.Size})
	}
	src, err := m.w.pushManifest(ctx, packs, func(v pack.Visitor) error {
		for _, p := range whole {
			if err := visitCached(v, ix.Index, p); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	m.w.srcMu.Lock()
	m.w.sources = append(slices.Clone(m.w.sources), src)
	m.w.srcMu.Unlock()
	m.instead[ix.need.Digest] = src
	return nil
}

// sound reports whether a pack of a damaged manifest is whole. This host signs
// for it anew, so what another host wrote is read once before (docs/adr/0002);
// and where the structure of the manifest is gone, nothing was looked at yet.
func (m *mending) sound(ctx context.Context, ix *index, number uint32, p idxcache.Pack) (bool, error) {
	if m.x.harm.blob(digestOf(p.Digest)) {
		return false, nil
	}
	_, unusable := m.x.harm.unusable(ix.need.Digest)
	read := true
	for g := range p.Groups {
		read = read && ix.wasRead(p.FirstGroup+g)
	}
	if read && !unusable {
		return true, nil
	}
	err := m.p.repo.readPack(ctx, packUse{ix, p})
	if err == nil || !notThere(ctx, err) || errors.Is(err, store.ErrUnreachable) {
		return err == nil, err
	}
	bad, err := m.p.repo.scan(ctx, ix, number, m.x.harm)
	if bad {
		m.worse = true
		m.p.repo.notePack(p.Digest, false)
	}
	return false, err
}

// group puts the units of a group of a damaged pack anew, if it can be read.
func (m *mending) group(ctx context.Context, ix *index, number uint32) error {
	if m.x.harm.group(ix.need.Digest, number) {
		return nil
	}
	body, g, err := m.p.repo.readGroup(ctx, ix, number)
	if err != nil && (!notThere(ctx, err) || errors.Is(err, store.ErrUnreachable)) {
		return err
	}
	sound := err == nil
	units, err := ix.UnitsOf(g)
	if err != nil {
		return err
	}
	at := 0
	for _, u := range units {
		end := at + int(u.Len)
		if !sound || end > len(body) {
			sound = false
			break
		}
		data := body[at:end]
		at = end
		if m.p.repo.UnitID(data) != u.ID {
			sound = false
			continue
		}
		if err := m.put(ctx, u, data); err != nil {
			return err
		}
	}
	if !sound {
		m.worse = true
		m.x.harm.addGroup(ix.need.Digest, number)
	}
	return nil
}

// put stores a unit whose bytes have its id, unless it is stored soundly.
func (m *mending) put(ctx context.Context, u dr.UnitRef, data []byte) error {
	if m.got[u.ID] {
		return nil
	}
	m.got[u.ID] = true
	m.units++
	m.bytes += int64(len(data))
	_, err := m.w.Put(ctx, data)
	return err
}

// missing reports whether a unit is looked for.
func (m *mending) missing(id dr.UnitID, length uint32) bool {
	want, ok := m.want[id]
	return ok && want == length && !m.got[id]
}

// find looks for lost units in all pack manifests of the repository, then in
// other repositories.
func (m *mending) find(ctx context.Context) error {
	if m.left() == 0 {
		return nil
	}
	if err := m.findHere(ctx); err != nil {
		return err
	}
	for _, src := range m.p.opts.From {
		if src.Other == nil || m.left() == 0 {
			continue
		}
		before, bytes := m.units, m.bytes
		err := m.findThere(ctx, src.Other)
		if err != nil && !notThere(ctx, err) {
			return fmt.Errorf("read %s: %w", src.Name, err)
		}
		m.others += m.units - before
		m.otherBytes += m.bytes - bytes
		if err != nil || m.units > before {
			m.p.did(RepairStep{Action: RepairRewritten, From: src.Name, Units: m.units - before, Bytes: m.bytes - bytes, Err: err})
		}
	}
	return nil
}

// tell says what was put together from the repository itself.
func (m *mending) tell() {
	if n := m.units - m.others; n > 0 {
		m.p.did(RepairStep{Action: RepairRewritten, Units: n, Bytes: m.bytes - m.otherBytes})
	}
}

// left counts the units that are lost and not found yet.
func (m *mending) left() (n int) {
	for id := range m.want {
		if !m.got[id] {
			n++
		}
	}
	return n
}

func (m *mending) findHere(ctx context.Context) error {
	r := m.p.repo
	names, err := r.st.Tags(ctx, string(ClassPacks)+".")
	if err != nil {
		return err
	}
	for _, name := range names {
		if !isPackTag(name) {
			continue
		}
		mf, err := r.st.GetManifest(ctx, name)
		if err == nil && (need{Digest: mf.Digest}).tag() != name {
			continue
		}
		var ix *index
		if err == nil {
			ix, err = r.idx.get(ctx, need{mf.Digest, int64(len(mf.Body))})
		}
		if err != nil && about(err) {
			continue
		}
		if err != nil {
			return err
		}
		err = m.search(ctx, ix)
		err = errors.Join(err, r.saveRead(ix))
		r.idx.put(ix)
		if err != nil {
			return err
		}
	}
	return nil
}

// search takes what is looked for from one manifest of the repository.
func (m *mending) search(ctx context.Context, ix *index) error {
	groups := map[uint32]bool{}
	for id, length := range m.want {
		if m.got[id] {
			continue
		}
		loc, ok, err := ix.Lookup(id)
		if err != nil {
			return nil // a damaged cache file; it is made anew by its next user
		}
		if ok && loc.Len == length && !m.x.harm.group(ix.need.Digest, loc.Group) {
			groups[loc.Group] = true
		}
	}
	for g := range groups {
		if err := m.wanted(ctx, m.p.repo, ix, g, func(dr.UnitRef) bool { return true }); err != nil {
			return err
		}
	}
	return nil
}

// wanted takes the units of a group that are looked for, by their content. like
// chooses which may be.
func (m *mending) wanted(ctx context.Context, of *Repo, ix *index, group uint32, like func(dr.UnitRef) bool) error {
	body, g, err := of.readGroup(ctx, ix, group)
	if err != nil && notThere(ctx, err) && !errors.Is(err, store.ErrUnreachable) {
		return nil // damaged there, too
	}
	if err != nil {
		return err
	}
	units, err := ix.UnitsOf(g)
	if err != nil {
		return err
	}
	at := 0
	for _, u := range units {
		end := at + int(u.Len)
		if end > len(body) {
			return nil
		}
		data := body[at:end]
		at = end
		if !like(u) {
			continue
		}
		ref := dr.UnitRef{ID: m.p.repo.UnitID(data), Len: u.Len}
		if m.missing(ref.ID, ref.Len) {
			if err := m.put(ctx, ref, data); err != nil {
				return err
			}
		}
	}
	return nil
}

// findThere reads another repository's groups that hold a unit as long as one
// that is looked for. Its ids mean nothing here: contents are compared.
func (m *mending) findThere(ctx context.Context, other *Repo) error {
	lengths := map[uint32]bool{}
	for id, n := range m.want {
		if !m.got[id] {
			lengths[n] = true
		}
	}
	snaps, _, err := other.Snapshots(ctx, "")
	if err != nil {
		return err
	}
	seen := map[need]bool{}
	for i := range snaps {
		for _, n := range snaps[i].needs {
			if seen[n] || m.left() == 0 {
				continue
			}
			seen[n] = true
			ix, err := other.idx.get(ctx, n)
			if err != nil && about(err) {
				continue
			}
			if err != nil {
				return err
			}
			err = m.compare(ctx, other, ix, lengths)
			other.idx.put(ix)
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func (m *mending) compare(ctx context.Context, other *Repo, ix *index, lengths map[uint32]bool) error {
	like := func(u dr.UnitRef) bool { return lengths[u.Len] }
	for g := range uint32(ix.Groups()) {
		info, err := ix.Group(g)
		if err != nil {
			return err
		}
		units, err := ix.UnitsOf(info)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(units, like) {
			if err := m.wanted(ctx, other, ix, g, like); err != nil {
				return err
			}
		}
	}
	return nil
}

// lacks counts what a snapshot loses still.
func (m *mending) lacks(s *Snapshot) (n int) {
	for _, id := range m.lost[s] {
		if !m.got[id] {
			n++
		}
	}
	return n
}

// gains reports whether relocating a snapshot gives anything back that it loses
// now, or takes damage away from it.
func (m *mending) gains(s *Snapshot) bool {
	lacks := m.lacks(s)
	if lacks == 0 || lacks < len(m.lost[s]) {
		return true
	}
	// With a manifest that cannot be opened all of the snapshot is out of reach.
	return slices.ContainsFunc(s.Needs, func(d digest.Digest) bool { _, bad := m.x.harm.unusable(d); return bad })
}

// move relocates a snapshot away from what is damaged.
func (m *mending) move(ctx context.Context, s *Snapshot, carriers []*source) (bool, error) {
	lacks := m.lacks(s)
	if !m.gains(s) || s.Lacks > 0 && int64(lacks) >= s.Lacks && !slices.ContainsFunc(s.Needs, m.x.harm.touches) {
		return false, nil
	}
	r := m.p.repo
	var list []*source
	add := func(src *source) {
		if !slices.ContainsFunc(list, func(have *source) bool { return have.need == src.need }) {
			list = append(list, src)
		}
	}
	for _, n := range s.needs {
		if m.x.harm.touches(n.Digest) {
			if src := m.instead[n.Digest]; src != nil {
				add(src)
			}
			continue
		}
		ix, err := r.idx.get(ctx, n)
		if err != nil {
			return false, err
		}
		defer r.idx.put(ix)
		add(&source{index: ix})
	}
	for _, src := range carriers {
		add(src)
	}
	if len(list) == 0 {
		return false, nil // nothing of it is left anywhere
	}
	list, err := m.w.consolidate(ctx, list)
	if err != nil {
		return false, err
	}
	var needs []need
	for _, src := range list {
		needs = append(needs, src.need)
	}
	commit, err := r.sealedCommit(ctx, s)
	if err != nil {
		return false, err
	}
	step := RepairStep{Action: RepairRelocated, Tag: s.Tag, Lacks: lacks, Unhurt: len(m.lost[s]) == 0 && s.Lacks == 0}
	moved, err := r.relocateRecord(ctx, s, commit, needs, int64(lacks))
	switch {
	case err == nil:
		step.Blob, step.As = moved.Digest, moved.Place
	case errors.Is(err, store.ErrNotFound), errors.Is(err, dr.ErrHeld), errors.Is(err, store.ErrForbidden):
		step.Err = err
	default:
		return false, err
	}
	m.p.did(step)
	return err == nil, nil
}
