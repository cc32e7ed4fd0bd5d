package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"lifeboat/internal/catalog"
	"lifeboat/internal/dr"
	"lifeboat/internal/landing"
	"lifeboat/internal/repo"
	"lifeboat/internal/suggest"
	"lifeboat/internal/tree"
	"lifeboat/internal/ui"
)

// restoring is one run of restore: trees go into a directory, and what is damaged of
// them is passed over and named.
type restoring struct {
	app     *app
	world   *world
	snap    *repo.Snapshot
	trees   []dr.Tree
	rd      *repo.Reader
	match   pathMatch
	to      string
	into    *landing.Landing
	purpose landing.Purpose
	// several: each tree has a directory of its own.
	several bool
	place   inPlaceFlags

	mu      sync.Mutex
	total   tree.ApplyStats
	denied  []string
	lost    []lossRow // the first lossLimit
	further int64     // beyond them
	cause   error     // of the first
}

// openFiles is openRef for who can do with what is whole of a snapshot.
func (w *world) openFiles(ctx context.Context, ref string) (*repo.Snapshot, *repo.Reader, *dr.Root, error) {
	snap, err := w.findRef(ctx, ref)
	if err != nil {
		return nil, nil, nil, w.explainOlder(ctx, ref, err, otherRef{
			state: "nothing was restored, and no directory was made", does: "restores that one",
			again: func(ref string) string { return suggest.Command("lifeboat", "restore", ref, "--to", "DIR") },
		})
	}
	rd, err := w.repo.NewSalvageReader(ctx, snap)
	if err != nil {
		return nil, nil, nil, err
	}
	root, err := rd.Root(ctx)
	if err == nil {
		return snap, rd, root, nil
	}
	rd.Close()
	if repo.Damaged(err) {
		err = explainDamaged(snap, err)
	}
	return nil, nil, nil, err
}

// explainDamaged is for damage that leaves nothing to restore.
func explainDamaged(snap *repo.Snapshot, err error) error {
	return ui.Explained{What: err.Error(), State: "nothing was restored: what says where it lies is damaged", Next: nextDamaged(snap), Err: err}
}

// nextDamaged leads on from a snapshot that is damaged.
func nextDamaged(snap *repo.Snapshot) []string {
	return []string{
		"lifeboat repair --from URL  (a mirror, or another repository, that still has what is lost); then the same command again",
		fmt.Sprintf("lifeboat verify %s  (says which snapshots lose what; lifeboat snapshots %s lists them)", snap.System, snap.System),
		fmt.Sprintf("lifeboat restore %s@#NUMBER --to DIR  (from another snapshot in which it is whole)", snap.System),
	}
}

func (j *restoring) lose(row lossRow, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.cause == nil {
		j.cause = err
	}
	if len(j.lost) < lossLimit {
		j.lost = append(j.lost, row)
	} else {
		j.further++
	}
}

// open opens the catalog of a tree and says what its root is; nil where none of it
// can be read, which is told.
func (j *restoring) open(ctx context.Context, t dr.Tree) (*catalog.Reader, catalog.Type, error) {
	target, err := catalog.Open(ctx, j.rd, t.Catalog)
	kind := catalog.Directory
	if err == nil {
		var first catalog.Entry
		if first, err = target.Lookup(ctx, ""); err == nil {
			kind = first.Type
		} else if repo.Damaged(err) && target.NumPages() > 1 {
			err = nil // a list with more pages is that of a directory
		}
	}
	if repo.Damaged(err) && ctx.Err() == nil {
		j.lose(lossRow{Kind: repo.LossCatalog, Object: t.Key}, err)
		return nil, kind, nil
	}
	return target, kind, err
}

