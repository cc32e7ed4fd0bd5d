package repo_test

import (
	"testing"

	"lifeboat/internal/repo"
	"lifeboat/internal/repo/repotest"
	"lifeboat/internal/store/faults"
)

// The number that a commit found free may be another snapshot's by the time its
// tag is put, although nothing is under the tag: the other one was committed and
// relocated in between. Both stay visible (invariants 2, 8, 11).
func TestNumberOfARelocatedSnapshot(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	other := b.Host("other")
	first := mustSnapshot(t, other, "shop", nil, content(1, 5))
	var theirs *repo.Snapshot
	st := faults.New(t, b.Store, faults.Fault{Op: faults.PutManifest, Arg: "s.shop.2", Kind: faults.Duplicate, Do: func() {
		theirs = mustSnapshot(t, other, "shop", first, content(2, 5))
		dropOlder(t, other, relocate(t, other, theirs), 1)
	}})
	mine := mustSnapshot(t, b.HostOn("main", st), "shop", nil, content(3, 5))
	if mine.Tag != "s.shop.3" {
		t.Errorf("it was committed as %s", mine.Tag)
	}
	reader := b.Host("reader")
	snaps, problems, err := reader.Snapshots(t.Context(), "shop")
	if err != nil || len(problems) > 0 || len(snaps) != 3 {
		t.Fatalf("%d snapshots, %v, %v", len(snaps), problems, err)
	}
	for i, want := range []*repo.Snapshot{first, theirs, mine} {
		if snaps[i].ID != want.ID {
			t.Errorf("%s is %s, not %s", snaps[i].Tag, snaps[i].ID.Short(), want.ID.Short())
		}
		mustHold(t, reader, &snaps[i], content(uint64(i+1), 5))
	}
	for _, host := range []string{"other", "main", "reader"} {
		if problems, err := b.Host(host).Check(t.Context()); err != nil || len(problems) > 0 {
			t.Errorf("%s: %v, %v", host, problems, err)
		}
	}
}
