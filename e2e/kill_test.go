package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"lifeboat/lab"
	"lifeboat/lab/images"
	"lifeboat/lab/systems"
)

// counter is a small system: one container that counts into its volume and its
// writable layer, forever.
const counter = `i=$(cat /vol/n 2>/dev/null | tail -n 1); i=${i:-0}
while :; do i=$((i+1)); echo $i >> /vol/n; echo $i >> /layer; sleep 0.02; done`

// torture is the image that small systems run on.
const torture = "lifeboat-lab/torture:1"

// imagesOf loads it into a site's engine.
func imagesOf(t *testing.T, s *lab.Site) error {
	return images.Load(t.Context(), s, slog.New(slog.DiscardHandler), systems.Torture(systems.Params{}).Images())
}

func startCounter(t *testing.T, s *lab.Site) {
	t.Helper()
	if err := imagesOf(t, s); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Docker(t.Context(), "run", "--detach", "--no-healthcheck", "--name", "count", "--restart", "always", "--volume", "count_data:/vol",
		"--entrypoint", "/bin/sh", torture, "-c", counter); err != nil {
		t.Fatal(err)
	}
}

// numbers reads what the counter has written to one of its files.
func numbers(t *testing.T, s *lab.Site, path string) []int {
	t.Helper()
	out, err := s.Docker(t.Context(), "exec", "count", "cat", path)
	if err != nil {
		t.Fatal(err)
	}
	var list []int
	for _, f := range fields(out) {
		n, err := strconv.Atoi(f)
		if err != nil {
			t.Fatalf("%s holds %q", path, f)
		}
		list = append(list, n)
	}
	if len(list) == 0 {
		t.Fatalf("%s is empty", path)
	}
	return list
}

// oneInstant checks that volume and writable layer are of one instant: the
// counter writes each number to the volume, then to the layer, so that after
// one restart at most one number is in the volume only.
func oneInstant(t *testing.T, s *lab.Site) {
	t.Helper()
	layer, volume := numbers(t, s, "/layer"), numbers(t, s, "/vol/n") // in this order: the counter runs on
	in := map[int]bool{}
	for _, n := range volume {
		in[n] = true
	}
	for _, n := range layer {
		if !in[n] {
			t.Fatalf("%d is in the writable layer and not in the volume: not of one instant (invariant 4)", n)
		}
	}
	last := layer[len(layer)-1]
	missing := 0
	for n := range in {
		if n <= last && !slices.Contains(layer, n) {
			missing++
		}
	}
	if missing > 1 {
		t.Fatalf("%d numbers are in the volume and not in the writable layer: not of one instant (invariant 4)", missing)
	}
}

