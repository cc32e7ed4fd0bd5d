package enginetest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"lifeboat/internal/dr"
	"lifeboat/internal/engine"
)

func testStates(f *fixture) {
	ctx := f.Context()
	id := f.container("lbtest-c", m{"Labels": m{"a": "b"}}, m{}, nil)
	st := f.state("lbtest-c", "created")
	f.equal("id", st.ID, id)
	f.equal("labels", st.Labels["a"], "b")
	f.equal("image", st.Image, f.image)
	if st.Running() || st.Pid != 0 || !st.StartedAt.IsZero() {
		f.Errorf("a created container looks as if it ran: %+v", st)
	}
	f.start(id)
	f.ok("start what runs", f.e.Start(ctx, id))
	if st = f.state(id, "running"); st.Pid == 0 || !st.Running() || st.StartedAt.IsZero() {
		f.Errorf("a running container looks as if it did not: %+v", st)
	}
	f.ok("pause", f.e.Pause(ctx, id))
	f.ok("pause again", f.e.Pause(ctx, id))
	f.state(id, "paused")
	f.ok("unpause", f.e.Unpause(ctx, id))
	f.ok("unpause again", f.e.Unpause(ctx, id))
	f.state(id, "running")
	f.is("remove what runs", f.e.Remove(ctx, id, engine.RemoveOptions{}), dr.ErrHeld)
	f.ok("stop", f.e.Stop(ctx, id, 20*time.Second))
	f.ok("stop again", f.e.Stop(ctx, id, 20*time.Second))
	if st = f.state(id, "exited"); st.ExitCode != 0 || st.Pid != 0 {
		f.Errorf("a container that ended at SIGTERM: %+v", st)
	}
	f.start(id)
	f.ok("kill", f.e.Kill(ctx, id, ""))
	f.unhealthy("a killed container", f.e.WaitHealthy(ctx, id, engine.WaitOptions{Condition: engine.ConditionCompleted, Poll: 10 * time.Millisecond}), "137")
	f.ok("kill again", f.e.Kill(ctx, id, "SIGTERM"))
	f.ok("rename", f.e.Rename(ctx, id, "lbtest-c2"))
	_, err := f.e.Container(ctx, "lbtest-c")
	f.is("inspect by the old name", err, dr.ErrNotFound)
	f.ok("remove", f.e.Remove(ctx, "lbtest-c2", engine.RemoveOptions{Volumes: true}))
	f.ok("remove again", f.e.Remove(ctx, "lbtest-c2", engine.RemoveOptions{}))
	f.is("start what is gone", f.e.Start(ctx, id), dr.ErrNotFound)
}

// unhealthy checks that err is an *engine.UnhealthyError that says text.
func (f *fixture) unhealthy(what string, err error, text string) {
	f.Helper()
	var u *engine.UnhealthyError
	if !errors.As(err, &u) || !strings.Contains(err.Error(), text) {
		f.Fatalf("%s: error is %v, want one of an unhealthy container that says %q", what, err, text)
	}
}

func testConflicts(f *fixture) {
	ctx := f.Context()
	ports := m{"PortBindings": m{"8080/tcp": []m{{"HostIp": "127.0.0.1", "HostPort": "18099"}}}}
	a := f.container("lbtest-c", m{}, ports, nil)
	_, err := f.e.CreateContainer(ctx, dr.Container{Name: "lbtest-c", ImageRef: ImageRef, Config: f.raw(m{}), HostConfig: f.raw(m{})}, engine.CreateOptions{})
	f.is("create under a name that is taken", err, dr.ErrHeld)
	_, err = f.e.CreateContainer(ctx, dr.Container{Name: "lbtest-d", ImageRef: "lbtest-none:1", Config: f.raw(m{}), HostConfig: f.raw(m{})}, engine.CreateOptions{})
	f.is("create from an image that is not there", err, dr.ErrNotFound)
	b := f.container("lbtest-d", m{}, ports, nil)
	f.is("rename to a name that is taken", f.e.Rename(ctx, b, "lbtest-c"), dr.ErrHeld)
	f.start(a)
	f.is("start on a port that is taken", f.e.Start(ctx, b), dr.ErrHeld)
	if err := f.e.RemoveImage(ctx, f.image); !errors.Is(err, dr.ErrHeld) {
		f.Errorf("remove an image in use: %v, want %v", err, dr.ErrHeld)
	}
}

