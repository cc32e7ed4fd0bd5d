package repo_test

import (
	"context"
	"slices"
	"testing"

	"lifeboat/internal/repo"
	"lifeboat/internal/repo/readlog"
	"lifeboat/internal/repo/repotest"
	"lifeboat/internal/store"
	"lifeboat/internal/store/faults"
)

// injury is a damaged ward, and how it is repaired.
type injury struct {
	do func(w *ward)
	// copied: there is an exact copy to heal from. Else it is healed from what is
	// left and from other, if that is set.
	copied bool
	other  func(w *ward) *repo.Repo
	drop   bool // what cannot be healed is forgotten
	// left is what is told as lost in the end.
	left []string
	// gone are snapshots that are forgotten in the end.
	gone []string
}

// injuries are one of each way in which repair heals.
func injuries(t *testing.T) map[string]injury {
	named := func(name string) func(w *ward) {
		at := slices.IndexFunc(damages(), func(d damaged) bool { return d.name == name })
		return func(w *ward) { damages()[at].do(w) }
	}
	live := func(tag string) func(w *ward) {
		return func(w *ward) {
			w.bed.Store.Drop(w.layer(tag, 1).Digest)
			main := w.bed.Host("main")
			if _, err := main.Check(w.t.Context()); err != nil {
				w.t.Fatal(err)
			}
			next := treeSnapshot(w.t, main, "shop", nil, w.files["s.shop.3"]...)
			w.snaps[next.Tag], w.files[next.Tag] = next, w.files["s.shop.3"]
		}
	}
	other := repotest.NewBed(t)
	treeSnapshot(t, other.Host("elsewhere"), "copy", nil, newWard(t).files["s.shop.1"]...)
	return map[string]injury{
		"missing pack, copy":            {do: named("missing pack"), copied: true},
		"flipped pack, copy":            {do: named("bit flipped in a pack"), copied: true},
		"missing index, copy":           {do: named("missing index"), copied: true},
		"flipped index, copy":           {do: cachedIndex, copied: true},
		"flipped pack manifest, copy":   {do: named("bit flipped in a pack manifest"), copied: true},
		"swapped snapshot tags, copy":   {do: named("tags of two snapshots swapped"), copied: true},
		"flipped host record, copy":     {do: named("bit flipped in a host record"), copied: true},
		"missing newest snapshot, copy": {do: named("missing newest snapshot"), copied: true},
		"live system":                   {do: live("s.shop.2"), left: []string{"s.shop.2 description"}},
		"live system, in part":          {do: live("s.shop.1"), left: []string{"s.shop.1 description", "s.shop.2 volume:data /a"}},
		"live system, forgotten":        {do: live("s.shop.1"), drop: true, gone: []string{"s.shop.1", "s.shop.2"}},
		"another repository": {
			do: live("s.shop.1"), other: func(w *ward) *repo.Repo { return other.ForkFor(w.t).Host("reader") },
			left: []string{"s.shop.1 description"},
		},
	}
}

// cachedIndex damages a stored index of which the host that repairs has a sound cache.
func cachedIndex(w *ward) {
	if _, err := w.bed.Host("main").Verify(w.t.Context(), nil); err != nil {
		w.t.Fatal(err)
	}
	w.flip("s.shop.1", 0)
}

// flip damages a layer of the manifest of which a snapshot is the first to need it.
func (w *ward) flip(tag string, n int) {
	w.t.Helper()
	l := w.layer(tag, n)
	b := blobBytes(w.t, w.bed.Store, l.Digest, l.Size)
	b[len(b)/2] ^= 1
	w.bed.Store.Corrupt(l.Digest, b)
}

// TestRepairOfACachedIndex: that a host has a sound cache of an index is no reason to
// take the stored one for sound, however often it was found damaged before; nor is
// that the index is damaged one to leave the packs unread.
func TestRepairOfACachedIndex(t *testing.T) {
	t.Parallel()
	sound := newWard(t)
	verify := func(w *ward) {
		w.t.Helper()
		main := w.bed.Host("main")
		for range 2 {
			if problems, err := main.Verify(w.t.Context(), nil); err != nil || len(problems) == 0 {
				w.t.Fatalf("%v, %v", problems, err)
			}
		}
		if problems, err := main.Check(w.t.Context()); err != nil || len(problems) == 0 {
			w.t.Errorf("what was told twice is forgotten: %v, %v", problems, err)
		}
	}
	for name, more := range map[string]func(*ward){
		"as it is":     func(*ward) {},
		"found before": verify,
		"found before a pack was damaged": func(w *ward) {
			verify(w)
			w.flip("s.shop.1", 1)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := sound.fork(t)
			before := w.readable()
			cachedIndex(w)
			more(w)
			in := injury{copied: true}
			res, err := w.treat(t.Context(), in, w.bed, w.bed.Store)
			if err != nil {
				t.Fatal(err)
			}
			if !res.Healed() {
				t.Errorf("after: %s", problemText(res.After.Problems))
			}
			w.healed(in, before)
		})
	}
}

