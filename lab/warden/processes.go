package warden

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// processes starts the warden's children and reaps what engines leave behind: the warden is the
// subreaper of everything it started, for a first process of the machine may be slow to wait for orphans.
type processes struct {
	log *slog.Logger

	mu    sync.Mutex
	known map[int]bool // waited for by os/exec
}

func newProcesses(log *slog.Logger) (*processes, error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("become subreaper: %w", err)
	}
	return &processes{log: log, known: map[int]bool{}}, nil
}

// start starts the command; the caller must call wait.
func (p *processes) start(cmd *exec.Cmd) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := cmd.Start(); err != nil {
		return err
	}
	p.known[cmd.Process.Pid] = true
	return nil
}

func (p *processes) wait(cmd *exec.Cmd) error {
	err := cmd.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.known, cmd.Process.Pid)
	return err
}

// run runs a tool with input and returns an error with what it printed.
func (p *processes) run(ctx context.Context, input, name string, args ...string) error {
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = toolEnv()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &out, &out
	err := p.start(cmd)
	if err == nil {
		err = p.wait(cmd)
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(name), err, strings.TrimSpace(out.String()))
	}
	return nil
}

// reap waits for orphans until ctx ends.
func (p *processes) reap(ctx context.Context) {
	died := make(chan os.Signal, 1)
	signal.Notify(died, unix.SIGCHLD)
	defer signal.Stop(died)
	for {
		select {
		case <-ctx.Done():
			return
		case <-died:
			p.reapOnce()
		}
	}
}

func (p *processes) reapOnce() {
	p.mu.Lock()
	defer p.mu.Unlock()
	lists, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		return // the pattern is right
	}
	for _, list := range lists {
		data, err := os.ReadFile(list)
		if err != nil {
			continue // the thread has ended
		}
		for _, field := range strings.Fields(string(data)) {
			pid, err := strconv.Atoi(field)
			if err != nil || p.known[pid] {
				continue
			}
			if _, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); err != nil {
				p.log.Debug("reap orphan", "pid", pid, "error", err)
			}
		}
	}
}

// toolEnv is the environment of engines and tools: nothing of the caller's, whose proxy and
// certificate settings and credentials are not those of a site.
func toolEnv() []string {
	return []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=/nonexistent"}
}
