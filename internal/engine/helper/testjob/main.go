// Command testjob is what tests of package helper run as a helper: it says what
// it sees, fails, waits to be left alone, or leaves a process behind.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"

	"lifeboat/internal/engine"
	"lifeboat/internal/engine/helper"
)

func main() {
	s, ok, err := helper.Inside(os.Stdin)
	if err == nil && ok {
		err = run(s)
	} else if !ok {
		err = outside(os.Args[1:])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "testjob:", err)
		os.Exit(1)
	}
}

func run(s *helper.Session) error {
	switch s.Args[0] {
	case "say":
		in, err := io.ReadAll(s.Stdin)
		if err != nil {
			return err
		}
		fmt.Printf("args %q\nsecret %s\nstdin %s\nvisible %s\n", s.Args, s.Env["SECRET"], in, visible("SECRET", s.Env["SECRET"]))
		fmt.Fprintln(os.Stderr, "said")
		return nil
	case "exit":
		os.Exit(7)
	case "files":
		return files(s)
	case "wait":
		return wait(s, s.Args[1])
	case "leave":
		return leave(s, s.Args[1])
	}
	return fmt.Errorf("no such job: %q", s.Args)
}

// visible says where others could read a word of the job.
func visible(words ...string) string {
	var where []string
	for _, file := range []string{"cmdline", "environ"} {
		b, err := os.ReadFile("/proc/self/" + file)
		if err != nil {
			return err.Error()
		}
		for _, w := range words {
			if strings.Contains(string(b), w) {
				where = append(where, file)
			}
		}
	}
	return strings.Join(where, " ")
}

// files finds a container's writable layer and reads the file named as
// CONTAINER and PATH.
func files(s *helper.Session) error {
	ctx := context.Background()
	e, err := engine.Open(ctx, engine.Options{Host: s.Host, HostRoot: s.HostRoot})
	if err != nil {
		return err
	}
	defer e.Close()
	h, err := e.HostFS(ctx)
	if err != nil {
		return err
	}
	if !h.Local {
		return fmt.Errorf("not local: %s", h.Reason)
	}
	l, err := e.WritableLayer(ctx, s.Args[1])
	if err != nil {
		return err
	}
	p, err := h.Path(l.Upper + s.Args[2])
	if err != nil {
		return err
	}
	b, err := os.ReadFile(p)
	if err != nil {
		return err
	}
	fmt.Printf("layer %s\n", b)
	return os.WriteFile(p, []byte("written by the helper"), 0o600)
}

// wait says that it waits and ends when it is left alone or asked to.
func wait(s *helper.Session, file string) error {
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	fmt.Println("waiting")
	why := "gone"
	select {
	case <-s.Gone:
	case <-term:
		why = "asked"
	}
	return os.WriteFile(s.HostRoot+file, []byte(why), 0o600)
}

// leave starts a process that outlives the helper, then dies without a word.
func leave(s *helper.Session, file string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	// The child is this program, told by its own environment that it is no helper.
	cmd := exec.Command("/proc/self/exe", "stay", s.HostRoot+file)
	cmd.Env = []string{}
	cmd.Stdin = r
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	if err := helper.LeaveCgroup(s.HostRoot, cmd.Process.Pid); err != nil {
		return err
	}
	fmt.Println("left")
	<-s.Gone // until killed
	return w.Close()
}

// outside is the process that was left: it waits for its parent's death, which
// closes its standard input, and then writes the file.
func outside(args []string) error {
	if len(args) != 2 || args[0] != "stay" {
		return fmt.Errorf("run by hand: %q", args)
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	return os.WriteFile(args[1], []byte("outlived"), 0o600)
}
