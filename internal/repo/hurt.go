package repo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"lifeboat/internal/dr"
	"lifeboat/internal/repo/readlog"
)

// badPacks are packs that this host found damaged when it last read them.
type badPacks map[readlog.Digest]bool

// badPacks returns them. It goes through everything that was ever read: ask once
// for all manifests.
func (r *Repo) badPacks() badPacks {
	bad := badPacks{}
	for _, d := range r.packLog().BadOnes() {
		bad[d] = true
	}
	return bad
}

// of returns those of a manifest.
func (bad badPacks) of(ix *index) (map[uint32]bool, error) {
	if len(bad) == 0 { // as it nearly always is
		return nil, nil
	}
	var out map[uint32]bool
	for i := range uint32(ix.Packs()) {
		p, err := ix.Pack(i)
		if err != nil {
			return nil, err
		}
		if bad[p.Digest] {
			if out == nil {
				out = map[uint32]bool{}
			}
			out[i] = true
		}
	}
	return out, nil
}

// lookHurt finds out which packs of a manifest that is not whole cannot be used:
// without, which this host read and found damaged, what is not stored or cut off, and of
// another host's what was not read, for whoever uses a pack signs for it anew.
func (w *Writer) lookHurt(ctx context.Context, s *source, without map[uint32]bool) error {
	r := w.repo
	bad := make([]bool, s.Packs())
	numbers := make([]uint32, 0, len(bad))
	for i := range uint32(len(bad)) {
		if bad[i] = without[i]; !bad[i] {
			numbers = append(numbers, i)
		}
	}
	err := inParallel(ctx, numbers, func(ctx context.Context, i uint32) error {
		p, err := s.Pack(i)
		if err != nil {
			return err
		}
		for g := range p.Groups {
			if !s.wasRead(p.FirstGroup + g) {
				bad[i] = true
				return nil
			}
		}
		err = lookAtBlobOf(ctx, r.primary(), blob{digestOf(p.Digest), p.Size})
		if err != nil && !about(err) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return err
		}
		bad[i] = err != nil
		return nil
	})
	if err != nil {
		return fmt.Errorf("look at what is left of pack manifest %s: %w", s.need.Digest, err)
	}
	s.hurt, s.without = true, map[uint32]bool{}
	for i, b := range bad {
		if b {
			s.without[uint32(i)] = true
		}
	}
	return nil
}

// usable reports whether a group lies in a pack that may be relied upon.
func (s *source) usable(group uint32) bool {
	if len(s.without) == 0 {
		return true
	}
	g, err := s.Group(group)
	return err == nil && !s.without[g.Pack]
}

// locate says where a unit lies in the source, if it may be relied upon there.
func (s *source) locate(ref dr.UnitRef) (group uint32, ok bool, err error) {
	loc, ok, err := s.Lookup(ref.ID)
	if err != nil || !ok || loc.Len != ref.Len || !s.usable(loc.Group) {
		return 0, false, err
	}
	return loc.Group, true, nil
}

// replaceHurt puts manifests of the packs that are whole in the place of those
// that are not: a new snapshot names nothing that is damaged (invariant 1). No
// pack is sent again.
func (w *Writer) replaceHurt(ctx context.Context, list []*source) ([]*source, error) {
	var out, hurt []*source
	for _, s := range list {
		if s.hurt {
			hurt = append(hurt, s)
		} else {
			out = append(out, s)
		}
	}
	slices.SortStableFunc(hurt, func(a, b *source) int { return cmp.Compare(a.Units(), b.Units()) })
	for len(hurt) > 0 {
		merged, taken, err := w.merge(ctx, hurt)
		if err != nil {
			return nil, err
		}
		out = append(out, merged)
		hurt = hurt[taken:]
	}
	return out, nil
}
