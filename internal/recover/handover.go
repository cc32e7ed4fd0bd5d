package recover

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"lifeboat/internal/capture"
	"lifeboat/internal/dr"
	"lifeboat/internal/engine"
	"lifeboat/internal/fence"
	"lifeboat/internal/plan"
)

// giver is the side of a planned move that holds the epoch.
type giver struct {
	d       Deps
	o       HandOverOptions
	journal *plan.Journal
	result  HandOverResult
}

// stopped is what the giver remembers of a container that it stopped.
type stopped struct {
	ID      string               `json:"id"`
	Name    string               `json:"name"`
	Running bool                 `json:"running"`
	Policy  engine.RestartPolicy `json:"policy"`
	Depends []dr.Dependency      `json:"depends"`
}

// HandOver gives a system to another site: a snapshot while it serves, then an
// orderly stop, the final snapshot, and the wait for the other side's claim
// (docs/adr/0006 says why it is stopped rather than held frozen). The caller
// holds the system's lock. A run that was cut off is continued.
//
// Errors: dr.ErrFenced (this site does not hold the epoch), dr.ErrOutcomeUnknown
// (no word: the system stays as it is).
func HandOver(ctx context.Context, d Deps, o HandOverOptions) (*HandOverResult, error) {
	o.fill()
	if o.Patience == 0 {
		o.Patience = DefaultPatience
	}
	if o.Poll == 0 {
		o.Poll = time.Second
	}
	g := &giver{d: d, o: o}
	return &g.result, g.run(ctx)
}

func (g *giver) run(ctx context.Context) error {
	path, err := g.d.State.JournalPath(g.o.System, "handover")
	if err != nil {
		return err
	}
	if g.journal, err = plan.Open(path, plan.Header{Operation: "handover", System: g.o.System}); err != nil {
		return err
	}
	defer g.journal.Close()
	var heard fence.Phase
	since := time.Now()
	for {
		claims, moves, move, ok, err := g.read(ctx)
		if err != nil {
			return err
		}
		if g.o.TakeBack {
			return g.takeBack(ctx, claims, moves, move)
		}
		if ok && move.Phase != heard {
			heard, since = move.Phase, time.Now()
		}
		act := fence.ActWait
		if ok {
			offered, err := g.offered(move.ID)
			if err != nil {
				return err
			}
			if act, err = fence.GiverNext(move, claims, g.d.Repo.HostID(), offered); err != nil {
				return err
			}
		} else if err := fence.CheckWrite(claims, g.o.System, g.d.Repo.HostID()); err != nil {
			return err
		}
		done, err := g.act(ctx, act, claims, moves, move, since)
		if err != nil || done {
			return err
		}
	}
}

// act carries one decision out; true ends the run.
func (g *giver) act(ctx context.Context, act fence.Action, claims []fence.Claim, moves []fence.Move, move fence.Move, since time.Time) (bool, error) {
	switch act {
	case fence.ActSnapshot:
		return false, g.accept(ctx, moves, move)
	case fence.ActHandOver:
		return false, g.handOver(ctx, moves, move)
	case fence.ActTakeBack:
		return true, g.takeBack(ctx, claims, moves, move)
	case fence.ActFinished:
		g.result.Outcome, g.result.Epoch = act, claims[len(claims)-1].Epoch
		return true, g.journal.End()
	case fence.ActCalledOff:
		g.result.Outcome, g.result.Epoch = act, claims[len(claims)-1].Epoch
		if err := g.startAgain(ctx); err != nil {
			return true, err
		}
		if err := g.journal.End(); err != nil {
			return true, err
		}
		return true, fmt.Errorf("the move was called off (%s); the system goes on here: %w", move.Why, dr.ErrPartial)
	}
	select {
	case <-ctx.Done():
		return true, ctx.Err()
	case <-time.After(g.o.Poll):
	}
	if time.Since(since) > g.o.Patience {
		return true, g.silent(move)
	}
	return false, nil
}

