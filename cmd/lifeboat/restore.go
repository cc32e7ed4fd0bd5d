package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"lifeboat/internal/catalog"
	"lifeboat/internal/dr"
	"lifeboat/internal/landing"
	"lifeboat/internal/repo"
	"lifeboat/internal/tree"
	"lifeboat/internal/ui"
)

type restoreFlags struct{ volume, tree, path, to string }

func newRestoreCmd(a *app) *cobra.Command {
	var f restoreFlags
	cmd := &cobra.Command{
		Use:     "restore SYSTEM[@SNAPSHOT] --to DIR",
		GroupID: groupRecover,
		Short:   "Restore files of a snapshot into a directory",
		Long: `Restore files of a snapshot into a new or empty directory: one volume, one tree,
a path in it, or every tree of the system, each into a directory of its own. --path
takes a path with all below it, or a pattern (see ls), with the directories that
lead to what fits. A run that was cut off is gone on with by the same command: what
is in the directory is read and compared, and only the rest is fetched.
Without root, owners and devices that cannot be made are left out and named
(exit code 3). Deletions in writable layers are not files and are left out.`,
		Example: `  lifeboat restore shop --volume shop_uploads --to /tmp/uploads
  lifeboat restore shop --volume shop_uploads --path 'invoices/2026-*/**/*.pdf' --to /tmp/invoices
  lifeboat restore shop@5f0c12ab --volume shop_db --path mysql/ibdata1 --to /tmp/db
  lifeboat restore shop --to /tmp/shop`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.runRestore(cmd.Context(), args[0], f) },
	}
	cmd.Flags().StringVar(&f.volume, "volume", "", "only this `VOLUME`")
	cmd.Flags().StringVar(&f.tree, "tree", "", "only this `TREE`: volume:NAME, bind:/PATH or layer:CONTAINER")
	cmd.Flags().StringVar(&f.path, "path", "", "only this `PATH` inside the volume or tree, or what fits a pattern")
	cmd.Flags().StringVar(&f.to, "to", "", "`DIR` to restore into; new or empty")
	_ = cmd.MarkFlagRequired("to")
	cmd.ValidArgsFunction = a.completeRefs
	complete(cmd, map[string]completer{"volume": a.completeTrees("volume:"), "tree": a.completeTrees("")})
	return cmd
}

// check finds flags that contradict each other, before anything is opened.
func (f restoreFlags) check() error {
	switch {
	case f.volume != "" && f.tree != "":
		return fmt.Errorf("--volume and --tree both say which tree is meant; pass one of them: %w", dr.ErrUsage)
	case f.volume == "" && f.tree == "" && f.path != "":
		return fmt.Errorf("--path needs --volume or --tree: %w", dr.ErrUsage)
	}
	return nil
}

// openRef opens SYSTEM[@SNAPSHOT].
func (w *world) openRef(ctx context.Context, ref string) (*repo.Snapshot, *repo.Reader, *dr.Root, error) {
	name, id, _ := strings.Cut(ref, "@")
	sys, err := dr.ParseSystem(name)
	if err != nil {
		return nil, nil, nil, err
	}
	snap, err := w.repo.Find(ctx, sys, id)
	if err != nil {
		return nil, nil, nil, err
	}
	rd, err := w.repo.NewReader(ctx, snap)
	if err != nil {
		return nil, nil, nil, err
	}
	root, err := rd.Root(ctx)
	if err != nil {
		rd.Close()
		return nil, nil, nil, err
	}
	return snap, rd, root, nil
}

// pickTrees chooses trees of a root by the flags.
func pickTrees(root *dr.Root, f restoreFlags) ([]dr.Tree, error) {
	if err := f.check(); err != nil {
		return nil, err
	}
	key := f.tree
	if f.volume != "" {
		key = "volume:" + f.volume
	}
	if key == "" {
		return root.Trees, nil
	}
	var keys []string
	for _, t := range root.Trees {
		if t.Key == key {
			return []dr.Tree{t}, nil
		}
		keys = append(keys, t.Key)
	}
	return nil, fmt.Errorf("the snapshot has no tree %q; it has: %s: %w", key, strings.Join(keys, ", "), dr.ErrNotFound)
}

