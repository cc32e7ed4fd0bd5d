package repo

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"lifeboat/internal/dr"
	"lifeboat/internal/store"
)

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
