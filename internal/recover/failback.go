package recover

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"lifeboat/internal/capture"
	"lifeboat/internal/dr"
	"lifeboat/internal/engine"
	"lifeboat/internal/fence"
	"lifeboat/internal/plan"
	"lifeboat/internal/repo"
)

// FailbackOptions say how the taking side of a planned move behaves.
type FailbackOptions struct {
	Options
	// Reason is fence.ReasonFailback unless set.
	Reason fence.Reason
	DryRun bool
	// Confirm is asked before anything is changed; may be nil.
	Confirm func(*Plan) error
	// Giver runs the other side, if this site can reach it; it returns when that
	// side has ended. May be nil: then somebody runs it there.
	Giver func(ctx context.Context) error
	// Patience is how long to wait for the other side's next word; 0 means
	// DefaultPatience. It decides when to give up waiting, never whether a claim
	// is safe.
	Patience time.Duration
	// Poll is the pause between looks at the repository; 0 means one second.
	Poll time.Duration
}

// DefaultPatience is FailbackOptions.Patience where none is given.
const DefaultPatience = 15 * time.Minute

// taker is the side of a planned move that is to hold the next epoch.
type taker struct {
	d       Deps
	o       FailbackOptions
	journal *plan.Journal
	result  *Result
	known   []*dr.Root
	giver   chan error
	// began is when this run began to act: after the question was answered.
	began time.Time
}

// Failback takes a system over from the site that holds it, with nothing lost
// (docs/adr/0006). The caller holds the system's lock. A run that was cut off is
// continued.
//
// Errors: dr.ErrFenced (a third site holds the epoch), dr.ErrOutcomeUnknown (no
// word from the other side or the registry: everything stays as it is),
// ErrUnhealthy (the giver goes on serving), Conflicts.
func Failback(ctx context.Context, d Deps, o FailbackOptions) (*Result, error) {
	o.fill()
	if o.Reason == "" {
		o.Reason = fence.ReasonFailback
	}
	if o.Patience == 0 {
		o.Patience = DefaultPatience
	}
	if o.Poll == 0 {
		o.Poll = time.Second
	}
	t := &taker{d: d, o: o, result: &Result{}}
	return t.result, t.run(ctx)
}

func (t *taker) run(ctx context.Context) error {
	claims, err := t.d.Ledger.Claims(ctx, t.o.System)
	if err != nil {
		return err
	}
	if len(claims) == 0 {
		return fmt.Errorf("system %q was never protected in this repository: %w", t.o.System, dr.ErrNotFound)
	}
	last := claims[len(claims)-1]
	path, err := t.d.State.JournalPath(t.o.System, "failback")
	if err != nil {
		return err
	}
	_, unfinished, err := plan.Peek(path)
	if err != nil {
		return err
	}
	if last.Host == t.d.Repo.HostID() && !unfinished {
		return fmt.Errorf("this site already holds epoch %d of system %s; there is nothing to fail back: %w", last.Epoch, t.o.System, dr.ErrUsage)
	}
	if err := t.preview(ctx, claims); err != nil || t.o.DryRun {
		return err
	}
	t.began = time.Now()
	t.journal, err = plan.Open(path, plan.Header{Operation: "failback", System: t.o.System})
	if err != nil {
		return err
	}
	defer t.journal.Close()
	t.result.began(t.journal)
	move, err := t.begin(ctx, claims, last)
	if err != nil {
		return err
	}
	if t.o.Giver != nil {
		t.giver = make(chan error, 1)
		gctx, stop := context.WithCancel(ctx)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			t.giver <- t.o.Giver(gctx)
		}()
		// Whoever runs this again must not find the other side still at it.
		defer func() { stop(); <-ended }()
	}
	if err := t.converse(ctx, move); err != nil {
		return err
	}
	if t.giver != nil {
		// The other side still has to note that it is done; its failure to do so
		// changes nothing any more.
		if err := <-t.giver; err != nil {
			t.o.Progress.Note("the other side ended with: " + err.Error())
		}
	}
	return t.journal.End()
}

