package modeltest_test

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"pgregory.net/rapid"

	"lifeboat/internal/copying"
	"lifeboat/internal/dr"
	"lifeboat/internal/ledger"
	"lifeboat/internal/repo"
)

// copied copies the snapshots of a system into the repository with other keys,
// often with a fault on the way at either side. What is there afterwards is whole,
// and is what was captured; where the run went to its end, nothing is missing.
func (w *world) copied(rt *rapid.T) {
	at := drawSite(rt)
	var res *copying.Result
	err := w.as(rt, at.host, func(ctx context.Context, from *repo.Repo) error {
		return w.asIn(ctx, rt, w.other, at.host, func(ctx context.Context, to *repo.Repo) error {
			c, err := copying.New(copying.Options{
				From: from, To: to, FromLedger: ledger.New(from, 0, ledger.Here{}), ToLedger: ledger.New(to, 0, ledger.Here{}),
				Memory: filepath.Join(w.stateDir(at.host), "copies"), Adopt: true,
			})
			if err != nil {
				return err
			}
			defer func() { _ = c.Close() }()
			res, err = c.Copy(ctx, at.system)
			return err
		})
	})
	w.fail(rt, err)
	r := w.observerOf(rt, w.other, w.other.Store)
	defer func() { _ = r.Close() }()
	snaps, problems, lerr := r.Snapshots(w.t.Context(), "")
	if lerr != nil || len(problems) > 0 {
		rt.Fatalf("copies: problems %v, %v", problems, lerr)
	}
	there := map[dr.SnapshotID]bool{}
	for i := range snaps {
		s := &snaps[i]
		if c := w.known[s.Created.UnixNano()]; c == nil || c.system != s.System || s.Origin == nil {
			rt.Fatalf("copy: nobody took %s", s.Tag)
		}
		if err := w.readable(r, s); err != nil {
			rt.Fatalf("copy %s: %v", s.Tag, err)
		}
		there[s.Origin.Snapshot] = true
	}
	if err == nil {
		for _, row := range res.Rows {
			if row.Err != nil {
				w.fail(rt, row.Err)
			} else if !there[row.From.ID] {
				rt.Fatalf("%s was not copied", row.From.Tag)
			}
		}
	}
	w.layCopy(rt, r, snaps)
}

// layCopy lays one of the copies down.
func (w *world) layCopy(rt *rapid.T, r *repo.Repo, snaps []repo.Snapshot) {
	if len(snaps) == 0 {
		return
	}
	s := &snaps[rapid.IntRange(0, len(snaps)-1).Draw(rt, "snapshot")]
	trees := w.known[s.Created.UnixNano()].trees
	key := rapid.SampledFrom(slices.Sorted(maps.Keys(trees))).Draw(rt, "tree")
	dir := filepath.Join(w.newDir(rt), "tree")
	defer func() { _ = os.RemoveAll(filepath.Dir(dir)) }()
	if err := w.lay(w.t.Context(), r, s, key, dir, nil, w.stateDir(hosts[0])); err != nil {
		rt.Fatalf("restore %s from the copy: %v", s.Tag, err)
	}
	w.same(rt, s.Tag+" "+key+" of the copy", trees[key], dir)
}
