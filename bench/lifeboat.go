package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"lifeboat/lab/images"
)

// lifeboat keeps its repository in its own registry on loopback.
type lifeboat struct {
	stage    *stage
	dir      string
	registry *registry
	last     snapshotAnswer // of the newest snapshot
}

// snapshotAnswer has the keys of the contract that are measured.
type snapshotAnswer struct {
	BytesSent int64   `json:"bytes_sent"`
	FreezeMS  float64 `json:"freeze_ms"`
}

// companion is a system of the same image: its snapshot puts the image into the repository, so that a
// first copy is one of the data alone, as the other tools' are.
const companion = "companion"

// lifeboatRegistry is where Lifeboat's registry is asked, lifeboatConfig the name of the configuration.
const (
	lifeboatRegistry = "127.0.0.1:5000"
	lifeboatRepo     = "oci+http://" + lifeboatRegistry + "/dr"
	lifeboatConfig   = "lifeboat.yaml"
)

func (l *lifeboat) command(ctx context.Context, config string, args ...string) *exec.Cmd {
	cmd := l.stage.site.Command(ctx, l.stage.binary, append([]string{"--config", filepath.Join(l.dir, config), "--quiet"}, args...)...)
	cmd.Env = append(cmd.Env, "LIFEBOAT_KEY_FILE="+filepath.Join(l.dir, "key.txt"))
	return cmd
}

func (l *lifeboat) run(ctx context.Context, o *outcome, args ...string) ([]byte, error) {
	return o.measured(l.command(ctx, lifeboatConfig, args...), "lifeboat "+args[0])
}

func (l *lifeboat) prepare(ctx context.Context, dir string) error {
	if err := l.create(ctx, dir); err != nil {
		return err
	}
	if err := l.stage.idle(ctx, companion, images.Base); err != nil {
		return err
	}
	for _, args := range [][]string{{"protect", companion, "--container", companion}, {"snapshot", companion}, {"protect", container, "--container", container}} {
		var o outcome
		if _, err := l.run(ctx, &o, args...); err != nil {
			return err
		}
	}
	return nil
}

// create makes a fresh repository in a fresh registry, and a site without memory.
func (l *lifeboat) create(ctx context.Context, dir string) error {
	if err := l.serve(ctx, dir, lifeboatRegistry); err != nil {
		return err
	}
	return l.init(ctx)
}

// serve starts a fresh registry, which listens at an address.
func (l *lifeboat) serve(ctx context.Context, dir, addr string) (err error) {
	l.dir = dir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	l.registry, err = l.stage.serve(ctx, addr, l.stored())
	return err
}

// init makes the repository, and the site's configuration.
func (l *lifeboat) init(ctx context.Context) error {
	if err := l.configure(lifeboatConfig, "state"); err != nil {
		return err
	}
	var o outcome
	_, err := l.run(ctx, &o, "init", "--repo", lifeboatRepo, "--kit", filepath.Join(l.dir, "kit.txt"))
	return err
}

// configure writes a configuration with a state directory.
func (l *lifeboat) configure(config, state string) error {
	text := fmt.Sprintf("site: main\nstate_dir: %s\n", filepath.Join(l.dir, state))
	return os.WriteFile(filepath.Join(l.dir, config), []byte(text), 0o600)
}

func (l *lifeboat) copy(ctx context.Context) (outcome, error) { return l.snapshot(ctx, container) }

func (l *lifeboat) snapshot(ctx context.Context, system string) (o outcome, err error) {
	server := l.registry.cmd.Process.Pid
	if err := forgetPeak(server); err != nil {
		return o, err
	}
	before := serverCPU(server)
	out, err := l.run(ctx, &o, "snapshot", system, "--json")
	if err != nil {
		return o, err
	}
	l.last = snapshotAnswer{}
	if err := json.Unmarshal(out, &l.last); err != nil {
		return o, fmt.Errorf("lifeboat snapshot: its answer: %w", err)
	}
	o.Frozen = l.last.FreezeMS
	o.Registry = memoryOf(server).high
	o.CPU += serverCPU(server) - before
	return o, nil
}

func (l *lifeboat) restore(ctx context.Context, to string) (o outcome, err error) {
	server := l.registry.cmd.Process.Pid
	before := serverCPU(server)
	_, err = l.run(ctx, &o, "restore", container, "--to", to)
	o.CPU += serverCPU(server) - before
	return o, err
}

func (l *lifeboat) stored() string { return filepath.Join(l.dir, "registry") }

func (l *lifeboat) version(ctx context.Context) (string, error) {
	v, err := versionOf(ctx, l.stage.binary, "version")
	return strings.Join(strings.Fields(v), " "), err
}

func (l *lifeboat) commands() []string {
	return []string{"lifeboat init; protect (its own registry; the image is in the repository already)", "lifeboat snapshot SYSTEM", "lifeboat restore SYSTEM --to DIR"}
}

func (l *lifeboat) sees(string) bool { return true }

func (l *lifeboat) end(ctx context.Context) error {
	_, err := l.stage.site.Docker(ctx, "rm", "--force", "--volumes", companion)
	return errors.Join(err, l.registry.stop())
}