// tree restores one tree.
func (j *restoring) tree(ctx context.Context, t dr.Tree) error {
	target, kind, err := j.open(ctx, t)
	if target == nil || err != nil {
		return err
	}
	dir := j.to
	if j.several {
		dir = filepath.Join(j.to, strings.ReplaceAll(strings.ReplaceAll(t.Key, "/", "_"), ":", "_"))
	}
	if kind != catalog.Directory {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		dir = filepath.Join(dir, filepath.Base(t.Key))
	}
	task := j.app.UI().Progress().Bytes(t.Key, -1)
	st, err := tree.Extract(ctx, dir, target, j.rd, tree.ExtractOptions{
		Path: j.match.plain, Match: j.match.choose(), UnitID: j.world.repo.UnitID,
		Resume: j.into.Resumed(), CutKey: j.world.repo.CutKey(), Exclude: j.into.Own(dir),
		Denied: func(path, what string, err error) {
			j.mu.Lock()
			defer j.mu.Unlock()
			j.denied = append(j.denied, fmt.Sprintf("%s of /%s: %v", what, path, err))
		},
		InPlace: j.place.on, Remove: j.place.remove,
		Salvage: j.salvage(t),
		Progress: func(p tree.ApplyProgress) {
			task.SetTotal(p.Needed)
			task.SetDone(p.Done)
		},
	})
	task.Done(err)
	j.total.Created += st.Created
	j.total.Changed += st.Changed
	j.total.Removed += st.Removed
	j.total.BytesWritten += st.BytesWritten
	j.total.BytesFetched += st.BytesFetched
	return err
}

// salvage passes over what is damaged; nil where what is there must not suffer from it.
func (j *restoring) salvage(t dr.Tree) *tree.Salvage {
	if j.place.on {
		return nil
	}
	return &tree.Salvage{
		Damage: repo.Damaged, Fetch: j.rd.FetchWhole,
		Lost: func(l tree.Loss) {
			row := lossRow{Kind: repo.LossFile, Object: t.Key, Path: "/" + l.Path, PathRaw: rawOf("/" + l.Path)}
			if l.List {
				row.Kind = repo.LossCatalog
			}
			if l.End != "" {
				row.End = "/" + l.End
			}
			j.lose(row, l.Err)
		},
	}
}

// ref names the snapshot of this run for good: what SYSTEM alone means changes.
func (j *restoring) ref() string { return atNumber(j.snap.System, j.snap.Number) }

// again is the command that goes on with this run, whatever is the newest snapshot then.
func (j *restoring) again() string {
	return j.app.restoreLine(j.ref(), j.purpose, j.to) + "  (goes on from there)"
}

// stopped explains what ended the run before its time.
func (j *restoring) stopped(t dr.Tree, f restoreFlags, err error) error {
	if errors.Is(err, dr.ErrNotFound) && j.match.isPattern() {
		none := untouched{fmt.Errorf("%s has nothing that fits %q; look with lifeboat ls: %w", t.Key, f.path, dr.ErrNotFound)}
		if err := j.into.Undo(); err != nil {
			return errors.Join(none.error, err)
		}
		return none
	}
	if j.place.on {
		return j.stoppedInPlace(t, f, err)
	}
	return ui.Explained{
		What: fmt.Sprintf("restore %s: %v", t.Key, err), State: f.to + " holds a part of the files",
		Next: []string{j.again(), "or remove " + f.to}, Err: err,
	}
}

// end tells what was restored and what was not. The mark stays in the directory where
// something is lost, so that the same command tries that again.
func (j *restoring) end(ctx context.Context) error {
	snap := j.snap
	if len(j.lost) == 0 {
		if err := j.into.Finish(); err != nil {
			return err
		}
	}
	slices.SortStableFunc(j.lost, func(a, b lossRow) int {
		return cmp.Or(cmp.Compare(a.Object, b.Object), catalog.ComparePaths(a.Path, b.Path))
	})
	ans := struct {
		Snapshot dr.SnapshotID `json:"snapshot"`
		Entries  int64         `json:"entries"`
		Changed  int64         `json:"changed"`
		Removed  int64         `json:"removed"`
		Bytes    int64         `json:"bytes"`
		Fetched  int64         `json:"fetched"`
		Resumed  bool          `json:"resumed"`
		Denied   []string      `json:"denied"`
		Lost     []lossRow     `json:"lost"`
		Further  int64         `json:"further,omitempty"`
	}{snap.ID, j.total.Created, j.total.Changed, j.total.Removed, j.total.BytesWritten, j.total.BytesFetched, j.into.Resumed(), append([]string{}, j.denied...), append([]lossRow{}, j.lost...), j.further}
	views := []ui.View{j.fields(snap)}
	for _, d := range j.denied {
		views = append(views, ui.Text("left out: "+ui.Clean(d)))
	}
	for _, l := range j.lost {
		views = append(views, ui.Text("lost: "+ui.Clean(l.text())))
	}
	if j.further > 0 {
		views = append(views, ui.Text(fmt.Sprintf("and %d more", j.further)))
	}
	if err := j.app.UI().Answer(ans, views...); err != nil {
		return err
	}
	var errs []error
	switch n := int64(len(j.lost)) + j.further; {
	case n > 0:
		errs = append(errs, j.damaged(snap, n))
	case len(j.denied) > 0:
		errs = append(errs, fmt.Errorf("%d attributes or entries could not be kept: %w", len(j.denied), dr.ErrPartial))
	}
	if left := j.into.Left(); len(left) > 0 {
		errs = append(errs, j.world.stillMarked(ctx, j.app, left, j.to, j.ref(), j.purpose))
	}
	if half := halfRestored(j.trees); len(half) > 0 {
		errs = append(errs, j.ofHalfRestored(ctx, half))
	}
	return joined(errs)
}

