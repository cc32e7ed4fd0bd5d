package warden

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// engine is a running dockerd.
type engine struct {
	cmd   *exec.Cmd
	ended chan struct{} // closed when the process was waited for
	err   error         // valid after ended
}

func (e *engine) alive() bool {
	select {
	case <-e.ended:
		return false
	default:
		return true
	}
}

// startEngine starts the engine on what is on the disk and waits until it answers.
func (h *host) startEngine(ctx context.Context) error {
	if h.conf.Engine.None || (h.engine != nil && h.engine.alive()) {
		return nil
	}
	// What an engine that died by itself left running would hold its disk.
	for _, sub := range []string{"engine", "containers"} {
		if err := h.group.Kill(ctx, filepath.Join(h.conf.Name, sub)); err != nil {
			return fmt.Errorf("start engine of %s: %w", h.conf.Name, err)
		}
	}
	args, err := h.engineArgs()
	if err != nil {
		return fmt.Errorf("start engine of %s: %w", h.conf.Name, err)
	}
	group, err := h.group.Make(filepath.Join(h.conf.Name, "engine"))
	if err != nil {
		return err
	}
	logFile, err := os.OpenFile(h.dir("dockerd.log"), os.O_CREATE|os.O_TRUNC|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("start engine of %s: %w", h.conf.Name, err)
	}
	defer logFile.Close()
	const script = `echo 0 > "$1/cgroup.procs" || exit 1
[ -z "$2" ] || mount --bind "$2" /usr || exit 1
shift 2
exec /usr/sbin/dockerd "$@"`
	cmd := exec.Command("/bin/sh", append([]string{"-c", script, "sh", group, h.conf.Engine.Usr}, args...)...)
	cmd.Env = append(toolEnv(), "TMPDIR="+h.dir("disk"))
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: unix.SIGKILL}
	if h.conf.Engine.Usr != "" {
		cmd.SysProcAttr.Unshareflags = unix.CLONE_NEWNS
	}
	if err := h.thread.do(func() error { return h.procs.start(cmd) }); err != nil {
		return fmt.Errorf("start engine of %s: %w", h.conf.Name, err)
	}
	e := &engine{cmd: cmd, ended: make(chan struct{})}
	go func() {
		e.err = h.procs.wait(cmd)
		close(e.ended)
	}()
	h.engine = e
	if err := h.awaitEngine(ctx, e); err != nil {
		return fmt.Errorf("start engine of %s: %w; its log ends with:\n%s", h.conf.Name, err, tail(h.dir("dockerd.log"), 2000))
	}
	return nil
}

func (h *host) engineArgs() ([]string, error) {
	daemon := h.conf.Engine.Daemon
	if daemon == nil {
		daemon = map[string]any{}
	}
	data, err := json.Marshal(daemon)
	if err != nil {
		return nil, fmt.Errorf("write daemon.json: %w", err)
	}
	// Named, so that a daemon.json of the machine's /etc has no say.
	if err := os.WriteFile(h.dir("daemon.json"), data, 0o600); err != nil {
		return nil, fmt.Errorf("write daemon.json: %w", err)
	}
	root := h.conf.Engine.DataRoot
	if root == "" {
		root = h.dir("disk", "docker")
	}
	args := []string{
		"--config-file", h.dir("daemon.json"),
		"--data-root", root,
		"--exec-root", h.dir("run", "docker"),
		"--pidfile", h.dir("run", "docker.pid"),
		"--host", "unix://" + h.lab.EngineSocket(h.conf.Name),
		"--host", "unix:///run/docker.sock",
		"--log-level", "warn",
		"--exec-opt", "native.cgroupdriver=cgroupfs",
		"--cgroup-parent", h.group.Name() + "/" + h.conf.Name + "/containers",
	}
	if h.conf.Engine.StorageDriver != "" {
		args = append(args, "--storage-driver", h.conf.Engine.StorageDriver)
	}
	if h.conf.HostNetwork {
		return append(args, "--bridge", "none", "--iptables=false", "--ip-forward=false", "--ip-masq=false"), nil
	}
	return append(args, "--bip", h.conf.Bridge.String()), nil
}

// awaitEngine returns when the engine answers, has ended, or ctx ends.
func (h *host) awaitEngine(ctx context.Context, e *engine) error {
	socket := h.lab.EngineSocket(h.conf.Name)
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://engine/_ping", nil)
		if err != nil {
			return err
		}
		if resp, err := client.Do(req); err == nil {
			_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<10))
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for its socket: %w", ctx.Err())
		case <-e.ended:
			return fmt.Errorf("dockerd ended: %w", errors.Join(e.err, errors.New("before it answered")))
		case <-tick.C:
		}
	}
}

// stopEngine stops the engine in good order: containers are stopped, the host stays up.
func (h *host) stopEngine(ctx context.Context) error {
	if h.engine == nil {
		return nil
	}
	if h.engine.alive() {
		if err := h.engine.cmd.Process.Signal(unix.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("stop engine of %s: %w", h.conf.Name, err)
		}
	}
	select {
	case <-h.engine.ended:
		h.engine = nil
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop engine of %s: it still runs: %w", h.conf.Name, ctx.Err())
	}
}

// tail is the end of a text file, or why it cannot be read.
func tail(path string, size int64) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > size {
		_, _ = f.Seek(-size, io.SeekEnd) // else all of it is read
	}
	data, err := io.ReadAll(io.LimitReader(f, size))
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(data))
}
