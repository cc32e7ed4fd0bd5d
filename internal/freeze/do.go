package freeze

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/internal/dr"
)

const (
	// DefaultFreezeMax is Options.FreezeMax where none is given.
	DefaultFreezeMax = 10 * time.Second
	// minFreezeMax leaves room for freezing itself.
	minFreezeMax = 20 * time.Millisecond
	// thawPatience is how long this process tries to thaw before it leaves the
	// rest to its guardians and to Sweep.
	thawPatience = 30 * time.Second
)

// Options of Do.
type Options struct {
	// FreezeMax is the longest time from the first write to a freezer until
	// the guardians thaw (freeze_max). 0 means DefaultFreezeMax.
	FreezeMax time.Duration
	// Margin is how long before FreezeMax the context of fn is cancelled, so
	// that it can stop in time. 0 means a tenth of FreezeMax, at most half a
	// second.
	Margin time.Duration
	// StateDir is where the record of a freeze lies while it lasts; Sweep needs
	// the same. It is made if need be (mode 0700). A directory that a reboot
	// empties, below /run, serves best.
	StateDir string
	// Command is the program, a path, and its arguments that run a guardian.
	// Empty means this binary with GuardianCommand.
	Command []string
	// Ready is the last look before anything is frozen: it runs once the guardians
	// watch, and its error ends Do with nothing frozen. What it waits for costs no
	// time while frozen. nil: nothing to look at.
	Ready func(context.Context) error
	// Logger is told, before the freeze and after it, what a guardian had to do
	// without. While frozen nothing is logged. nil discards.
	Logger *slog.Logger

	// onStep is called at each step, for tests that kill at each point.
	onStep func(step)
	// patience is thawPatience, shorter in tests.
	patience time.Duration
}

// step names the points of Do between which it can be killed.
type step string

const (
	stepRecorded step = "recorded" // record written, no guardian yet
	stepGuarded  step = "guarded"  // guardians ready, not armed
	stepArmed    step = "armed"    // nothing frozen yet
	stepFrozen   step = "frozen"   // all frozen, fn not yet called
	stepThawing  step = "thawing"  // fn is done, nothing thawed yet
	stepThawed   step = "thawed"   // all thawed, guardians not released
	stepReleased step = "released" // only the record is left
)