// preview plans with the newest snapshot there is, so that conflicts are found
// before the other side is asked for anything.
func (t *taker) preview(ctx context.Context, claims []fence.Claim) error {
	snap, err := choose(ctx, t.d, t.o.System, "", claims)
	if err != nil {
		return err
	}
	b, err := prepare(ctx, t.d, t.o.Options, snap)
	if err != nil {
		return err
	}
	defer b.close()
	p, err := b.plan(ctx)
	if err != nil {
		return err
	}
	p.Move = true
	t.result.Plan, t.result.Snapshot = p, snap
	t.result.Epoch = claims[len(claims)-1].Epoch
	if len(p.Conflicts) > 0 {
		return Conflicts(p.Conflicts)
	}
	if t.o.Confirm != nil && !t.o.DryRun {
		return t.o.Confirm(p)
	}
	return nil
}

// begin continues the move that this site asked for, or asks.
func (t *taker) begin(ctx context.Context, claims []fence.Claim, last fence.Claim) (string, error) {
	var id string
	asked, err := t.journal.Fact("move", &id)
	if err != nil {
		return "", err
	}
	moves, err := t.d.Ledger.Moves(ctx, t.o.System)
	if err != nil {
		return "", unknown(err)
	}
	if _, err := lastOf(moves, id); asked && err == nil {
		return id, nil
	}
	if m, open := fence.Open(moves, claims); open {
		if m.To != t.o.Site {
			return "", fmt.Errorf("system %s is being moved to site %s at the moment: %w", t.o.System, m.To, dr.ErrHeld)
		}
		return m.ID, t.journal.SetFact("move", m.ID)
	}
	if !asked { // else an earlier run was cut off before its request was stored
		var raw [8]byte
		if _, err := rand.Read(raw[:]); err != nil {
			return "", err
		}
		id = hex.EncodeToString(raw[:])
		if err := t.journal.SetFact("move", id); err != nil {
			return "", err
		}
	}
	return id, t.d.Ledger.Append(ctx, moves, fence.Move{
		System: t.o.System, ID: id, Phase: fence.PhaseRequested, Epoch: last.Epoch, From: last.Site, To: t.o.Site,
	})
}

// converse follows the records of the move until it is done or called off.
func (t *taker) converse(ctx context.Context, id string) error {
	var heard fence.Phase
	since := time.Now()
	for {
		claims, moves, move, err := t.read(ctx, id)
		if err != nil {
			return err
		}
		if move.Phase != heard {
			heard, since = move.Phase, time.Now()
		}
		act, err := fence.TakerNext(move, claims, t.d.Repo.HostID())
		if err != nil {
			return t.lost(ctx, err)
		}
		switch act {
		case fence.ActStage:
			if err := t.stage(ctx, moves, move); err != nil {
				return t.callOff(ctx, moves, move, err)
			}
		case fence.ActTakeOver:
			if err := t.takeOver(ctx, claims, moves, move); err != nil {
				return err
			}
		case fence.ActFinished:
			return t.finished(ctx, claims, moves, move)
		case fence.ActCalledOff:
			if err := t.journal.End(); err != nil {
				return err
			}
			return fmt.Errorf("the move was called off (%s); site %s goes on serving: %w", move.Why, move.From, dr.ErrPartial)
		case fence.ActWait:
			if err := t.wait(ctx, moves, move, since); err != nil {
				return err
			}
		}
	}
}

func (t *taker) read(ctx context.Context, id string) ([]fence.Claim, []fence.Move, fence.Move, error) {
	claims, err := t.d.Ledger.Claims(ctx, t.o.System)
	if err != nil {
		return nil, nil, fence.Move{}, unknown(err)
	}
	moves, err := t.d.Ledger.Moves(ctx, t.o.System)
	if err != nil {
		return nil, nil, fence.Move{}, unknown(err)
	}
	move, err := lastOf(moves, id)
	return claims, moves, move, err
}

