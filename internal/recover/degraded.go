package recover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"lifeboat/internal/archive"
	"lifeboat/internal/catalog"
	"lifeboat/internal/dr"
	"lifeboat/internal/engine"
	"lifeboat/internal/plan"
)

// The degraded mode lays a system down where nothing of it exists, through the
// engine's archive API alone (ADR 8): volumes and paths through a carrier, a
// container that mounts them all and is never started; writable layers through
// the system's own containers before they are started. The API cannot remove,
// so nothing is ever restored in place.

// planDegraded finds what would have to be restored in place.
func (b *bringUp) planDegraded(p *Plan) {
	p.Notes = append(p.Notes, "degraded mode: trees go through the engine's archive API, which makes no deletions, holes and sockets; paths are looked at when they are made, and must be empty then")
	if b.resumes {
		return
	}
	refuse := func(object string) {
		p.Conflicts = append(p.Conflicts, plan.Conflict{
			Object: object, With: "it exists here already, and in degraded mode nothing can be restored in place",
			Solve: "run as root on the engine's host, or allow the helper container, or remove it if nothing in it is needed",
		})
	}
	for _, c := range b.survey.ownContainers() {
		refuse("container " + c.Name)
	}
	for _, v := range b.survey.inv.Volumes {
		if b.survey.own["volume:"+v.Name] {
			refuse("volume " + v.Name)
		}
	}
}

// degradedSteps are steps for the archive API. Volumes are filled before the
// containers are created: into an empty volume the engine would copy what the
// image has there.
func (b *bringUp) degradedSteps(id func(string) string) []plan.Step {
	return []plan.Step{
		{ID: id("images"), Title: "images", Do: b.bringImages},
		{ID: id("networks"), Title: "networks", Do: b.bringNetworks},
		{ID: id("volumes"), Title: "volumes and paths", Do: b.makePlaces},
		{ID: id("data"), Title: "data", Do: b.uploadPlaces},
		{ID: id("containers"), Title: "containers", Do: b.bringContainers},
		{ID: id("layers"), Title: "writable layers", Do: b.uploadLayers},
		{ID: id("files"), Title: "project files", Do: b.setFilesAside},
		{ID: id("record"), Title: "record what is here", Do: b.record},
	}
}

// carried is a volume or path that a carrier mounts.
type carried struct {
	key    string
	tree   string // key in the snapshot
	source string // volume name, or path of the host
	file   string // the name in source, where the tree is a single file
}

// carriedPaths are the paths of the host that are needed: bind mounts, and what
// volumes of the local driver are bound to.
func (b *bringUp) carriedPaths() []carried {
	var out []carried
	for _, m := range b.local.Binds {
		if m.Tree == "" {
			continue
		}
		c := carried{key: "bind:" + m.Source, tree: m.Tree, source: m.Source}
		if m.File {
			c.source, c.file = path.Dir(m.Source), path.Base(m.Source)
		}
		out = append(out, c)
	}
	for _, v := range b.local.Volumes {
		if dir, ok := boundDir(v); ok {
			out = append(out, carried{key: "volume:" + v.Name, source: dir})
		}
	}
	return out
}

const carrierDir = "/lifeboat"

// at is where a carrier has the n-th of what it carries.
func at(n int) string { return fmt.Sprintf("%s/%d", carrierDir, n) }

// withCarrier makes a container that mounts everything, runs fn and removes the
// container. The engine makes directories of the host that are missing.
func (b *bringUp) withCarrier(ctx context.Context, list []carried, fn func(id string) error) (err error) {
	if len(list) == 0 {
		return nil
	}
	if len(b.local.Containers) == 0 {
		return fmt.Errorf("the snapshot has no container, and so no image to reach volumes through: %w", dr.ErrNotFound)
	}
	image, err := b.localImage(ctx, b.local.Containers[0])
	if err != nil {
		return err
	}
	name := "lifeboat-carrier-" + string(b.o.System)
	if old, err := b.d.Engine.Container(ctx, name); err == nil && old.Labels[engine.LabelHelper] != "" {
		if err := b.d.Engine.Remove(ctx, old.ID, engine.RemoveOptions{Force: true, Volumes: true}); err != nil { // of a run that was killed
			return err
		}
	}
	var binds []string
	for i, c := range list {
		binds = append(binds, c.source+":"+at(i))
	}
	host, err := json.Marshal(map[string]any{"Binds": binds, "NetworkMode": "none"})
	if err != nil {
		return fmt.Errorf("carrier: %w", err)
	}
	id, err := b.d.Engine.CreateContainer(ctx, dr.Container{
		Name: name, ImageRef: image, Config: json.RawMessage(`{"Entrypoint":["/never-started"],"Cmd":[]}`), HostConfig: host,
	}, engine.CreateOptions{Labels: map[string]string{engine.LabelHelper: "carrier"}})
	if err != nil {
		return fmt.Errorf("container that carries data into volumes and paths: %w", err)
	}
	defer func() {
		err = errors.Join(err, b.d.Engine.Remove(context.WithoutCancel(ctx), id, engine.RemoveOptions{Force: true, Volumes: true}))
	}()
	return fn(id)
}

