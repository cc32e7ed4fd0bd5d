package recover

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"lifeboat/internal/capture"
	"lifeboat/internal/catalog"
	"lifeboat/internal/dr"
	"lifeboat/internal/engine"
	"lifeboat/internal/tree"
)

// keepOwn captures what the site holds of the system as a divergent snapshot,
// unless the repository has all of it (ADR 5, Keep).
func (b *bringUp) keepOwn(ctx context.Context) error {
	marked, err := b.d.State.Marked(b.o.System)
	if err != nil {
		return err
	}
	if len(marked) > 0 {
		// An earlier run was cut off while it wrote: it had kept everything before
		// its first mark.
		return nil
	}
	own := b.survey.ownContainers()
	var names []string
	for _, c := range own {
		names = append(names, c.ID)
	}
	extra, err := b.ownWithoutContainer(ctx, names)
	if err != nil {
		return err
	}
	if len(names) == 0 && len(extra) == 0 {
		return nil
	}
	res, err := capture.Run(ctx, capture.Deps{Engine: b.d.Engine, Repo: b.d.Repo, Ledger: b.d.Ledger, State: b.d.State, Log: b.d.Log}, capture.Options{
		System: b.o.System, Site: b.o.Site, Kind: dr.KindDivergent, OnlyIfNew: true,
		Known:    append(append(slices.Clone(b.survey.known), b.known...), b.captured),
		Selector: engine.Selector{Containers: names}, Extra: extra,
		FreezeMax: b.o.FreezeMax, SecureBytes: b.o.SecureBytes,
	})
	if err != nil {
		return fmt.Errorf("what this site holds could not be kept, nothing was overwritten: %w", err)
	}
	if res.Committed {
		b.kept = res.Snapshot
		b.o.Progress.Note("what this site held and no snapshot had is kept as divergent snapshot " + res.Snapshot.ID.Short())
	}
	return nil
}

