package main

import (
	"errors"
	"strings"
	"testing"

	"lifeboat/internal/dr"
	"lifeboat/internal/plan"
	"lifeboat/internal/site"
)

// TestStatusShowsUnfinishedWork: a failover that was killed, one that failed and
// one that runs can be told apart, and each says what goes on with it.
func TestStatusShowsUnfinishedWork(t *testing.T) {
	t.Parallel()
	state, err := site.Open(t.TempDir(), "engine")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{state: state}
	row := func() *statusRow {
		t.Helper()
		r := &statusRow{System: "shop"}
		if r.Unfinished, err = w.unfinished(r); err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := row(); len(r.Unfinished) != 0 {
		t.Errorf("%+v", r.Unfinished)
	}
	path, err := state.JournalPath("shop", "failover")
	if err != nil {
		t.Fatal(err)
	}
	j, err := plan.Open(path, plan.Header{Operation: "failover", System: "shop", Snapshot: dr.SnapshotID{0xab}})
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Intent("ab00:trees"); err != nil {
		t.Fatal(err)
	}
	said := func(parts ...string) {
		t.Helper()
		r := row()
		cells := r.cells()
		last := cells[len(cells)-1]
		for _, p := range parts {
			if !strings.Contains(last, p) {
				t.Errorf("%q does not say %q", last, p)
			}
		}
	}
	said("failover of ab", "is at step trees")
	if err := j.Fail("ab00:trees", errors.New("no space")); err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	said("failed at step trees", "goes on with: lifeboat failover shop")
	if r := row(); r.Unfinished[0].Error != "no space" || r.Unfinished[0].Running || r.Unfinished[0].Began.IsZero() {
		t.Errorf("%+v", r.Unfinished[0])
	}
}
