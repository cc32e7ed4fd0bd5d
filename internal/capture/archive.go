package capture

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"lifeboat/internal/archive"
	"lifeboat/internal/dr"
	"lifeboat/internal/engine"
	"lifeboat/internal/freeze"
)

// archives is access through the engine's archive API alone, the degraded mode:
// volumes and binds at the places where containers mount them, writable layers
// by the engine's list of changes (ADR 8).
type archives struct {
	run  *run
	took time.Duration // of the passes before the freeze
}

func (a *archives) open(sys *engine.System) ([]*captured, error) {
	r := a.run
	budget := archive.NewBudget(0)
	var out []*captured
	idle := !slices.ContainsFunc(sys.Containers, func(c engine.Container) bool { return c.InitPID != 0 })
	add := func(key string, kind dr.TreeKind, o archive.Options) {
		if key == "" || excludes(r.opts.Exclude, key) {
			return
		}
		for _, x := range r.opts.Exclude {
			if x.Key == key {
				o.Exclude = append(o.Exclude, x.Path)
			}
		}
		o.Source, o.Sink, o.CutKey, o.UnitID = r.deps.Engine, r.writer, r.deps.Repo.CutKey(), r.deps.Repo.UnitID
		o.Budget, o.Progress, o.Log, o.Idle = budget, r.opts.Progress.Bytes, r.deps.Log, idle
		out = append(out, &captured{key: key, kind: kind, exclude: o.Exclude, capture: &timed{Capture: archive.New(o), took: &a.took}})
	}
	for _, c := range sys.Containers {
		var mounts []string
		for _, m := range c.Mounts {
			mounts = append(mounts, m.Destination)
		}
		add(c.Layer, dr.TreeLayer, archive.Options{Container: c.ID, Mounts: mounts})
	}
	for _, v := range sys.Volumes {
		if v.Via != nil {
			add(v.Tree, dr.TreeVolume, archive.Options{Container: v.Via.Container, Path: v.Via.Path, Mounts: v.Via.Mounts})
		}
	}
	for _, b := range sys.Binds {
		if b.Via != nil {
			add(b.Tree, dr.TreeBind, archive.Options{Container: b.Via.Container, Path: b.Via.Path, Mounts: b.Via.Mounts, File: b.File})
		}
	}
	return out, nil
}

// timed measures the first pass, to say how long a freeze would have to be.
type timed struct {
	*archive.Capture
	took *time.Duration
}

func (t *timed) Precopy(ctx context.Context) error {
	began := time.Now()
	err := t.Capture.Precopy(ctx)
	*t.took += time.Since(began)
	return err
}

// host is none: process numbers of an engine that may be anywhere say nothing
// about processes of this host.
func (a *archives) host() (*freeze.Host, error) { return nil, nil }

func (a *archives) look(*freeze.Set) error { return nil }

func (a *archives) report(*slog.Logger) {}

func (a *archives) slow() string {
	limit := a.run.opts.FreezeMax
	if limit == 0 {
		limit = freeze.DefaultFreezeMax
	}
	// Where storing was slow, half of what the first pass took may do; where it
	// was not, twice gives room.
	want := max(2*limit, 2*a.took).Round(time.Second)
	return fmt.Sprintf("the degraded mode reads all data while the system is paused: the first pass took %v, set freeze_max to %v or more, or stop the system for the snapshot",
		a.took.Round(time.Second/10), want)
}

// degraded makes the coverage report say what of a tree was not kept.
func (r *run) degraded(key, what string) {
	for i := range r.system.Coverage {
		c := &r.system.Coverage[i]
		if c.Object != key {
			continue
		}
		said := archive.Kept(strings.HasPrefix(key, "layer:"))
		if rest, ok := strings.CutPrefix(what, said); ok && strings.Contains(c.Reason, said) {
			c.Reason += rest // what only reading has shown
		}
	}
}
