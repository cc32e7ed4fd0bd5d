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
	// lost are the units that each snapshot loses where it lies; where a list is
	// lost, nobody knows how many there are besides.
	lost map[*Snapshot][]dr.UnitID
	got  map[dr.UnitID]bool
	// moves says where the snapshots would lie, and what they lack there.
	moves map[*Snapshot]*moving
	// instead has what is left of damaged manifests.
	instead map[digest.Digest]*source
	opened  []*index
	units   int
	bytes   int64
	// others of them came from other repositories.
	others     int
	otherBytes int64
}

// units heals what no exact copy could: the units of damaged packs and manifests
// are taken from wherever they are sound, put together anew, and snapshots
// relocated there. more says that another round may heal more.
func (p *repairer) units(ctx context.Context, x *Examination) (more bool, err error) {
	m := &mending{
		p: p, x: x, want: map[dr.UnitID]uint32{}, lost: map[*Snapshot][]dr.UnitID{}, got: map[dr.UnitID]bool{},
		instead: map[digest.Digest]*source{}, moves: map[*Snapshot]*moving{},
	}
	hurt, err := m.collect(ctx)
	if err != nil || len(hurt) == 0 {
		return false, err
	}
	if m.w, err = p.repo.newWriter(ctx, WriterOptions{System: hurt[0].System}, (*Writer).findWhole); err != nil {
		return false, err
	}
	defer m.close()
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
	if err := m.settle(ctx, hurt); err != nil {
		return false, err
	}
	m.tell()
	for _, s := range hurt {
		moved, err := m.move(ctx, s)
		if err != nil {
			return false, err
		}
		more = more || moved
	}
	return more, nil
}

// collect lists the snapshots that are hit, and the units that they lose.
func (m *mending) collect(ctx context.Context) (hurt []*Snapshot, err error) {
	for i := range m.x.inv.snaps {
		s := &m.x.inv.snaps[i]
		if !m.x.concerned(s) {
			continue
		}
		if m.lost[s], err = m.loses(ctx, s); err != nil {
			return nil, err
		}
		if len(m.lost[s]) > 0 || s.Lacks > 0 || slices.ContainsFunc(s.Needs, m.x.harm.touches) {
			hurt = append(hurt, s)
		}
	}
	return hurt, nil
}

// loses lists the units that a snapshot loses, and looks for them from now on.
func (m *mending) loses(ctx context.Context, s *Snapshot) (lost []dr.UnitID, err error) {
	seen := map[dr.UnitID]bool{}
	w := &lossWalk{x: m.x, snap: s, clean: newCleanPages(), fn: func(*Snapshot, Loss) error { return nil }}
	w.lost = func(ref dr.UnitRef) {
		if len(m.want) < maxLostUnits {
			m.want[ref.ID] = ref.Len
		}
		if !seen[ref.ID] && len(seen) < maxLostUnits {
			seen[ref.ID] = true
			lost = append(lost, ref.ID)
		}
	}
	if err := w.run(ctx); err != nil {
		return nil, fmt.Errorf("what %s loses: %w", s.Tag, err)
	}
	return lost, nil
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

// tell says what was put together from the repository itself.
func (m *mending) tell() {
	if n := m.units - m.others; n > 0 {
		m.p.did(RepairStep{Action: RepairRewritten, Units: n, Bytes: m.bytes - m.otherBytes})
	}
}
