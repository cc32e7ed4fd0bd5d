package recover

import (
	"context"
	"errors"
	"fmt"
	"time"

	"lifeboat/internal/capture"
	"lifeboat/internal/dr"
	"lifeboat/internal/fence"
	"lifeboat/internal/plan"
	"lifeboat/internal/repo"
)

// FailoverOptions say which snapshot is brought up.
type FailoverOptions struct {
	Options
	// Snapshot is a reference (id prefix, #number); empty is the newest of the line.
	Snapshot string
	// DryRun plans and changes nothing.
	DryRun bool
	// Confirm is asked before anything is changed; an error ends the run. May be nil.
	Confirm func(*Plan) error
}

// Failover brings a system up here because its active site is lost. The caller
// holds the system's lock. A run that was cut off is continued with the
// snapshot that it began with.
//
// Errors: Conflicts (dr.ErrHeld) before anything is changed; dr.ErrNotFound;
// ErrUnhealthy with everything in place and the epoch held; dr.ErrFenced if
// another site claims meanwhile; dr.ErrOutcomeUnknown.
func Failover(ctx context.Context, d Deps, o FailoverOptions) (*Result, error) {
	o.fill()
	began := time.Now()
	claims, err := d.Ledger.Claims(ctx, o.System)
	if err != nil {
		return nil, err
	}
	snap, err := choose(ctx, d, o.System, o.Snapshot, claims)
	if err != nil {
		return nil, err
	}
	path, err := d.State.JournalPath(o.System, "failover")
	if err != nil {
		return nil, err
	}
	h, unfinished, err := plan.Peek(path)
	if err != nil {
		return nil, err
	}
	if unfinished && h.Snapshot != snap.ID && o.Snapshot == "" && !o.DryRun {
		if snap, err = d.Repo.Find(ctx, o.System, h.Snapshot.String()); err != nil {
			return nil, fmt.Errorf("continue the failover that was cut off: %w", err)
		}
		o.Progress.Note("continuing with snapshot " + snap.ID.Short() + ", which an earlier run began with")
	}
	b, err := prepare(ctx, d, o.Options, snap)
	if err != nil {
		return nil, err
	}
	defer b.close()
	header := plan.Header{Operation: b.operation(), System: o.System, Snapshot: snap.ID}
	b.resumes = o.Degraded && unfinished && h.Snapshot == snap.ID && h.Operation == header.Operation
	p, err := b.plan(ctx)
	if err != nil {
		return nil, err
	}
	res := &Result{Snapshot: snap, Plan: p, DataAge: began.Sub(b.captured.Created)}
	if n := len(claims); n > 0 {
		res.Epoch = claims[n-1].Epoch
	}
	if len(p.Conflicts) > 0 {
		return res, Conflicts(p.Conflicts)
	}
	if o.DryRun {
		return res, nil
	}
	if o.Confirm != nil {
		if err := o.Confirm(p); err != nil {
			return res, err
		}
	}
	acting := time.Now()
	b.journal, err = plan.Open(path, header)
	if err != nil {
		return res, err
	}
	defer b.journal.Close()
	if b.journal.Header().Snapshot != snap.ID || o.Degraded && !b.resumes { // another one was asked for by name, or to be laid down otherwise
		if err := b.journal.End(); err != nil {
			return res, err
		}
		b.journal.Close()
		if b.journal, err = plan.Open(path, header); err != nil {
			return res, err
		}
	}
	res.began(b.journal)
	steps := append(b.steps(),
		plan.Step{ID: "claim", Title: "claim the epoch", Do: func(ctx context.Context) error { return b.claimForFailover(ctx, res) }},
		plan.Step{ID: "start", Title: "start, wait until healthy", Do: b.start},
	)
	res.Steps, err = plan.Run(ctx, b.journal, steps, observer(o.Progress), o.Hook)
	res.Fetched, res.Kept = b.fetched, b.kept
	if err != nil {
		return res, err
	}
	res.serves(acting, nil)
	if res.NotKept, err = b.notKept(); err != nil {
		return res, err
	}
	if err := b.journal.End(); err != nil {
		return res, err
	}
	res.Ports, err = b.published(ctx)
	return res, err
}

// operation names the work in its journal. What one mode began and the other
// goes on with is told by it.
func (b *bringUp) operation() string {
	if b.o.Degraded {
		return "failover, degraded"
	}
	return "failover"
}

// choose finds the snapshot to bring up: the newest of the line, or the named one.
func choose(ctx context.Context, d Deps, sys dr.System, ref string, claims []fence.Claim) (*repo.Snapshot, error) {
	if ref != "" {
		return d.Repo.Find(ctx, sys, ref)
	}
	// The newest are read first; only where that does not find it are all.
	if s, err := d.Repo.Find(ctx, sys, "latest"); err == nil || !errors.Is(err, dr.ErrNotFound) && !errors.Is(err, dr.ErrTampered) {
		return s, err
	}
	snaps, problems, err := d.Repo.Snapshots(ctx, sys)
	if err != nil {
		return nil, err
	}
	for _, p := range problems {
		d.Log.Warn("a tag of the repository does not verify", "problem", p.String())
	}
	id, ok := fence.Head(claims, capture.Snaps(snaps))
	if !ok {
		return nil, fmt.Errorf("the repository has no snapshot of system %q: %w", sys, dr.ErrNotFound)
	}
	return d.Repo.Find(ctx, sys, id.String())
}

// claimForFailover takes the epoch before anything is started: a site never
// serves without it (ADR 6). Holding it already, from this snapshot, is enough.
func (b *bringUp) claimForFailover(ctx context.Context, res *Result) error {
	claims, err := b.d.Ledger.Claims(ctx, b.o.System)
	if err != nil {
		return fmt.Errorf("the newest epoch could not be read: %w: %w; nothing was started, run the same command again", dr.ErrOutcomeUnknown, err)
	}
	if n := len(claims); n > 0 && claims[n-1].Host == b.d.Repo.HostID() && claims[n-1].Base != nil && *claims[n-1].Base == b.snap.ID {
		res.Epoch = claims[n-1].Epoch
		return nil
	}
	base := b.snap.ID
	claim, err := b.d.Ledger.Claim(ctx, claims, fence.Claim{System: b.o.System, Site: b.o.Site, Base: &base, Reason: fence.ReasonFailover})
	if err != nil {
		return err
	}
	res.Epoch = claim.Epoch
	return nil
}

func observer(p Progress) plan.Observer {
	return plan.Observer{
		Started: func(s plan.Step) { p.Step(s.Title) },
		Ended:   p.StepEnded,
	}
}

// ErrNotHere: the operation needs a record that this site does not have.
var ErrNotHere = errors.New("not known at this site")