// makePlaces creates the volumes, which must not exist, and the paths, which
// must be empty. What this work has made or found empty before is a fact.
func (b *bringUp) makePlaces(ctx context.Context) error {
	if err := b.ownPlaces(); err != nil {
		return err
	}
	err := b.withCarrier(ctx, b.carriedPaths(), func(id string) error {
		for i, c := range b.carriedPaths() {
			if err := b.once("place:"+c.key, func() error { return b.vacant(ctx, id, at(i), c) }); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, v := range b.local.Volumes {
		if err := b.once("place:made:"+v.Name, func() error {
			_, err := b.d.Engine.Volume(ctx, v.Name)
			if err == nil {
				return fmt.Errorf("volume %s appeared meanwhile: %w", v.Name, dr.ErrHeld)
			}
			if !errors.Is(err, dr.ErrNotFound) {
				return err
			}
			return nil
		}); err != nil {
			return err
		}
		if _, err := b.d.Engine.CreateVolume(ctx, v, nil); err != nil && !errors.Is(err, dr.ErrHeld) {
			return err
		}
	}
	// A container may ask for the file itself, so it must be there before.
	return b.withCarrier(ctx, b.carriedPaths(), func(id string) error {
		for i, c := range b.carriedPaths() {
			if c.file != "" {
				if err := b.uploadPlace(ctx, id, i, c); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// once checks something in the first run of the work only: later it is this
// work itself that is found.
func (b *bringUp) once(fact string, check func() error) error {
	name := b.snap.ID.Short() + ":" + fact
	var done bool
	if _, err := b.journal.Fact(name, &done); err != nil || done {
		return err
	}
	if err := check(); err != nil {
		return err
	}
	return b.journal.SetFact(name, true)
}

// vacant makes sure that nothing is at a path yet.
func (b *bringUp) vacant(ctx context.Context, id, where string, c carried) error {
	object, from := c.source, where+"/."
	if c.file != "" {
		object, from = c.source+"/"+c.file, where+"/"+c.file
	}
	r, err := b.d.Engine.ReadArchive(ctx, id, from)
	if c.file != "" && errors.Is(err, dr.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer r.Close()
	empty := false
	if c.file == "" {
		if empty, err = archive.Empty(r, b.leadsToPlace(c.source)); err != nil {
			return fmt.Errorf("path %s: %w", object, err)
		}
	}
	if !empty {
		return fmt.Errorf("path %s exists on the engine's host and holds something; in degraded mode nothing can be restored in place, and nothing was written there: move it away, or choose another path with --override paths.%s=OTHER: %w", object, object, dr.ErrHeld)
	}
	return nil
}

// leadsToPlace tells of directories below a path that the engine has made
// because another path of the system lies there.
func (b *bringUp) leadsToPlace(source string) func(dir string) bool {
	return func(dir string) bool {
		made := path.Join(source, dir)
		return slices.ContainsFunc(b.carriedPaths(), func(c carried) bool {
			return c.source == made || strings.HasPrefix(c.source, made+"/")
		})
	}
}

// uploadPlaces fills volumes and paths.
func (b *bringUp) uploadPlaces(ctx context.Context) error {
	var list []carried
	for _, c := range b.carriedPaths() {
		if c.tree != "" && c.file == "" { // files are there already
			list = append(list, c)
		}
	}
	for _, v := range b.local.Volumes {
		if v.Tree != "" {
			list = append(list, carried{key: "volume:" + v.Name, tree: v.Tree, source: v.Name})
		}
	}
	var keys []string
	var total int64
	for _, c := range list {
		keys = append(keys, c.key)
		if t, ok := b.tree(c.tree); ok {
			total += t.Bytes
		}
	}
	if err := b.d.State.Mark(b.o.System, keys...); err != nil {
		return err
	}
	b.o.Hook("marked")
	b.o.Progress.Total(total)
	err := b.withCarrier(ctx, list, func(id string) error {
		for i, c := range list {
			if err := b.uploadPlace(ctx, id, i, c); err != nil {
				return fmt.Errorf("%w; it stays marked, run the same command again to go on", err)
			}
			b.o.Hook("uploaded")
		}
		return nil
	})
	if err != nil {
		return err
	}
	return b.d.State.Unmark(b.o.System, keys...)
}

func (b *bringUp) uploadPlace(ctx context.Context, id string, n int, c carried) error {
	t, ok := b.tree(c.tree)
	if !ok {
		return nil
	}
	where := at(n)
	if c.file != "" {
		where += "/" + c.file
	}
	return b.upload(ctx, id, c.key, t, archive.EncodeOptions{At: where})
}

func (b *bringUp) tree(key string) (dr.Tree, bool) {
	i := slices.IndexFunc(b.captured.Trees, func(t dr.Tree) bool { return t.Key == key })
	if key == "" || i < 0 {
		return dr.Tree{}, false
	}
	return b.captured.Trees[i], true
}

// uploadLayers lays the writable layers down in the containers that were
// created and never started.
func (b *bringUp) uploadLayers(ctx context.Context) error {
	for _, c := range b.local.Containers {
		t, ok := b.tree(c.Layer)
		if !ok {
			continue
		}
		id, err := b.containerID(c.Name)
		if err != nil {
			return err
		}
		o := archive.EncodeOptions{At: "/", Layer: true}
		for _, m := range c.Mounts {
			o.Mounts = append(o.Mounts, m.Destination)
		}
		if readOnly(c) {
			if err := b.lose("layer:"+c.Name, "the container's root is read-only, which keeps the archive API from writing its layer"); err != nil {
				return err
			}
			continue
		}
		key := "layer:" + c.Name
		if err := b.d.State.Mark(b.o.System, key); err != nil {
			return err
		}
		if err := b.upload(ctx, id, key, t, o); err != nil {
			return fmt.Errorf("%w; it stays marked, run the same command again to go on", err)
		}
		if err := b.d.State.Unmark(b.o.System, key); err != nil {
			return err
		}
	}
	return b.findCopied(ctx)
}

func readOnly(c dr.Container) bool {
	var host struct{ ReadonlyRootfs bool }
	_ = json.Unmarshal(c.HostConfig, &host) // it was decoded before
	return host.ReadonlyRootfs
}

// findCopied names volumes that were empty and that the engine has filled from
// an image when it created a container.
func (b *bringUp) findCopied(ctx context.Context) error {
	var list []carried
	for _, v := range b.local.Volumes {
		if t, ok := b.tree(v.Tree); ok && t.Entries == 1 {
			list = append(list, carried{key: "volume:" + v.Name, source: v.Name})
		}
	}
	return b.withCarrier(ctx, list, func(id string) error {
		for i, c := range list {
			r, err := b.d.Engine.ReadArchive(ctx, id, at(i)+"/.")
			if err != nil {
				return err
			}
			empty, err := archive.Empty(r, func(string) bool { return false })
			_ = r.Close()
			if err == nil && !empty {
				err = b.lose(c.key, "was empty, and has what the engine copied from the image when the container was created")
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// upload writes one tree and remembers what could not be kept of it.
func (b *bringUp) upload(ctx context.Context, container, key string, t dr.Tree, o archive.EncodeOptions) error {
	target, err := catalog.Open(ctx, b.reader, t.Catalog)
	if err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	o.Exclude = t.Exclude
	o.Progress = func(n int64) {
		b.fetched += n
		b.o.Progress.Done(n)
	}
	pr, pw := io.Pipe()
	type result struct {
		lost archive.Lost
		err  error
	}
	done := make(chan result, 1)
	go func() {
		lost, err := archive.Encode(ctx, pw, target, b.reader, o)
		_ = pw.CloseWithError(err)
		done <- result{lost, err}
	}()
	err = b.d.Engine.WriteArchive(ctx, container, "/", pr)
	_ = pr.CloseWithError(io.ErrClosedPipe)
	res := <-done
	if res.err != nil && !errors.Is(res.err, io.ErrClosedPipe) {
		err = res.err // why the engine got no more
	}
	if err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	return b.lose(key, res.lost.String())
}

// lose remembers in the journal what of an object could not be kept.
func (b *bringUp) lose(object, what string) error {
	return b.journal.SetFact(b.lostFact(object), what)
}

func (b *bringUp) lostFact(object string) string { return b.snap.ID.Short() + ":lost:" + object }

// notKept lists what of the snapshot could not be laid down.
func (b *bringUp) notKept() ([]dr.CoverageItem, error) {
	if !b.o.Degraded {
		return nil, nil
	}
	var objects []string
	for _, v := range b.local.Volumes {
		objects = append(objects, "volume:"+v.Name)
	}
	for _, m := range b.local.Binds {
		objects = append(objects, "bind:"+m.Source)
	}
	for _, c := range b.local.Containers {
		objects = append(objects, "layer:"+c.Name)
	}
	for _, f := range b.local.Files {
		objects = append(objects, "file:"+f.Path)
	}
	out := []dr.CoverageItem{}
	for _, o := range objects {
		var what string
		if _, err := b.journal.Fact(b.lostFact(o), &what); err != nil {
			return nil, err
		}
		if what != "" {
			out = append(out, dr.CoverageItem{Object: o, Captured: true, Partial: true, Reason: what, Bytes: -1})
		}
	}
	return out, nil
}

// setFilesAside puts the project's files into the site's state: the host's own
// directories cannot be reached.
func (b *bringUp) setFilesAside(ctx context.Context) error {
	dir, err := b.d.State.SystemDir(b.o.System)
	if err != nil {
		return err
	}
	for _, f := range b.local.Files {
		content, err := b.fileContent(ctx, f)
		if err != nil {
			return fmt.Errorf("project file %s: %w", f.Path, err)
		}
		f.UID, f.GID = uint32(os.Getuid()), uint32(os.Getgid())
		to := filepath.Join(dir, "files", f.Path)
		if err := writeProjectFile(to, f, content); err != nil {
			return fmt.Errorf("project file %s: %w", f.Path, err)
		}
		if err := b.lose("file:"+f.Path, "is not written to the host, it is "+to); err != nil {
			return err
		}
	}
	return nil
}