func (g *giver) silent(move fence.Move) error {
	if move.Phase == fence.PhaseOffered {
		return fmt.Errorf("the system is stopped here and offered to site %s, which gives no word: %w; run `lifeboat failback %s` there, or take it back with `lifeboat switchover %s --take-back`",
			g.o.To, dr.ErrOutcomeUnknown, g.o.System, g.o.System)
	}
	if move.ID != "" {
		return fmt.Errorf("site %s has asked for system %s and gives no further word (last: %s); the system serves on here: %w; run `lifeboat failback %s` there and this command again",
			move.To, g.o.System, move.Phase, dr.ErrOutcomeUnknown, g.o.System)
	}
	return fmt.Errorf("site %s does not ask for system %s; it serves on here, nothing was changed: %w; run `lifeboat failback %s` there, then this command again",
		g.o.To, g.o.System, dr.ErrNotFound, g.o.System)
}

// read returns the move to this giver's addressee that is under way or that
// this giver took part in.
func (g *giver) read(ctx context.Context) (claims []fence.Claim, moves []fence.Move, move fence.Move, ok bool, err error) {
	if claims, err = g.d.Ledger.Claims(ctx, g.o.System); err != nil {
		return nil, nil, move, false, unknown(err)
	}
	if moves, err = g.d.Ledger.Moves(ctx, g.o.System); err != nil {
		return nil, nil, move, false, unknown(err)
	}
	var id string
	known, err := g.journal.Fact("move", &id)
	if err != nil {
		return nil, nil, move, false, err
	}
	if known {
		move, err = lastOf(moves, id)
		return claims, moves, move, err == nil, err
	}
	move, ok = fence.Open(moves, claims)
	if !ok {
		return claims, moves, move, false, nil
	}
	if g.o.To != "" && move.To != g.o.To {
		return nil, nil, move, false, fmt.Errorf("site %s asks for system %s, not %s: %w", move.To, g.o.System, g.o.To, dr.ErrHeld)
	}
	return claims, moves, move, true, g.journal.SetFact("move", move.ID)
}

func (g *giver) offered(id string) (bool, error) {
	var stop []stopped
	ok, err := g.journal.Fact("stopped:"+id, &stop)
	return ok, err
}

// accept snapshots while the system serves on.
func (g *giver) accept(ctx context.Context, moves []fence.Move, move fence.Move) error {
	res, err := g.snapshot(ctx, nil)
	if err != nil {
		return g.refuse(ctx, moves, move, err)
	}
	g.o.Hook("accepted")
	id := res.Snapshot.ID
	move.Phase, move.Snapshot = fence.PhaseAccepted, &id
	return g.d.Ledger.Append(ctx, moves, move)
}

// snapshot takes one of the system, as it runs or, of what was stopped for it,
// as it ran.
func (g *giver) snapshot(ctx context.Context, was []stopped) (*capture.Result, error) {
	running := map[string]engine.RestartPolicy{}
	for _, c := range was {
		if c.Running {
			running[c.Name] = c.Policy
		}
	}
	return capture.Run(ctx, capture.Deps{Engine: g.d.Engine, Repo: g.d.Repo, Ledger: g.d.Ledger, State: g.d.State, Log: g.d.Log}, capture.Options{
		System: g.o.System, Site: g.o.Site, Selector: g.o.Selector, FreezeMax: g.o.FreezeMax, SecureBytes: g.o.SecureBytes,
		Progress: g.o.Capture, Exclude: g.o.Exclude, WasRunning: running,
	})
}

// refuse tells the taker that it will not happen.
func (g *giver) refuse(ctx context.Context, moves []fence.Move, move fence.Move, cause error) error {
	if ctx.Err() != nil {
		return cause
	}
	move.Phase, move.Why = fence.PhaseAborted, cause.Error()
	return errors.Join(cause, g.d.Ledger.Append(ctx, moves, move), g.journal.End())
}

// handOver stops the system in an orderly way and offers its final state. What
// was running is in the journal before the first stop, so that it can be
// started again whatever happens.
func (g *giver) handOver(ctx context.Context, moves []fence.Move, move fence.Move) error {
	list, err := g.stop(ctx, move.ID)
	if err != nil {
		return err
	}
	stoppedAt := time.Now().UTC()
	if _, err := g.journal.Fact("stopped-at:"+move.ID, &stoppedAt); err != nil {
		return err
	}
	move.Stopped = &stoppedAt
	g.o.Hook("stopped")
	res, err := g.snapshot(ctx, list)
	if err != nil {
		// Stopped and not offered: called off by this side, it starts again.
		startErr := g.startAgain(ctx)
		return errors.Join(g.refuse(ctx, moves, move, err), startErr)
	}
	g.result.Final = res.Snapshot
	id := res.Snapshot.ID
	move.Phase, move.Snapshot = fence.PhaseOffered, &id
	g.o.Hook("offering")
	return g.d.Ledger.Append(ctx, moves, move)
}