func testRestartPolicy(f *fixture) {
	ctx := f.Context()
	id := f.container("lbtest-c", m{}, m{"RestartPolicy": m{"Name": "on-failure", "MaximumRetryCount": 3}}, nil)
	f.equal("policy", f.state(id, "created").RestartPolicy, engine.RestartPolicy{Name: "on-failure", MaximumRetryCount: 3})
	f.ok("disable", f.e.DisableRestart(ctx, id))
	f.equal("policy", f.state(id, "created").RestartPolicy.Name, "no")
	f.ok("set", f.e.SetRestartPolicy(ctx, id, engine.RestartPolicy{Name: "unless-stopped"}))
	f.equal("policy", f.state(id, "created").RestartPolicy.Name, "unless-stopped")
}

func testExec(f *fixture) {
	ctx := f.Context()
	id := f.container("lbtest-c", m{}, m{}, nil)
	f.start(id)
	var out, errOut bytes.Buffer
	code, err := f.e.Exec(ctx, id, engine.ExecOptions{Cmd: []string{"/probe", "out", "hello", "err", "oops", "exit", "7"}, Stdout: &out, Stderr: &errOut})
	f.ok("exec", err)
	f.equal("exit code", code, 7)
	f.equal("output", out.String(), "hello\n")
	f.equal("error output", errOut.String(), "oops\n")
	out.Reset()
	code, err = f.e.Exec(ctx, id, engine.ExecOptions{Cmd: []string{"/probe", "stdin", "env", "WORD"}, Env: []string{"WORD=given"}, Stdin: strings.NewReader("to standard input\n"), Stdout: &out})
	f.ok("exec with standard input", err)
	f.equal("exit code", code, 0)
	f.equal("output", out.String(), "to standard input\ngiven\n")

	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err = f.e.Exec(short, id, engine.ExecOptions{Cmd: []string{"/probe", "sleep"}}); !errors.Is(err, context.DeadlineExceeded) {
		f.Errorf("exec cut off: %v", err)
	}
	f.ok("stop", f.e.Stop(ctx, id, 5*time.Second))
	if _, err = f.e.Exec(ctx, id, engine.ExecOptions{Cmd: []string{"/probe"}}); err == nil {
		f.Error("exec in a container that does not run gave no error")
	}
}

// testAttached runs containers like child processes.
func testAttached(f *fixture) {
	run := func(ctx context.Context, cmd []string, in io.Reader, out io.Writer) (int, string, error) {
		var errOut bytes.Buffer
		code, err := f.e.RunAttached(ctx, engine.AttachedRun{
			Name: "lbtest-attached", Config: f.raw(m{"Image": ImageRef, "Cmd": cmd}), HostConfig: f.raw(m{"AutoRemove": true}),
			Stdin: in, Stdout: out, Stderr: &errOut, Grace: 20 * time.Second,
		})
		if _, err := f.e.Container(context.Background(), "lbtest-attached"); !errors.Is(err, dr.ErrNotFound) {
			f.Errorf("the container is still there: %v", err)
		}
		return code, errOut.String(), err
	}
	var out bytes.Buffer
	text := strings.Repeat("0123456789abcdef", 10_000)
	code, errOut, err := run(f.Context(), []string{"stdin", "err", "oops", "exit", "5"}, strings.NewReader(text), &out)
	f.ok("attached run", err)
	f.equal("exit code", code, 5)
	f.equal("output is the input", out.String() == text, true)
	f.equal("error output", errOut, "oops\n")

	ctx, cancel := context.WithCancel(f.Context())
	defer cancel()
	_, _, err = run(ctx, []string{"out", "ready", "sleep"}, nil, writer(func(p []byte) { cancel() }))
	f.is("attached run cut off", err, context.Canceled)
	_, _, err = run(f.Context(), []string{"exit", "0"}, nil, nil)
	f.ok("attached run after one that was cut off", err)
}

// writer calls itself with what is written.
type writer func([]byte)

func (w writer) Write(p []byte) (int, error) {
	w(p)
	return len(p), nil
}

func testLogs(f *fixture) {
	ctx := f.Context()
	id := f.container("lbtest-c", m{"Cmd": []string{"out", "one", "err", "two", "out", "three", "exit", "0"}}, m{}, nil)
	f.start(id)
	f.ok("wait", f.e.WaitHealthy(ctx, id, engine.WaitOptions{Condition: engine.ConditionCompleted}))
	log, err := f.e.Logs(ctx, id, 100)
	f.ok("logs", err)
	for _, line := range []string{"one", "two", "three"} {
		if !strings.Contains(log, line) {
			f.Errorf("log %q lacks %q", log, line)
		}
	}
	log, err = f.e.Logs(ctx, id, 1)
	f.ok("logs", err)
	if strings.Count(log, "\n") > 0 || log == "" {
		f.Errorf("the last line of the log is %q", log)
	}
}

