package freeze

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"
)

// brake stops one container and lets it go on. Implementations are used by one
// goroutine at a time.
type brake interface {
	// set tells whether the brake is on now, by whomever. A container that is
	// gone has none.
	set(ctx context.Context) (bool, error)
	// stop asks for the freeze and returns when every process of the container
	// stands still, or with the cause of ctx. After an error the brake may be
	// on, partly on or off.
	stop(ctx context.Context) error
	// lift takes the brake off and returns when that is verified, trying until
	// ctx ends. A container that is gone is no error.
	lift(ctx context.Context) error
	// how says, for an error message, what to do by hand to let it go on.
	how() string
	close()
}

// cgroupBrake works through the container's freezer cgroup.
type cgroupBrake struct {
	freezer
	cgroup *Cgroup
}

const (
	// pollFirst and pollLast bound the wait between two looks at a freezer. A
	// freeze takes about a millisecond when nothing is in its way.
	pollFirst = 20 * time.Microsecond
	pollLast  = 2 * time.Millisecond
	// stuckAfter is when a version 1 freezer that still reads FREEZING is
	// thawed for a moment before the next try: while processes keep forking
	// or being added the kernel may never get there otherwise (runc does the
	// same). Nothing has been read yet, so the instant is not harmed.
	stuckAfter = 25 * time.Millisecond
	stuckPause = 5 * time.Millisecond
	// liftPause is the longest wait between two tries to thaw.
	liftPause = 50 * time.Millisecond
)

func (b *cgroupBrake) set(context.Context) (bool, error) {
	on, err := b.asked()
	if errors.Is(err, errGone) {
		return false, nil
	}
	return on, err
}

func (b *cgroupBrake) stop(ctx context.Context) error {
	began := time.Now()
	for wait := pollFirst; ; wait = min(2*wait, pollLast) {
		if err := passed(ctx); err != nil {
			return fmt.Errorf("not frozen after %v: %w", time.Since(began).Round(time.Millisecond), err)
		}
		if b.version == 1 && time.Since(began) > stuckAfter {
			if err := b.ask(false); err != nil {
				return fmt.Errorf("thaw for another try: %w", err)
			}
			began = time.Now()
			pause(ctx, stuckPause)
			continue
		}
		// Asked again at each turn: a no-op where the kernel is at it already,
		// and what its documentation tells to do on FREEZING.
		if err := b.ask(true); err != nil {
			return fmt.Errorf("freeze: %w", err)
		}
		done, err := b.frozen()
		if err != nil {
			return fmt.Errorf("read the freezer: %w", err)
		}
		if done {
			return nil
		}
		pause(ctx, wait)
	}
}

func (b *cgroupBrake) lift(ctx context.Context) error {
	return liftUntil(ctx, func() (bool, error) {
		if err := b.ask(false); err != nil {
			return errors.Is(err, errGone), err
		}
		on, err := b.asked()
		return errors.Is(err, errGone) || err == nil && !on, err
	})
}

// liftUntil tries until it is done or ctx ends; the error says why the last try
// was not enough.
func liftUntil(ctx context.Context, try func() (done bool, err error)) error {
	for wait := pollFirst; ; wait = min(2*wait, liftPause) {
		done, err := try()
		if done {
			return nil
		}
		if ctx.Err() != nil {
			if err == nil {
				err = errors.New("the freezer does not follow")
			}
			return fmt.Errorf("thaw: %w", err)
		}
		pause(ctx, wait)
	}
}

func (b *cgroupBrake) how() string {
	return fmt.Sprintf("echo %s > %s", freezerWord(b.version, false), filepath.Join(b.cgroup.Dir, freezerFile(b.version)))
}

// passed gives the cause of an ended context. It also compares the clock with
// the deadline itself: a process that was stopped and goes on again must not
// write to a freezer in the moment before its timers fire.
func passed(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if d, ok := ctx.Deadline(); ok && !time.Now().Before(d) {
		return context.DeadlineExceeded
	}
	return nil
}

// pause waits, at most until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// Pauser freezes through the container engine where cgroups cannot be reached.
// It is slower (tens of milliseconds each) and needs the engine to be alive for
// the thaw. Methods may be called concurrently for different containers.
type Pauser interface {
	// Pause returns when the container is paused.
	Pause(ctx context.Context, id string) error
	// Unpause returns when the container runs again. Its error is not relied
	// upon; Paused decides.
	Unpause(ctx context.Context, id string) error
	// Paused tells whether the engine holds the container paused. A container
	// that does not exist, or does not run, is not paused: false without error.
	Paused(ctx context.Context, id string) (bool, error)
}

// pauseBrake works through the engine.
type pauseBrake struct {
	pauser    Pauser
	container Container
}

// callTimeout bounds one call to the engine during a thaw, so that a lost
// answer leads to another try.
const callTimeout = 5 * time.Second

func (b *pauseBrake) set(ctx context.Context) (bool, error) {
	return b.pauser.Paused(ctx, b.container.ID)
}

func (b *pauseBrake) stop(ctx context.Context) error {
	if err := passed(ctx); err != nil {
		return err
	}
	if err := b.pauser.Pause(ctx, b.container.ID); err != nil {
		return fmt.Errorf("pause through the engine: %w", err)
	}
	return nil
}

func (b *pauseBrake) lift(ctx context.Context) error {
	return liftUntil(ctx, func() (bool, error) {
		call, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		unpauseErr := b.pauser.Unpause(call, b.container.ID)
		on, err := b.pauser.Paused(call, b.container.ID)
		return err == nil && !on, errors.Join(unpauseErr, err)
	})
}

func (b *pauseBrake) how() string { return "docker unpause " + b.container.ID }

func (b *pauseBrake) close() {}