func (g *giver) stop(ctx context.Context, id string) ([]stopped, error) {
	var list []stopped
	known, err := g.journal.Fact("stopped:"+id, &list)
	if err != nil {
		return nil, err
	}
	if !known {
		sys, err := g.d.Engine.Discover(ctx, g.o.Selector)
		if err != nil {
			return nil, err
		}
		var cs []dr.Container
		at := map[string]engine.Container{}
		for _, c := range sys.Containers {
			cs = append(cs, c.Container)
			at[c.Name] = c
		}
		for _, c := range startOrder(cs) {
			list = append(list, stopped{ID: c.ID, Name: c.Name, Running: at[c.Name].InitPID > 0, Policy: at[c.Name].RestartPolicy, Depends: c.DependsOn})
		}
		if err := g.journal.SetFact("stopped:"+id, list); err != nil {
			return nil, err
		}
		if err := g.journal.SetFact("stopped", list); err != nil {
			return nil, err
		}
		if err := g.journal.SetFact("stopped-at:"+id, time.Now().UTC()); err != nil {
			return nil, err
		}
	}
	for _, c := range list {
		if err := g.d.Engine.DisableRestart(ctx, c.ID); err != nil {
			return nil, err
		}
	}
	for _, c := range slices.Backward(list) {
		if err := g.d.Engine.Stop(ctx, c.ID, -1); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// takeBack claims the next epoch, which makes the other side's commit
// impossible, and starts the system again.
func (g *giver) takeBack(ctx context.Context, claims []fence.Claim, moves []fence.Move, move fence.Move) error {
	n := len(claims)
	if n == 0 || claims[n-1].Host != g.d.Repo.HostID() {
		if err := fence.CheckWrite(claims, g.o.System, g.d.Repo.HostID()); err != nil {
			return fmt.Errorf("it cannot be taken back: %w", err)
		}
	}
	if move.ID != "" && claims[n-1].Epoch == move.Epoch {
		base := move.Snapshot
		claim, err := g.d.Ledger.Claim(ctx, claims, fence.Claim{System: g.o.System, Site: g.o.Site, Base: base, Reason: fence.ReasonReturn})
		if err != nil {
			return err
		}
		g.result.Epoch = claim.Epoch
		g.o.Hook("taken-back")
		if move.Phase != fence.PhaseAborted {
			move.Phase, move.Why = fence.PhaseAborted, "taken back at site "+string(g.o.Site)
			if err := g.d.Ledger.Append(ctx, moves, move); err != nil && !errors.Is(err, dr.ErrHeld) {
				return err
			}
		}
	}
	g.result.Outcome = fence.ActCalledOff
	if err := g.startAgain(ctx); err != nil {
		return err
	}
	if err := g.journal.End(); err != nil {
		return err
	}
	if g.o.TakeBack {
		return nil
	}
	return fmt.Errorf("the move was called off (%s); the system goes on here: %w", move.Why, dr.ErrPartial)
}

// startAgain starts what was stopped for the move, in order.
func (g *giver) startAgain(ctx context.Context) error {
	var list []stopped
	if ok, err := g.journal.Fact("stopped", &list); err != nil || !ok {
		return err
	}
	ids := map[string]string{}
	for _, c := range list {
		ids[c.Name] = c.ID
	}
	for _, c := range list {
		if c.Running {
			for _, dep := range c.Depends {
				if id, ok := ids[dep.Container]; ok && dep.Condition == engine.ConditionHealthy {
					wctx, cancel := context.WithTimeout(ctx, g.o.HealthWait)
					err := g.d.Engine.WaitHealthy(wctx, id, engine.WaitOptions{Condition: dep.Condition})
					cancel()
					if err != nil {
						return err
					}
				}
			}
			if err := g.d.Engine.Start(ctx, c.ID); err != nil {
				return err
			}
		}
		if err := g.d.Engine.SetRestartPolicy(ctx, c.ID, c.Policy); err != nil {
			return err
		}
	}
	return nil
}