func (o Options) checked() (Options, error) {
	if o.FreezeMax == 0 {
		o.FreezeMax = DefaultFreezeMax
	}
	if o.FreezeMax < minFreezeMax {
		return o, fmt.Errorf("freeze_max %v is shorter than %v: %w", o.FreezeMax, minFreezeMax, dr.ErrUsage)
	}
	if o.Margin == 0 {
		o.Margin = min(o.FreezeMax/10, 500*time.Millisecond)
	}
	if o.Margin < 0 || o.Margin >= o.FreezeMax {
		return o, fmt.Errorf("margin %v does not lie between 0 and freeze_max %v: %w", o.Margin, o.FreezeMax, dr.ErrUsage)
	}
	if o.StateDir == "" {
		return o, fmt.Errorf("no state directory for the freeze record: %w", dr.ErrUsage)
	}
	if len(o.Command) == 0 {
		// The link leads to this very binary, also after it was replaced on
		// disk by a newer one that might speak another protocol.
		o.Command = []string{"/proc/self/exe", GuardianCommand}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.patience == 0 {
		o.patience = thawPatience
	}
	if o.onStep == nil {
		o.onStep = func(step) {}
	}
	if o.Ready == nil {
		o.Ready = func(context.Context) error { return nil }
	}
	return o, nil
}

// Report tells how a freeze went. Its durations are also right, as far as it
// got, when Do fails.
type Report struct {
	// Containers is how many were frozen.
	Containers int
	// Foreign are those that somebody else had paused before; they were left
	// paused.
	Foreign []Container
	// FrozenAt is when every process of every container stood still: the
	// instant of the snapshot (invariant 4). Zero if it never came to that.
	FrozenAt time.Time
	// Preparing is the time for record and guardians; everything ran meanwhile.
	Preparing time.Duration
	// Freezing is the time from the first write to a freezer to FrozenAt.
	Freezing time.Duration
	// Held is the time from FrozenAt until thawing began.
	Held time.Duration
	// Thawing is the time until all were verified to go on.
	Thawing time.Duration
}

// Frozen is the time during which at least one container may have stood still:
// what users of the system notice.
func (r Report) Frozen() time.Duration { return r.Freezing + r.Held + r.Thawing }

// Do runs fn while every container of the set is frozen, and thaws whatever
// happens: fn returns, fails, panics or hangs, a signal arrives, this process
// is stopped or killed (invariant 5). The context of fn is cancelled on SIGINT
// and SIGTERM, when the freeze breaks (cause ErrFreezeBroken), and Margin
// before FreezeMax (cause ErrFreezeMax). fn must use neither network nor
// terminal and must not log: what it would wait for may be frozen.
//
// A nil error means that fn returned nil and no container ran between FrozenAt
// and the return of fn. Else the error wraps those of fn, and
// ErrFreezeBroken: discard what fn has read;
// ErrFreezeMax: freeze_max was, or was about to be, exceeded;
// ErrInterrupted: SIGINT or SIGTERM arrived;
// ErrStillFrozen: something could not be thawed;
// what Ready returned, ErrNoGuardian, dr.ErrHeld (another Lifeboat has a container frozen), or the
// name of a container that could not be frozen: fn was not called.
//
// The set can be used again. Two calls with sets that share a container do not
// get into each other's way: the second gets dr.ErrHeld.
func Do(ctx context.Context, s *Set, o Options, fn func(ctx context.Context) error) (Report, error) {
	o, err := o.checked()
	if err != nil {
		return Report{}, err
	}
	if s.Len() == 0 {
		if err := o.Ready(ctx); err != nil {
			return Report{}, err
		}
		return Report{FrozenAt: time.Now()}, fn(ctx)
	}
	if os.Getpid() == 1 {
		return Report{}, fmt.Errorf("%w: this is process 1 of its pid namespace, and a guardian would die with it; "+
			"run with the host's pid namespace: nothing was frozen", ErrNoGuardian)
	}
	ctx, stop := interruptible(ctx)
	defer stop()
	began := time.Now()
	rec, err := register(ctx, s, o)
	if err != nil {
		return Report{}, fmt.Errorf("prepare the freeze: %w", err)
	}
	o.onStep(stepRecorded)
	w, limits, err := startWatch(ctx, s, rec.file, o.Command)
	if err != nil {
		return Report{}, errors.Join(fmt.Errorf("%w: nothing was frozen", err), rec.finish())
	}
	o.logLimits(limits)
	o.onStep(stepGuarded)
	h := &holding{set: s, options: o, watch: w, record: rec}
	h.report.Preparing = time.Since(began)
	for _, m := range s.members {
		if m.foreign {
			h.report.Foreign = append(h.report.Foreign, m.container)
		}
	}
	h.report.Containers = s.Len() - len(h.report.Foreign)
	err = h.run(ctx, fn)
	if errors.Is(context.Cause(ctx), ErrInterrupted) && !errors.Is(err, ErrInterrupted) {
		err = errors.Join(err, ErrInterrupted)
	}
	return h.report, err
}

func (o Options) logLimits(l limit) {
	if l&limitMemory != 0 {
		o.Logger.Warn("guardian's memory is not locked")
	}
	if l&limitPriority != 0 {
		o.Logger.Debug("guardian has ordinary priority")
	}
}

// interruptible cancels the context on SIGINT and SIGTERM, which do not end the
// process while Do runs.
func interruptible(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM)
	done := make(chan struct{})
	var wait sync.WaitGroup
	wait.Go(func() {
		select {
		case s := <-signals:
			cancel(fmt.Errorf("%w: %s", ErrInterrupted, s))
		case <-done:
		}
	})
	return ctx, func() {
		signal.Stop(signals)
		close(done)
		wait.Wait()
		cancel(nil)
	}
}

// holding is one freeze under way.
type holding struct {
	set     *Set
	options Options
	watch   *watch
	record  *held
	report  Report

	mu     sync.Mutex // for the set's methods and what follows
	broken error      // why it was thawed early
	ended  bool       // the freeze is over, nothing is left to break
}