func testWait(f *fixture) {
	quick := engine.WaitOptions{Poll: 10 * time.Millisecond, Settle: 50 * time.Millisecond}
	ctx, cancel := context.WithTimeout(f.Context(), 60*time.Second)
	defer cancel()

	plain := f.container("lbtest-plain", m{}, m{}, nil)
	f.start(plain)
	f.ok("wait for a container without a health check", f.e.WaitHealthy(ctx, plain, quick))

	failing := f.container("lbtest-failing", m{"Cmd": []string{"err", "because of the weather", "exit", "3"}}, m{}, nil)
	f.start(failing)
	opts := quick
	opts.Settle = time.Hour
	err := f.e.WaitHealthy(ctx, failing, opts)
	f.unhealthy("a failing container", err, "exit code 3")
	f.unhealthy("a failing container", err, "because of the weather")

	job := f.container("lbtest-job", m{"Cmd": []string{"exit", "0"}}, m{}, nil)
	f.start(job)
	opts = quick
	opts.Condition = engine.ConditionCompleted
	f.ok("wait for a job", f.e.WaitHealthy(ctx, job, opts))

	check := m{"Test": []string{"CMD", "/probe", "exists", "/tmp/healthy"}, "Interval": 200 * time.Millisecond, "Timeout": 10 * time.Second, "Retries": 1000}
	sick := f.container("lbtest-sick", m{"Healthcheck": check}, m{}, nil)
	f.start(sick)
	short, cancelShort := context.WithTimeout(ctx, time.Second)
	defer cancelShort()
	err = f.e.WaitHealthy(short, sick, quick)
	f.unhealthy("a container that does not become healthy", err, "starting")
	f.is("a container that does not become healthy", err, context.DeadlineExceeded)
	_, err = f.e.Exec(ctx, sick, engine.ExecOptions{Cmd: []string{"/probe", "write", "/tmp/healthy", "1"}})
	f.ok("make it healthy", err)
	var seen []string
	opts = quick
	opts.Progress = func(st engine.ContainerState) { seen = append(seen, st.Health) }
	f.ok("wait for a healthy container", f.e.WaitHealthy(ctx, sick, opts))
	if len(seen) == 0 || seen[len(seen)-1] != "healthy" {
		f.Errorf("progress told %q", seen)
	}
	f.is("wait for what is not there", f.e.WaitHealthy(ctx, "lbtest-none", quick), dr.ErrNotFound)
}

// testLayer checks where the writable layer is: what a container writes is
// found there, and it is found whether or not the container runs.
func testLayer(f *fixture) {
	ctx := f.Context()
	h, err := f.e.HostFS(ctx)
	f.ok("host files", err)
	id := f.container("lbtest-c", m{"Cmd": []string{"write", "/etc/made", "by the container", "rm", "/etc/conf", "sleep"}}, m{}, nil)
	created, err := f.e.WritableLayer(ctx, id)
	f.ok("layer of a created container", err)

	// Written before the first start, as a restore does.
	p, err := h.Path(created.Upper)
	f.ok("path", err)
	f.ok("write into the layer", os.MkdirAll(filepath.Join(p, "restored"), 0o755))
	f.ok("write into the layer", os.WriteFile(filepath.Join(p, "restored/file"), []byte("restored"), 0o644))

	f.start(id)
	f.ok("wait", f.e.WaitHealthy(ctx, id, engine.WaitOptions{}))
	running, err := f.e.WritableLayer(ctx, id)
	f.ok("layer of a running container", err)
	f.equal("upper directory", running.Upper, created.Upper)
	if len(running.Sources) == 0 {
		f.Error("nobody is said to have named the layer")
	}
	b, err := os.ReadFile(filepath.Join(p, "etc/made"))
	f.ok("read what the container wrote", err)
	f.equal("content", string(b), "by the container")
	var out bytes.Buffer
	_, err = f.e.Exec(ctx, id, engine.ExecOptions{Cmd: []string{"/probe", "cat", "/restored/file"}, Stdout: &out})
	f.ok("exec", err)
	f.equal("what was laid into the layer, seen by the container", out.String(), "restored")

	f.ok("stop", f.e.Stop(ctx, id, 5*time.Second))
	stopped, err := f.e.WritableLayer(ctx, id)
	f.ok("layer of a stopped container", err)
	f.equal("upper directory", stopped.Upper, created.Upper)
	_, err = f.e.WritableLayer(ctx, "lbtest-none")
	f.is("layer of what is not there", err, dr.ErrNotFound)
}
