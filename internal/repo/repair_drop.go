package repo

import (
	"context"
	"fmt"

	"lifeboat/internal/dr"
	"lifeboat/internal/retain"
)

// drop forgets the snapshots that still lose something, as far as they may be
// forgotten at all: the head of a line, what records name, and the newest of each
// host stay.
func (p *repairer) drop(ctx context.Context) error {
	lost := map[dr.SnapshotID]*Snapshot{}
	err := p.result.After.Losses(ctx, func(s *Snapshot, _ Loss) error {
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
		// A policy that keeps next to nothing shows what has to stay in any case.
		plan, err := p.repo.PlanForget(ctx, sys, retain.Policy{Last: 1})
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
	return nil
}

func reasonOf(row *ForgetRow) string {
	if len(row.Reasons) > 0 {
		return row.Reasons[0]
	}
	return "the newest"
}
