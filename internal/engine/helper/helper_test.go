package helper_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/dr"
	"lifeboat/internal/engine"
	"lifeboat/internal/engine/enginetest"
	"lifeboat/internal/engine/helper"
	"lifeboat/lab"
)

// build makes the static program that the helpers of this test run.
func build(t *testing.T, ldflags string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "testjob")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w "+ldflags, "-o", out, "./testjob")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, msg)
	}
	return out
}

// suite runs helpers on an engine. dir is visible under one name for the engine
// and for the test.
func suite(t *testing.T, host, dir string) {
	e := enginetest.Open(t, host)
	binary := build(t, "")
	t.Cleanup(func() {
		if err := helper.RemoveImages(context.Background(), e); err != nil {
			t.Errorf("remove images: %v", err)
		}
	})
	run := func(ctx context.Context, job helper.Job) (int, string, string, error) {
		var out, errOut bytes.Buffer
		job.Binary = binary
		code, err := helper.Run(ctx, e, job, &out, &errOut)
		return code, out.String(), errOut.String(), err
	}
	t.Run("streams", func(t *testing.T) {
		code, out, errOut, err := run(t.Context(), helper.Job{
			Args: []string{"say", "a b", "--flag=c"}, Env: map[string]string{"SECRET": "geheim"}, Stdin: strings.NewReader(strings.Repeat("x", 200_000)),
		})
		want := fmt.Sprintf("args %q\nsecret geheim\nstdin %s\nvisible \n", []string{"say", "a b", "--flag=c"}, strings.Repeat("x", 200_000))
		if err != nil || code != 0 || out != want || errOut != "said\n" {
			t.Fatalf("exit %d, error %v, stdout of %d bytes (want %d), stderr %q", code, err, len(out), len(want), errOut)
		}
		noneLeft(t, e)
	})
	t.Run("exit code", func(t *testing.T) {
		if code, _, _, err := run(t.Context(), helper.Job{Args: []string{"exit"}}); err != nil || code != 7 {
			t.Fatalf("exit %d, error %v; want 7", code, err)
		}
	})
	t.Run("host files", func(t *testing.T) { hostFiles(t, e, run) })
	t.Run("cancel", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		file := filepath.Join(dir, "cancel")
		out := &watched{want: "waiting", seen: cancel}
		_, err := helper.Run(ctx, e, helper.Job{Args: []string{"wait", file}, Binary: binary}, out, os.Stderr)
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("error %v, want %v", err, context.Canceled)
		}
		if b, err := os.ReadFile(file); err != nil || string(b) != "asked" {
			t.Fatalf("the helper was not asked to end: %q, %v", b, err)
		}
		noneLeft(t, e)
	})
	t.Run("driver killed", func(t *testing.T) {
		file := filepath.Join(dir, "killed")
		cmd := exec.Command(os.Args[0], "-test.run=^TestAsDriver$", "--", "drive", host, binary, file)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for lines.Scan() && lines.Text() != "waiting" {
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		await(t, "the helper to notice", func() bool { b, _ := os.ReadFile(file); return string(b) == "gone" })
		noneLeft(t, e)
	})
	t.Run("outlived by a process that left", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		file := filepath.Join(dir, "outlived")
		out := &watched{want: "left", seen: cancel}
		// The helper does not end when asked to, and is killed.
		_, err := helper.Run(ctx, e, helper.Job{Args: []string{"leave", file}, Binary: binary, Grace: time.Millisecond}, out, os.Stderr)
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("error %v, want %v", err, context.Canceled)
		}
		await(t, "the process that left", func() bool { b, _ := os.ReadFile(file); return string(b) == "outlived" })
		noneLeft(t, e)
	})
	t.Run("images of other programs", func(t *testing.T) {
		first, err := e.LabelledImages(t.Context(), engine.LabelHelper)
		if err != nil || len(first) != 1 {
			t.Fatalf("images %v, error %v; want one", first, err)
		}
		other := build(t, "-X main.version=2 -buildid=other")
		if _, err := helper.Run(t.Context(), e, helper.Job{Args: []string{"exit"}, Binary: other}, nil, nil); err != nil {
			t.Fatal(err)
		}
		now, err := e.LabelledImages(t.Context(), engine.LabelHelper)
		if err != nil || len(now) != 1 || slices.Equal(now[0].Tags, first[0].Tags) {
			t.Fatalf("images %v, error %v; want only the new one", now, err)
		}
	})
	t.Run("refused", func(t *testing.T) {
		dynamic := "/bin/ls"
		if _, err := helper.Run(t.Context(), e, helper.Job{Args: []string{"exit"}, Binary: dynamic}, nil, nil); !errors.Is(err, dr.ErrUsage) {
			t.Errorf("a dynamic program: %v", err)
		}
		if _, _, _, err := run(t.Context(), helper.Job{Args: []string{"exit"}, SocketPath: filepath.Join(dir, "no.sock")}); err == nil {
			t.Error("a socket that does not exist gave no error")
		}
		noneLeft(t, e)
	})
}