// ownWithoutContainer are volumes and paths of the system that exist here while
// no container of it mounts them (after a `docker compose down`, say).
func (b *bringUp) ownWithoutContainer(ctx context.Context, containers []string) ([]capture.ExtraTree, error) {
	mounted := map[string]bool{}
	if len(containers) > 0 {
		sys, err := b.d.Engine.Discover(ctx, engine.Selector{Containers: containers})
		if err != nil {
			return nil, err
		}
		for _, v := range sys.Volumes {
			mounted["volume:"+v.Name] = true
		}
		for _, m := range sys.Binds {
			mounted["path:"+m.Source] = true
		}
	}
	var extra []capture.ExtraTree
	for _, v := range b.local.Volumes {
		if v.Tree == "" || mounted["volume:"+v.Name] || !b.survey.own["volume:"+v.Name] {
			continue
		}
		st, err := b.d.Engine.Volume(ctx, v.Name)
		if errors.Is(err, dr.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		extra = append(extra, capture.ExtraTree{Key: "volume:" + v.Name, Kind: dr.TreeVolume, Path: volumePath(st), Volume: &st.Volume})
	}
	for _, m := range b.local.Binds {
		if m.Tree == "" || mounted["path:"+m.Source] || !b.survey.own["path:"+m.Source] {
			continue
		}
		state, err := b.survey.pathState(m.Source)
		if err != nil {
			return nil, err
		}
		if state != "filled" {
			continue
		}
		bind := m
		extra = append(extra, capture.ExtraTree{Key: "bind:" + m.Source, Kind: dr.TreeBind, Path: m.Source, Bind: &bind})
	}
	return extra, nil
}

// volumePath is where the data of a volume lies, in the engine's mount
// namespace. The local driver mounts a bound directory only while a container
// runs, so then the directory itself is meant.
func volumePath(v engine.VolumeState) string {
	if dir, ok := boundDir(v.Volume); ok {
		return dir
	}
	return v.Mountpoint
}

// boundDir is the host directory that a volume of the local driver stands for.
func boundDir(v dr.Volume) (string, bool) {
	if v.Driver != "local" || !slices.Contains(strings.Split(v.Options["o"], ","), "bind") && v.Options["o"] != "rbind" {
		return "", false
	}
	return v.Options["device"], v.Options["device"] != ""
}

// place is where a tree of the snapshot lies at this site.
type place struct {
	tree dr.Tree
	key  string // at this site
	path string // of this process's mount namespace
}

// places finds all trees of the snapshot here; objects exist by now.
func (b *bringUp) places(ctx context.Context) ([]place, error) {
	trees := map[string]dr.Tree{}
	for _, t := range b.captured.Trees {
		trees[t.Key] = t
	}
	var out []place
	add := func(treeKey, localKey, path string) error {
		t, ok := trees[treeKey]
		if treeKey == "" || !ok {
			return nil
		}
		p, err := b.survey.host.Path(path)
		if err != nil && !(t.Kind == dr.TreeBind) {
			return fmt.Errorf("%s: %w", localKey, err)
		}
		if err != nil { // a bind mount of a single file that does not exist yet
			p = b.survey.host.Prefix + path
		}
		out = append(out, place{tree: t, key: localKey, path: p})
		return nil
	}
	for _, v := range b.local.Volumes {
		if v.Tree == "" {
			continue
		}
		st, err := b.d.Engine.Volume(ctx, v.Name)
		if err != nil {
			return nil, err
		}
		if err := add(v.Tree, "volume:"+v.Name, volumePath(st)); err != nil {
			return nil, err
		}
	}
	for _, m := range b.local.Binds {
		if err := add(m.Tree, "bind:"+m.Source, m.Source); err != nil {
			return nil, err
		}
	}
	for _, c := range b.local.Containers {
		if c.Layer == "" {
			continue
		}
		id, err := b.containerID(c.Name)
		if err != nil {
			return nil, err
		}
		l, err := b.d.Engine.WritableLayer(ctx, id)
		if err != nil {
			return nil, err
		}
		if err := add(c.Layer, "layer:"+c.Name, l.Upper); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// bringTrees marks the trees, brings them to the catalogs' state by
// differences, and unmarks them once everything is on disk (ADR 5).
func (b *bringUp) bringTrees(ctx context.Context) error {
	places, err := b.places(ctx)
	if err != nil {
		return err
	}
	var keys []string
	var total int64
	for _, p := range places {
		keys = append(keys, p.key)
		total += p.tree.Bytes
	}
	if err := b.d.State.Mark(b.o.System, keys...); err != nil {
		return err
	}
	b.o.Hook("marked")
	b.o.Progress.Total(total)
	for _, p := range places {
		if err := b.applyTree(ctx, p); err != nil {
			return fmt.Errorf("%s: %w; it stays marked, run the same command again to go on", p.key, err)
		}
		b.o.Hook("applied:" + strings.SplitN(p.key, ":", 2)[0])
	}
	return b.d.State.Unmark(b.o.System, keys...)
}

// applyTree finds out what is there and writes what differs. What the operator
// excluded from the snapshot is left as it is.
func (b *bringUp) applyTree(ctx context.Context, p place) error {
	target, err := catalog.Open(ctx, b.reader, p.tree.Catalog)
	if err != nil {
		return err
	}
	dir, err := b.d.State.SystemDir(b.o.System)
	if err != nil {
		return err
	}
	var done int64
	var mu sync.Mutex
	st, err := tree.Apply(ctx, p.path, nil, target, b.reader, tree.ApplyOptions{
		Key: p.key, StateDir: dir, CutKey: b.d.Repo.CutKey(), UnitID: b.d.Repo.UnitID,
		Overlay: p.tree.Kind == dr.TreeLayer, Exclude: p.tree.Exclude,
		Progress: func(a tree.ApplyProgress) {
			mu.Lock()
			defer mu.Unlock()
			now := p.tree.Bytes - a.Needed + a.Done
			b.o.Progress.Done(max(now-done, 0))
			done = max(done, now)
		},
	})
	b.o.Progress.Done(max(p.tree.Bytes-done, 0))
	b.fetched += st.BytesFetched
	return err
}

// treeIsHere reports whether a host path holds exactly what a tree of the
// snapshot holds.
func (b *bringUp) treeIsHere(ctx context.Context, key, path string) (bool, error) {
	at := slices.IndexFunc(b.captured.Trees, func(t dr.Tree) bool { return t.Key == key })
	if at < 0 {
		return true, nil
	}
	p, err := b.survey.host.Path(path)
	if err != nil {
		return false, err
	}
	dir, err := b.d.State.SystemDir(b.o.System)
	if err != nil {
		return false, err
	}
	local, err := tree.LocalCatalog(ctx, tree.CaptureOptions{
		Root: p, Key: "bind:" + path, StateDir: dir, CutKey: b.d.Repo.CutKey(), UnitID: b.d.Repo.UnitID,
		Exclude: b.captured.Trees[at].Exclude,
	})
	if err != nil {
		return false, err
	}
	defer local.Close()
	return local.Tree.Hash == b.captured.Trees[at].Hash, nil
}
