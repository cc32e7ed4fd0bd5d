package repo_test

import (
	"fmt"
	"testing"

	"lifeboat/internal/repo"
	"lifeboat/internal/repo/readlog"
	"lifeboat/internal/repo/repotest"
)

// A pack of another host that was not read before may turn out to be damaged while
// what is left of its manifest is put together: what it loses is counted, or the
// snapshot would be taken for whole where it lies then.
func TestRepairMeetsMoreDamage(t *testing.T) {
	t.Parallel()
	w := &ward{t: t, bed: repotest.NewBed(t), snaps: map[string]*repo.Snapshot{}, files: map[string][]file{}}
	var files []file
	for i := range uint64(12) { // two packs
		files = append(files, file{fmt.Sprintf("f%02d", i), [][]byte{noise(i, 1<<20)}})
	}
	s := treeSnapshot(t, w.bed.Host("second"), "shop", nil, files...)
	w.snaps[s.Tag], w.files[s.Tag] = s, files
	if n := len(manifestOf(t, w.bed.Store, s.Needs[0].String()).Layers); len(s.Needs) != 1 || n != 3 {
		t.Fatalf("%d manifests, %d layers", len(s.Needs), n)
	}
	w.copy = w.bed.Store.Clone()
	w.bed.Store.Drop(w.layer(s.Tag, 1).Digest)
	w.spoil(w.layer(s.Tag, 2), flipFrom(2000))
	other := repotest.NewBed(t)
	treeSnapshot(t, other.Host("elsewhere"), "copy", nil, files[:7]...)
	res := w.repair("main", repo.RepairOptions{From: []repo.RepairSource{{Name: "other", Other: other.Host("reader")}}})
	if res.Healed() {
		t.Errorf("it takes for healed what is not: %+v", res.Steps)
	}
	w.exactly(losses(t, res.After))
	x := examine(t, w.bed.Host("fresh"), repo.ExamineOptions{Read: &readlog.Subset{}})
	w.exactly(losses(t, x))
	// Nothing is given up: with an exact copy all of it comes back.
	w.repair("main", repo.RepairOptions{Read: true, From: []repo.RepairSource{{Name: "copy", Exact: w.copy}}})
	if ps := examine(t, w.bed.Host("witness"), repo.ExamineOptions{Read: &readlog.Subset{}}).Problems; len(ps) > 0 {
		t.Errorf("after the second repair: %v", ps)
	}
	if bad := w.holds(w.bed.Host("another"), s.Tag); len(bad) > 0 {
		t.Errorf("%v", bad)
	}
}
