package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"lifeboat/internal/dr"
)

// ContainerState is a container as it is now.
type ContainerState struct {
	ID       string
	Name     string
	State    string // running, exited, created, paused, restarting, removing, dead
	Pid      int    // of init, in the engine's pid namespace; 0 while it does not run
	ExitCode int
	// Error is what the engine says about the last failed start.
	Error string
	// Health is starting, healthy, unhealthy, or empty without a health check.
	Health        string
	RestartCount  int
	RestartPolicy RestartPolicy
	StartedAt     time.Time // zero if never
	Image         string    // id on this engine
	Labels        map[string]string
}

// Running reports whether it has processes, paused or not.
func (c ContainerState) Running() bool { return c.State == "running" || c.State == "paused" }

// Container describes a container by name or id; dr.ErrNotFound if there is none.
func (e *Engine) Container(ctx context.Context, nameOrID string) (ContainerState, error) {
	st, _, err := e.state(ctx, nameOrID)
	return st, err
}

func (e *Engine) state(ctx context.Context, nameOrID string) (ContainerState, container.InspectResponse, error) {
	res, err := e.cli.ContainerInspect(ctx, nameOrID, client.ContainerInspectOptions{})
	if err != nil {
		return ContainerState{}, container.InspectResponse{}, failed("inspect container "+nameOrID, err)
	}
	c := res.Container
	st := ContainerState{ID: c.ID, Name: strings.TrimPrefix(c.Name, "/"), RestartCount: c.RestartCount, Image: c.Image}
	if s := c.State; s != nil {
		st.State, st.Pid, st.ExitCode, st.Error = string(s.Status), s.Pid, s.ExitCode, s.Error
		if t, err := time.Parse(time.RFC3339Nano, s.StartedAt); err == nil && t.Year() > 1 {
			st.StartedAt = t
		}
		if s.Health != nil && s.Health.Status != "none" {
			st.Health = string(s.Health.Status)
		}
	}
	if c.HostConfig != nil {
		st.RestartPolicy = RestartPolicy{Name: string(c.HostConfig.RestartPolicy.Name), MaximumRetryCount: c.HostConfig.RestartPolicy.MaximumRetryCount}
	}
	if c.Config != nil {
		st.Labels = c.Config.Labels
	}
	return st, c, nil
}

// containerPath is the API path of a container; a name may have its slash.
func containerPath(id string) string { return "/containers/" + strings.TrimPrefix(id, "/") }

func (e *Engine) act(ctx context.Context, verb, id, action string, q url.Values) error {
	err := e.call(ctx, "POST", containerPath(id)+"/"+action, q, nil, nil)
	return changed(verb+" container "+id, err)
}

// Start starts a container; one that runs is no error. A port or address that
// is taken gives dr.ErrHeld.
func (e *Engine) Start(ctx context.Context, id string) error {
	return e.act(ctx, "start", id, "start", nil)
}

// Stop asks a container to end and kills it after timeout; a negative timeout is
// the container's own. One that does not run is no error.
func (e *Engine) Stop(ctx context.Context, id string, timeout time.Duration) error {
	var q url.Values
	if timeout >= 0 {
		q = url.Values{"t": {strconv.Itoa(int((timeout + time.Second - 1) / time.Second))}}
	}
	return e.act(ctx, "stop", id, "stop", q)
}

// Kill sends a signal (SIGKILL if empty) to a container; one that does not run
// is no error.
func (e *Engine) Kill(ctx context.Context, id, signal string) error {
	q := url.Values{}
	if signal != "" {
		q.Set("signal", signal)
	}
	err := e.act(ctx, "kill", id, "kill", q)
	if err != nil && strings.Contains(err.Error(), "is not running") {
		return nil
	}
	return err
}

// RemoveOptions say how a container is removed.
type RemoveOptions struct {
	Force   bool // also if it runs
	Volumes bool // with its anonymous volumes
}

