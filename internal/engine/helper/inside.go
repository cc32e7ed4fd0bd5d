package helper

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"lifeboat/internal/engine"
)

// Session is a helper's side of a job.
type Session struct {
	// Args are the arguments that the program is to take for its own.
	Args []string
	// Env are variables that the program is to set in its own process.
	Env map[string]string
	// Stdin is the job's standard input. The process's own carries frames.
	Stdin io.Reader
	// Host is the engine's address in here, for engine.Options.Host.
	Host string
	// HostRoot is the host's root directory in here, for engine.Options.HostRoot
	// and LeaveCgroup. What paths of the engine mean is for HostFS to say.
	HostRoot string
	// Gone is closed when whoever started the helper is no longer there. The
	// helper must then thaw, clean up and end.
	Gone <-chan struct{}
}

// Inside tells whether this process is a helper and gives its session; stdin is
// the process's standard input. ok is false for any other process. It reads the
// job and goes on reading stdin in the background for the life of the process.
func Inside(stdin io.Reader) (s *Session, ok bool, err error) {
	if os.Getenv(variable) != "1" {
		return nil, false, nil
	}
	s, err = newSession(stdin)
	return s, true, err
}

func newSession(stdin io.Reader) (*Session, error) {
	kind, body, err := readFrame(stdin)
	if err != nil || kind != frameJob {
		if err == nil {
			err = errFrame
		}
		return nil, fmt.Errorf("helper: read the job: %w; the helper is started by lifeboat itself, not by hand", err)
	}
	var job wire
	if err := json.Unmarshal(body, &job); err != nil {
		return nil, errors.New("helper: the job cannot be read") // its content may be secret
	}
	r, w := io.Pipe()
	gone := make(chan struct{})
	s := &Session{
		Args: job.Args, Env: job.Env, Stdin: r,
		Host: "unix://" + socketPath, HostRoot: hostRoot, Gone: gone,
	}
	if root, err := engine.ServerRoot(socketPath); err == nil {
		s.HostRoot = root
	}
	go func() {
		defer close(gone)
		w.CloseWithError(demultiplex(stdin, w))
	}()
	return s, nil
}

// demultiplex passes the job's input on and returns when the stream ends. The
// reader of the input sees its end at the frame for it, and an error where the
// stream breaks off before.
func demultiplex(r io.Reader, w *io.PipeWriter) error {
	for {
		kind, body, err := readFrame(r)
		if err != nil {
			return io.ErrUnexpectedEOF
		}
		switch kind {
		case frameInput:
			// Input that nobody reads must not hide the end of the stream, but a
			// program that does not read its input ends anyway.
			_, _ = w.Write(body)
		case frameEnd:
			_ = w.Close()
		default:
			return errFrame
		}
	}
}

// LeaveCgroup moves a process out of the helper's control groups into the
// host's root ones, so that it outlives the helper: the engine kills what is in
// a container's groups when its first process ends, also one that was started
// to clean up after a killed helper (the guardian, invariant 5). root is the
// directory under which the host's files are seen.
func LeaveCgroup(root string, pid int) error {
	base := filepath.Join(root, "/sys/fs/cgroup")
	text := []byte(strconv.Itoa(pid))
	if _, err := os.Stat(filepath.Join(base, "cgroup.controllers")); err == nil {
		return moveTo(base, text)
	}
	dirs, err := os.ReadDir(base)
	if err != nil {
		return fmt.Errorf("helper: leave the control group: %w", err)
	}
	moved := 0
	for _, d := range dirs {
		// Links name a hierarchy a second time (cpu for cpu,cpuacct).
		if !d.IsDir() {
			continue
		}
		switch err := moveTo(filepath.Join(base, d.Name()), text); {
		case err == nil:
			moved++
		case errors.Is(err, fs.ErrNotExist):
		default:
			return err
		}
	}
	if moved == 0 {
		return fmt.Errorf("helper: leave the control group: none found below %s", base)
	}
	return nil
}

func moveTo(dir string, pid []byte) error {
	f, err := os.OpenFile(filepath.Join(dir, "cgroup.procs"), os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("helper: leave the control group: %w", err)
	}
	_, err = f.Write(pid)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("helper: leave the control group: move into %s: %w", dir, err)
	}
	return nil
}
