package engine

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
)

// Conditions of WaitOptions, in Compose's terms.
const (
	// ConditionStarted is fulfilled once the container runs and, for Settle, has
	// not ended.
	ConditionStarted = "service_started"
	// ConditionHealthy is fulfilled once its health check says so; without a
	// health check it is as ConditionStarted.
	ConditionHealthy = "service_healthy"
	// ConditionCompleted is fulfilled once it has ended with exit code 0.
	ConditionCompleted = "service_completed_successfully"
)

// WaitOptions say what to wait for.
type WaitOptions struct {
	Condition string // empty is ConditionHealthy
	// Settle is how long a container without a health check must have run in one
	// piece; 0 is one second. The engine's clock counts (StartedAt).
	Settle time.Duration
	// Poll is the pause between questions; 0 is 100 ms.
	Poll time.Duration
	// Progress, if set, is told of each change of state or health.
	Progress func(ContainerState)
}

// UnhealthyError says that a container will not fulfil the condition.
type UnhealthyError struct {
	Container string
	Why       string
	// Log are the last lines of the container or of its last health check.
	Log string
}

func (e *UnhealthyError) Error() string {
	s := fmt.Sprintf("container %s: %s", e.Container, e.Why)
	if e.Log != "" {
		s += "; its last lines:\n" + indent(e.Log)
	}
	return s
}

func indent(s string) string { return "    " + strings.ReplaceAll(s, "\n", "\n    ") }

// WaitHealthy waits until a container fulfils the condition. The end of ctx is
// the time-out. An *UnhealthyError says that it ended, or that time ran out
// while it was not healthy (then it wraps nothing; ctx tells), with its last lines.
func (e *Engine) WaitHealthy(ctx context.Context, id string, o WaitOptions) error {
	if o.Condition == "" {
		o.Condition = ConditionHealthy
	}
	if o.Settle == 0 {
		o.Settle = time.Second
	}
	if o.Poll == 0 {
		o.Poll = 100 * time.Millisecond
	}
	tick := time.NewTicker(o.Poll)
	defer tick.Stop()
	var last ContainerState
	var since time.Time // when this run of the container was first seen
	for {
		st, full, err := e.state(ctx, id)
		if err != nil {
			if ctx.Err() != nil {
				return e.timedOut(ctx, last, full, o)
			}
			return err
		}
		if o.Progress != nil && (st.State != last.State || st.Health != last.Health) {
			o.Progress(st)
		}
		if !st.StartedAt.Equal(last.StartedAt) || since.IsZero() {
			since = time.Now()
		}
		last = st
		done, why := judge(st, time.Since(since), o)
		if done {
			return nil
		}
		if why != "" {
			return e.unhealthy(ctx, st, full, why)
		}
		select {
		case <-ctx.Done():
			return e.timedOut(ctx, st, full, o)
		case <-tick.C:
		}
	}
}

// judge decides on one look: fulfilled, hopeless (why), or neither.
func judge(st ContainerState, ran time.Duration, o WaitOptions) (done bool, why string) {
	restarts := st.RestartPolicy.Name == "always" || st.RestartPolicy.Name == "unless-stopped" || st.RestartPolicy.Name == "on-failure" && st.ExitCode != 0
	ended := st.State == "exited" || st.State == "dead"
	switch {
	case o.Condition == ConditionCompleted:
		if ended && st.ExitCode == 0 {
			return true, ""
		}
		if ended && !restarts {
			return false, fmt.Sprintf("it ended with exit code %d, 0 was wanted", st.ExitCode)
		}
		return false, ""
	case ended && !restarts:
		why := fmt.Sprintf("it ended with exit code %d", st.ExitCode)
		if st.Error != "" {
			why += " (" + st.Error + ")"
		}
		return false, why
	case st.State == "created" && st.Error != "":
		return false, "it could not be started: " + st.Error
	case st.State != "running":
		return false, ""
	case o.Condition == ConditionHealthy && st.Health != "":
		return st.Health == "healthy", ""
	}
	return ran >= o.Settle, ""
}

func (e *Engine) timedOut(ctx context.Context, st ContainerState, full container.InspectResponse, o WaitOptions) error {
	state := st.State
	if st.Health != "" {
		state += ", " + st.Health
	}
	if st.RestartCount > 0 {
		state += fmt.Sprintf(", restarted %d times", st.RestartCount)
	}
	err := e.unhealthy(context.WithoutCancel(ctx), st, full, fmt.Sprintf("the time for %s ran out while it was %s", o.Condition, state))
	return fmt.Errorf("%w: %w", err, context.Cause(ctx))
}

func (e *Engine) unhealthy(ctx context.Context, st ContainerState, full container.InspectResponse, why string) error {
	u := &UnhealthyError{Container: st.Name, Why: why}
	if full.State != nil && full.State.Health != nil && len(full.State.Health.Log) > 0 && st.Health != "healthy" && st.State == "running" {
		u.Log = strings.TrimSpace(full.State.Health.Log[len(full.State.Health.Log)-1].Output)
	}
	if u.Log == "" && st.ID != "" {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		u.Log, _ = e.Logs(ctx, st.ID, 20)
	}
	return u
}
