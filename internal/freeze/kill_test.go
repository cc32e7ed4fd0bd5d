package freeze

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// point is where a holder can be caught, in the order in which it gets there.
type point struct {
	name   string
	engine bool // the last container is frozen by a Pauser whose call waits
	frozen int  // how many of the three containers stand still there
	guards int
}

var points = []point{
	{name: string(stepRecorded)},
	{name: string(stepGuarded), guards: guardians},
	{name: string(stepArmed), guards: guardians},
	{name: "pause", engine: true, frozen: 2, guards: guardians}, // half frozen
	{name: string(stepFrozen), frozen: 3, guards: guardians},
	{name: string(stepThawing), frozen: 3, guards: guardians},
	{name: "unpause", engine: true, frozen: 1, guards: guardians}, // half thawed
	{name: string(stepThawed), guards: guardians},
	{name: string(stepReleased), guards: guardians},
}

// catch brings a holder with three containers to the point.
func catch(t *testing.T, v int, p point, freezeMax time.Duration) (*holder, []*fixture, string) {
	t.Helper()
	fs := fixtures(t, v, 3)
	cfg := holderConfig{StateDir: t.TempDir(), FreezeMax: freezeMax, Containers: containers(fs), StopAt: p.name}
	if p.engine {
		last := fs[2]
		cfg.Containers[2].Pid = 1 << 30 // no such process: its cgroup is out of reach
		cfg.Engine = map[string]string{last.ID: last.dir}
		cfg.BlockPause, cfg.BlockUnpause = last.ID, last.ID
		if p.name == "pause" {
			cfg.BlockUnpause = ""
		} else {
			cfg.BlockPause = ""
		}
	}
	h := startHolder(t, cfg)
	h.await(p.name)
	eventually(t, fmt.Sprintf("%d containers stand still at %s", p.frozen, p.name), func() bool {
		n := 0
		for _, f := range fs {
			if f.frozen(t) {
				n++
			}
		}
		return n == p.frozen
	})
	if p.name != string(stepReleased) && len(h.guards) != p.guards {
		t.Fatalf("guardians %v at %s, want %d", h.guards, p.name, p.guards)
	}
	return h, fs, cfg.StateDir
}

// swept runs Sweep and fails if anything is recorded after it.
func swept(t *testing.T, dir string, fs []*fixture) []Container {
	t.Helper()
	engine := map[string]string{}
	for _, f := range fs {
		engine[f.ID] = f.dir
	}
	spec, _ := json.Marshal(engine)
	p, err := newDirPauser(string(spec))
	if err != nil {
		t.Fatal(err)
	}
	thawed, err := Sweep(context.Background(), testHost(t), p, dir)
	if err != nil {
		t.Fatal(err)
	}
	if r := records(t, dir); len(r) != 0 {
		t.Errorf("records left after the sweep: %v", r)
	}
	return thawed
}

// long is a freeze_max that plays no part in a test.
const long = 10 * time.Minute

func TestParentKilled(t *testing.T) {
	eachVersion(t, func(t *testing.T, v int) {
		for _, p := range points {
			t.Run(p.name, func(t *testing.T) {
				t.Parallel()
				h, fs, dir := catch(t, v, p, long)
				h.kill()
				mustRun(t, fs)
				for _, g := range h.guards {
					eventually(t, "guardian ends", func() bool { return !alive(g) })
				}
				if thawed := swept(t, dir, fs); len(thawed) != 0 {
					t.Errorf("left for the sweep: %v", thawed)
				}
			})
		}
	})
}

func TestGuardianKilled(t *testing.T) {
	eachVersion(t, func(t *testing.T, v int) {
		for _, p := range points[1 : len(points)-1] {
			for i := range guardians {
				t.Run(fmt.Sprintf("%s/%d", p.name, i), func(t *testing.T) {
					t.Parallel()
					h, fs, dir := catch(t, v, p, long)
					if err := unix.Kill(h.guards[i], unix.SIGKILL); err != nil {
						t.Fatal(err)
					}
					if p.name == string(stepFrozen) {
						mustRun(t, fs) // at once, though the holder still waits
					}
					want := resultBroken
					if p.frozen == 0 && p.name != string(stepThawed) {
						want = resultError // nothing was frozen yet
						if p.name == string(stepArmed) {
							want = resultBroken // noticed by the alarm or when freezing
						}
					}
					if got := h.result(); got != want {
						t.Errorf("result %q, want %q", got, want)
					}
					mustRun(t, fs)
					if thawed := swept(t, dir, fs); len(thawed) != 0 {
						t.Errorf("left for the sweep: %v", thawed)
					}
				})
			}
		}
	})
}

func TestParentAndOneGuardianKilled(t *testing.T) {
	eachVersion(t, func(t *testing.T, v int) {
		for _, p := range points[1 : len(points)-1] {
			for i := range guardians {
				t.Run(fmt.Sprintf("%s/%d", p.name, i), func(t *testing.T) {
					t.Parallel()
					h, fs, dir := catch(t, v, p, long)
					h.stop() // so that it cannot react to the first death
					if err := unix.Kill(h.guards[i], unix.SIGKILL); err != nil {
						t.Fatal(err)
					}
					h.kill()
					mustRun(t, fs)
					eventually(t, "guardian ends", func() bool { return !alive(h.guards[1-i]) })
					if thawed := swept(t, dir, fs); len(thawed) != 0 {
						t.Errorf("left for the sweep: %v", thawed)
					}
				})
			}
		}
	})
}