// unknown says that the repository could not be asked.
func unknown(err error) error {
	return fmt.Errorf("the repository could not be read: %w: %w; both sites stay as they are, run the same command again when it answers", dr.ErrOutcomeUnknown, err)
}

func lastOf(moves []fence.Move, id string) (fence.Move, error) {
	for i := len(moves) - 1; i >= 0; i-- {
		if moves[i].ID == id {
			return moves[i], nil
		}
	}
	return fence.Move{}, fmt.Errorf("the repository does not know the move %s: %w", id, dr.ErrOutcomeUnknown)
}

// wait sleeps until the next look, watching the other side where it runs from here.
func (t *taker) wait(ctx context.Context, moves []fence.Move, move fence.Move, since time.Time) error {
	select {
	case err := <-t.giver:
		t.giver = nil
		if err != nil && move.Phase == fence.PhaseRequested {
			return t.callOff(ctx, moves, move, fmt.Errorf("the other side: %w", err))
		}
		if err != nil {
			return fmt.Errorf("the other side ended: %w: %w; run it again there, then this command", dr.ErrOutcomeUnknown, err)
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(t.o.Poll):
	}
	if time.Since(since) > t.o.Patience {
		return fmt.Errorf("no word from site %s since %s (%s): %w; nothing was changed by waiting: run `lifeboat switchover %s --to %s` there, then this command again",
			move.From, move.Created.Format(time.RFC3339), move.Phase, dr.ErrOutcomeUnknown, t.o.System, t.o.Site)
	}
	return nil
}

// bring prepares a bring-up of a snapshot within this move.
func (t *taker) bring(ctx context.Context, id dr.SnapshotID) (*bringUp, error) {
	snap, err := t.d.Repo.Find(ctx, t.o.System, id.String())
	if err != nil {
		return nil, err
	}
	b, err := prepare(ctx, t.d, t.o.Options, snap)
	if err != nil {
		return nil, err
	}
	b.journal, b.known = t.journal, t.known
	t.known = append(t.known, b.captured)
	p, err := b.plan(ctx)
	if err == nil && len(p.Conflicts) > 0 {
		err = Conflicts(p.Conflicts)
	}
	if err != nil {
		b.close()
		return nil, err
	}
	return b, nil
}

// stage lays the accepted snapshot down while the giver serves on.
func (t *taker) stage(ctx context.Context, moves []fence.Move, move fence.Move) error {
	b, err := t.bring(ctx, *move.Snapshot)
	if err != nil {
		return err
	}
	defer b.close()
	reports, err := plan.Run(ctx, t.journal, b.steps(), observer(t.o.Progress), t.o.Hook)
	t.add(b, reports)
	if err != nil {
		return err
	}
	move.Phase = fence.PhaseReady
	return t.d.Ledger.Append(ctx, moves, move)
}

func (t *taker) add(b *bringUp, reports []plan.Report) {
	t.result.Steps = append(t.result.Steps, reports...)
	t.result.Fetched += b.fetched
	if b.kept != nil {
		t.result.Kept = b.kept
	}
}

// takeOver lays the final difference down, starts, and commits the move by
// claiming the next epoch. Unhealthy: what was written here is kept, and the
// giver goes on.
func (t *taker) takeOver(ctx context.Context, claims []fence.Claim, moves []fence.Move, move fence.Move) error {
	b, err := t.bring(ctx, *move.Snapshot)
	if err != nil {
		return t.callOff(ctx, moves, move, err)
	}
	defer b.close()
	t.result.Snapshot = b.snap
	t.result.DataAge = 0
	steps := append(b.steps(), plan.Step{ID: b.snap.ID.Short() + ":start", Title: "start, wait until healthy", Do: b.start})
	reports, err := plan.Run(ctx, t.journal, steps, observer(t.o.Progress), t.o.Hook)
	t.add(b, reports)
	if err != nil {
		if ctx.Err() != nil {
			return err // interrupted: the next run goes on
		}
		if stopErr := b.giveUp(ctx); stopErr != nil {
			return fmt.Errorf("%w; it could not be stopped here either: %w; stop it by hand before anything else", err, stopErr)
		}
		return t.callOff(ctx, moves, move, err)
	}
	base := b.snap.ID
	claim, err := t.d.Ledger.Claim(ctx, claims, fence.Claim{System: t.o.System, Site: t.o.Site, Base: &base, Reason: t.o.Reason})
	if err != nil {
		return t.lost(ctx, err)
	}
	t.result.serves(t.began, move.Stopped)
	t.o.Hook("claimed")
	t.result.Epoch = claim.Epoch
	t.result.Ports, err = b.published(ctx)
	if err != nil {
		return err
	}
	return nil
}

// giveUp stops what was started and keeps what it wrote.
func (b *bringUp) giveUp(ctx context.Context) error {
	if err := b.stopStarted(ctx); err != nil {
		return err
	}
	s, err := take(ctx, b.d, b.o.System)
	if err != nil {
		return err
	}
	b.survey = s
	return b.keepOwn(ctx)
}

// lost ends a taker whose claim failed: it does not serve what it does not hold.
func (t *taker) lost(ctx context.Context, cause error) error {
	if !errors.Is(cause, dr.ErrFenced) {
		return cause // outcome unknown: stay as it is
	}
	s, err := take(ctx, t.d, t.o.System)
	if err != nil {
		return errors.Join(cause, err)
	}
	for _, c := range s.ownContainers() {
		if err := errors.Join(t.d.Engine.DisableRestart(ctx, c.ID), t.d.Engine.Stop(ctx, c.ID, -1)); err != nil {
			return errors.Join(cause, err)
		}
	}
	return errors.Join(cause, t.journal.End())
}

// callOff records that the move is off and why; before the offer nothing has
// happened at the giver, after it the giver starts again.
func (t *taker) callOff(ctx context.Context, moves []fence.Move, move fence.Move, cause error) error {
	if ctx.Err() != nil {
		return cause
	}
	move.Phase, move.Why = fence.PhaseAborted, cause.Error()
	if err := t.d.Ledger.Append(ctx, moves, move); err != nil {
		return fmt.Errorf("%w; and the other side could not be told: %w: %w", cause, dr.ErrOutcomeUnknown, err)
	}
	if t.giver != nil {
		<-t.giver
	}
	if err := t.journal.End(); err != nil {
		return errors.Join(cause, err)
	}
	return fmt.Errorf("the move was called off, site %s goes on serving: %w", move.From, cause)
}

// finished records the end of the move; the claim has decided it already.
func (t *taker) finished(ctx context.Context, claims []fence.Claim, moves []fence.Move, move fence.Move) error {
	t.result.Epoch = claims[len(claims)-1].Epoch
	if move.Phase == fence.PhaseDone {
		return nil
	}
	move.Phase = fence.PhaseDone
	return t.d.Ledger.Append(ctx, moves, move)
}

// HandOverOptions say how the giving side of a planned move behaves.
type HandOverOptions struct {
	Options
	Selector engine.Selector
	// To is the site that the system may go to.
	To       dr.Site
	Patience time.Duration
	Poll     time.Duration
	// TakeBack ends a move whose other side is silent: this site claims the next
	// epoch and starts again.
	TakeBack bool
	// Capture is told of the snapshots of this side; may be nil.
	Capture capture.Progress
	Exclude []capture.Exclude
}

// HandOverResult is what the giving side did.
type HandOverResult struct {
	Outcome  fence.Action   `json:"outcome"` // finished or called-off
	Epoch    dr.Epoch       `json:"epoch"`
	Final    *repo.Snapshot `json:"-"`
	DownTime time.Duration  `json:"-"`
}