// fields is what a run did, for people.
func (j *restoring) fields(snap *repo.Snapshot) ui.Fields {
	out := ui.Fields{{Name: "snapshot", Value: snap.ID.Short()}}
	if j.place.on {
		out = append(out, ui.Fields{
			{Name: "made", Value: fmt.Sprint(j.total.Created)},
			{Name: "changed", Value: fmt.Sprint(j.total.Changed)},
			{Name: "removed", Value: fmt.Sprint(j.total.Removed)},
			{Name: "fetched", Value: bytesText(j.total.BytesFetched)},
		}...)
	} else {
		out = append(out, ui.Fields{{Name: "entries", Value: entriesText(j.total.Created, j.into.Resumed())}}...)
	}
	return append(out, ui.Fields{{Name: "written", Value: bytesText(j.total.BytesWritten)}}...)
}

// damaged is how a run ends that has passed over something: done in part, or failed
// where there was nothing whole.
func (j *restoring) damaged(snap *repo.Snapshot, n int64) error {
	x := ui.Explained{
		What:  fmt.Sprintf("%d files, or parts of the list of files, are damaged in the repository and were not restored; the first: %s: %v", n, ui.Clean(j.lost[0].text()), j.cause),
		State: "everything else that was asked for is whole in " + j.to + "; what is named as lost is not (what is there of it is of an earlier run). The directory is marked, so that the same command goes on with it",
		Next:  nextDamaged(snap), Err: dr.ErrPartial,
	}
	if j.total.Created == 0 && !j.into.Resumed() && j.into.Undo() == nil {
		x.State, x.Err = "nothing of it could be restored, and the directory is as it was", j.cause
	}
	return x
}

// otherRef says how a command is run for another snapshot.
type otherRef struct {
	state string
	again func(ref string) string
	does  string
}

// explainUnread is for damage that keeps from looking into a snapshot.
func explainUnread(snap *repo.Snapshot, err error) error {
	if !repo.Damaged(err) {
		return err
	}
	return ui.Explained{What: err.Error(), State: "nothing was changed; what is damaged of the snapshot cannot be shown", Next: nextDamaged(snap), Err: err}
}

// explainOlder is for a newest snapshot that is not there, or an older state that the
// registry shows. Nothing says then which snapshot is meant by none; every one that is
// there can be restored by its number, for that only writes into a directory.
func (w *world) explainOlder(ctx context.Context, ref string, err error, o otherRef) error {
	if !repo.Damaged(err) {
		return err
	}
	name, id, _ := strings.Cut(ref, "@")
	sys, perr := dr.ParseSystem(name)
	if perr != nil {
		return err
	}
	x := ui.Explained{What: err.Error(), State: o.state, Err: err}
	there, _, lerr := w.repo.Snapshots(ctx, sys)
	var newest dr.Number
	for _, s := range there {
		if id != fmt.Sprintf("#%d", s.Number) { // that one is refused
			newest = max(newest, s.Number)
		}
	}
	back, which := nextSetBack(sys)[1:], "newest"
	if id != "" && id != "latest" {
		which = "newest other"
	}
	switch {
	case newest > 0:
		x.State += fmt.Sprintf("; the %s snapshot that is there is number %d", which, newest)
		x.Next = []string{fmt.Sprintf("%s  (%s; lifeboat snapshots %s lists all that are there)", o.again(fmt.Sprintf("%s@#%d", name, newest)), o.does, name)}
		if id != "" && id != "latest" {
			back = back[:2] // accepting an older state would not help
		}
	case lerr != nil:
		x.State += "; until that is mended or accepted no snapshot counts, so none can be named instead"
	}
	x.Next = append(x.Next, back...)
	return x
}
