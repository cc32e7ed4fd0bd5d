package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// restic with its own defaults in a repository of version 2, which compresses: in a local directory, or
// behind a server on loopback, as Lifeboat's is. Debian has no server for restic but rclone's.
type restic struct {
	stage  *stage
	http   bool
	dir    string
	server *exec.Cmd
}

const resticAddr = "127.0.0.1:8000"

func (r *restic) env() []string {
	repository := r.stored()
	if r.http {
		repository = "rest:http://" + resticAddr + "/"
	}
	return []string{"RESTIC_REPOSITORY=" + repository, "RESTIC_PASSWORD=" + password, "RESTIC_CACHE_DIR=" + filepath.Join(r.dir, "cache")}
}

func (r *restic) prepare(ctx context.Context, dir string) error {
	r.dir = dir
	if r.http {
		if err := r.serve(ctx); err != nil {
			return err
		}
	}
	var o outcome
	_, err := o.measured(command(ctx, r.stage, r.env(), "restic", "init", "--repository-version", "2"), "restic init")
	return err
}

// serve starts the server and waits until it answers.
func (r *restic) serve(ctx context.Context) error {
	if err := os.MkdirAll(r.stored(), 0o700); err != nil {
		return err
	}
	r.server = command(context.WithoutCancel(ctx), r.stage, nil, "rclone", "serve", "restic", "--addr", resticAddr, r.stored())
	r.server.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := r.server.Start(); err != nil {
		return fmt.Errorf("rclone serve restic: %w", err)
	}
	within, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		conn, err := r.stage.site.Dial(within, "tcp", resticAddr)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-again.C:
		case <-within.Done():
			return errors.Join(fmt.Errorf("rclone serve restic does not answer: %w", err), r.end(ctx))
		}
	}
}

// measured runs a command, whose processor time includes that of the server.
func (r *restic) measured(ctx context.Context, args ...string) (o outcome, err error) {
	before := 0.0
	if r.http {
		before = serverCPU(r.server.Process.Pid)
	}
	_, err = o.measured(command(ctx, r.stage, r.env(), "restic", args...), "restic "+args[0])
	if r.http {
		o.CPU += serverCPU(r.server.Process.Pid) - before
	}
	return o, err
}

func (r *restic) copy(ctx context.Context) (outcome, error) {
	return r.measured(ctx, "backup", "--quiet", r.stage.layer, r.stage.data)
}

func (r *restic) restore(ctx context.Context, to string) (outcome, error) {
	return r.measured(ctx, "restore", "latest", "--quiet", "--target", to)
}

func (r *restic) stored() string { return filepath.Join(r.dir, "repository") }

func (r *restic) version(ctx context.Context) (string, error) {
	v, err := versionOf(ctx, "restic", "version")
	if err != nil || !r.http {
		return v, err
	}
	server, err := versionOf(ctx, "rclone", "version")
	return v + ", " + server, err
}

func (r *restic) commands() []string {
	where := "local directory"
	if r.http {
		where = "rclone serve restic on loopback"
	}
	return []string{"restic init --repository-version 2 (" + where + ")", "restic backup LAYER VOLUME", "restic restore latest --target DIR"}
}

func (r *restic) sees(string) bool { return true }

func (r *restic) end(context.Context) error {
	if r.server == nil {
		return nil
	}
	cmd := r.server
	r.server = nil
	if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop rclone: %w", err)
	}
	_ = cmd.Wait() // was killed, as it says
	return nil
}