// treat runs one repair by the host main over a store.
func (w *ward) treat(ctx context.Context, in injury, b *repotest.Bed, st store.Store) (*repo.Repaired, error) {
	o := repo.RepairOptions{Read: true, DropDamaged: in.drop}
	if in.copied {
		o.From = append(o.From, repo.RepairSource{Name: "copy", Exact: w.copy.Clone()})
	}
	if in.other != nil {
		o.From = append(o.From, repo.RepairSource{Name: "other", Other: in.other(w)})
	}
	var res *repo.Repaired
	err := asMain(ctx, b, st, func(r *repo.Repo) (err error) {
		res, err = r.Repair(ctx, o)
		return err
	})
	return res, err
}

// readable is what a host that has seen nothing can read of the snapshots.
func (w *ward) readable() map[string]bool {
	w.t.Helper()
	out := map[string]bool{}
	r := w.bed.Host("observer " + w.t.Name())
	for tag, files := range w.files {
		bad := w.holds(r, tag)
		for _, f := range files {
			// An error that is not about one file is about all of them.
			out[tag+" "+f.path] = !slices.Contains(bad, f.path) && (len(bad) == 0 || isPath(files, bad[0]))
		}
	}
	return out
}

func isPath(files []file, name string) bool {
	return slices.ContainsFunc(files, func(f file) bool { return f.path == name })
}

// TestRepairFaults fails each call that a repair makes, in each way, and kills it
// there: nothing that could be read before is lost, nothing false is ever read,
// and the next run of the same host heals what can be healed (invariants 1, 2, 3,
// 8, 10). An ordinary run takes six of the hundreds of cases of each injury.
func TestRepairFaults(t *testing.T) {
	t.Parallel()
	sound := newWard(t)
	for name, in := range injuries(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			hurt := sound.fork(t)
			in.do(hurt)
			before := hurt.readable()
			plain := hurt.fork(t)
			probe := faults.New(t, plain.bed.Store)
			if _, err := plain.treat(t.Context(), in, plain.bed, probe); err != nil {
				t.Fatal(err)
			}
			plain.healed(in, before)
			for _, m := range mishaps(t, 6, probe.Calls()) {
				t.Run(m.String(), func(t *testing.T) {
					t.Parallel()
					w := hurt.fork(t)
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					after := w.bed
					// Killed: what is on this host's disk is what was there at that moment.
					fault := m.fault(func() { after = w.bed.Fork(); cancel() })
					fault.Last = fault.Do != nil
					_, err := w.treat(ctx, in, w.bed, faults.New(quiet{}, w.bed.Store, fault))
					after.Store, w.bed = w.bed.Store, after
					for what, ok := range w.readable() {
						if before[what] && !ok && !in.drop {
							t.Errorf("%s could be read before, and cannot now (%v)", what, err)
						}
					}
					if _, err := w.treat(t.Context(), in, w.bed, w.bed.Store); err != nil {
						t.Fatalf("again: %v", err)
					}
					w.healed(in, before)
				})
			}
		})
	}
}

// healed compares what is told as lost in the end with what is to be, and reads
// all the rest.
func (w *ward) healed(in injury, before map[string]bool) {
	w.t.Helper()
	for _, tag := range in.gone {
		delete(w.files, tag)
		delete(w.snaps, tag)
	}
	x := examine(w.t, w.bed.Host("witness"), repo.ExamineOptions{Read: &readlog.Subset{}})
	if lost := losses(w.t, x); !slices.Equal(lost, in.left) {
		w.t.Errorf("lost: %v, want %v\n%s", lost, in.left, problemText(x.Problems))
	}
	for _, p := range x.Problems {
		if len(in.left) == 0 && !p.Foreign() {
			w.t.Errorf("%v", p)
		}
	}
	for what, ok := range w.readable() {
		if !ok && (before[what] || len(in.left) == 0) {
			w.t.Errorf("%s cannot be read", what)
		}
	}
}
