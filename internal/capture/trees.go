package capture

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"lifeboat/internal/dr"
	"lifeboat/internal/engine"
	"lifeboat/internal/freeze"
	"lifeboat/internal/tree"

	"golang.org/x/sync/errgroup"
)

// captured is one tree of the run.
type captured struct {
	key     string // at this site
	kind    dr.TreeKind
	exclude []string
	capture passes
	result  dr.Tree
	path    string // of the engine's host; "" where its files are not reached
	local   string // the same, of this process's mount namespace
}

// passes are how a tree is captured: while everything runs, while everything
// stands still, and after it (package tree, package archive).
type passes interface {
	Precopy(ctx context.Context) error
	Secure(ctx context.Context) error
	Finish(ctx context.Context) (dr.Tree, error)
	CommitCache() error
	Close() error
}

// access is how a run reaches a system: the files of the engine's host, or the
// engine's archive API (archive.go).
type access interface {
	// open lists the trees to capture. Nothing is read yet; what is given is to
	// be closed, also beside an error.
	open(sys *engine.System) ([]*captured, error)
	// host is where the freezers of containers are looked for; nil where only
	// the engine can stop them.
	host() (*freeze.Host, error)
	// look finds what the processes hold of the trees: once before the freeze, and
	// again when everything stands still, before the trees are secured.
	look(set *freeze.Set) error
	// slow says what helps against a freeze that took too long.
	slow() string
	// report logs what the operator should know of how the trees were read.
	report(log *slog.Logger)
}

// files is access to the files of the engine's host.
type files struct {
	run   *run
	trees []*tree.Capture
}

func (f *files) open(sys *engine.System) ([]*captured, error) {
	r := f.run
	srcs, err := sources(sys, r.opts.Exclude)
	if err != nil {
		return nil, err
	}
	budget := tree.NewBudget(r.opts.SecureBytes)
	var out []*captured
	for _, s := range srcs {
		c, err := tree.NewCapture(tree.CaptureOptions{
			Root: s.path, Overlay: s.overlay, Merged: s.merged, Covered: s.covered, Key: s.key,
			StateDir: r.sysDir, Exclude: s.exclude, CutKey: r.deps.Repo.CutKey(), UnitID: r.deps.Repo.UnitID,
			Sink: r.writer, Budget: budget, Progress: r.opts.Progress.Bytes,
		})
		if err != nil {
			return out, fmt.Errorf("tree %s: %w", s.key, err)
		}
		f.trees = append(f.trees, c)
		out = append(out, &captured{key: s.key, kind: s.kind, exclude: s.exclude, capture: c, path: s.host, local: s.path})
	}
	return out, nil
}

func (f *files) host() (*freeze.Host, error) { return freeze.OpenHost("/proc", "") }

// look finds what processes may change without a trace.
func (f *files) look(set *freeze.Set) error {
	pids, err := set.Pids()
	if err != nil {
		return err
	}
	held, err := tree.OpenFiles(pids)
	if err != nil {
		return fmt.Errorf("files held by the system: %w", err)
	}
	for _, t := range f.trees {
		if err := t.AddOpen(held); err != nil {
			return err
		}
	}
	return nil
}

func (f *files) slow() string { return "raise freeze_max, or give secure_buffer more memory" }

func (f *files) report(log *slog.Logger) {
	for _, t := range f.trees {
		if missed := t.Report().Missed; len(missed) > 0 {
			log.Warn("changes escaped the watch on this tree; this snapshot has them, and from now on every entry is looked at while frozen",
				"tree", t.Key(), "paths", len(missed), "first", missed[0])
		}
	}
}

// source is where a tree lies on this host.
type source struct {
	key     string
	kind    dr.TreeKind
	host    string // of the engine's host
	path    string // of this process's mount namespace
	overlay bool
	merged  string   // of a layer: its whole as the running container sees it
	covered []string // and where something else is mounted in that
	exclude []string // paths inside
}

