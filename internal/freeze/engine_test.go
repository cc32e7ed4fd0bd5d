package freeze

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// engine is a real dockerd in a network namespace of its own.
type engine struct {
	t      *testing.T
	socket string
	image  string
	netOf  int // a process in its network namespace
}

// startEngine starts a dockerd that leaves nothing behind.
func startEngine(t *testing.T) *engine {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "lbtest-freeze-")
	if err != nil {
		t.Fatal(err)
	}
	e := &engine{t: t, socket: filepath.Join(dir, "docker.sock"), image: "lbtest-counter:1"}
	e.netOf = startServer(t, nil, -1, "none").pid
	ip(t, e.netOf, "link", "set", "lo", "up")
	log := &bytes.Buffer{}
	cmd := exec.Command("nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", e.netOf), "unshare", "-m", "--propagation", "slave",
		"dockerd", "--data-root", dir+"/root", "--exec-root", dir+"/exec", "--pidfile", dir+"/pid", "-H", "unix://"+e.socket,
		"--bip", "10.232.0.1/24", "--log-level", "warn")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if ids := strings.Fields(e.docker("ps", "-aq")); len(ids) > 0 {
			e.docker(append([]string{"rm", "-f"}, ids...)...)
		}
		_ = cmd.Process.Signal(unix.SIGTERM)
		_ = cmd.Wait()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	eventually(t, "dockerd answers", func() bool {
		return exec.Command("docker", "-H", "unix://"+e.socket, "version").Run() == nil
	})
	e.importImage()
	return e
}

func (e *engine) docker(args ...string) string {
	e.t.Helper()
	out, err := exec.Command("docker", append([]string{"-H", "unix://" + e.socket}, args...)...).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		e.t.Fatalf("docker %v: %v", args, err)
	}
	return strings.TrimSpace(string(out))
}

// importImage builds the counter and makes an image of it alone.
func (e *engine) importImage() {
	e.t.Helper()
	bin := filepath.Join(e.t.TempDir(), "counter")
	build := exec.Command("go", "build", "-o", bin, "./testdata/counter")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		e.t.Fatalf("build the counter: %v: %s", err, out)
	}
	b, err := os.ReadFile(bin)
	if err != nil {
		e.t.Fatal(err)
	}
	var image bytes.Buffer
	w := tar.NewWriter(&image)
	if err := w.WriteHeader(&tar.Header{Name: "counter", Mode: 0o755, Size: int64(len(b))}); err != nil {
		e.t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		e.t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		e.t.Fatal(err)
	}
	cmd := exec.Command("docker", "-H", "unix://"+e.socket, "import", "--change", `CMD ["/counter"]`, "-", e.image)
	cmd.Stdin = &image
	if out, err := cmd.CombinedOutput(); err != nil {
		e.t.Fatalf("import: %v: %s", err, out)
	}
}

// run starts a container that counts.
func (e *engine) run(args ...string) *fixture {
	e.t.Helper()
	out := e.t.TempDir()
	f := &fixture{count: filepath.Join(out, "count")}
	f.ID = e.docker(append(append([]string{"run", "-d", "-v", out + ":/out"}, args...), e.image)...)
	e.t.Cleanup(func() { e.docker("rm", "-f", f.ID) }) // it writes until then
	f.Name = strings.TrimPrefix(e.docker("inspect", "-f", "{{.Name}}", f.ID), "/")
	pid, err := strconv.Atoi(e.docker("inspect", "-f", "{{.State.Pid}}", f.ID))
	if err != nil {
		e.t.Fatal(err)
	}
	f.Pid = pid
	cg, err := testHost(e.t).Find(f.Container)
	if err != nil {
		e.t.Fatal(err)
	}
	f.version, f.dir = cg.Version, cg.Dir
	f.mustProgress(e.t)
	return f
}

// cliPauser is a Pauser through the docker command, also in the guardian.
type cliPauser string

func (p cliPauser) call(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "docker", append([]string{"-H", string(p)}, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("docker %v: %w: %s", args, err, out)
	}
	return strings.TrimSpace(string(out)), err
}

func (p cliPauser) Pause(ctx context.Context, id string) error {
	_, err := p.call(ctx, "pause", id)
	return err
}

func (p cliPauser) Unpause(ctx context.Context, id string) error {
	_, err := p.call(ctx, "unpause", id)
	return err
}

func (p cliPauser) Paused(ctx context.Context, id string) (bool, error) {
	out, err := p.call(ctx, "inspect", "-f", "{{.State.Paused}}", id)
	if err != nil && strings.Contains(out, "No such object") {
		return false, nil
	}
	return out == "true", err
}

