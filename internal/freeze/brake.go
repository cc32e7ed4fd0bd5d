package freeze

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
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
	proc   string // root of proc
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
	try := began
	for wait := pollFirst; ; wait = min(2*wait, pollLast) {
		if err := passed(ctx); err != nil {
			return fmt.Errorf("not frozen after %v: %w", time.Since(began).Round(time.Millisecond), err)
		}
		if b.version == 1 && time.Since(try) > stuckAfter {
			if err := b.ask(false); err != nil {
				return fmt.Errorf("thaw for another try: %w", err)
			}
			pause(ctx, stuckPause)
			try = time.Now()
			continue
		}
		// Asked again at each turn: a no-op where the kernel is at it already,
		// and what its documentation tells to do on FREEZING.
		if err := b.ask(true); err != nil {
			return fmt.Errorf("freeze: %w", err)
		}
		done, err := b.frozen()
		if err == nil && done {
			done, err = b.settled()
		}
		if err != nil {
			return fmt.Errorf("read the freezer: %w", err)
		}
		if done {
			return nil
		}
		pause(ctx, wait)
	}
}

// settled looks closer where version 2's own answer is not enough: a cgroup that
// has both processes and nested cgroups reads "frozen 1" as soon as either the
// ones or the others stand still (the kernel's accounting takes it that there
// are no such cgroups, but without controllers there can be), while a write(2)
// of the others that is under way still goes on. Version 1 looks at everything
// below by itself.
func (b *cgroupBrake) settled() (bool, error) {
	if b.version == 1 {
		return true, nil
	}
	var st unix.Stat_t
	if err := unix.Stat(b.cgroup.Dir, &st); err != nil {
		return false, goneOr(err)
	}
	if st.Nlink <= 2 {
		return true, nil // no nested cgroups
	}
	settled := true
	err := filepath.WalkDir(b.cgroup.Dir, func(p string, d fs.DirEntry, err error) error {
		switch {
		case gone(err) && p != b.cgroup.Dir:
			return nil // went away meanwhile
		case err != nil:
			return err
		case !d.IsDir():
			return nil
		}
		still, err := levelFrozen(b.proc, p)
		if err != nil {
			return err
		}
		if !still {
			settled = false
			return fs.SkipAll
		}
		return nil
	})
	return settled, err
}

// levelFrozen tells whether a version 2 cgroup says that it is frozen, and
// whether none of its own threads is on its way to the freezer: the freeze has
// woken them all, so those that are not there yet run, or wait for a disk.
func levelFrozen(proc, dir string) (bool, error) {
	events, err := os.ReadFile(filepath.Join(dir, "cgroup.events"))
	if err != nil {
		return gone(err), ignoreGone(err)
	}
	if !bytes.Contains(events, []byte("frozen 1")) {
		return false, nil
	}
	threads, err := os.ReadFile(filepath.Join(dir, "cgroup.threads"))
	if err != nil {
		return gone(err), ignoreGone(err)
	}
	for _, tid := range strings.Fields(string(threads)) {
		stat, err := os.ReadFile(filepath.Join(proc, tid, "stat"))
		if err != nil {
			continue // it ended
		}
		// The state follows the name, which is in brackets and may hold some.
		i := bytes.LastIndex(stat, []byte(") "))
		if i < 0 || i+2 >= len(stat) {
			continue
		}
		switch stat[i+2] {
		case 'R', 'W':
			return false, nil
		case 'D':
			if !awaitsVfork(proc, tid) {
				return false, nil
			}
		}
	}
	return true, nil
}

// awaitsVfork tells whether a thread sleeps until its vforked child, which is
// frozen, has called exec. The kernel counts it as frozen. Where the kernel
// hides what it waits for, it is given the benefit of the doubt.
func awaitsVfork(proc, tid string) bool {
	b, err := os.ReadFile(filepath.Join(proc, tid, "wchan"))
	where := strings.TrimSpace(string(b))
	return err != nil || where == "" || where == "0" || strings.Contains(where, "clone") || strings.Contains(where, "fork")
}

// gone tells whether the error means that a nested cgroup was removed.
func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) }

func ignoreGone(err error) error {
	if gone(err) {
		return nil
	}
	return err
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
