package repo_test

import (
	"errors"
	"slices"
	"testing"

	"lifeboat/internal/dr"
	"lifeboat/internal/repo"
	"lifeboat/internal/repo/repotest"
	"lifeboat/internal/retain"
)

// Records that nothing can mend are given up when that is asked for: a lock ends, but
// not before the snapshots of the same run were judged; what an older state has to be
// accepted for is given up after that, at this host alone.
func TestGiveUpRecords(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	main := b.Host("main")
	if err := main.PutRecord(t.Context(), "e.shop.1", claim(main, 1, nil)); err != nil {
		t.Fatal(err)
	}
	first := mustSnapshot(t, main, "shop", nil, content(1, 3))
	mustSnapshot(t, main, "shop", nil, content(2, 3))
	if err := main.Lock(t.Context(), first, "evidence"); err != nil {
		t.Fatal(err)
	}
	mirror := b.Store.Clone()
	lose := func(tags ...string) {
		t.Helper()
		for _, tag := range tags {
			if d, err := b.Store.ResolveTag(t.Context(), tag); err != nil || !b.Store.DropManifest(d) {
				t.Fatalf("drop %s: %v", d, err)
			}
		}
	}
	lose("l.shop.1.1", "e.shop.1", "s.shop.1", "host.1")
	repair := func(r *repo.Repo, o repo.RepairOptions) (gone, held []string, healed bool) {
		t.Helper()
		o.DropDamaged = true
		done, err := r.Repair(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range done.Steps {
			switch {
			case s.Action != repo.RepairForgotten:
			case s.Err == nil:
				gone = append(gone, s.Tag)
			default:
				held = append(held, s.Tag)
				if !errors.Is(s.Err, dr.ErrHeld) && !errors.Is(s.Err, dr.ErrTampered) {
					t.Errorf("%s: %v", s.Tag, s.Err)
				}
			}
		}
		slices.Sort(gone)
		slices.Sort(held)
		return gone, held, done.Healed()
	}
	if gone, _, healed := repair(main, repo.RepairOptions{}); slices.Contains(gone, "e.shop.1") || slices.Contains(gone, "host.1") || slices.Contains(gone, "s.shop.1") || healed {
		t.Errorf("given up without being accepted: %v", gone)
	}
	o := b.Options("main")
	o.AcceptOlder = true
	main, err := open(t, b.Store, o)
	if err != nil {
		t.Fatal(err)
	}
	mustSnapshot(t, main, "shop", nil, content(3, 3)) // enrolled again
	plan, err := main.PlanForget(t.Context(), "shop", retain.Policy{Last: 1})
	if err != nil || len(plan.Rows) == 0 {
		t.Fatal(plan, err)
	}
	gone, held, _ := repair(main, repo.RepairOptions{})
	if !slices.Contains(gone, "e.shop.1") || !slices.Contains(gone, "host.1") {
		t.Errorf("gone %v, held %v", gone, held)
	}
	if _, _, healed := repair(main, repo.RepairOptions{}); !healed {
		t.Error("the damage does not end")
	}
	x := examine(t, main, repo.ExamineOptions{})
	if len(x.Problems) > 0 || !slices.Equal(x.GivenUp, []string{"e.shop.1", "host.1"}) {
		t.Errorf("%v, given up %v", x.Problems, x.GivenUp)
	}
	tags, err := b.Store.Tags(t.Context(), "")
	if err != nil || !slices.Contains(tags, "e.shop.1") || !slices.Contains(tags, "host.1") || slices.Contains(tags, "l.shop.1.1") {
		t.Errorf("left: %v, %v", tags, err)
	}
	if _, err := main.Collect(t.Context(), repo.CollectOptions{}); err != nil {
		t.Errorf("collect: %v", err)
	}
	if ps, err := b.Host("other").Check(t.Context()); err != nil || len(ps) == 0 {
		t.Errorf("another host is told nothing: %v, %v", ps, err)
	}
	// What a mirror has still comes back, and counts again.
	if _, _, healed := repair(main, repo.RepairOptions{From: []repo.RepairSource{{Name: "mirror", Exact: mirror}}}); !healed {
		t.Error("not mended from a mirror")
	}
	lose("e.shop.1")
	if ps, err := b.Host("main").Check(t.Context()); err != nil || len(ps) == 0 {
		t.Errorf("damage of what was mended is hidden: %v, %v", ps, err)
	}
}