func TestRealEngine(t *testing.T) {
	e := startEngine(t)
	fs := []*fixture{e.run("--name", "lbtest-one"), e.run("--name", "lbtest-two", "-p", "127.0.0.1::80")}
	cs := containers(fs)

	t.Run("freeze", func(t *testing.T) {
		rep, err := Do(context.Background(), newTestSet(t, fs), Options{StateDir: t.TempDir()}, func(context.Context) error {
			for _, f := range fs {
				if !f.frozen(t) {
					t.Errorf("%s is not frozen", f.Name)
				}
			}
			// The engine goes on, and does not notice.
			if s := e.docker("inspect", "-f", "{{.State.Status}}", fs[0].ID); s != "running" {
				t.Errorf("status %s", s)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("froze in %v, thawed in %v", rep.Freezing, rep.Thawing)
		mustRun(t, fs)
	})
	t.Run("parent killed", func(t *testing.T) {
		dir := t.TempDir()
		h := startHolder(t, holderConfig{StateDir: dir, FreezeMax: long, Containers: cs, StopAt: string(stepFrozen)})
		h.await(string(stepFrozen))
		h.kill()
		mustRun(t, fs)
	})
	t.Run("paused by its user", func(t *testing.T) {
		e.docker("pause", fs[0].ID)
		rep, err := Do(context.Background(), newTestSet(t, fs), Options{StateDir: t.TempDir()}, func(context.Context) error { return nil })
		if err != nil || len(rep.Foreign) != 1 {
			t.Errorf("%+v %v", rep, err)
		}
		if s := e.docker("inspect", "-f", "{{.State.Status}}", fs[0].ID); s != "paused" || !fs[0].asked(t) {
			t.Errorf("status %s, frozen %v", s, fs[0].asked(t))
		}
		e.docker("unpause", fs[0].ID)
		mustRun(t, fs)
	})
	t.Run("engine's pause while frozen", func(t *testing.T) {
		p := cliPauser("unix://" + e.socket)
		_, err := Do(context.Background(), newTestSet(t, fs), Options{StateDir: t.TempDir()}, func(ctx context.Context) error {
			// It refuses, because the runtime sees the container frozen
			// already, and changes nothing.
			if err := p.Pause(ctx, fs[1].ID); err == nil {
				t.Error("the engine paused what is frozen")
			}
			return nil
		})
		if err != nil {
			t.Errorf("error %v", err)
		}
		mustRun(t, fs)
	})
	t.Run("through the pause call", func(t *testing.T) {
		p := cliPauser("unix://" + e.socket)
		set, err := NewSet(SetConfig{Pauser: p, PauserSpec: string(p), Containers: cs})
		if err != nil {
			t.Fatal(err)
		}
		rep, err := Do(context.Background(), set, Options{StateDir: t.TempDir()}, func(context.Context) error {
			if s := e.docker("inspect", "-f", "{{.State.Status}}", fs[0].ID); s != "paused" || !fs[0].frozen(t) {
				t.Errorf("status %s", s)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("paused in %v, unpaused in %v", rep.Freezing, rep.Thawing)
		mustRun(t, fs)
	})
	t.Run("through the pause call, parent hangs", func(t *testing.T) {
		p := cliPauser("unix://" + e.socket)
		set, err := NewSet(SetConfig{Pauser: p, PauserSpec: string(p), Containers: cs})
		if err != nil {
			t.Fatal(err)
		}
		_, err = Do(context.Background(), set, Options{StateDir: t.TempDir(), FreezeMax: 3 * time.Second}, func(context.Context) error {
			mustRun(t, fs)
			return nil
		})
		if !errors.Is(err, ErrFreezeBroken) || !errors.Is(err, ErrFreezeMax) {
			t.Errorf("error %v", err)
		}
		for _, f := range fs {
			if s := e.docker("inspect", "-f", "{{.State.Status}}", f.ID); s != "running" {
				t.Errorf("%s is %s", f.Name, s)
			}
		}
	})
	t.Run("registry behind a published port", func(t *testing.T) {
		port := e.docker("port", fs[1].ID, "80/tcp") // 127.0.0.1:N, by a docker-proxy
		gatherIn(t, e.netOf, nil, FactsConfig{Containers: cs, Registry: []string{port}}).want(t, fs[1].Name+" "+string(WhatRegistry))
		gatherIn(t, e.netOf, nil, FactsConfig{Containers: cs[:1], Registry: []string{port}}).want(t)
		published := map[string][]Endpoint{fs[0].ID: {{"tcp", netip.MustParseAddrPort("0.0.0.0:9999")}}}
		gatherIn(t, e.netOf, nil, FactsConfig{Containers: cs, Published: published, Registry: []string{"127.0.0.1:9999"}}).
			want(t, fs[0].Name+" "+string(WhatRegistry))
	})
	t.Run("engine served by dockerd", func(t *testing.T) {
		gatherIn(t, e.netOf, nil, FactsConfig{Containers: cs, Engine: "unix://" + e.socket}).want(t)
	})
	t.Run("container ends while frozen", func(t *testing.T) {
		set := newTestSet(t, fs)
		_, err := Do(context.Background(), set, Options{StateDir: t.TempDir()}, func(context.Context) error {
			return unix.Kill(fs[1].Pid, unix.SIGKILL)
		})
		if err != nil && !errors.Is(err, ErrFreezeBroken) {
			t.Errorf("error %v", err)
		}
		mustRun(t, fs[:1])
		eventually(t, "the killed one ends", func() bool {
			var st []struct{ State struct{ Running bool } }
			return json.Unmarshal([]byte(e.docker("inspect", fs[1].ID)), &st) == nil && !st[0].State.Running
		})
	})
}