func (a *app) runRestore(ctx context.Context, ref string, f restoreFlags) error {
	if err := f.check(); err != nil {
		return err
	}
	w, err := a.open(ctx, false)
	if err != nil {
		return err
	}
	defer w.close()
	snap, rd, root, err := w.openRef(ctx, ref)
	if err != nil {
		return err
	}
	defer rd.Close()
	trees, err := pickTrees(root, f)
	if err != nil {
		return err
	}
	if err := inTree(ctx, rd, trees, f); err != nil {
		return err
	}
	into, err := landing.Open(f.to, purposeOf(w.repo, snap, trees, f))
	if errors.Is(err, dr.ErrUsage) {
		return ui.Explained{
			What: err.Error(), State: "what is in the directory is untouched",
			Next: []string{
				"name a new or empty directory with --to",
				"if an earlier restore into it ended well, its files are all there: one that is cut off leaves a mark, and the same command goes on with it",
			}, Err: err,
		}
	}
	if err != nil {
		return err
	}
	defer func() { _ = into.Close() }() // closed by Finish, or left for a later run
	if into.Resumed() {
		a.UI().Note("going on with the restore that was cut off in %s", f.to)
	}
	var denied []string
	total := tree.ApplyStats{}
	for _, t := range trees {
		dir := f.to
		if len(trees) > 1 {
			dir = filepath.Join(f.to, strings.ReplaceAll(strings.ReplaceAll(t.Key, "/", "_"), ":", "_"))
		}
		st, lost, err := a.restoreTree(ctx, w.repo, rd, t, dir, f.path, into)
		if err != nil {
			return ui.Explained{What: fmt.Sprintf("restore %s: %v", t.Key, err), State: f.to + " holds a part of the files", Next: []string{"run the same command again: it goes on from there", "or remove " + f.to}, Err: err}
		}
		total.Created += st.Created
		total.BytesWritten += st.BytesWritten
		total.BytesFetched += st.BytesFetched
		denied = append(denied, lost...)
	}
	if err := into.Finish(); err != nil {
		return err
	}
	ans := struct {
		Snapshot dr.SnapshotID `json:"snapshot"`
		Entries  int64         `json:"entries"`
		Bytes    int64         `json:"bytes"`
		Fetched  int64         `json:"fetched"`
		Resumed  bool          `json:"resumed"`
		Denied   []string      `json:"denied"`
	}{snap.ID, total.Created, total.BytesWritten, total.BytesFetched, into.Resumed(), append([]string{}, denied...)}
	views := []ui.View{ui.Fields{{Name: "snapshot", Value: snap.ID.Short()}, {Name: "entries", Value: fmt.Sprint(ans.Entries)}, {Name: "written", Value: bytesText(ans.Bytes)}}}
	for _, d := range denied {
		views = append(views, ui.Text("left out: "+ui.Clean(d)))
	}
	if err := a.UI().Answer(ans, views...); err != nil {
		return err
	}
	if len(denied) > 0 {
		return fmt.Errorf("%d attributes or entries could not be kept: %w", len(denied), dr.ErrPartial)
	}
	return nil
}

// inTree looks for --path before anything is made on disk.
func inTree(ctx context.Context, rd *repo.Reader, trees []dr.Tree, f restoreFlags) error {
	match, err := newPathMatch(f.path)
	if err != nil || match.isPattern() || match.plain == "" {
		return err // what a pattern fits is found on the way
	}
	path := match.plain
	target, err := catalog.Open(ctx, rd, trees[0].Catalog)
	if err != nil {
		return err
	}
	_, err = target.Lookup(ctx, path)
	if errors.Is(err, dr.ErrNotFound) {
		return fmt.Errorf("%s has no %q; look with lifeboat ls: %w", trees[0].Key, path, dr.ErrNotFound)
	}
	return err
}

// purposeOf is what a restore is for, as the mark in its directory says it.
func purposeOf(r *repo.Repo, snap *repo.Snapshot, trees []dr.Tree, f restoreFlags) landing.Purpose {
	p := landing.Purpose{Repository: r.ID().String(), Snapshot: snap.ID, Path: f.path}
	for _, t := range trees {
		p.Trees = append(p.Trees, t.Key)
	}
	return p
}

func (a *app) restoreTree(ctx context.Context, r *repo.Repo, rd *repo.Reader, t dr.Tree, dir, path string, into *landing.Landing) (tree.ApplyStats, []string, error) {
	match, err := newPathMatch(path)
	if err != nil {
		return tree.ApplyStats{}, nil, err
	}
	target, err := catalog.Open(ctx, rd, t.Catalog)
	if err != nil {
		return tree.ApplyStats{}, nil, err
	}
	first, err := target.Lookup(ctx, "")
	if err != nil {
		return tree.ApplyStats{}, nil, err
	}
	if first.Type != catalog.Directory {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return tree.ApplyStats{}, nil, err
		}
		dir = filepath.Join(dir, filepath.Base(t.Key))
	}
	var mu sync.Mutex
	var denied []string
	task := a.UI().Progress().Bytes(t.Key, -1)
	st, err := tree.Extract(ctx, dir, target, rd, tree.ExtractOptions{
		Path: match.plain, Match: match.choose(), UnitID: r.UnitID,
		Resume: into.Resumed(), CutKey: r.CutKey(), Exclude: into.Own(dir),
		Denied: func(path, what string, err error) {
			mu.Lock()
			defer mu.Unlock()
			denied = append(denied, fmt.Sprintf("%s of /%s: %v", what, path, err))
		},
		Progress: func(p tree.ApplyProgress) {
			task.SetTotal(p.Needed)
			task.SetDone(p.Done)
		},
	})
	task.Done(err)
	return st, denied, err
}
