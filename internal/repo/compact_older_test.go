package repo_test

import (
	"testing"

	"lifeboat/internal/dr"
	"lifeboat/internal/repo"
	"lifeboat/internal/repo/repotest"
)

// A relocation that leaves something out, whoever is to blame, does not let go of the
// places before it: what they list stays, and repair finds it there.
func TestCompactKeepsOlderPlacesOfWhatIsNotComplete(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	main := b.Host("main")
	files := []file{{"a", [][]byte{noise(1, 90<<10)}}, {"c", [][]byte{[]byte("!")}}}
	s := treeSnapshot(t, main, "shop", nil, files...)
	treeSnapshot(t, main, "shop", nil, file{"b", [][]byte{noise(2, 300)}})
	all := unitsOf(t, main, s)
	lost := files[1].units[0]
	delete(all, dr.UnitRef{ID: main.UnitID(lost), Len: uint32(len(lost))})
	if _, err := main.Relocate(t.Context(), s, all); err != nil {
		t.Fatal(err)
	}
	if _, err := main.Collect(t.Context(), repo.CollectOptions{Compact: &repo.CompactOptions{}}); err != nil {
		t.Fatal(err)
	}
	if tags := tagsOf(t, b.Store); tags[s.Tag] == "" {
		t.Fatalf("%s is gone", s.Tag)
	}
	res, err := b.Host("main").Repair(t.Context(), repo.RepairOptions{})
	if err != nil || !res.Healed() || len(res.Before.Problems) == 0 {
		t.Fatalf("%+v, %v", res, err)
	}
	if _, err := b.Host("main").Collect(t.Context(), repo.CollectOptions{Compact: &repo.CompactOptions{}}); err != nil {
		t.Fatal(err)
	}
	if tags := tagsOf(t, b.Store); tags[s.Tag] != "" {
		t.Fatalf("%s is needed no more, and still there", s.Tag)
	}
}
