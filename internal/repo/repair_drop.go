package repo

import (
	"context"
	"errors"
	"fmt"

	"lifeboat/internal/dr"
	"lifeboat/internal/retain"
	"lifeboat/internal/store"
)

// leastPolicy shows what has to stay in any case: it keeps next to nothing.
var leastPolicy = retain.Policy{Last: 1}

// dropUnread takes away the tags of snapshots of which nothing can be read any more:
// their manifests are damaged or lost. Nothing says which packs they need, so nothing
// could be collected while they are there. What is locked stays, and what is not
// older than a snapshot that can be read: its number says what came last.
func (p *repairer) dropUnread(ctx context.Context) error {
	unread := map[dr.System][]Tag{}
	for _, pr := range p.result.After.Problems {
		t, err := ParseTag(pr.Tag)
		if err == nil && (t.Class == ClassSnapshot || t.Class == ClassRelocation) && (pr.lost || errors.Is(pr.Err, store.ErrDigestMismatch)) {
			unread[t.System] = append(unread[t.System], t)
		}
	}
	for sys, tags := range unread {
		plan, err := p.repo.PlanForget(ctx, sys, leastPolicy)
		if err != nil && !about(err) {
			return err
		}
		for _, t := range tags {
			if ok, serr := p.readable(ctx, t); serr != nil {
				return serr
			} else if ok {
				continue
			}
			held := err
			if held == nil {
				held = plan.holds(t)
			}
			if held == nil {
				held = p.giveUp(ctx, t)
			}
			if held != nil && (ctx.Err() != nil || errors.Is(held, store.ErrUnreachable)) {
				return held
			}
			p.did(RepairStep{Action: RepairForgotten, Tag: t.String(), Err: held})
		}
	}
	return nil
}

// readable reports whether a tag names what it must.
func (p *repairer) readable(ctx context.Context, t Tag) (bool, error) {
	m, err := p.repo.getListed(ctx, t.String())
	if err == nil {
		err = p.repo.verifyAs(ctx, t, m)
	}
	if err != nil && !about(err) {
		return false, err
	}
	return err == nil, nil
}

// holds says why a tag that cannot be read has to stay all the same. The error wraps
// dr.ErrHeld.
func (p *ForgetPlan) holds(t Tag) error {
	if p.locked[numberKey{t.System, t.Number}] {
		return fmt.Errorf("it has to stay (locked): %w", dr.ErrHeld)
	}
	for _, row := range p.Rows {
		if row.Number > t.Number {
			return nil
		}
	}
	return fmt.Errorf("it has to stay (no newer snapshot can be read): take a new snapshot first: %w", dr.ErrHeld)
}

// giveUp removes a tag; its absence is no news to this host from here on.
func (p *repairer) giveUp(ctx context.Context, t Tag) error {
	if err := p.repo.state.unsee([]Tag{t}); err != nil {
		return err
	}
	if err := p.repo.st.DeleteTag(ctx, t.String()); err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	return nil
}

// drop forgets the snapshots of which nothing can be read or that still lose
// something, as far as they may be forgotten at all: the head of a line, what records
// name, and the newest of each host stay. Then it gives up records.
func (p *repairer) drop(ctx context.Context) error {
	done, err := p.done, p.dropUnread(ctx)
	if err == nil && p.done > done {
		p.result.After, err = p.look(ctx, false)
	}
	if err != nil {
		return err
	}
	lost := map[dr.SnapshotID]*Snapshot{}
	err = p.result.After.Losses(ctx, func(s *Snapshot, _ Loss) error {
		lost[s.ID] = s
		return nil
	})
	if err != nil {
		return err
	}
	systems := map[dr.System]bool{}
	for _, s := range lost {
		systems[s.System] = true
	}
	for sys := range systems {
		plan, err := p.repo.PlanForget(ctx, sys, leastPolicy)
		if err != nil {
			return err
		}
		going := 0
		for i := range plan.Rows {
			row := &plan.Rows[i]
			damaged := lost[row.ID] != nil
			switch {
			case damaged && row.Keep:
				p.did(RepairStep{Action: RepairForgotten, Tag: row.Tag, Err: fmt.Errorf("it has to stay (%s): take a new snapshot first: %w", reasonOf(row), dr.ErrHeld)})
			case damaged:
				going++
			}
			row.Keep = row.Keep || !damaged
		}
		if going == 0 {
			continue
		}
		if err := p.repo.Forget(ctx, plan); err != nil {
			return err
		}
		for _, row := range plan.Rows {
			if row.Removed {
				p.did(RepairStep{Action: RepairForgotten, Tag: row.Tag})
			}
		}
	}
	return p.dropRecords(ctx)
}

func reasonOf(row *ForgetRow) string {
	if len(row.Reasons) > 0 {
		return row.Reasons[0]
	}
	return "the newest"
}
