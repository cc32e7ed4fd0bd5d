package repo_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/dr"
	"lifeboat/internal/repo"
	"lifeboat/internal/repo/repotest"
	"lifeboat/internal/retain"
	"lifeboat/internal/store"
)

func compact(ctx context.Context, r *repo.Repo, o repo.CompactOptions, grace time.Duration) (*repo.Collection, error) {
	return r.ListsAsCatalogs().Collect(ctx, repo.CollectOptions{Grace: grace, Compact: &o})
}

func mustCompact(t testing.TB, r *repo.Repo, o repo.CompactOptions, grace time.Duration) *repo.Collection {
	t.Helper()
	c, err := compact(t.Context(), r, o, grace)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// megabytes makes n units of 1 MB that do not shrink.
func megabytes(seed uint64, n int) (out [][]byte) {
	for i := range n {
		out = append(out, noise(seed*1000+uint64(i), 1<<20))
	}
	return out
}

// stored is how many bytes blobs have that manifests name.
func stored(t testing.TB, b *repotest.Bed) (n int64) {
	t.Helper()
	b.Store.Collect()
	return b.Store.Size()
}

// Of 32 MB the later snapshots use a quarter: once the others are forgotten, the
// space comes back, and what is left restores for a host that knows nothing.
func TestCompact(t *testing.T) {
	t.Parallel()
	for _, unchecked := range []bool{false, true} {
		t.Run(fmt.Sprintf("unchecked %v", unchecked), func(t *testing.T) {
			t.Parallel()
			b := repotest.NewBed(t)
			if unchecked {
				b.Store.Unchecked()
			}
			r := b.Host("main")
			all := megabytes(1, 32)
			var quarter [][]byte
			for i := 0; i < len(all); i += 4 {
				quarter = append(quarter, all[i])
			}
			first := mustSnapshot(t, r, "shop", nil, all)
			second := mustSnapshot(t, r, "shop", first, quarter)
			third := mustSnapshot(t, r, "shop", second, append(slices.Clone(quarter), noise(5, 700)))
			o := repo.CompactOptions{MaxUnused: 0.25}
			if c := mustCompact(t, r, o, 0).Compacted; c.Chosen != 0 || c.Relocated != 0 {
				t.Fatalf("everything is used: %+v", c)
			}
			if c := mustCompact(t, r, o, 0).Compacted; !c.Unchanged {
				t.Fatalf("it looked again: %+v", c)
			}
			before := stored(t, b)
			if _, err := forget(t.Context(), r, retain.Policy{Last: 2}); err != nil {
				t.Fatal(err)
			}
			dry, err := r.Collect(t.Context(), repo.CollectOptions{Compact: &o, DryRun: true})
			if err != nil || dry.Compacted.Chosen == 0 || dry.Compacted.Snapshots != 2 || dry.Compacted.Unused < 20<<20 || tagNames(t, b.Store, "r.") != "" {
				t.Fatalf("%+v, %v", dry.Compacted, err)
			}
			c := mustCompact(t, r, o, 0).Compacted
			if c.Relocated != 2 || c.Dropped != 2 || c.Read < 4<<20 || c.Read > 10<<20 || c.Sent > 10<<20 {
				t.Fatalf("%+v", c)
			}
			if got := tagNames(t, b.Store, "s."); got != "" {
				t.Fatalf("tags left: %s", got)
			}
			clock := &clock{now: time.Now().Add(2 * repo.UncheckedWait)}
			if _, err := collect(t.Context(), r, 0, clock); err != nil {
				t.Fatal(err)
			}
			if after := stored(t, b); after > before/3 {
				t.Fatalf("%d bytes of %d are left", after, before)
			}
			fresh := b.Host("fresh")
			for _, s := range []*repo.Snapshot{second, third} {
				got, err := fresh.Find(t.Context(), "shop", "#"+fmt.Sprint(s.Number))
				if err != nil || got.ID != s.ID {
					t.Fatalf("%v, %v", got, err)
				}
				want := slices.Clone(quarter)
				if s == third {
					want = append(want, noise(5, 700))
				}
				mustHold(t, fresh, got, want)
			}
			if problems, err := fresh.Verify(t.Context(), nil); err != nil || len(problems) > 0 {
				t.Fatalf("%v, %v", problems, err)
			}
			if c := mustCompact(t, r, o, 0).Compacted; c.Chosen > 0 || c.Relocated > 0 {
				t.Fatalf("again: %+v", c)
			}
		})
	}
}

// A byte that is used in a pack that shrank to next to nothing is used all the
// same: the pack is not taken for one of which nothing is.
func TestCompactKeepsTheLastByte(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	r := b.Host("main")
	last := []byte("!")
	first := mustSnapshot(t, r, "shop", nil, [][]byte{noise(2, 1<<20), bytes.Repeat([]byte("all work and no play "), 10_000), last})
	second := mustSnapshot(t, r, "shop", first, [][]byte{last, noise(1, 100<<10)})
	if _, err := forget(t.Context(), r, retain.Policy{Last: 1}); err != nil {
		t.Fatal(err)
	}
	if c := mustCompact(t, r, repo.CompactOptions{}, 0).Compacted; c.Chosen != 1 || c.Relocated != 1 {
		t.Fatalf("%+v", c)
	}
	clock := &clock{now: time.Now().Add(2 * repo.UncheckedWait)}
	if _, err := collect(t.Context(), r, 0, clock); err != nil {
		t.Fatal(err)
	}
	b.Store.Collect()
	fresh := b.Host("fresh")
	s, err := fresh.Find(t.Context(), "shop", "")
	if err != nil || s.ID != second.ID {
		t.Fatalf("%v, %v", s, err)
	}
	mustHold(t, fresh, s, [][]byte{last, noise(1, 100<<10)})
}

// Nothing is relocated to where a unit would be missing, whatever compaction
// thinks of it.
func TestCompactProvesWhatItWrote(t *testing.T) {
	t.Parallel()
	r := repotest.New(t)
	first := mustSnapshot(t, r, "shop", nil, content(1, 4))
	mustSnapshot(t, r, "shop", first, content(2, 4))
	err := r.ListsAsCatalogs().RewriteCarelessly(t.Context())
	if err == nil || !strings.Contains(err.Error(), "would not be in what takes its place") {
		t.Fatal(err)
	}
}

// Many snapshots that add little leave many small packs; they become few.
func TestCompactSmall(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	r := b.Host("main")
	var last *repo.Snapshot
	var units [][]byte
	for i := range uint64(70) {
		units = append(units, noise(i, 3000))
		last = mustSnapshot(t, r, "shop", last, units)
	}
	c := mustCompact(t, r, repo.CompactOptions{MaxUnused: 1}, 0).Compacted
	if c.Small < 70 || c.Chosen < 70 || c.Relocated != 70 {
		t.Fatalf("%+v", c)
	}
	fresh := b.Host("fresh")
	s, err := fresh.Find(t.Context(), "shop", "")
	if err != nil || len(s.Needs) != 1 {
		t.Fatalf("%+v, %v", s, err)
	}
	mustHold(t, fresh, s, units)
	if c := mustCompact(t, r, repo.CompactOptions{MaxUnused: 1}, 0).Compacted; c.Chosen != 0 || c.Packs > 3 {
		t.Fatalf("again: %+v", c)
	}
}

// What another host wrote is read before this host vouches for it, within the
// bound of a run; what lies is left as it is and named.
func TestCompactForeign(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	writer, op := b.Host("writer"), b.Host("operator")
	all := megabytes(2, 24)
	first := mustSnapshot(t, writer, "shop", nil, all)
	half := append(slices.Clone(all[:8]), all[8], all[16])
	second := mustSnapshot(t, writer, "shop", first, half)
	if _, err := forget(t.Context(), op, retain.Policy{Last: 1}); err != nil {
		t.Fatal(err)
	}
	c := mustCompact(t, op, repo.CompactOptions{MaxUnused: 0.1, MaxRepack: 1}, 0).Compacted
	if c.Relocated != 1 || c.Left == 0 {
		t.Fatalf("bounded: %+v", c)
	}
	for range 8 {
		c = mustCompact(t, op, repo.CompactOptions{MaxUnused: 0.1, MaxRepack: 4 << 20}, 0).Compacted
	}
	if c.Left > 0 || c.Chosen > 0 || c.Unused > c.Bytes/5 {
		t.Fatalf("in the end: %+v", c)
	}
	got := soleSnapshot(t, b.Host("fresh"), second, tagNames(t, b.Store, "r."), 0)
	mustHold(t, b.Host("fresh"), got, half)
	// The writer goes on from where it was moved to and sends what is new only.
	_, st, err := snapshot(t.Context(), b.Host("writer"), repo.WriterOptions{System: "shop", Parent: got}, "main", append(half, noise(7, 900)))
	if err != nil || st.BytesNew > 4000 {
		t.Fatalf("%+v, %v", st, err)
	}
}

// A host whose snapshot another host has relocated does not read what lies in
// packs that it wrote itself.
func TestRelocatedPacksAreKnown(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	writer, op := b.Host("writer"), b.Host("operator")
	all := megabytes(6, 40)
	first := mustSnapshot(t, writer, "shop", nil, all)
	most := slices.Clone(all[5:])
	mustSnapshot(t, writer, "shop", first, most)
	if _, err := forget(t.Context(), op, retain.Policy{Last: 1}); err != nil {
		t.Fatal(err)
	}
	c := mustCompact(t, op, repo.CompactOptions{MaxUnused: 0.02}, 0).Compacted
	if c.Relocated != 1 || c.LiveBytes == 0 || c.LiveBytes > 10<<20 {
		t.Fatalf("%+v", c)
	}
	again := b.Host("writer")
	parent, err := again.Find(t.Context(), "shop", "")
	if err != nil || parent.Place != "r.shop.2.1" {
		t.Fatal(parent, err)
	}
	_, st, err := snapshot(t.Context(), again, repo.WriterOptions{System: "shop", Parent: parent}, "main", most)
	if err != nil || st.BytesRead == 0 || st.BytesRead > c.LiveBytes+1<<20 || st.BytesNew > 1<<16 {
		t.Fatalf("%+v, %v", st, err)
	}
}

// A pack that cannot be read is left where it is, and so are the snapshots that
// need it.
func TestCompactDamaged(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	r := b.Host("main")
	all := megabytes(3, 16)
	first := mustSnapshot(t, r, "shop", nil, all)
	second := mustSnapshot(t, r, "shop", first, all[:2])
	if _, err := forget(t.Context(), r, retain.Policy{Last: 1}); err != nil {
		t.Fatal(err)
	}
	m, err := b.Store.GetManifest(t.Context(), first.Needs[0].String())
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range layersOf(t, m.Body)[1:] {
		b.Store.Drop(d)
	}
	c := mustCompact(t, r, repo.CompactOptions{}, 0).Compacted
	if len(c.Problems) == 0 || c.Relocated > 0 {
		t.Fatalf("%+v", c)
	}
	soleSnapshot(t, b.Host("fresh"), second, "s.shop.2", 0)
}

// A locked snapshot stays exactly as it is, until it is unlocked.
func TestLock(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	r := b.Host("main")
	all := megabytes(4, 16)
	first := mustSnapshot(t, r, "shop", nil, all)
	second := mustSnapshot(t, r, "shop", first, all[:2])
	mustSnapshot(t, r, "shop", second, all[:2])
	for range 2 {
		if err := r.Lock(t.Context(), second, "evidence"); err != nil {
			t.Fatal(err)
		}
	}
	locks, err := b.Host("other").Locks(t.Context(), "")
	if err != nil || len(locks) != 1 || locks[0].Number != 2 || locks[0].Reason != "evidence" || tagNames(t, b.Store, "l.") != "l.shop.2.1" {
		t.Fatalf("%+v, %v", locks, err)
	}
	p, err := forget(t.Context(), b.Host("other"), retain.Policy{Last: 1})
	if err != nil || p.Going() != 1 || !slices.Equal(p.Rows[1].Reasons, []string{"locked"}) {
		t.Fatalf("%+v, %v", p, err)
	}
	if c := mustCompact(t, r, repo.CompactOptions{}, 0).Compacted; c.Relocated > 0 || c.Unused < 10<<20 {
		t.Fatalf("%+v", c)
	}
	if err := r.Unlock(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	if c := mustCompact(t, r, repo.CompactOptions{}, 0).Compacted; c.Relocated != 2 {
		t.Fatalf("%+v", c)
	}
	if p, err = forget(t.Context(), r, retain.Policy{Last: 1}); err != nil || p.Going() != 1 || tagNames(t, b.Store, "l.") != "" {
		t.Fatalf("%+v, %v, %s", p, err, tagNames(t, b.Store, "l."))
	}
	if err := r.Lock(t.Context(), second, ""); !errors.Is(err, dr.ErrNotFound) {
		t.Fatalf("lock of what is gone: %v", err)
	}
}

// TestCompactFaults fails, kills and cuts short the calls of a compaction: nothing
// is lost, and the next run finishes.
func TestCompactFaults(t *testing.T) {
	t.Parallel()
	first := repotest.NewBed(t)
	r := first.Host("main")
	all := megabytes(5, 12)
	s := mustSnapshot(t, r, "shop", nil, all)
	for i := range 3 {
		s = mustSnapshot(t, r, "shop", s, all[i:i+2])
	}
	if _, err := forget(t.Context(), r, retain.Policy{Last: 3}); err != nil {
		t.Fatal(err)
	}
	run := func(ctx context.Context, b *repotest.Bed, st store.Store) error {
		return asMain(ctx, b, st, func(r *repo.Repo) error {
			_, err := compact(ctx, r, repo.CompactOptions{}.Eager(), 0)
			return err
		})
	}
	check := func(t *testing.T, b *repotest.Bed) {
		t.Helper()
		eye := b.Host("eye")
		snaps, problems, err := eye.Snapshots(t.Context(), "shop")
		if err != nil || len(snaps) != 3 || len(problems) > 0 {
			t.Fatalf("%d snapshots, %v, %v", len(snaps), problems, err)
		}
		for i := range snaps {
			mustHold(t, eye, &snaps[i], all[i:i+2])
		}
	}
	eachCall(t, 32, first, run, func(t *testing.T, b *repotest.Bed) {
		check(t, b)
		if err := run(t.Context(), b, b.Store); err != nil {
			t.Fatalf("again: %v", err)
		}
		check(t, b)
		if got := tagNames(t, b.Store, "s."); got != "" {
			t.Fatalf("left %s", got)
		}
	})
}
