package repo_test

import (
	"errors"
	"slices"
	"testing"

	"lifeboat/internal/repo"
	"lifeboat/internal/repo/repotest"
	"lifeboat/internal/retain"
)

// A lock whose record cannot be read holds, and is not taken for none when it is to be
// taken away; what may be collected does not depend on it, nor on any other record
// that lists no packs.
func TestUnreadLockHolds(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	main := b.Host("main")
	for _, tag := range []string{"e.shop.1", "w.shop.1"} {
		if err := main.PutRecord(t.Context(), tag, claim(main, 1, nil)); err != nil {
			t.Fatal(err)
		}
	}
	first, units := mustSnapshot(t, main, "shop", nil, content(1, 3)), content(1, 3)
	mustSnapshot(t, main, "shop", nil, content(2, 3))
	third := mustSnapshot(t, main, "shop", nil, content(3, 3))
	if err := main.Lock(t.Context(), first, "evidence"); err != nil {
		t.Fatal(err)
	}
	lost := []string{"e.shop.1", "w.shop.1", "l.shop.1.1"}
	for _, tag := range lost {
		if d, err := b.Store.ResolveTag(t.Context(), tag); err != nil || !b.Store.DropManifest(d) {
			t.Fatalf("drop %s: %v", d, err)
		}
	}
	if err := main.Unlock(t.Context(), first); !errors.Is(err, repo.ErrLockUnread) {
		t.Errorf("unlock: %v", err)
	}
	if tags, err := b.Store.Tags(t.Context(), "l."); err != nil || !slices.Equal(tags, []string{"l.shop.1.1"}) {
		t.Errorf("locks: %v, %v", tags, err)
	}
	o := b.Options("main")
	o.AcceptOlder = true // the epoch and the move are lost
	main, err := open(t, b.Store, o)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := main.PlanForget(t.Context(), "shop", retain.Policy{Last: 1})
	if err == nil {
		err = main.Forget(t.Context(), plan)
	}
	if err != nil {
		t.Fatal(err)
	}
	done, err := main.Collect(t.Context(), repo.CollectOptions{})
	if err != nil {
		t.Fatalf("collect: %v", err)
	}
	if n, _ := done.Freed(repo.CollectRemoved); n != 1 {
		t.Errorf("removed %d manifests, want that of s.shop.2: %+v", n, done.Rows)
	}
	fresh := b.Host("fresh")
	snaps, _, err := fresh.Snapshots(t.Context(), "shop")
	if err != nil || len(snaps) != 2 || snaps[0].ID != first.ID || snaps[1].ID != third.ID {
		t.Fatalf("%+v, %v", snaps, err)
	}
	mustHold(t, fresh, &snaps[0], units)
}
