package repo_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"lifeboat/internal/dr"
	"lifeboat/internal/repo"
	"lifeboat/internal/repo/repotest"
	"lifeboat/internal/retain"
	"lifeboat/internal/store"
	"lifeboat/internal/store/faults"
)

// contentOf reads a snapshot as units by reference, with its root record.
func contentOf(t testing.TB, r *repo.Repo, s *repo.Snapshot) map[dr.UnitRef][]byte {
	t.Helper()
	rd, err := r.NewReader(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	root, err := rd.Root(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out := map[dr.UnitRef][]byte{}
	for _, ref := range append(listOf(root), s.Root) {
		if out[ref], err = rd.Unit(t.Context(), ref); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func relocate(t testing.TB, r *repo.Repo, s *repo.Snapshot) *repo.Snapshot {
	t.Helper()
	moved, err := r.Relocate(t.Context(), s, contentOf(t, r, s))
	if err != nil {
		t.Fatal(err)
	}
	return moved
}

func dropOlder(t testing.TB, r *repo.Repo, s *repo.Snapshot, want int) {
	t.Helper()
	if n, err := r.DropOlder(t.Context(), s); err != nil || n != want {
		t.Fatalf("dropped %d, want %d: %v", n, want, err)
	}
}

func tagNames(t testing.TB, st store.Store, prefix string) string {
	t.Helper()
	tags, err := st.Tags(t.Context(), prefix)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(tags, " ")
}

func soleSnapshot(t testing.TB, r *repo.Repo, want *repo.Snapshot, place string, problems int) *repo.Snapshot {
	t.Helper()
	snaps, bad, err := r.Snapshots(t.Context(), want.System)
	if err != nil || len(bad) != problems || len(snaps) != 1 {
		t.Fatalf("%d snapshots, problems %v, %v", len(snaps), bad, err)
	}
	s := &snaps[0]
	if s.ID != want.ID || s.Tag != want.Tag || s.Number != want.Number || s.Host != want.Host || s.Place != place {
		t.Fatalf("%s at %s, number %d; want %s at %s", s.Tag, s.Place, s.Number, want.Tag, place)
	}
	return s
}

// A snapshot that lies elsewhere is the same one under the same number: it is
// listed, found, built upon, checked and forgotten as before, and its number is
// not given out again, also by a registry that would.
func TestRelocation(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	b.Store.Unchecked()
	units := content(7, 12)
	first := mustSnapshot(t, b.Host("writer"), "shop", nil, units)
	r := b.Host("operator")
	moved := relocate(t, r, first)
	soleSnapshot(t, b.Host("reader"), first, "r.shop.1.1", 0)
	dropOlder(t, r, moved, 1)
	dropOlder(t, r, moved, 0)
	if got := tagNames(t, b.Store, "s."); got != "" {
		t.Fatalf("tags left: %s", got)
	}
	for _, d := range first.Needs {
		b.Store.Vanish(d)
	}
	b.Store.Collect()
	fresh := b.Host("fresh")
	s := soleSnapshot(t, fresh, first, "r.shop.1.1", 0)
	mustHold(t, fresh, s, units)
	for _, ref := range []string{"", "#1", first.ID.String()[:12]} {
		if got, err := fresh.Find(t.Context(), "shop", ref); err != nil || got.Place != "r.shop.1.1" {
			t.Fatalf("find %q: %v, %v", ref, got, err)
		}
	}
	if problems, err := fresh.Check(t.Context()); err != nil || len(problems) > 0 {
		t.Fatalf("check: %v, %v", problems, err)
	}
	if problems, err := fresh.Verify(t.Context(), nil); err != nil || len(problems) > 0 {
		t.Fatalf("verify: %v, %v", problems, err)
	}

	// Who builds upon it needs the new manifests, and takes the next number.
	next, st, err := snapshot(t.Context(), b.Host("writer"), repo.WriterOptions{System: "shop", Parent: s}, "main", append(slices.Clone(units), noise(99, 50)))
	if err != nil || next.Tag != "s.shop.2" || st.BytesNew > 4000 || !slices.Contains(next.Needs, moved.Needs[0]) {
		t.Fatalf("%+v, %+v, %v", next, st, err)
	}
	// Again: the turn grows, and the older relocation goes.
	again := relocate(t, r, s)
	if again.Place != "r.shop.1.2" {
		t.Fatal(again.Place)
	}
	dropOlder(t, r, again, 1)
	if _, err := forget(t.Context(), r, retain.Policy{Last: 1}); err != nil {
		t.Fatal(err)
	}
	if got := tagNames(t, b.Store, "r.") + tagNames(t, b.Store, "s."); got != "s.shop.2" {
		t.Fatalf("tags left: %s", got)
	}
}

// Nobody gives a number out that only a relocation holds; who has seen it
// notices when the relocation is gone.
func TestRelocationHoldsItsNumber(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	r := b.Host("main")
	mustSnapshot(t, r, "shop", nil, content(1, 3))
	second := mustSnapshot(t, r, "shop", nil, content(2, 3))
	dropOlder(t, r, relocate(t, r, second), 1)
	other := b.Host("other") // has no marks
	third := mustSnapshot(t, other, "shop", nil, content(3, 3))
	if third.Tag != "s.shop.3" {
		t.Fatalf("it took %s", third.Tag)
	}
	eye := b.Host("eye")
	if _, problems, err := eye.Snapshots(t.Context(), "shop"); err != nil || len(problems) > 0 {
		t.Fatal(problems, err)
	}
	for _, tag := range []string{"s.shop.3", "r.shop.2.1"} {
		if err := b.Store.DeleteTag(t.Context(), tag); err != nil {
			t.Fatal(err)
		}
	}
	_, problems, err := eye.Snapshots(t.Context(), "shop")
	if err != nil || len(problems) != 1 || problems[0].Tag != "s.shop.*" || !errors.Is(problems[0].Err, dr.ErrTampered) {
		t.Fatalf("an older state: %v, %v", problems, err)
	}
}

// A relocation to manifests that do not hold the snapshot takes nothing from a
// reader while the older tag is there (invariant 8), wherever it notices.
func TestRelocationToNowhere(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	r := b.Host("main")
	units := content(4, 20)
	s := mustSnapshot(t, r, "shop", nil, units)
	if _, err := b.Host("bad").Relocate(t.Context(), s, map[dr.UnitRef][]byte{{ID: dr.UnitID{1}, Len: 9}: noise(1, 9)}); err != nil {
		t.Fatal(err)
	}
	lied := soleSnapshot(t, b.Host("reader"), s, "r.shop.1.1", 0)
	mustHold(t, b.Host("reader"), lied, units)
	// The manifest that it names is gone.
	b.Store.Unchecked()
	b.Store.Vanish(lied.Needs[0])
	mustHold(t, b.Host("late"), lied, units)
	// An honest one after it counts.
	honest := relocate(t, r, lied)
	mustHold(t, b.Host("last"), soleSnapshot(t, b.Host("last"), s, "r.shop.1.2", 0), units)
	dropOlder(t, r, honest, 2)
}

// Tags of class r that are no relocation of their snapshot are problems, count
// for nothing, and are passed over.
func TestSquattedRelocation(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	r := b.Host("main")
	units := content(5, 5)
	s := mustSnapshot(t, r, "shop", nil, units)
	blog := mustSnapshot(t, r, "blog", nil, content(6, 5))
	copyTo := func(from string, to ...string) {
		t.Helper()
		m, err := b.Store.GetManifest(t.Context(), from)
		if err != nil {
			t.Fatal(err)
		}
		for _, tag := range to {
			if _, err := b.Store.PutManifest(t.Context(), tag, m.MediaType, m.Body); err != nil {
				t.Fatal(err)
			}
		}
	}
	// The commit itself, another system's relocation, a key record.
	relocate(t, r, blog)
	copyTo("s.shop.1", "r.shop.1.1")
	copyTo("r.blog.1.1", "r.shop.1.2", "r.shop.2.1")
	copyTo("key.1", "r.shop.1.4")
	mustHold(t, r, soleSnapshot(t, r, s, "s.shop.1", 4), units)
	moved := relocate(t, r, soleSnapshot(t, r, s, "s.shop.1", 4))
	if moved.Place != "r.shop.1.3" {
		t.Fatal(moved.Place)
	}
	dropOlder(t, r, moved, 1) // what is not the snapshot stays
	if got := tagNames(t, b.Store, "r.shop.1."); got != "r.shop.1.1 r.shop.1.2 r.shop.1.3 r.shop.1.4" {
		t.Fatal(got)
	}
	got := soleSnapshot(t, r, s, "r.shop.1.3", 2) // those below it are not read
	mustHold(t, r, got, units)
	if next := mustSnapshot(t, b.Host("other"), "shop", got, units); next.Tag != "s.shop.3" {
		t.Fatalf("number 2 is squatted; it took %s", next.Tag)
	}
}

// What a revoked host relocated counts if the revocation lists it, and else only
// where nothing better says where the snapshot lies: each unit is compared with
// its id, so it can do no more than lead nowhere.
func TestRelocationByRevokedHost(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	r, gone := b.Host("main"), b.Host("gone")
	units := content(8, 5)
	s := mustSnapshot(t, r, "shop", nil, units)
	dropOlder(t, gone, relocate(t, gone, s), 1)
	if err := r.Revoke(t.Context(), gone.HostID(), nil); err != nil {
		t.Fatal(err)
	}
	listed := soleSnapshot(t, b.Host("reader"), s, "r.shop.1.1", 0)
	mustHold(t, b.Host("reader"), listed, units)

	// Afterwards its relocations are passed over: a host that does not know yet.
	other := b.Host("late")
	t2 := mustSnapshot(t, other, "blog", nil, units)
	stale := b.Host("stale")
	blind := relocate(t, stale, t2)
	if err := r.Revoke(t.Context(), stale.HostID(), func(*repo.Snapshot) bool { return false }); err != nil {
		t.Fatal(err)
	}
	soleSnapshot(t, b.Host("reader"), t2, blind.Place, 0) // listed: it was there
	if err := stale.PutRelocationAgain(t.Context(), blind); err != nil {
		t.Fatal(err)
	}
	soleSnapshot(t, b.Host("reader"), t2, "r.blog.1.1", 1)
	for _, tag := range []string{"r.blog.1.1", "s.blog.1"} {
		if err := b.Store.DeleteTag(t.Context(), tag); err != nil {
			t.Fatal(err)
		}
	}
	last := soleSnapshot(t, b.Host("reader"), t2, "r.blog.1.2", 1)
	mustHold(t, b.Host("reader"), last, units)
}

// Whoever lists the tags and reads them while a snapshot moves still finds it,
// and who reads its content meanwhile reads on.
func TestRelocationUnderAReader(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	b.Store.Unchecked()
	r := b.Host("main")
	units := content(9, 30)
	s := mustSnapshot(t, r, "shop", nil, units)
	var moved *repo.Snapshot
	f := faults.New(t, b.Store, faults.Fault{Op: faults.GetManifest, Arg: "s.shop.1", Kind: faults.Duplicate, Do: func() {
		moved = relocate(t, r, s)
		dropOlder(t, r, moved, 1)
	}})
	slow := b.HostOn("slow", f)
	got, err := slow.Find(t.Context(), "shop", "")
	if err != nil || got.Place != "r.shop.1.1" {
		t.Fatalf("%+v, %v", got, err)
	}

	rd, err := slow.NewReader(t.Context(), got)
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	root, err := rd.Root(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dropOlder(t, r, relocate(t, r, got), 1)
	b.Store.Vanish(moved.Needs[0])
	b.Store.Collect()
	seen := make([]bool, len(units))
	err = rd.Fetch(context.WithoutCancel(t.Context()), listOf(root), func(i int, data []byte) error {
		seen[i] = slices.Equal(data, units[i])
		return nil
	})
	if err != nil || slices.Contains(seen, false) {
		t.Fatalf("reading on: %v", err)
	}
}

// Relocations fail or are cut off at any call: the snapshot stays readable, and
// a second try succeeds.
func TestRelocationFaults(t *testing.T) {
	t.Parallel()
	first := repotest.NewBed(t)
	units := content(10, 6)
	s := mustSnapshot(t, first.Host("main"), "shop", nil, units)
	body := contentOf(t, first.Host("main"), s)
	run := func(b *repotest.Bed, st store.Store) error {
		r, err := repo.Open(t.Context(), st, b.Options("main"))
		if err != nil {
			return err
		}
		defer func() { _ = r.Close() }()
		snaps, _, err := r.Snapshots(t.Context(), "shop")
		if err != nil {
			return err
		}
		moved, err := r.Relocate(t.Context(), &snaps[0], body)
		if err != nil {
			return err
		}
		_, err = r.DropOlder(t.Context(), moved)
		return err
	}
	plain := faults.New(t, first.Fork().Store)
	bed := first.Fork()
	if err := run(bed, plain); err != nil {
		t.Fatal(err)
	}
	for i := range plain.Calls() {
		for _, kind := range []faults.Kind{faults.Before, faults.After, faults.Duplicate} {
			b := first.Fork()
			err := run(b, faults.New(quiet{}, b.Store, faults.Fault{Call: i + 1, Kind: kind}))
			snaps, problems, rerr := b.Host("eye").Snapshots(t.Context(), "shop")
			if rerr != nil || len(snaps) != 1 || len(problems) > 0 {
				t.Fatalf("call %d, kind %d (%v): %v, %v", i+1, kind, err, problems, rerr)
			}
			mustHold(t, b.Host("eye"), &snaps[0], units)
			if err := run(b, b.Store); err != nil {
				t.Fatalf("call %d, kind %d, again: %v", i+1, kind, err)
			}
			if got := tagNames(t, b.Store, "s."); got != "" {
				t.Fatalf("call %d, kind %d: left %s", i+1, kind, got)
			}
		}
	}
}
