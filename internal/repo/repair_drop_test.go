package repo_test

import (
	"errors"
	"slices"
	"testing"

	"lifeboat/internal/dr"
	"lifeboat/internal/repo"
	"lifeboat/internal/repo/repotest"
)

// Snapshots of which nothing can be read any more are given up when it is asked for,
// and then what nobody needs is collected again. What is locked stays, and so does
// what no newer snapshot follows.
func TestDropUnread(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	main := b.Host("main")
	var last *repo.Snapshot
	units := map[string][][]byte{}
	take := func(tag string) {
		units[tag] = content(uint64(len(units)+1), 3)
		last = mustSnapshot(t, main, "shop", last, units[tag])
		if last.Tag != tag {
			t.Fatalf("snapshot %s, want %s", last.Tag, tag)
		}
	}
	for _, tag := range []string{"s.shop.1", "s.shop.2", "s.shop.3", "s.shop.4", "s.shop.5"} {
		take(tag)
	}
	second, err := main.Find(t.Context(), "shop", "#2")
	if err == nil {
		err = main.Lock(t.Context(), second, "evidence")
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, tag := range []string{"s.shop.1", "s.shop.2", "s.shop.5"} {
		if d, err := b.Store.ResolveTag(t.Context(), tag); err != nil || !b.Store.DropManifest(d) {
			t.Fatalf("drop %s: %v", d, err)
		}
	}
	drop := func() (gone, held []string) {
		t.Helper()
		done, err := main.Repair(t.Context(), repo.RepairOptions{DropDamaged: true})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range done.Steps {
			switch {
			case s.Action != repo.RepairForgotten:
				t.Errorf("%+v", s)
			case s.Err == nil:
				gone = append(gone, s.Tag)
			default:
				if held = append(held, s.Tag); !errors.Is(s.Err, dr.ErrHeld) && !errors.Is(s.Err, dr.ErrTampered) {
					t.Errorf("%s: %v", s.Tag, s.Err)
				}
			}
		}
		slices.Sort(gone)
		slices.Sort(held)
		return gone, held
	}
	// The newest of this host is not there: what came last nobody can say.
	if gone, held := drop(); gone != nil || !slices.Equal(held, []string{"s.shop.1", "s.shop.2", "s.shop.5"}) {
		t.Errorf("gone %v, held %v", gone, held)
	}
	o := b.Options("main")
	o.AcceptOlder = true
	if main, err = open(t, b.Store, o); err == nil {
		last, err = main.Find(t.Context(), "shop", "#4")
	}
	if err != nil {
		t.Fatal(err)
	}
	if gone, held := drop(); !slices.Equal(gone, []string{"s.shop.1"}) || !slices.Equal(held, []string{"s.shop.2", "s.shop.5"}) {
		t.Errorf("gone %v, held %v", gone, held)
	}
	take("s.shop.6")
	if _, err := main.Collect(t.Context(), repo.CollectOptions{}); !errors.Is(err, dr.ErrTampered) {
		t.Errorf("collect: %v; want a refusal", err)
	}
	if gone, held := drop(); !slices.Equal(gone, []string{"s.shop.5"}) || !slices.Equal(held, []string{"s.shop.2"}) {
		t.Errorf("gone %v, held %v", gone, held)
	}
	if gone, held := drop(); gone != nil || !slices.Equal(held, []string{"s.shop.2"}) {
		t.Errorf("again: gone %v, held %v", gone, held)
	}
	if err := main.Unlock(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	if gone, held := drop(); !slices.Equal(gone, []string{"s.shop.2"}) || held != nil {
		t.Errorf("unlocked: gone %v, held %v", gone, held)
	}
	for _, host := range []string{"main", "other"} {
		h := b.Host(host)
		if problems, err := h.Check(t.Context()); err != nil || len(problems) > 0 {
			t.Errorf("check at %s: %v, %v", host, problems, err)
		}
		if _, err := h.Collect(t.Context(), repo.CollectOptions{}); err != nil {
			t.Errorf("collect at %s: %v", host, err)
		}
		snaps, _, err := h.Snapshots(t.Context(), "shop")
		if err != nil || len(snaps) != 3 {
			t.Fatalf("%d snapshots at %s, %v", len(snaps), host, err)
		}
		for _, s := range snaps {
			mustHold(t, h, &s, units[s.Tag])
		}
	}
}