// run arms, freezes, calls fn, and finishes, also if fn panics.
func (h *holding) run(ctx context.Context, fn func(context.Context) error) (err error) {
	if err := h.options.Ready(ctx); err != nil {
		return errors.Join(err, h.close(nil))
	}
	now, err := boottime()
	if err != nil {
		return errors.Join(err, h.close(nil))
	}
	armed := time.Now()
	ctx, cancelMax := context.WithDeadlineCause(ctx, armed.Add(h.options.FreezeMax-h.options.Margin), ErrFreezeMax)
	defer cancelMax()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if err := h.watch.ask(ctx, kindArm, now+int64(h.options.FreezeMax), kindArmed); err != nil {
		return errors.Join(fmt.Errorf("arm: %w: nothing was frozen", err), h.close(nil))
	}
	h.options.onStep(stepArmed)

	stop := h.alarm(armed.Add(h.options.FreezeMax), cancel)
	defer func() {
		// Also on a panic in fn, which goes on after this.
		err = errors.Join(err, h.finish())
		stop()
	}()
	if err := h.freeze(ctx); err != nil {
		return err
	}
	h.options.onStep(stepFrozen)
	err = fn(ctx)
	if err != nil && errors.Is(context.Cause(ctx), ErrFreezeMax) && !errors.Is(err, ErrFreezeMax) {
		err = fmt.Errorf("%w: %w", ErrFreezeMax, err)
	}
	return err
}

// alarm thaws at once, beside fn, when a guardian fails or freeze_max passes.
func (h *holding) alarm(deadline time.Time, cancel context.CancelCauseFunc) (stop func()) {
	done := make(chan struct{})
	var wait sync.WaitGroup
	wait.Go(func() {
		t := time.NewTimer(time.Until(deadline))
		defer t.Stop()
		var why error
		select {
		case <-done:
			return
		case <-h.watch.failed:
			why = h.watch.err
		case <-t.C:
			why = ErrFreezeMax
		}
		why = fmt.Errorf("%w: %w", ErrFreezeBroken, why)
		cancel(why) // first: a freeze under way stops and gives up the lock
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.ended {
			return
		}
		h.broken = why
		ctx, cancelThaw := context.WithTimeout(context.Background(), h.options.patience)
		defer cancelThaw()
		_ = h.set.Thaw(ctx) // finish thaws again and reports
	})
	return func() {
		close(done)
		wait.Wait()
	}
}

// freeze freezes, for at most half of freeze_max, and confirms that the
// guardians are still there.
func (h *holding) freeze(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	began := time.Now()
	within, cancel := context.WithTimeoutCause(ctx, h.options.FreezeMax/2, ErrFreezeMax)
	defer cancel()
	err := h.set.freeze(within)
	h.report.Freezing = time.Since(began)
	if err != nil {
		return err
	}
	h.report.FrozenAt = began.Add(h.report.Freezing)
	// Whether it is guarded does not depend on whether it is still wanted.
	if err := h.watch.ask(context.WithoutCancel(ctx), kindFrozen, 0, kindGuarded); err != nil {
		return fmt.Errorf("%w: %w", ErrFreezeBroken, err)
	}
	return passed(ctx)
}

// finish looks whether the freeze held, thaws, verifies, and has the guardians
// confirm that they did not thaw before.
func (h *holding) finish() error {
	h.options.onStep(stepThawing)
	h.mu.Lock()
	defer h.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), h.options.patience)
	defer cancel()
	began := time.Now()
	var broken error
	if !h.report.FrozenAt.IsZero() {
		h.report.Held = began.Sub(h.report.FrozenAt)
		if broken = h.broken; broken == nil {
			broken = h.set.Held(ctx)
		}
		began = time.Now()
	}
	stillFrozen := h.set.Thaw(ctx)
	h.report.Thawing = time.Since(began)
	h.ended = true
	h.options.onStep(stepThawed)
	if stillFrozen != nil {
		return errors.Join(broken, stillFrozen, h.close(stillFrozen))
	}
	if err := h.watch.ask(context.Background(), kindRelease, 0, kindHeld); err != nil && broken == nil {
		broken = fmt.Errorf("%w: %w", ErrFreezeBroken, err)
	}
	h.options.onStep(stepReleased)
	return errors.Join(broken, h.close(nil))
}

// close ends the guardians and the record, or leaves both to their work if
// something is still frozen.
func (h *holding) close(stillFrozen error) error {
	if stillFrozen != nil {
		h.watch.abandon()
		h.record.keep()
		return nil
	}
	h.watch.end()
	return h.record.finish()
}
