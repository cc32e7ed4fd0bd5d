package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"lifeboat/lab/images"
)

// docker is the paper's method: the container is committed as an image, which is pushed to a registry. It
// leaves volumes out. Restoring is pulling the image's layer.
type docker struct {
	stage    *stage
	dir      string
	registry *registry
	count    int
}

const dockerRegistry = "127.0.0.1:5001"

// reference names the image of a commit. All have one repository, so that layers are not sent twice.
func (d *docker) reference() string { return fmt.Sprintf("%s/learning:%d", dockerRegistry, d.count) }

func (d *docker) prepare(ctx context.Context, dir string) error {
	if err := d.create(ctx, dir); err != nil {
		return err
	}
	// The base is there already, as it is for the other tools.
	base := dockerRegistry + "/learning:base"
	for _, args := range [][]string{{"tag", images.Base, base}, {"push", "--quiet", base}, {"rmi", base}} {
		if _, err := d.stage.site.Docker(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

func (d *docker) create(ctx context.Context, dir string) (err error) {
	d.dir, d.count = dir, 0
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	d.registry, err = d.stage.serve(ctx, dockerRegistry, d.stored())
	return err
}

func (d *docker) copy(ctx context.Context) (outcome, error) {
	d.count++
	return d.commit(ctx, container, d.reference())
}

// commit commits a container and pushes the image. The engine does the work, so its memory counts.
func (d *docker) commit(ctx context.Context, name, reference string) (o outcome, err error) {
	pid, err := d.stage.enginePID()
	if err != nil {
		return o, err
	}
	if err := errors.Join(forgetPeak(pid), forgetPeak(d.registry.cmd.Process.Pid)); err != nil {
		return o, err
	}
	server := d.registry.cmd.Process.Pid
	before := serverCPU(pid, server)
	began := time.Now()
	if _, err := o.measured(d.stage.site.Command(ctx, "docker", "commit", name, reference), "docker commit"); err != nil {
		return o, err
	}
	// Asked at once: the engine remembers few events, and each health check is some.
	if o.Frozen, err = d.stage.paused(ctx, name, began); err != nil {
		return o, err
	}
	if _, err := o.measured(d.stage.site.Command(ctx, "docker", "push", "--quiet", reference), "docker push"); err != nil {
		return o, err
	}
	o.Peak = max(o.Peak, memoryOf(pid).high)
	o.Registry = memoryOf(server).high
	o.CPU += serverCPU(pid, server) - before
	return o, nil
}

func (d *docker) restore(ctx context.Context, _ string) (o outcome, err error) {
	if err := d.forget(ctx); err != nil {
		return o, err
	}
	if err := durable(d.stage.dir); err != nil { // what the removal wrote is no part of the restore
		return o, err
	}
	pid, err := d.stage.enginePID()
	if err != nil {
		return o, err
	}
	if err := forgetPeak(pid); err != nil {
		return o, err
	}
	before := serverCPU(pid, d.registry.cmd.Process.Pid)
	_, err = o.measured(d.stage.site.Command(ctx, "docker", "pull", "--quiet", d.reference()), "docker pull")
	o.CPU += serverCPU(pid, d.registry.cmd.Process.Pid) - before
	o.Peak = max(o.Peak, memoryOf(pid).high)
	return o, err
}

func (d *docker) stored() string { return filepath.Join(d.dir, "registry") }

func (d *docker) version(ctx context.Context) (string, error) {
	out, err := d.stage.site.Docker(ctx, "version", "--format", "Docker {{.Server.Version}}")
	return strings.TrimSpace(string(out)), err
}

func (d *docker) commands() []string {
	return []string{"(the base image is in the registry already)", "docker commit; docker push (no volumes)", "docker pull (no volumes)"}
}

// sees nothing of the database, which lies in a volume.
func (d *docker) sees(step string) bool { return step != stepPages }

func (d *docker) end(ctx context.Context) error {
	return errors.Join(d.registry.stop(), d.forget(ctx))
}

// forget removes the images of all commits from the engine: they share layers, and none may be left that
// a pull would find there.
func (d *docker) forget(ctx context.Context) error {
	out, err := d.stage.site.Docker(ctx, "images", "--format", "{{.Repository}}:{{.Tag}}", "--filter", "reference="+dockerRegistry+"/*")
	if err != nil {
		return err
	}
	if images := strings.Fields(string(out)); len(images) > 0 {
		_, err = d.stage.site.Docker(ctx, append([]string{"rmi"}, images...)...)
	}
	return err
}

// enginePID is the process of the site's engine.
func (s *stage) enginePID() (int, error) {
	data, err := os.ReadFile(filepath.Join(filepath.Dir(s.site.Socket), "docker.pid"))
	if err != nil {
		return 0, fmt.Errorf("find the engine: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return 0, fmt.Errorf("find the engine: %w", err)
	}
	return pid, nil
}

// paused is for how many milliseconds the engine says a container was paused since a time.
func (s *stage) paused(ctx context.Context, name string, since time.Time) (float64, error) {
	at := func(t time.Time) string { return fmt.Sprintf("%d.%09d", t.Unix(), t.Nanosecond()) }
	out, err := s.site.Docker(ctx, "events", "--since", at(since), "--until", at(time.Now()), "--filter", "container="+name,
		"--filter", "event=pause", "--filter", "event=unpause", "--format", "{{json .}}")
	if err != nil {
		return 0, err
	}
	return pausedIn(out)
}

// pausedIn sums up the times from each pause to the next unpause in a list of events.
func pausedIn(events []byte) (float64, error) {
	var sum, begin int64
	for line := range strings.Lines(string(events)) {
		var e struct {
			Action   string
			TimeNano int64 `json:"timeNano"`
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			return 0, fmt.Errorf("read events: %w", err)
		}
		switch {
		case e.Action == "pause":
			begin = e.TimeNano
		case e.Action == "unpause" && begin != 0:
			sum, begin = sum+e.TimeNano-begin, 0
		}
	}
	if sum == 0 {
		return 0, errors.New("read events: the container was never paused")
	}
	return float64(sum) / 1e6, nil
}
