package repo_test

import (
	"slices"
	"testing"
	"time"

	"lifeboat/internal/repo"
	"lifeboat/internal/repo/readlog"
)

// A snapshot that was repaired in part keeps its older tags, and what they list,
// whatever is compacted meanwhile: a later repair that has an exact copy begins
// there (docs/format.md, Repairing).
func TestRepairedInPartIsLeftByCompaction(t *testing.T) {
	t.Parallel()
	w := newWard(t)
	w.bed.Store.Drop(w.layer("s.shop.1", 1).Digest)
	main := w.bed.Host("main")
	if len(examine(t, main, repo.ExamineOptions{}).Problems) == 0 {
		t.Fatal("nothing was found")
	}
	next := treeSnapshot(t, main, "shop", nil, w.files["s.shop.3"]...)
	w.snaps[next.Tag], w.files[next.Tag] = next, w.files["s.shop.3"]
	if res := w.repair("main", repo.RepairOptions{Read: true}); res.Healed() {
		t.Fatalf("it is whole: %+v", res.Steps)
	}
	s, err := main.Find(t.Context(), "shop", "#2")
	if err != nil || s.Lacks == 0 {
		t.Fatalf("%+v, %v", s, err)
	}
	for range 2 {
		o := repo.CollectOptions{Compact: new(repo.CompactOptions{}.Eager()), Now: func() time.Time { return time.Now().Add(2 * repo.UncheckedWait) }}
		if _, err := main.Collect(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	tags, err := w.bed.Store.Tags(t.Context(), "")
	if err != nil || !slices.Contains(tags, "s.shop.2") {
		t.Fatalf("the tag from before the repair is gone: %v, %v", tags, err)
	}
	res := w.repair("main", repo.RepairOptions{Read: true, From: []repo.RepairSource{{Name: "copy", Exact: w.copy}}})
	if ps := examine(t, w.bed.Host("witness"), repo.ExamineOptions{Read: &readlog.Subset{}}).Problems; len(ps) > 0 {
		t.Fatalf("after the second repair (%+v): %v", res.Steps, ps)
	}
	w.whole()
}
