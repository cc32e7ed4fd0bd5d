package plan

import (
	"context"
	"fmt"
	"time"
)

// Step is one piece of work. Do must be idempotent: it may run again after a
// kill at any point of it (invariant 8).
type Step struct {
	// ID is stable across runs; the journal knows steps by it.
	ID string
	// Title is for people.
	Title string
	// Always runs the step in every run, also when the journal has its result:
	// for steps that only gather what later ones hold in memory.
	Always bool
	Do     func(ctx context.Context) error
}

// Report is the outcome of one step.
type Report struct {
	ID        string `json:"id"`
	Title     string `json:"title"`
	State     string `json:"state"` // done, skipped (done by an earlier run), failed
	ElapsedMS int64  `json:"elapsed_ms"`
	Error     string `json:"error,omitempty"`
}

// Observer is told of each step as it starts and ends; either may be nil.
type Observer struct {
	Started func(Step)
	Ended   func(Report)
}

// Hook is called around the effects of each step in tests: "intent:ID" after
// the intent is recorded, "acted:ID" after the effect and before its result is
// recorded, "done:ID" after it. It is how the kill matrix stops a run there.
type Hook func(point string)

// Run executes steps in order. Steps that the journal has as done are skipped.
// The first failure ends the run; the journal then tells where to go on.
func Run(ctx context.Context, j *Journal, steps []Step, obs Observer, hook Hook) ([]Report, error) {
	if hook == nil {
		hook = func(string) {}
	}
	var reports []Report
	report := func(r Report) {
		reports = append(reports, r)
		if obs.Ended != nil {
			obs.Ended(r)
		}
	}
	for _, s := range steps {
		if j.Done(s.ID) && !s.Always {
			report(Report{ID: s.ID, Title: s.Title, State: "skipped"})
			continue
		}
		if err := ctx.Err(); err != nil {
			return reports, err
		}
		if obs.Started != nil {
			obs.Started(s)
		}
		if err := j.Intent(s.ID); err != nil {
			return reports, err
		}
		hook("intent:" + s.ID)
		begin := time.Now()
		err := s.Do(ctx)
		took := time.Since(begin).Milliseconds()
		if err != nil {
			_ = j.Fail(s.ID, err) // the step's own error is the one to tell
			report(Report{ID: s.ID, Title: s.Title, State: "failed", ElapsedMS: took, Error: err.Error()})
			return reports, fmt.Errorf("%s: %w", s.Title, err)
		}
		hook("acted:" + s.ID)
		if err := j.Finish(s.ID); err != nil {
			return reports, err
		}
		hook("done:" + s.ID)
		report(Report{ID: s.ID, Title: s.Title, State: "done", ElapsedMS: took})
	}
	return reports, nil
}
