package freeze

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/internal/dr"
)

func eachVersion(t *testing.T, f func(t *testing.T, version int)) {
	for _, v := range versions(t) {
		t.Run(fmt.Sprintf("v%d", v), func(t *testing.T) { f(t, v) })
	}
}

func TestDoFreezesAllAndThaws(t *testing.T) {
	eachVersion(t, func(t *testing.T, v int) {
		fs := fixtures(t, v, 3)
		dir := t.TempDir()
		set := newTestSet(t, fs)
		rep, err := Do(context.Background(), set, Options{StateDir: dir}, func(context.Context) error {
			var before []int
			for _, f := range fs {
				if !f.frozen(t) {
					t.Errorf("%s is not frozen", f.Name)
				}
				before = append(before, f.counter())
			}
			for range 50 {
				runtime.Gosched()
				for i, f := range fs {
					if n := f.counter(); n != before[i] {
						t.Errorf("%s counted from %d to %d while frozen", f.Name, before[i], n)
					}
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		mustRun(t, fs)
		if pids, err := set.Pids(); err != nil || len(pids) < 3 || !slices.Contains(pids, fs[2].Pid) {
			t.Errorf("processes %v, %v", pids, err)
		}
		if rep.Containers != 3 || rep.FrozenAt.IsZero() || rep.Frozen() <= 0 || rep.Preparing <= 0 {
			t.Errorf("report %+v", rep)
		}
		t.Logf("prepared in %v, frozen after %v, thawed in %v", rep.Preparing, rep.Freezing, rep.Thawing)
		if r, _ := filepath.Glob(filepath.Join(dir, recordPrefix+"*")); len(r) != 0 {
			t.Errorf("records left: %v", r)
		}
	})
}

func TestDoEndsOfFn(t *testing.T) {
	errFn := errors.New("fn failed")
	for _, tc := range []struct {
		name string
		fn   func(ctx context.Context) error
		max  time.Duration
		want []error
		not  []error
	}{
		{name: "error", fn: func(context.Context) error { return errFn }, want: []error{errFn}, not: []error{ErrFreezeBroken}},
		{name: "stops in time", max: 500 * time.Millisecond, fn: func(ctx context.Context) error {
			<-ctx.Done()
			return context.Cause(ctx)
		}, want: []error{ErrFreezeMax}, not: []error{ErrFreezeBroken}},
		{name: "stops too late", max: 100 * time.Millisecond, fn: func(ctx context.Context) error {
			for context.Cause(ctx); !errors.Is(context.Cause(ctx), ErrFreezeMax); {
				runtime.Gosched()
			}
			time.Sleep(200 * time.Millisecond) // it hangs: this is what is tested
			return nil
		}, want: []error{ErrFreezeMax, ErrFreezeBroken}},
		{name: "interrupted", fn: func(ctx context.Context) error {
			if err := unix.Kill(os.Getpid(), unix.SIGTERM); err != nil {
				return err
			}
			<-ctx.Done()
			return nil
		}, want: []error{ErrInterrupted}, not: []error{ErrFreezeBroken}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			fs := fixtures(t, versions(t)[0], 2)
			_, err := Do(context.Background(), newTestSet(t, fs), Options{StateDir: t.TempDir(), FreezeMax: tc.max}, tc.fn)
			for _, w := range tc.want {
				if !errors.Is(err, w) {
					t.Errorf("error %v, want %v", err, w)
				}
			}
			for _, n := range tc.not {
				if errors.Is(err, n) {
					t.Errorf("error %v is %v", err, n)
				}
			}
			mustRun(t, fs)
		})
	}
}

// The last look runs when the guardians watch and nothing is frozen; if it fails,
// nothing is.
func TestDoIsReadyBeforeAnythingIsFrozen(t *testing.T) {
	eachVersion(t, func(t *testing.T, v int) {
		fs := fixtures(t, v, 2)
		dir := t.TempDir()
		errReady := errors.New("something changed")
		for _, fail := range []error{errReady, nil} {
			var looked, called bool
			_, err := Do(context.Background(), newTestSet(t, fs), Options{StateDir: dir, Ready: func(context.Context) error {
				looked = true
				mustRun(t, fs)
				if r, _ := filepath.Glob(filepath.Join(dir, recordPrefix+"*")); len(r) != 1 {
					t.Errorf("records: %v, want the one that the guardians are for", r)
				}
				return fail
			}}, func(context.Context) error {
				called = true
				return nil
			})
			if !errors.Is(err, fail) || !looked || called != (fail == nil) {
				t.Errorf("ready returned %v: %v, looked %v, called %v", fail, err, looked, called)
			}
			mustRun(t, fs)
			if r, _ := filepath.Glob(filepath.Join(dir, recordPrefix+"*")); len(r) != 0 {
				t.Errorf("records left: %v", r)
			}
		}
	})
}

func TestDoThawsOnPanic(t *testing.T) {
	fs := fixtures(t, versions(t)[0], 2)
	set, dir := newTestSet(t, fs), t.TempDir()
	func() {
		defer func() {
			if r := recover(); r != "boom" {
				t.Errorf("recovered %v", r)
			}
			for _, f := range fs {
				if f.asked(t) {
					t.Errorf("%s is frozen when the panic arrives", f.Name)
				}
			}
		}()
		_, _ = Do(context.Background(), set, Options{StateDir: dir}, func(context.Context) error { panic("boom") })
	}()
	mustRun(t, fs)
	if r := records(t, dir); len(r) != 0 {
		t.Errorf("records left: %v", r)
	}
	if _, err := Do(context.Background(), set, Options{StateDir: dir}, func(context.Context) error { return nil }); err != nil {
		t.Errorf("second use of the set: %v", err)
	}
}

func TestDoThawedByAnother(t *testing.T) {
	eachVersion(t, func(t *testing.T, v int) {
		fs := fixtures(t, v, 2)
		_, err := Do(context.Background(), newTestSet(t, fs), Options{StateDir: t.TempDir()}, func(context.Context) error {
			fs[1].write(t, false)
			return nil
		})
		if !errors.Is(err, ErrFreezeBroken) || !strings.Contains(err.Error(), fs[1].Name) || strings.Contains(err.Error(), fs[0].Name) {
			t.Errorf("error %v, want it broken by %s", err, fs[1].Name)
		}
		mustRun(t, fs)
	})
}

func TestDoLeavesPausedByAnother(t *testing.T) {
	eachVersion(t, func(t *testing.T, v int) {
		fs := fixtures(t, v, 2)
		fs[0].write(t, true)
		rep, err := Do(context.Background(), newTestSet(t, fs), Options{StateDir: t.TempDir()}, func(context.Context) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		if rep.Containers != 1 || len(rep.Foreign) != 1 || rep.Foreign[0].ID != fs[0].ID {
			t.Errorf("report %+v", rep)
		}
		if !fs[0].asked(t) {
			t.Error("thawed what somebody else had paused")
		}
		mustRun(t, fs[1:])
	})
}

func TestDoContainerEnds(t *testing.T) {
	eachVersion(t, func(t *testing.T, v int) {
		fs := fixtures(t, v, 2)
		set := newTestSet(t, fs)
		fs[0].removeNow(t)
		_, err := Do(context.Background(), set, Options{StateDir: t.TempDir()}, func(context.Context) error {
			t.Error("fn called")
			return nil
		})
		if err == nil || !strings.Contains(err.Error(), fs[0].Name) {
			t.Errorf("error %v does not name %s", err, fs[0].Name)
		}
		mustRun(t, fs[1:])
	})
}

func TestDoRefusesSharedContainer(t *testing.T) {
	fs := fixtures(t, versions(t)[0], 3)
	dir := t.TempDir()
	first, second := newTestSet(t, fs[:2]), newTestSet(t, fs[1:])
	_, err := Do(context.Background(), first, Options{StateDir: dir}, func(ctx context.Context) error {
		_, err := Do(ctx, second, Options{StateDir: dir}, func(context.Context) error {
			t.Error("second fn called")
			return nil
		})
		if !errors.Is(err, dr.ErrHeld) || !strings.Contains(err.Error(), fs[1].Name) {
			t.Errorf("second Do: %v", err)
		}
		if !fs[1].frozen(t) {
			t.Error("the refused call thawed a container of the first")
		}
		third := newTestSet(t, fs[2:])
		_, err = Do(ctx, third, Options{StateDir: dir}, func(context.Context) error { return nil })
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	mustRun(t, fs)
}

// mustStandStill freezes many times and sees that no process in the cgroups,
// which fork all the time, runs once Freeze is back.
func mustStandStill(t *testing.T, set *Set, fs ...*fixture) {
	t.Helper()
	all := func() (s string) {
		for _, f := range fs {
			s += f.dir + ": " + f.activity(t)
		}
		return s
	}
	for range 25 {
		for _, f := range fs {
			f.mustProgress(t)
		}
		if err := set.Freeze(context.Background()); err != nil {
			t.Fatal(err)
		}
		before := all()
		for end := time.Now().Add(40 * time.Millisecond); time.Now().Before(end); {
			if now := all(); now != before {
				t.Fatalf("activity while frozen, from\n%sto\n%s", before, now)
			}
		}
		if err := set.Thaw(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFreezeStopsEveryProcess(t *testing.T) {
	eachVersion(t, func(t *testing.T, v int) {
		fs := fixtures(t, v, 2)
		mustStandStill(t, newTestSet(t, fs), fs...)
		mustRun(t, fs)
	})
}

func TestDoNestedCgroupsFreezeWithTheirParent(t *testing.T) {
	eachVersion(t, func(t *testing.T, v int) {
		f := newFixture(t, v)
		inner := filepath.Join(f.dir, "inner")
		if err := os.Mkdir(inner, 0o755); err != nil {
			t.Fatal(err)
		}
		nested := &fixture{Container: f.Container, version: v, dir: inner, count: filepath.Join(t.TempDir(), "count")}
		cmd := nested.run(t, inner, `i=0; while :; do i=$((i+1)); echo $i > "$COUNT.new"; mv "$COUNT.new" "$COUNT"; sleep 0.02; done`)
		t.Cleanup(func() { nested.remove(t, cmd) })
		nested.mustProgress(t)
		f.Pid = cmd.Process.Pid // an init process in a nested cgroup, as systemd has
		set := newTestSet(t, []*fixture{f})
		if got := set.members[0].cgroup.cgroup.Dir; got != f.dir {
			t.Fatalf("cgroup %s, want the container's own %s", got, f.dir)
		}
		mustStandStill(t, set, f, nested)
		mustRun(t, []*fixture{f, nested})
	})
}

// A write that is under way in the kernel goes on for a while after the freeze
// was asked for. Freeze must not be back before it has ended, wherever in the
// container the writer is.
func TestFreezeWaitsForWritesUnderWay(t *testing.T) {
	const write = `while :; do dd if=/dev/zero of="$COUNT" bs=64M count=1 2>/dev/null; done`
	for _, tc := range []struct{ name, outer, inner string }{
		{name: "not nested", outer: write},
		{name: "beside a nested cgroup", outer: write, inner: "sleep 1000"},
		{name: "in a nested cgroup", outer: "sleep 1000", inner: write},
	} {
		t.Run(tc.name, func(t *testing.T) {
			eachVersion(t, func(t *testing.T, v int) {
				dir := t.TempDir()
				if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=80m"); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() {
					if err := unix.Unmount(dir, 0); err != nil {
						t.Error(err)
					}
				})
				f := newFixture(t, v)
				w := &fixture{Container: f.Container, version: v, dir: f.dir, count: filepath.Join(dir, "file")}
				cmds := []*exec.Cmd{w.run(t, f.dir, tc.outer)}
				if tc.inner != "" {
					w.dir = filepath.Join(f.dir, "inner")
					if err := os.Mkdir(w.dir, 0o755); err != nil {
						t.Fatal(err)
					}
					cmds = append(cmds, w.run(t, w.dir, tc.inner))
				}
				t.Cleanup(func() {
					f.removeNow(t)
					for _, c := range cmds {
						_ = c.Wait()
					}
				})
				set := newTestSet(t, []*fixture{f})
				size := func() (n int64) {
					if st, err := os.Stat(w.count); err == nil {
						n = st.Size()
					}
					return n
				}
				for range 8 {
					eventually(t, "a write is under way", func() bool { n := size(); return n > 0 && n < 32<<20 })
					if err := set.Freeze(context.Background()); err != nil {
						t.Fatal(err)
					}
					before := size()
					for end := time.Now().Add(20 * time.Millisecond); time.Now().Before(end); {
						if now := size(); now != before {
							t.Fatalf("the file grew from %d to %d while frozen", before, now)
						}
					}
					if err := set.Thaw(context.Background()); err != nil {
						t.Fatal(err)
					}
				}
			})
		})
	}
}

// A process that joins the cgroup meanwhile, as by an exec that was under way,
// freezes too and does not make the freeze look broken.
func TestDoProcessJoinsWhileFrozen(t *testing.T) {
	eachVersion(t, func(t *testing.T, v int) {
		f := newFixture(t, v)
		var joined *exec.Cmd
		_, err := Do(context.Background(), newTestSet(t, []*fixture{f}), Options{StateDir: t.TempDir()}, func(context.Context) error {
			joined = f.run(t, f.dir, "true")
			eventually(t, "the process joins", func() bool {
				held, err := holdsPid(f.dir, joined.Process.Pid)
				return err == nil && held
			})
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		if err := joined.Wait(); err != nil {
			t.Error(err)
		}
		mustRun(t, []*fixture{f})
	})
}

func TestDoThroughTheEngine(t *testing.T) {
	fs := fixtures(t, versions(t)[0], 2)
	spec := fmt.Sprintf(`{%q:%q,%q:%q}`, fs[0].ID, fs[0].dir, fs[1].ID, fs[1].dir)
	p, err := newDirPauser(spec)
	if err != nil {
		t.Fatal(err)
	}
	set, err := NewSet(SetConfig{Pauser: p, PauserSpec: spec, Containers: containers(fs)})
	if err != nil {
		t.Fatal(err)
	}
	if len(set.Paused()) != 2 {
		t.Fatalf("paused %v", set.Paused())
	}
	if _, err := Do(context.Background(), set, Options{StateDir: t.TempDir()}, func(context.Context) error {
		for _, f := range fs {
			if !f.frozen(t) {
				t.Errorf("%s is not frozen", f.Name)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	mustRun(t, fs)
	if _, err := Do(context.Background(), set, Options{StateDir: t.TempDir()}, func(context.Context) error {
		fs[0].write(t, false)
		return nil
	}); !errors.Is(err, ErrFreezeBroken) {
		t.Errorf("error %v", err)
	}
	mustRun(t, fs)
}

// An engine that does not answer this process any more leaves the containers to
// the guardians, which have a way of their own, and says how to do it by hand.
func TestDoLeavesTheRestToGuardians(t *testing.T) {
	fs := fixtures(t, versions(t)[0], 2)
	spec := fmt.Sprintf(`{%q:%q,%q:%q}`, fs[0].ID, fs[0].dir, fs[1].ID, fs[1].dir)
	p, err := newDirPauser(spec)
	if err != nil {
		t.Fatal(err)
	}
	set, err := NewSet(SetConfig{Pauser: deafPauser{p}, PauserSpec: spec, Containers: containers(fs)})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	_, err = Do(context.Background(), set, Options{StateDir: dir, patience: 50 * time.Millisecond}, func(context.Context) error { return nil })
	if !errors.Is(err, ErrStillFrozen) || !strings.Contains(err.Error(), "docker unpause "+fs[1].ID) {
		t.Errorf("error %v", err)
	}
	mustRun(t, fs)
	eventually(t, "guardians empty the record", func() bool { return len(records(t, dir)) == 0 })
}

// deafPauser pauses but does not unpause.
type deafPauser struct{ Pauser }

func (deafPauser) Unpause(context.Context, string) error { return errors.New("no answer") }

// A guardian that cannot reach the engine is found out before the freeze.
func TestDoGuardianWithoutEngine(t *testing.T) {
	fs := fixtures(t, versions(t)[0], 1)
	p, err := newDirPauser(fmt.Sprintf(`{%q:%q}`, fs[0].ID, fs[0].dir))
	if err != nil {
		t.Fatal(err)
	}
	set, err := NewSet(SetConfig{Pauser: p, PauserSpec: "no engine", Containers: containers(fs)})
	if err != nil {
		t.Fatal(err)
	}
	_, err = Do(context.Background(), set, Options{StateDir: t.TempDir()}, func(context.Context) error {
		t.Error("fn called")
		return nil
	})
	if !errors.Is(err, ErrNoGuardian) || !strings.Contains(err.Error(), reasonPauser.String()) {
		t.Errorf("error %v", err)
	}
	mustRun(t, fs)
}

func TestDoWithoutGuardian(t *testing.T) {
	fs := fixtures(t, versions(t)[0], 1)
	for name, command := range map[string][]string{
		"missing":      {filepath.Join(t.TempDir(), "nothing")},
		"not one":      {"/bin/true"},
		"never speaks": {"/bin/false"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			_, err := Do(context.Background(), newTestSet(t, fs), Options{StateDir: dir, Command: command}, func(context.Context) error {
				t.Error("fn called")
				return nil
			})
			if !errors.Is(err, ErrNoGuardian) {
				t.Errorf("error %v", err)
			}
			if r, _ := filepath.Glob(filepath.Join(dir, recordPrefix+"*")); len(r) != 0 {
				t.Errorf("records left: %v", r)
			}
			mustRun(t, fs)
		})
	}
}

func TestDoOptions(t *testing.T) {
	fs := fixtures(t, versions(t)[0], 1)
	set := newTestSet(t, fs)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]Options{
		"no state directory":    {},
		"state dir is a file":   {StateDir: file},
		"tiny freeze_max":       {StateDir: t.TempDir(), FreezeMax: 1},
		"negative freeze_max":   {StateDir: t.TempDir(), FreezeMax: -1},
		"margin too long":       {StateDir: t.TempDir(), FreezeMax: time.Second, Margin: time.Second},
		"state dir on no space": {StateDir: "/proc/lbtest"},
	} {
		if _, err := Do(context.Background(), set, o, func(context.Context) error {
			t.Error("fn called")
			return nil
		}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	mustRun(t, fs)
}

func TestDoNothingToFreeze(t *testing.T) {
	set, err := NewSet(SetConfig{Containers: []Container{{ID: strings.Repeat("ab", 32), Name: "stopped"}}})
	if err != nil {
		t.Fatal(err)
	}
	called := false
	rep, err := Do(context.Background(), set, Options{StateDir: t.TempDir()}, func(context.Context) error {
		called = true
		return nil
	})
	if err != nil || !called || rep.FrozenAt.IsZero() {
		t.Errorf("%+v %v", rep, err)
	}
}