// hostFiles lets a helper read and write a container's writable layer.
func hostFiles(t *testing.T, e *engine.Engine, run func(context.Context, helper.Job) (int, string, string, error)) {
	enginetest.Image(t, e)
	cfg, _ := json.Marshal(map[string]any{"Cmd": []string{"write", "/etc/made", "in the container", "sleep"}})
	id, err := e.CreateContainer(t.Context(), dr.Container{Name: "lbtest-layer", ImageRef: enginetest.ImageRef, Config: cfg}, engine.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Remove(context.Background(), id, engine.RemoveOptions{Force: true, Volumes: true}) })
	if err := e.Start(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if err := e.WaitHealthy(t.Context(), id, engine.WaitOptions{}); err != nil {
		t.Fatal(err)
	}
	code, out, errOut, err := run(t.Context(), helper.Job{Args: []string{"files", "lbtest-layer", "/etc/made"}})
	if err != nil || code != 0 || out != "layer in the container\n" {
		t.Fatalf("exit %d, error %v, stdout %q, stderr %q", code, err, out, errOut)
	}
	var seen bytes.Buffer
	if _, err := e.Exec(t.Context(), id, engine.ExecOptions{Cmd: []string{"/probe", "cat", "/etc/made"}, Stdout: &seen}); err != nil || seen.String() != "written by the helper" {
		t.Fatalf("the container sees %q, error %v", seen.String(), err)
	}
}

// noneLeft checks that no helper container is there any more. The engine
// removes it by itself, soon.
func noneLeft(t *testing.T, e *engine.Engine) {
	t.Helper()
	await(t, "the end of the helper container", func() bool {
		inv, err := e.Inventory(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return !slices.ContainsFunc(inv.Containers, func(c engine.InventoryContainer) bool { return c.Labels[engine.LabelHelper] != "" })
	})
}

// await asks until something is so; the test's own time limit ends it.
func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-t.Context().Done():
			t.Fatalf("waiting for %s: %v", what, t.Context().Err())
		case <-tick.C:
		}
	}
}

// watched calls seen once it was written want.
type watched struct {
	want string
	seen func()
	got  bytes.Buffer
}

func (w *watched) Write(p []byte) (int, error) {
	w.got.Write(p)
	if strings.Contains(w.got.String(), w.want) {
		w.seen()
	}
	return len(p), nil
}

// TestAsDriver is the process that starts a helper and is killed, and does
// nothing otherwise.
func TestAsDriver(t *testing.T) {
	i := slices.Index(os.Args, "drive")
	if i < 0 || i+3 >= len(os.Args) {
		return
	}
	e := enginetest.Open(t, os.Args[i+1])
	_, err := helper.Run(t.Context(), e, helper.Job{Args: []string{"wait", os.Args[i+3]}, Binary: os.Args[i+2]}, os.Stdout, os.Stderr)
	t.Fatal(err)
}

func TestMain(m *testing.M) {
	lab.Child()
	os.Exit(m.Run())
}

// TestHelper runs helpers on both kinds of engine. They get no access to the
// host's files but what the engine gives them.
func TestHelper(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	l, err := lab.New(ctx, lab.Options{Sites: []lab.SiteOptions{
		{Name: "classic", Engine: lab.EngineDocker20},
		{Name: "content", Engine: lab.EngineContainerd},
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, s := range l.Sites() {
		t.Run(s.Name, func(t *testing.T) {
			if err := os.MkdirAll(s.StateDir, 0o700); err != nil {
				t.Fatal(err)
			}
			suite(t, s.DockerHost(), s.StateDir)
		})
	}
}
