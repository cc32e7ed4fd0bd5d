// Package recover turns a snapshot into a running system: failover (failover.go),
// the two sides of a planned move (failback.go, handover.go), all by way of one
// operation, bringing the system's objects and trees to the state of a snapshot
// step by step from a journal (bringup.go; docs/adr/0005, docs/adr/0006).
//
// The package decides nothing about epochs (fence) or conflicts (plan), and
// writes no file trees itself (tree).
package recover

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"lifeboat/internal/dr"
	"lifeboat/internal/engine"
	"lifeboat/internal/ledger"
	"lifeboat/internal/override"
	"lifeboat/internal/plan"
	"lifeboat/internal/repo"
	"lifeboat/internal/site"
)

// Deps are the parts that a run works with.
type Deps struct {
	Engine *engine.Engine
	Repo   *repo.Repo
	Ledger *ledger.Ledger
	State  *site.State
	Log    *slog.Logger
}

// Options say how a system is brought up.
type Options struct {
	System    dr.System
	Site      dr.Site
	Overrides override.Set
	// HealthWait bounds the wait for each container's health; 0 means
	// DefaultHealthWait.
	HealthWait time.Duration
	// FreezeMax and SecureBytes are handed to the captures of this run.
	FreezeMax   time.Duration
	SecureBytes int64
	// Degraded lays trees down through the engine's archive API where the host's
	// files cannot be reached (ADR 8); nothing of the system may exist yet.
	Degraded bool
	Progress Progress
	// Hook is called at named points in tests (kill matrix); may be nil.
	Hook plan.Hook
}

// DefaultHealthWait is Options.HealthWait where none is given.
const DefaultHealthWait = 5 * time.Minute

// Progress is told how far a run is. Calls may come from several goroutines.
type Progress interface {
	// Step begins.
	Step(title string)
	// StepEnded reports it.
	StepEnded(plan.Report)
	// Total adds to the bytes that the current step has to write.
	Total(n int64)
	// Done adds to the bytes that it has written, fetched over the network or not.
	Done(n int64)
	// Note tells something worth knowing.
	Note(text string)
}

// Conflicts is the error of a plan that cannot be executed. It wraps dr.ErrHeld.
type Conflicts []plan.Conflict

func (c Conflicts) Error() string {
	var objects []string
	for _, x := range c {
		objects = append(objects, x.Object)
	}
	return fmt.Sprintf("%d thing(s) stand in the way here: %s", len(c), strings.Join(objects, ", "))
}

// Unwrap makes the error one of dr.ErrHeld.
func (c Conflicts) Unwrap() error { return dr.ErrHeld }

// ErrUnhealthy: the system was started and does not become healthy. Its
// containers are left as they are.
var ErrUnhealthy = errors.New("does not become healthy")

func (o *Options) fill() {
	if o.HealthWait == 0 {
		o.HealthWait = DefaultHealthWait
	}
	if o.Progress == nil {
		o.Progress = silent{}
	}
	if o.Hook == nil {
		o.Hook = func(string) {}
	}
}

// Published is where a service of the system can be reached.
type Published struct {
	Container string `json:"container"`
	Port      string `json:"port"`
	Host      string `json:"host"`
}

// Result is what a bring-up did.
type Result struct {
	Snapshot *repo.Snapshot
	Epoch    dr.Epoch
	// DataAge is how old the data was when the command began.
	DataAge time.Duration
	// RTO is the time from this command, its question answered, to a healthy
	// system that holds its epoch.
	RTO time.Duration
	// Since is when the first of several runs began, of which the earlier ones
	// were cut off; zero where this one did it alone.
	Since time.Time
	// Down is how long the service did not answer in a planned move: from the stop
	// at the giving site, by its clock, to a healthy system here. -1: not known.
	Down    time.Duration
	Steps   []plan.Report
	Plan    *Plan
	Ports   []Published
	Fetched int64 // bytes of units fetched from the repository
	Kept    *repo.Snapshot
	// NotKept says, in degraded mode, what of the snapshot is not here.
	NotKept []dr.CoverageItem
}

// began notes that an earlier run is continued.
func (r *Result) began(j *plan.Journal) {
	r.Down = -1
	if j.Resumed() {
		r.Since = j.Header().Started
	}
}

// serves notes that the system serves here from now on.
func (r *Result) serves(began time.Time, stopped *time.Time) {
	r.RTO = time.Since(began)
	if stopped != nil {
		r.Down = max(time.Since(*stopped), 0)
	}
}

type silent struct{}

func (silent) Step(string)           {}
func (silent) StepEnded(plan.Report) {}
func (silent) Total(int64)           {}
func (silent) Done(int64)            {}
func (silent) Note(string)           {}

// openRoot reads a snapshot's root record.
func openRoot(ctx context.Context, r *repo.Repo, s *repo.Snapshot) (*repo.Reader, *dr.Root, error) {
	rd, err := r.NewReader(ctx, s)
	if err != nil {
		return nil, nil, fmt.Errorf("snapshot %s: %w", s.ID.Short(), err)
	}
	root, err := rd.Root(ctx)
	if err != nil {
		rd.Close()
		return nil, nil, fmt.Errorf("snapshot %s: %w", s.ID.Short(), err)
	}
	return rd, root, nil
}
