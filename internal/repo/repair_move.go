package repo

import (
	"context"
	"errors"
	"slices"

	"github.com/opencontainers/go-digest"

	"lifeboat/internal/dr"
	"lifeboat/internal/store"
)

// moving is where a snapshot would lie.
type moving struct {
	// list are the manifests that are whole, those that take the place of the others,
	// and those of what was found.
	list []*source
	// lost is what it lacks there.
	lost []dr.UnitID
	// closed: even its description is lost there, so nothing of it could be read.
	closed bool
}

// settle finds out what the snapshots that gain something lack where they would lie,
// and looks for that, too, until nothing more is found: what was found may name
// further units (the list of the files, a file's list of content), which nobody could
// know to be lost before. So no relocation leaves out what is needed unless it counts
// it, wherever the run is cut off.
func (m *mending) settle(ctx context.Context, hurt []*Snapshot) error {
	for {
		if err := m.w.Flush(ctx); err != nil {
			return err
		}
		carriers := m.w.needed()
		for _, s := range hurt {
			if !m.gains(s) {
				continue
			}
			if err := m.look(ctx, s, carriers); err != nil {
				return err
			}
		}
		before := len(m.got)
		if err := m.find(ctx); err != nil {
			return err
		}
		if len(m.got) == before {
			return nil
		}
	}
}

// look walks a snapshot as it would lie.
func (m *mending) look(ctx context.Context, s *Snapshot, carriers []*source) error {
	v := &moving{}
	add := func(src *source) {
		if !slices.ContainsFunc(v.list, func(have *source) bool { return have.need == src.need }) {
			v.list = append(v.list, src)
		}
	}
	for _, n := range s.needs {
		if m.x.harm.touches(n.Digest) {
			if src := m.instead[n.Digest]; src != nil {
				add(src)
			}
			continue
		}
		ix, err := m.p.repo.idx.get(ctx, n)
		if err != nil {
			return err
		}
		m.opened = append(m.opened, ix)
		add(&source{index: ix})
	}
	for _, src := range carriers {
		add(src)
	}
	there := *s
	there.needs, there.Needs = nil, nil
	for _, src := range v.list {
		there.needs, there.Needs = append(there.needs, src.need), append(there.Needs, src.need.Digest)
	}
	lost, err := m.loses(ctx, &there)
	if err != nil {
		return err
	}
	v.lost, v.closed = lost, slices.Contains(lost, s.Root.ID)
	m.moves[s] = v
	return nil
}

// gains reports whether relocating a snapshot gives anything back that it loses
// now, or takes damage away from it.
func (m *mending) gains(s *Snapshot) bool {
	lost := m.lost[s]
	if len(lost) == 0 || slices.ContainsFunc(lost, func(id dr.UnitID) bool { return m.got[id] }) {
		return true
	}
	// With a manifest that cannot be opened all of the snapshot is out of reach; without
	// its description all of it is wherever it lies.
	return !slices.Contains(lost, s.Root.ID) && slices.ContainsFunc(s.Needs, func(d digest.Digest) bool { _, bad := m.x.harm.unusable(d); return bad })
}

// move relocates a snapshot away from what is damaged, if that gives anything back.
func (m *mending) move(ctx context.Context, s *Snapshot) (bool, error) {
	v := m.moves[s]
	if v == nil || len(v.list) == 0 || v.closed {
		return false, nil // nothing of it could be read there
	}
	r := m.p.repo
	list, err := m.w.consolidate(ctx, slices.Clone(v.list))
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
	step := RepairStep{Action: RepairRelocated, Tag: s.Tag, Lacks: len(v.lost), Unhurt: len(m.lost[s]) == 0 && s.Lacks == 0}
	moved, err := r.relocateRecord(ctx, s, commit, needs, int64(len(v.lost)))
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

// close gives back what was opened.
func (m *mending) close() {
	for _, ix := range m.opened {
		m.p.repo.idx.put(ix)
	}
	if m.w != nil {
		m.w.Close()
	}
}
