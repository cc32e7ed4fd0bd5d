package repo

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"lifeboat/internal/dr"
	"lifeboat/internal/store"
)

// dropRecords gives up records that nothing could mend. A lock is taken away, and ends;
// so it comes after the snapshots, which it has kept in this run. Records of hosts,
// epochs and moves stay where they are, for hosts that know more than this one: here
// they count as given up from then on, once the operator has accepted that they are
// not part of the newest state.
func (p *repairer) dropRecords(ctx context.Context) error {
	older := refuseSetBack(p.result.After.Problems)
	for _, pr := range p.result.After.Problems {
		t, err := ParseTag(pr.Tag)
		if err != nil || !pr.unreadRecord(t) {
			continue
		}
		if ok, err := p.readable(ctx, t); err != nil {
			return err
		} else if ok {
			continue
		}
		held := older
		switch {
		case t.Class == ClassLock:
			held = p.giveUp(ctx, t)
		case held == nil:
			held, err = p.endRecord(t)
		}
		if err != nil {
			return err
		}
		if held != nil && (ctx.Err() != nil || errors.Is(held, store.ErrUnreachable)) {
			return held
		}
		p.did(RepairStep{Action: RepairForgotten, Tag: t.String(), Err: held})
	}
	return nil
}

// unreadRecord reports whether the problem is that a record under t that lists no packs
// cannot be read. Key records are never given up.
func (p Problem) unreadRecord(t Tag) bool {
	switch t.Class {
	case ClassHost, ClassEpoch, ClassSwitch, ClassLock:
		return errors.Is(p.Err, store.ErrDigestMismatch)
	}
	return false
}

// endRecord remembers that the operator has given up a record. held wraps dr.ErrHeld
// where this host remembers it: that comes first.
func (p *repairer) endRecord(t Tag) (held, err error) {
	s := p.repo.state
	seen, err := s.seenOf(t.Class)
	if err != nil {
		return nil, err
	}
	if seen[t] != "" {
		return fmt.Errorf("this host has seen it; accept first that it is lost (lifeboat snapshots --accept-older): %w", dr.ErrHeld), nil
	}
	return nil, s.changeMarks(func(m *marks) bool {
		m.Ended[t.String()] = true
		return true
	})
}

// passEnded takes problems of records out that were given up here, and returns their
// tags. What can be read again is not given up any more.
func (r *Repo) passEnded(f *findings) (ended []string, err error) {
	var before map[string]bool
	err = r.state.locked(func() error {
		m, err := r.state.loadMarks()
		before = maps.Clone(m.Ended)
		return err
	})
	if err != nil || len(before) == 0 {
		return nil, err
	}
	f.list = slices.DeleteFunc(f.list, func(p Problem) bool {
		t, err := ParseTag(p.Tag)
		if err != nil || !before[p.Tag] || !p.unreadRecord(t) {
			return false
		}
		ended = append(ended, p.Tag)
		return true
	})
	slices.Sort(ended)
	ended = slices.Compact(ended)
	if len(ended) == len(before) || store.Lagging(r.st) {
		return ended, nil
	}
	return ended, r.state.changeMarks(func(m *marks) bool {
		maps.DeleteFunc(m.Ended, func(tag string, _ bool) bool { return before[tag] && !slices.Contains(ended, tag) })
		return true
	})
}