func TestAllKilledAreSwept(t *testing.T) {
	eachVersion(t, func(t *testing.T, v int) {
		for _, p := range points[:len(points)-1] {
			t.Run(p.name, func(t *testing.T) {
				t.Parallel()
				h, fs, dir := catch(t, v, p, long)
				h.stop()
				for _, g := range h.guards {
					if err := unix.Kill(g, unix.SIGKILL); err != nil {
						t.Fatal(err)
					}
				}
				if thawed, err := Sweep(context.Background(), testHost(t), nil, dir); err != nil || len(thawed) != 0 {
					t.Errorf("sweep while the parent lives: %v, %v", thawed, err)
				}
				h.kill()
				for _, g := range h.guards {
					eventually(t, "guardian ends", func() bool { return !alive(g) })
				}
				if thawed := swept(t, dir, fs); len(thawed) != p.frozen {
					t.Errorf("swept %v, want %d", thawed, p.frozen)
				}
				mustRun(t, fs)
			})
		}
	})
}

// A parent that was stopped for longer than freeze_max learns that the freeze
// was broken, wherever it was stopped.
func TestParentStopped(t *testing.T) {
	eachVersion(t, func(t *testing.T, v int) {
		for _, p := range points[2 : len(points)-1] {
			t.Run(p.name, func(t *testing.T) {
				t.Parallel()
				h, fs, dir := catch(t, v, p, 2*time.Second)
				h.stop()
				if p.frozen > 0 {
					mustRun(t, fs)
				}
				// A guardian that thawed empties the record when it is done.
				eventually(t, "freeze_max passes", func() bool { return len(records(t, dir)) == 0 })
				h.signal(unix.SIGCONT)
				got := h.result()
				if p.name == string(stepArmed) && got == resultError {
					got = resultBroken // it found itself out of time before it froze anything
				}
				if got != resultBroken {
					t.Errorf("result %q, want %q", got, resultBroken)
				}
				mustRun(t, fs)
				if thawed := swept(t, dir, fs); len(thawed) != 0 {
					t.Errorf("left for the sweep: %v", thawed)
				}
			})
		}
	})
}

// A parent that is stopped past freeze_max and then killed.
func TestParentStoppedAndKilled(t *testing.T) {
	h, fs, dir := catch(t, versions(t)[0], point{name: string(stepFrozen), frozen: 3, guards: guardians}, 2*time.Second)
	h.stop()
	mustRun(t, fs)
	h.kill()
	for _, g := range h.guards {
		eventually(t, "guardian ends", func() bool { return !alive(g) })
	}
	swept(t, dir, fs)
	mustRun(t, fs)
}

func TestFreezeMaxUnderLoad(t *testing.T) {
	for range 8 * runtime.NumCPU() {
		cmd := exec.Command("sh", "-c", "while :; do :; done")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
	}
	h, fs, _ := catch(t, versions(t)[0], point{name: string(stepFrozen), frozen: 3, guards: guardians}, 5*time.Second)
	began := time.Now()
	h.stop()
	mustRun(t, fs)
	t.Logf("thawed and seen to count %v after the parent was stopped, freeze_max 5 s", time.Since(began))
	h.signal(unix.SIGCONT)
	if got := h.result(); got != resultBroken {
		t.Errorf("result %q", got)
	}
}

func TestGuardianIgnoresSignals(t *testing.T) {
	h, fs, _ := catch(t, versions(t)[0], point{name: string(stepFrozen), frozen: 3, guards: guardians}, long)
	for _, g := range h.guards {
		for _, s := range []unix.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGPIPE, unix.SIGUSR1, unix.SIGTSTP, unix.SIGALRM} {
			if err := unix.Kill(g, s); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, f := range fs {
		if !f.frozen(t) {
			t.Errorf("%s was thawed by a signal to a guardian", f.Name)
		}
	}
	if got := h.result(); got != resultOK {
		t.Errorf("result %q", got)
	}
	mustRun(t, fs)
}

// A guardian that is stopped cannot answer; the parent thaws and says so.
func TestGuardianStopped(t *testing.T) {
	h, fs, dir := catch(t, versions(t)[0], point{name: string(stepFrozen), frozen: 3, guards: guardians}, long)
	if err := unix.Kill(h.guards[0], unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if got := h.result(); got != resultBroken {
		t.Errorf("result %q", got)
	}
	mustRun(t, fs)
	swept(t, dir, fs)
}

func TestInterruptedHolder(t *testing.T) {
	for _, p := range points[:5] {
		t.Run(p.name, func(t *testing.T) {
			h, fs, dir := catch(t, versions(t)[0], p, long)
			h.signal(unix.SIGTERM)
			if got := h.result(); got != resultError {
				t.Errorf("result %q", got)
			}
			mustRun(t, fs)
			if r := records(t, dir); len(r) != 0 {
				t.Errorf("records left: %v", r)
			}
		})
	}
}

// runGuardianByHand runs the guardian's command as a curious person would.
func runGuardianByHand(t *testing.T) int {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", GuardianCommand)
	var exit *exec.ExitError
	if err := cmd.Run(); !errors.As(err, &exit) {
		t.Fatalf("it did not refuse: %v", err)
	}
	return exit.ExitCode()
}
