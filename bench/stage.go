package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"lifeboat/bench/corpus"
	"lifeboat/lab"
	"lifeboat/lab/images"
	"lifeboat/lab/systems"
)

const (
	container = "learning"      // whose data are copied
	volume    = "learning_data" // with the database
	siteDir   = "/srv/learning" // in the writable layer
	volumeDir = "/var/lib/data"
)

// stage is a laboratory with one site and the binary.
type stage struct {
	lab    *lab.Lab
	site   *lab.Site
	binary string
	log    *slog.Logger
	dir    string // for repositories and what is restored
	shape  corpus.Shape
	layer  string // where the container's writable layer is on the host
	data   string // where the volume is
	open   []*registry
}

func setStage(ctx context.Context, o options, log *slog.Logger) (*stage, error) {
	text, err := corpus.ToolchainText(ctx)
	if err != nil {
		return nil, err
	}
	set := systems.WordPress(systems.Params{}).Images()
	if err := images.Ensure(ctx, log, set); err != nil {
		return nil, err
	}
	quiet := log
	if !o.verbose {
		quiet = slog.New(slog.DiscardHandler)
	}
	l, err := lab.New(ctx, lab.Options{Log: quiet, Sites: []lab.SiteOptions{{Name: "main", Engine: lab.EngineDocker20}}})
	if err != nil {
		return nil, err
	}
	s := &stage{lab: l, site: l.Main(), log: log, shape: corpus.Learning(o.scale, o.seed, text)}
	s.dir = filepath.Join(s.site.Disk, "bench")
	s.binary = filepath.Join(l.Dir(), "lifeboat")
	if err := s.furnish(ctx, o, set); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *stage) furnish(ctx context.Context, o options, set images.Set) error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	if o.binary == "" {
		if err := build(ctx, s.binary); err != nil {
			return err
		}
	} else if err := copyFile(o.binary, s.binary); err != nil {
		return fmt.Errorf("copy the binary: %w", err)
	}
	return images.Load(ctx, s.site, s.log, set)
}

// copyFile copies a program to where a rebuild cannot reach it.
func copyFile(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o755)
}

// close takes everything away.
func (s *stage) close() error {
	var errs []error
	for len(s.open) > 0 {
		errs = append(errs, s.open[len(s.open)-1].stop())
	}
	return errors.Join(append(errs, s.lab.Close())...)
}

// idle starts a container that does nothing, and another from the same image as company.
func (s *stage) idle(ctx context.Context, name, image string, more ...string) error {
	args := append([]string{"run", "--detach", "--name", name, "--entrypoint", "/bin/sleep"}, more...)
	if _, err := s.site.Docker(ctx, append(args, image, "infinity")...); err != nil {
		return fmt.Errorf("start container %s: %w", name, err)
	}
	return nil
}

// fill starts the container and writes its data from the inside, as an application does.
func (s *stage) fill(ctx context.Context) (corpus.Totals, error) {
	var totals corpus.Totals
	if err := s.idle(ctx, container, images.Base, "--volume", volume+":"+volumeDir); err != nil {
		return totals, err
	}
	for _, part := range []struct {
		dir   string
		write func(io.Writer) (corpus.Totals, error)
	}{{siteDir, s.shape.WriteSite}, {volumeDir, s.shape.WriteDatabase}} {
		t, err := s.unpack(ctx, container, part.dir, part.write)
		if err != nil {
			return totals, err
		}
		totals.Add(t)
	}
	layer, err := s.site.Docker(ctx, "inspect", "--format", "{{.GraphDriver.Data.UpperDir}}", container)
	if err != nil {
		return totals, err
	}
	data, err := s.site.Docker(ctx, "volume", "inspect", "--format", "{{.Mountpoint}}", volume)
	if err != nil {
		return totals, err
	}
	s.layer, s.data = strings.TrimSpace(string(layer)), strings.TrimSpace(string(data))
	return totals, nil
}

// unpack writes a tree into a container.
func (s *stage) unpack(ctx context.Context, name, dir string, write func(io.Writer) (corpus.Totals, error)) (corpus.Totals, error) {
	cmd := s.site.Command(ctx, "docker", "exec", "--interactive", name, "/bin/sh", "-c", `mkdir -p "$1" && exec tar -xp -C "$1"`, "sh", dir)
	in, err := cmd.StdinPipe()
	if err != nil {
		return corpus.Totals{}, fmt.Errorf("fill %s: %w", dir, err)
	}
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		return corpus.Totals{}, fmt.Errorf("fill %s: %w", dir, err)
	}
	buffered := bufio.NewWriterSize(in, 1<<20)
	totals, err := write(buffered)
	if err := errors.Join(err, buffered.Flush(), in.Close(), cmd.Wait()); err != nil {
		return totals, fmt.Errorf("fill %s: %w: %s", dir, err, said.Bytes())
	}
	return totals, nil
}

// addCourse is the change that the paper counts by: one course more.
func (s *stage) addCourse(ctx context.Context, number int) error {
	_, err := s.unpack(ctx, container, siteDir, func(w io.Writer) (corpus.Totals, error) { return s.shape.WriteCourse(w, number) })
	return err
}

// removeCourse takes back what addCourse did.
func (s *stage) removeCourse(ctx context.Context, number int) error {
	_, err := s.site.Docker(ctx, "exec", container, "rm", "-r", siteDir+"/"+corpus.Course(number))
	return err
}

// changePages writes random pages of the big database file in place.
func (s *stage) changePages(n int, seed uint64) (err error) {
	f, err := os.OpenFile(filepath.Join(s.data, corpus.Table), os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("open database: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := s.shape.ChangePages(f, info.Size(), min(n, int(info.Size()/corpus.PageSize)), seed); err != nil {
		return err
	}
	return f.Sync()
}

// registry is an embedded registry on the site's loopback.
type registry struct {
	stage *stage
	cmd   *exec.Cmd
	addr  string
	data  string
}

// serve starts a registry, without TLS and users.
func (s *stage) serve(ctx context.Context, addr, data string) (*registry, error) {
	cmd := s.site.Command(context.WithoutCancel(ctx), s.binary, "registry", "serve", "--json", "--plain-http", "--listen", addr, "--data", data)
	// An interruption from the terminal is for the benchmark alone.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	said, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("registry serve: %w", err)
	}
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("registry serve: %w", err)
	}
	r := &registry{s, cmd, addr, data}
	s.open = append(s.open, r)
	line, err := bufio.NewReader(said).ReadBytes('\n')
	if err != nil || !json.Valid(line) {
		return nil, errors.Join(fmt.Errorf("registry serve said %q: %w", line, err), r.stop(), fmt.Errorf("%s", complaint.Bytes()))
	}
	return r, nil
}

// stop ends the registry in good order.
func (r *registry) stop() error {
	for i, other := range r.stage.open {
		if other == r {
			r.stage.open = append(r.stage.open[:i], r.stage.open[i+1:]...)
			break
		}
	}
	if err := r.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop registry: %w", err)
	}
	if err := r.cmd.Wait(); err != nil {
		return fmt.Errorf("stop registry: %w", err)
	}
	return nil
}