// sources lists the trees of a system that are to be captured.
func sources(sys *engine.System, exclude []Exclude) ([]source, error) {
	var out []source
	add := func(key string, kind dr.TreeKind, path string) error {
		if key == "" || excludes(exclude, key) {
			return nil
		}
		p, err := sys.HostFS.Path(path)
		if err != nil {
			return fmt.Errorf("tree %s: %w", key, err)
		}
		src := source{key: key, kind: kind, host: path, path: p, overlay: kind == dr.TreeLayer}
		for _, x := range exclude {
			if x.Key == key {
				src.exclude = append(src.exclude, x.Path)
			}
		}
		out = append(out, src)
		return nil
	}
	for _, c := range sys.Containers {
		n := len(out)
		if err := add(c.Layer, dr.TreeLayer, c.LayerPath.Upper); err != nil {
			return nil, err
		}
		if len(out) > n && c.InitPID != 0 {
			out[n].merged = "/proc/" + strconv.Itoa(c.InitPID) + "/root"
			for _, m := range c.Mounts {
				out[n].covered = append(out[n].covered, strings.Trim(m.Destination, "/"))
			}
		}
	}
	for _, v := range sys.Volumes {
		if err := add(v.Tree, dr.TreeVolume, v.Path); err != nil {
			return nil, err
		}
	}
	for _, b := range sys.Binds {
		if err := add(b.Tree, dr.TreeBind, b.Source); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// excludes tells whether a tree is left out as a whole.
func excludes(list []Exclude, key string) bool {
	return slices.ContainsFunc(list, func(x Exclude) bool { return x.Key == key && x.Path == "" })
}

// precopy reads every tree while the system runs.
func (r *run) precopy(ctx context.Context) error {
	if r.parent != nil {
		r.opts.Progress.Expect(r.parent.BytesTotal)
	}
	var err error
	if r.trees, err = r.access.open(r.system); err != nil {
		return err
	}
	for _, t := range r.trees {
		if err := t.capture.Precopy(ctx); err != nil {
			return fmt.Errorf("tree %s: %w", t.key, err)
		}
	}
	return nil
}

// freezeAndSecure stops all containers at one instant and secures what changed
// since the pre-copy (invariants 4 and 5).
func (r *run) freezeAndSecure(ctx context.Context) error {
	set, err := r.freezeSet()
	if err != nil {
		if serr := r.settled(ctx); serr != nil {
			return serr // that is why
		}
		return err
	}
	defer set.Close()
	r.opts.Progress.Phase("freeze")
	// The engine is asked once more while the guardians start.
	var settling errgroup.Group
	settling.Go(func() error { return r.settled(ctx) })
	ready := func(context.Context) error {
		if err := settling.Wait(); err != nil {
			return err
		}
		if err := r.access.look(set); err != nil {
			return err
		}
		r.opts.Hook("freezing")
		return nil
	}
	r.frozen, err = freeze.Do(ctx, set, freeze.Options{
		FreezeMax: r.opts.FreezeMax, StateDir: r.deps.State.Dir(), Logger: r.deps.Log, Ready: ready,
	}, func(ctx context.Context) error {
		r.opts.Hook("frozen")
		if err := r.access.look(set); err != nil {
			return err
		}
		g, ctx := errgroup.WithContext(ctx)
		g.SetLimit(2)
		for _, t := range r.trees {
			g.Go(func() error {
				if err := t.capture.Secure(ctx); err != nil {
					return fmt.Errorf("tree %s: %w", t.key, err)
				}
				return nil
			})
		}
		return g.Wait()
	})
	if serr := settling.Wait(); errors.Is(serr, errChanged) {
		err = serr // that is why
	}
	if err != nil {
		if errors.Is(err, freeze.ErrFreezeMax) {
			return fmt.Errorf("%w; everything runs again, no snapshot was made; %s", err, r.access.slow())
		}
		return err
	}
	if set.Len() == 0 {
		// Nothing ran; nothing may have started meanwhile either.
		return r.settled(ctx)
	}
	return nil
}

// settled makes sure that the containers are still those that were discovered.
func (r *run) settled(ctx context.Context) error {
	now, err := r.look(ctx)
	if err != nil {
		return err
	}
	if !sameContainers(r.system, now) {
		return errChanged
	}
	now.Coverage = r.system.Coverage
	r.system = now
	return nil
}

func sameContainers(a, b *engine.System) bool {
	return slices.EqualFunc(a.Containers, b.Containers, func(x, y engine.Container) bool {
		return x.ID == y.ID && x.InitPID == y.InitPID && x.LayerPath.Upper == y.LayerPath.Upper
	}) && slices.EqualFunc(a.Volumes, b.Volumes, func(x, y engine.Volume) bool {
		return x.Name == y.Name && x.Path == y.Path
	}) && slices.EqualFunc(a.Binds, b.Binds, func(x, y engine.Bind) bool { return x.Source == y.Source && x.Tree == y.Tree })
}

func (r *run) freezeSet() (*freeze.Set, error) {
	host, err := r.access.host()
	if err != nil {
		return nil, err
	}
	cfg := freeze.SetConfig{Host: host, Pauser: r.deps.Engine, PauserSpec: r.deps.Engine.Host()}
	for _, c := range r.system.Containers {
		cfg.Containers = append(cfg.Containers, freeze.Container{ID: c.ID, Name: c.Name, Pid: c.InitPID})
	}
	return freeze.NewSet(cfg)
}

// finish stores what was secured, reads the project files and builds the root.
func (r *run) finish(ctx context.Context) (*dr.Root, error) {
	for _, t := range r.trees {
		res, err := t.capture.Finish(ctx)
		if err != nil {
			return nil, fmt.Errorf("tree %s: %w", t.key, err)
		}
		res.Key, res.Kind, res.Exclude = t.key, t.kind, t.exclude
		t.result = res
		if r.opts.Degraded {
			r.degraded(t.key, res.Degraded)
		}
		r.halfRestored(t)
	}
	r.access.report(r.deps.Log)
	if err := r.projectFiles(ctx); err != nil {
		return nil, err
	}
	o, err := translate(r.system, r.bringup)
	if err != nil {
		return nil, err
	}
	for i, c := range r.system.Containers { // in the order of o.containers
		if policy, ok := r.opts.WasRunning[c.Name]; ok {
			if o.containers[i], err = asRunning(o.containers[i], policy); err != nil {
				return nil, err
			}
		}
	}
	root := &dr.Root{
		Format: dr.RootFormat, Repo: r.deps.Repo.ID(), System: r.opts.System, Site: r.opts.Site,
		Host: r.deps.Repo.HostID(), Kind: r.opts.Kind, Consistency: dr.ConsistentStopped,
		Created: r.instant(), Engine: r.system.Engine,
		Containers: o.containers, Images: r.images, Networks: o.networks, Volumes: o.volumes, Binds: o.binds,
		Files: originalFiles(r.files, r.bringup), Coverage: r.excluded(o.coverage),
	}
	if r.frozen.Containers > 0 {
		root.Consistency = dr.ConsistentCrash
	}
	if r.parent != nil {
		id := r.parent.ID
		root.Parent = &id
	}
	for _, t := range r.trees {
		res := t.result
		res.Key = o.key(res.Key)
		root.Trees = append(root.Trees, res)
	}
	if r.proot != nil && r.opts.Kind == dr.KindCurrent {
		r.missing = missing(r.proot, root)
		noteMissing(root, r.missing, r.parent.Number)
	}
	return root, nil
}

func (r *run) instant() time.Time {
	if r.frozen.FrozenAt.IsZero() {
		return time.Now().UTC()
	}
	return r.frozen.FrozenAt.UTC()
}

// excluded marks what the operator left out.
func (r *run) excluded(items []dr.CoverageItem) []dr.CoverageItem {
	for i := range items {
		if excludes(r.opts.Exclude, items[i].Object) {
			items[i].Captured, items[i].Reason = false, "excluded in the configuration"
		}
	}
	return items
}