// progressing waits until the counter has counted on: it is not frozen.
func progressing(t *testing.T, s *lab.Site) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	first := len(numbers(t, s, "/vol/n"))
	for {
		if len(numbers(t, s, "/vol/n")) > first {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatal("the container does not go on: frozen? (invariant 5)")
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// killAt starts lifeboat and kills it with SIGKILL as soon as stderr shows the
// mark, or after the delay if there is no mark. It tells whether it was killed
// before it ended by itself.
func (r *rig) killAt(s *lab.Site, mark string, delay time.Duration, args ...string) bool {
	r.t.Helper()
	cmd := r.command(r.t.Context(), s, args...)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	var said bytes.Buffer
	if mark == "" {
		select {
		case <-time.After(delay):
		case <-r.t.Context().Done():
		}
	} else {
		lines := bufio.NewScanner(io.TeeReader(stderr, &said))
		for lines.Scan() && !strings.Contains(lines.Text(), mark) {
		}
	}
	_ = cmd.Process.Kill()
	go func() { _, _ = io.Copy(io.Discard, stderr) }()
	err = cmd.Wait()
	return err != nil && strings.Contains(err.Error(), "killed")
}

// TestSnapshotKilledInvariants1and5 kills a snapshot after different times, all
// along its run: nothing stays frozen, no half snapshot is visible, the next
// one succeeds.
func TestSnapshotKilledInvariants1and5(t *testing.T) {
	r := newRig(t, lab.EngineDocker20, lab.EngineNone)
	startCounter(t, r.main)
	r.init()
	r.must(r.main, nil, "protect", "count", "--container", "count")
	began := time.Now()
	r.must(r.main, nil, "snapshot", "count")
	whole := time.Since(began)
	taken := 1
	const rounds = 16
	for i := range rounds {
		// Later rounds are short: only what changed travels.
		delay := time.Duration(i+1) * min(whole, time.Second) / rounds
		killed := r.killAt(r.main, "", delay, "snapshot", "count")
		progressing(t, r.main)
		var list struct {
			Snapshots []struct{ Snapshot string }
			Problems  []string
		}
		r.must(r.main, &list, "snapshots", "count")
		if len(list.Problems) > 0 {
			t.Fatalf("round %d: %v", i, list.Problems)
		}
		if n := len(list.Snapshots); n < taken || n > taken+1 || (!killed && n == taken) {
			t.Fatalf("round %d (killed %v): %d snapshots, there were %d", i, killed, n, taken)
		} else {
			taken = n
		}
	}
	r.must(r.main, nil, "snapshot", "count")
	r.must(r.main, nil, "check")
	r.must(r.main, nil, "verify")
}

// TestFailoverKilledInvariant8 kills a failover at each of its steps and lets
// another process go on: the system comes up, whole, with one epoch more.
func TestFailoverKilledInvariant8(t *testing.T) {
	r := newRig(t, lab.EngineDocker20, lab.EngineDocker20)
	startCounter(t, r.main)
	r.init()
	r.must(r.main, nil, "protect", "count", "--container", "count")
	r.must(r.main, nil, "snapshot", "count")
	if err := r.main.Crash(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i, step := range []string{"images:", "stop what runs", "keep what", "networks:", "volumes and paths:", "containers:", "data:", "project files:", "record what", "claim the epoch:"} {
		t.Run(strings.Trim(step, ":"), func(t *testing.T) {
			r := *r
			r.t = t
			killed := r.killAt(r.standin, step, 0, "failover", "count", "--yes")
			var up bringJSON
			r.must(r.standin, &up, "failover", "count")
			if want := i + 2; up.Epoch != want && killed {
				t.Errorf("epoch %d, want %d", up.Epoch, want)
			}
			progressing(t, r.standin)
			oneInstant(t, r.standin)
			// The stand-in burns too; a new one of the same name takes its place.
			if err := r.standin.Destroy(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := r.standin.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			r.login(r.standin)
			r.configure(r.standin, "")
			r.shareKey(r.main, r.standin)
		})
	}
}

// TestFailbackKilledInvariants7and8 kills the taking side of a failback at its
// steps; run again it ends well, and everything that the stand-in counted is there.
func TestFailbackKilledInvariants7and8(t *testing.T) {
	r := newRig(t, lab.EngineDocker20, lab.EngineDocker20)
	startCounter(t, r.main)
	r.init()
	r.must(r.main, nil, "protect", "count", "--container", "count")
	r.must(r.main, nil, "snapshot", "count")
	for _, step := range []string{"stop what runs", "volumes and paths:", "containers:", "data:", "start, wait"} {
		t.Run(strings.Trim(step, ":"), func(t *testing.T) {
			r := *r
			r.t = t
			r.must(r.main, nil, "snapshot", "count")
			if err := r.main.Crash(t.Context()); err != nil {
				t.Fatal(err)
			}
			r.must(r.standin, nil, "failover", "count")
			progressing(t, r.standin)
			if err := r.main.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			from := r.standin.DockerHost()
			r.killAt(r.main, step, 0, "failback", "count", "--from", from, "--yes")
			before, _ := lastCount(t, r.standin)
			r.must(r.main, nil, "failback", "count", "--from", from)
			progressing(t, r.main)
			all := numbers(t, r.main, "/vol/n")
			if now := all[len(all)-1]; now < before {
				t.Errorf("the stand-in had counted to %d, the main site has %d", before, now)
			}
			out, err := r.standin.Docker(t.Context(), "inspect", "--format", "{{.State.Running}}", "count")
			if err != nil || strings.TrimSpace(string(out)) != "false" {
				t.Errorf("the stand-in still serves: %s %v (invariant 6)", out, err)
			}
		})
	}
}

// lastCount reads the counter's volume whether it runs or not.
func lastCount(t *testing.T, s *lab.Site) (int, error) {
	t.Helper()
	out, err := s.Docker(t.Context(), "volume", "inspect", "--format", "{{.Mountpoint}}", "count_data")
	if err != nil {
		return 0, err
	}
	raw, err := s.Run(t.Context(), "tail", "-n", "1", strings.TrimSpace(string(out))+"/n")
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		return 0, fmt.Errorf("the counter's volume ends with %q", raw)
	}
	return n, nil
}
