package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"lifeboat/internal/catalog"
	"lifeboat/internal/dr"
	"lifeboat/internal/landing"
	"lifeboat/internal/repo"
	"lifeboat/internal/ui"
)

type restoreFlags struct {
	volume, tree, path, to string
	inPlace                inPlaceFlags
}

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
Of a snapshot that is damaged all that is whole is restored. A file of which anything
is lost is not there, and is named (exit code 3); the same command tries it again.
--path means a name that is there before it means a pattern.
With --in-place the directory may be one that is in use for the same: what is there is
read and compared, only what differs is fetched and written over, and what the
snapshot does not have stays, unless --delete takes it away. A file or link where the
snapshot has a directory differs, and is replaced; a directory where it has something
else goes only with --delete. With --path nothing else is touched: a link on the way
there is refused. Nothing is passed over then: the first damaged file ends the run. It
is refused while a container that runs has the directory.
A directory in which a restore was cut off is marked. Of the same snapshot, --in-place
goes on with what any restore has left there; of another one --in-place --delete takes
it over, where it brings back all that lies there. Where only a path of it is restored the
mark stays, for the rest (exit code 3).
Without root, owners and devices that cannot be made are left out and named
(exit code 3). Deletions in writable layers are not files and are left out.`,
		Example: `  lifeboat restore shop --volume shop_uploads --to /tmp/uploads
  lifeboat restore shop --volume shop_uploads --path 'invoices/2026-*/**/*.pdf' --to /tmp/invoices
  lifeboat restore shop@5f0c12ab --volume shop_db --path mysql/ibdata1 --to /tmp/db
  lifeboat restore shop --to /tmp/shop
  lifeboat restore shop --volume shop_db --to /var/lib/docker/volumes/shop_db/_data --in-place --delete`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.runRestore(cmd.Context(), args[0], f) },
	}
	cmd.Flags().StringVar(&f.volume, "volume", "", "only this `VOLUME`")
	cmd.Flags().StringVar(&f.tree, "tree", "", "only this `TREE`: volume:NAME, bind:/PATH or layer:CONTAINER")
	cmd.Flags().StringVar(&f.path, "path", "", "only this `PATH` inside the volume or tree, or what fits a pattern")
	cmd.Flags().StringVar(&f.to, "to", "", "`DIR` to restore into; new or empty, unless --in-place")
	f.inPlace.add(cmd.Flags())
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
	return f.inPlace.check()
}

// openRef opens SYSTEM[@SNAPSHOT], to look into it; again is this run's command line
// with another word for ref.
func (w *world) openRef(ctx context.Context, ref string, again func(ref string) string) (*repo.Snapshot, *repo.Reader, *dr.Root, error) {
	snap, err := w.findRef(ctx, ref)
	if err != nil {
		return nil, nil, nil, w.explainOlder(ctx, ref, err, otherRef{state: "nothing was read of any snapshot", again: again, does: "looks at that one"})
	}
	rd, err := w.repo.NewReader(ctx, snap)
	if err != nil {
		return nil, nil, nil, err
	}
	root, err := rd.Root(ctx)
	if err != nil {
		rd.Close()
		return nil, nil, nil, explainUnread(snap, err)
	}
	return snap, rd, root, nil
}

// findRef finds SYSTEM[@SNAPSHOT].
func (w *world) findRef(ctx context.Context, ref string) (*repo.Snapshot, error) {
	name, id, _ := strings.Cut(ref, "@")
	sys, err := dr.ParseSystem(name)
	if err != nil {
		return nil, err
	}
	snap, err := w.repo.Find(ctx, sys, id)
	if err != nil {
		return nil, untouched{err}
	}
	return snap, nil
}

// entriesText says how many entries a restore made; what a run that was cut off had
// made before is not made again.
func entriesText(created int64, resumed bool) string {
	if !resumed {
		return fmt.Sprint(created)
	}
	return fmt.Sprintf("%d made now, the others were there already", created)
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
		return untouched{err}
	}
	defer w.close()
	snap, rd, root, err := w.openFiles(ctx, ref)
	if err != nil {
		return untouched{err}
	}
	defer rd.Close()
	job := &restoring{app: a, world: w, rd: rd, to: f.to, place: f.inPlace, snap: snap}
	if err := job.begin(ctx, root, f); err != nil {
		return untouched{err}
	}
	defer func() { _ = job.into.Close() }() // closed by Finish, or left for a later run
	for _, t := range job.trees {
		if err := job.tree(ctx, t); err != nil {
			return job.stopped(t, f, err)
		}
	}
	return job.end(ctx)
}

// begin finds out what is wanted, and takes the directory for it.
func (j *restoring) begin(ctx context.Context, root *dr.Root, f restoreFlags) (err error) {
	j.trees, err = pickTrees(root, f)
	if err != nil {
		return err
	}
	j.several = len(j.trees) > 1
	j.match, err = chosen(ctx, j.rd, j.trees, f)
	if repo.Damaged(err) {
		return explainDamaged(j.snap, err)
	}
	if err != nil {
		return err
	}
	if err := j.app.nobodyUses(ctx, f); err != nil {
		return err
	}
	j.purpose = purposeOf(j.world.repo, j.snap, root, j.trees, f)
	j.into, err = landing.Open(f.to, j.purpose)
	var occupied *landing.OccupiedError
	switch {
	case errors.As(err, &occupied):
		return j.world.explainOccupied(ctx, j.app, occupied, j.ref(), j.purpose)
	case errors.Is(err, dr.ErrUsage):
		return ui.Explained{
			What: err.Error(), State: "what is in the directory is untouched",
			Next: []string{
				"name a new or empty directory with --to; or pass --in-place to bring what is there to the state of the snapshot",
				"if an earlier restore into it ended well, its files are all there: one that is cut off leaves a mark",
			}, Err: err,
		}
	case err != nil:
		return err
	}
	if j.into.Resumed() {
		j.app.UI().Note("going on with the restore that was cut off in %s", f.to)
	}
	for _, m := range j.into.Taken() {
		j.app.UI().Note("taking over what another restore has left that was cut off in %s: %s", f.to, m)
	}
	return nil
}

// chosen says what --path means in the tree: a path that is there as it is written,
// else what fits it as a pattern, which is found on the way. It comes before anything
// is made on disk.
func chosen(ctx context.Context, rd *repo.Reader, trees []dr.Tree, f restoreFlags) (pathMatch, error) {
	if f.path == "" {
		return pathMatch{}, nil
	}
	target, err := catalog.Open(ctx, rd, trees[0].Catalog)
	if err != nil {
		return pathMatch{}, err
	}
	match, err := matchIn(ctx, target, f.path)
	if errors.Is(err, dr.ErrNotFound) {
		return match, fmt.Errorf("%s has no %q; look with lifeboat ls: %w", trees[0].Key, f.path, dr.ErrNotFound)
	}
	return match, err
}

// purposeOf is what a restore is for, as the mark in its directory says it.
func purposeOf(r *repo.Repo, snap *repo.Snapshot, root *dr.Root, trees []dr.Tree, f restoreFlags) landing.Purpose {
	p := landing.Purpose{Repository: r.ID().String(), System: snap.System, Snapshot: snap.ID, Path: f.path, InPlace: f.inPlace.on, Remove: f.inPlace.remove}
	for _, t := range trees {
		p.Trees = append(p.Trees, t.Key)
	}
	p.File = len(trees) == 1 && slices.ContainsFunc(root.Binds, func(b dr.Bind) bool { return b.File && b.Tree == trees[0].Key })
	p.Half = len(halfRestored(trees)) > 0
	return p
}