// Remove removes a container and returns when it is gone; one that is not there
// is no error. One that runs gives dr.ErrHeld unless forced.
func (e *Engine) Remove(ctx context.Context, id string, o RemoveOptions) error {
	q := url.Values{}
	if o.Force {
		q.Set("force", "1")
	}
	if o.Volumes {
		q.Set("v", "1")
	}
	for {
		err := e.remove(ctx, "container "+id, containerPath(id), q)
		// The engine is removing it already, for AutoRemove or another caller.
		if err == nil || !strings.Contains(err.Error(), "already in progress") {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("remove container %s: the engine is at it: %w", id, context.Cause(ctx))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Rename gives a container another name; a name that exists gives dr.ErrHeld.
func (e *Engine) Rename(ctx context.Context, id, name string) error {
	return e.act(ctx, "rename", id, "rename", url.Values{"name": {name}})
}

// SetRestartPolicy changes when the engine starts a container again by itself.
func (e *Engine) SetRestartPolicy(ctx context.Context, id string, p RestartPolicy) error {
	if p.Name == "" {
		p.Name = "no"
	}
	req := map[string]any{"RestartPolicy": p}
	err := e.call(ctx, "POST", containerPath(id)+"/update", nil, req, nil)
	return changed("set the restart policy of container "+id, err)
}

// DisableRestart keeps the engine from starting a container again by itself.
func (e *Engine) DisableRestart(ctx context.Context, id string) error {
	return e.SetRestartPolicy(ctx, id, RestartPolicy{Name: "no"})
}

// Pause stops all processes of a container through the engine. One that is
// paused already is no error.
func (e *Engine) Pause(ctx context.Context, id string) error {
	return e.unless(ctx, e.act(ctx, "pause", id, "pause", nil), id, "paused")
}

// Unpause lets them go on. One that is not paused is no error.
func (e *Engine) Unpause(ctx context.Context, id string) error {
	return e.unless(ctx, e.act(ctx, "unpause", id, "unpause", nil), id, "running")
}

// unless forgives an error where the container is in the wanted state anyway.
func (e *Engine) unless(ctx context.Context, err error, id, state string) error {
	if err == nil {
		return nil
	}
	if st, ierr := e.Container(ctx, id); ierr == nil && st.State == state {
		return nil
	}
	return err
}

// ExecOptions say what to run in a container.
type ExecOptions struct {
	Cmd        []string
	User       string
	WorkingDir string
	Env        []string
	Privileged bool
	Stdin      io.Reader // nil for none
	Stdout     io.Writer // nil discards
	Stderr     io.Writer
}

// Exec runs a command in a running container and returns its exit code. Where
// ctx ends first the command may go on running. Cmd and Env can be seen by
// others on the host; secrets go through Stdin.
func (e *Engine) Exec(ctx context.Context, id string, o ExecOptions) (exit int, err error) {
	what := "run a command in container " + id
	made, err := e.cli.ExecCreate(ctx, id, client.ExecCreateOptions{
		Cmd: o.Cmd, User: o.User, WorkingDir: o.WorkingDir, Env: o.Env, Privileged: o.Privileged,
		AttachStdin: o.Stdin != nil, AttachStdout: true, AttachStderr: true,
	})
	if err != nil {
		return 0, failed(what, err)
	}
	conn, err := e.cli.ExecAttach(ctx, made.ID, client.ExecAttachOptions{})
	if err != nil {
		return 0, changed(what, err)
	}
	if err := pump(ctx, &conn.HijackedResponse, o.Stdin, o.Stdout, o.Stderr); err != nil {
		return 0, changed(what, err)
	}
	res, err := e.cli.ExecInspect(ctx, made.ID, client.ExecInspectOptions{})
	if err != nil {
		return 0, changed(what, err)
	}
	if res.Running {
		return 0, fmt.Errorf("%s: the connection ended while it runs: %w", what, dr.ErrOutcomeUnknown)
	}
	return res.ExitCode, nil
}

// pump copies both directions of an attached connection until the output ends
// or ctx does, and closes it.
func pump(ctx context.Context, conn *client.HijackedResponse, in io.Reader, out, errOut io.Writer) error {
	stop := context.AfterFunc(ctx, conn.Close)
	defer func() {
		stop()
		conn.Close()
	}()
	if in != nil {
		go func() {
			// It ends with the connection at the latest, which pump closes.
			_, _ = io.Copy(conn.Conn, in)
			_ = conn.CloseWrite()
		}()
	}
	if out == nil {
		out = io.Discard
	}
	if errOut == nil {
		errOut = io.Discard
	}
	_, err := stdcopy.StdCopy(out, errOut, conn.Reader)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("read its output: %w", err)
	}
	return nil
}

// Logs returns the last lines that a container wrote, for error messages; at
// most 64 KiB. Where the log driver cannot read back, it is empty.
func (e *Engine) Logs(ctx context.Context, id string, lines int) (string, error) {
	_, c, err := e.state(ctx, id)
	if err != nil {
		return "", err
	}
	r, err := e.cli.ContainerLogs(ctx, id, client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true, Tail: strconv.Itoa(lines)})
	if err != nil {
		return "", failed("read the log of container "+id, err)
	}
	defer r.Close()
	var b limitedBuffer
	if c.Config != nil && c.Config.Tty {
		_, err = io.Copy(&b, r)
	} else {
		_, err = stdcopy.StdCopy(&b, &b, r)
	}
	if err != nil && !errors.Is(err, errFull) {
		return "", failed("read the log of container "+id, err)
	}
	return strings.TrimRight(b.b.String(), "\n"), nil
}

var errFull = errors.New("enough read")

// limitedBuffer takes the first 64 KiB.
type limitedBuffer struct{ b strings.Builder }

func (l *limitedBuffer) Write(p []byte) (int, error) {
	if room := 64<<10 - l.b.Len(); len(p) > room {
		l.b.Write(p[:room])
		return room, errFull
	}
	return l.b.Write(p)
}
