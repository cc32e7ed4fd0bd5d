package repo_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"

	"lifeboat/internal/dr"
	"lifeboat/internal/repo"
	"lifeboat/internal/repo/repotest"
	"lifeboat/internal/store"
	"lifeboat/internal/store/faults"
)

// tagsOf is what each tag names now.
func tagsOf(t testing.TB, st store.Store) map[string]digest.Digest {
	t.Helper()
	names, err := st.Tags(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]digest.Digest{}
	for _, n := range names {
		if out[n], err = st.ResolveTag(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// step is what the fault matrix runs: open the repository and take the second
// snapshot of a system, in two pack manifests.
func step(ctx context.Context, b *repotest.Bed, st store.Store, units [][]byte) (*repo.Snapshot, error) {
	r, err := repo.Open(ctx, st, b.Options("main"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	parent, err := r.Find(ctx, "shop", "")
	if err != nil {
		return nil, err
	}
	w, err := r.NewWriter(ctx, repo.WriterOptions{System: "shop", Parent: parent})
	if err != nil {
		return nil, err
	}
	defer w.Close()
	refs, err := putAll(ctx, w, units[:len(units)/2])
	if err != nil {
		return nil, err
	}
	if err := w.Flush(ctx); err != nil {
		return nil, err
	}
	more, err := putAll(ctx, w, units[len(units)/2:])
	if err != nil {
		return nil, err
	}
	return w.Commit(ctx, rootOf(append(refs, more...), "main"), repo.CommitInfo{})
}

// TestFaultMatrix fails the calls that a snapshot makes, in each way. After any
// of them: the old snapshot is whole, what is visible verifies (invariant 1),
// no tag has moved (invariant 11), and running the step again succeeds
// (invariant 8).
func TestFaultMatrix(t *testing.T) {
	t.Parallel()
	old := content(11, 12)
	units := append(content(12, 12), old[:6]...)
	b := repotest.NewBed(t)
	mustSnapshot(t, b.Host("main"), "shop", nil, old)
	clean := b.Fork()
	probe := faults.New(t, clean.Store)
	if _, err := step(t.Context(), clean, probe, units); err != nil {
		t.Fatal(err)
	}
	for _, m := range mishaps(t, 32, probe.Calls()) {
		t.Run(m.String(), func(t *testing.T) {
			t.Parallel()
			b := b.ForkFor(t)
			before := tagsOf(t, b.Store)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			s, err := step(ctx, b, faults.New(t, b.Store, m.fault(cancel)), units)
			if err == nil {
				mustHold(t, b.Host("main"), s, units)
			}
			afterFault(t, b, before, old, units, err)
		})
	}
}

// afterFault checks the invariants and runs the step again.
func afterFault(t *testing.T, b *repotest.Bed, before map[string]digest.Digest, old, units [][]byte, failed error) {
	t.Helper()
	now := tagsOf(t, b.Store)
	for tag, d := range before {
		if now[tag] != d {
			t.Fatalf("tag %s was moved", tag)
		}
	}
	fresh := b.Host("observer")
	snaps, problems, err := fresh.Snapshots(t.Context(), "shop")
	if err != nil || len(problems) != 0 || len(snaps) == 0 {
		t.Fatalf("after %v: %d snapshots, problems %v, %v", failed, len(snaps), problems, err)
	}
	mustHold(t, fresh, &snaps[0], old)
	for i := range snaps[1:] {
		mustHold(t, fresh, &snaps[i+1], units)
	}
	if problems, err := fresh.Verify(t.Context(), nil); err != nil || len(problems) != 0 {
		t.Fatalf("after %v: %v, %v", failed, problems, err)
	}
	if failed != nil && len(snaps) > 1 && !errors.Is(failed, dr.ErrOutcomeUnknown) && !errors.Is(failed, context.Canceled) {
		t.Fatalf("a snapshot became visible although the error was %v", failed)
	}
	s, err := step(t.Context(), b, b.Store, units)
	if err != nil {
		t.Fatalf("running it again after %v: %v", failed, err)
	}
	mustHold(t, fresh, s, units)
}

// noBlobs is a store that takes no blob any more.
type noBlobs struct{ store.Store }

func (noBlobs) PutBlob(context.Context, digest.Digest, int64, func() (io.ReadCloser, error)) (int64, error) {
	return 0, store.ErrUnreachable
}

// A pack that cannot be sent is the last thing that a commit waits for, again
// and again, with uploaders and the commit side by side: nothing is committed
// that lacks it (invariant 1).
func TestFailedPackIsNeverCommitted(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	mustSnapshot(t, b.Host("main"), "shop", nil, content(1, 2))
	r := b.HostOn("main", noBlobs{b.Store})
	for i := range 1000 {
		s, _, err := snapshot(t.Context(), r, repo.WriterOptions{System: "shop"}, "main", [][]byte{fmt.Appendf(nil, "unit %d", i)})
		if !errors.Is(err, store.ErrUnreachable) {
			t.Fatalf("round %d: snapshot %+v, %v", i, s, err)
		}
	}
}

// A run cut off after its first pack manifest goes on from there: the orphan is
// found again and its units are not sent twice.
func TestInterruptedRunGoesOn(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	units := content(3, 200)
	func() {
		r := b.Host("main")
		w, err := r.NewWriter(t.Context(), repo.WriterOptions{System: "shop"})
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close() // as if killed: no Commit
		if _, err := putAll(t.Context(), w, units[:150]); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := putAll(t.Context(), w, units[150:]); err != nil {
			t.Fatal(err)
		}
	}()
	if snaps, problems, err := b.Host("main").Snapshots(t.Context(), ""); err != nil || len(snaps)+len(problems) != 0 {
		t.Fatalf("an unfinished snapshot is visible: %v %v %v", snaps, problems, err)
	}
	r := b.Host("main")
	s, st, err := snapshot(t.Context(), r, repo.WriterOptions{System: "shop"}, "main", units)
	if err != nil {
		t.Fatal(err)
	}
	if st.UnitsNew != 51 {
		t.Fatalf("%d units were sent, want the 50 that were lost and the root", st.UnitsNew)
	}
	mustHold(t, r, s, units)
	// Once a snapshot names it, it is no longer remembered as an orphan.
	_, st, err = snapshot(t.Context(), b.Host("main"), repo.WriterOptions{System: "shop"}, "main", units)
	if err != nil || st.UnitsNew != 1 {
		t.Fatalf("%+v, %v", st, err)
	}
}

// A manifest that vanishes between the last look and the tag, or right after
// the tag, is pushed again (invariant 2); where its packs went too, the error
// says so and the next run sends everything again.
func TestNeededManifestVanishes(t *testing.T) {
	t.Parallel()
	units := content(4, 30)
	for _, tc := range []struct {
		name string
		// where the manifest vanishes
		op   faults.Op
		arg  string
		kind faults.Kind
	}{
		{"before the tag is put", faults.PutManifest, "s.shop.2", faults.Duplicate},
		{"after the tag is put", faults.GetManifest, "s.shop.2", faults.Duplicate},
	} {
		for _, packsToo := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, packs too %v", tc.name, packsToo), func(t *testing.T) {
				t.Parallel()
				b := repotest.NewBed(t)
				first := mustSnapshot(t, b.Host("main"), "shop", nil, units)
				vanish := func() {
					m, err := b.Store.GetManifest(t.Context(), first.Needs[0].String())
					if err != nil {
						t.Error(err)
						return
					}
					if packsToo {
						for _, d := range layersOf(t, m.Body) {
							b.Store.Drop(d)
						}
					}
					if !b.Store.Vanish(first.Needs[0]) {
						t.Error("it was not there")
					}
				}
				f := faults.Fault{Op: tc.op, Arg: tc.arg, Kind: tc.kind, Do: vanish}
				more := append(bytes2(units), noise(5, 100))
				r := b.HostOn("main", faults.New(t, b.Store, f))
				s, _, err := snapshot(t.Context(), r, repo.WriterOptions{System: "shop", Parent: first}, "main", more)
				if !packsToo {
					if err != nil {
						t.Fatal(err)
					}
					mustHold(t, b.Host("other"), s, more)
					mustHold(t, b.Host("other"), first, units)
					return
				}
				if !errors.Is(err, repo.ErrParentDamaged) {
					t.Fatalf("error %v, want ErrParentDamaged", err)
				}
				r = b.Host("main")
				if _, err := r.NewWriter(t.Context(), repo.WriterOptions{System: "shop", Parent: first}); !errors.Is(err, repo.ErrParentDamaged) {
					t.Fatalf("building on the damaged snapshot again: %v", err)
				}
				s, st, err := snapshot(t.Context(), r, repo.WriterOptions{System: "shop"}, "main", more)
				if err != nil {
					t.Fatal(err)
				}
				if st.UnitsNew < 30 {
					t.Fatalf("only %d units were sent again", st.UnitsNew)
				}
				mustHold(t, b.Host("other"), s, more)
			})
		}
	}
}

// Two hosts and two writers of one host at once, in the same system and in
// others: every snapshot that was reported is visible under a number of its own.
func TestWritersAtOnce(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	hosts := []*repo.Repo{b.Host("a"), b.Host("b")}
	type result struct {
		s     *repo.Snapshot
		units [][]byte
		err   error
	}
	results := make(chan result)
	n := 0
	for i, r := range hosts {
		for k, sys := range []dr.System{"shop", "shop", "blog"} {
			n++
			go func() {
				units := append(content(1, 40), content(uint64(10*i+k+2), 20)...)
				s, _, err := snapshot(t.Context(), r, repo.WriterOptions{System: sys}, "main", units)
				results <- result{s, units, err}
			}()
		}
	}
	tags := map[string]bool{}
	var all []result
	for range n {
		res := <-results
		if res.err != nil {
			t.Fatal(res.err)
		}
		if tags[res.s.Tag] {
			t.Fatalf("%s was given twice", res.s.Tag)
		}
		tags[res.s.Tag] = true
		all = append(all, res)
	}
	want := []string{"s.blog.1", "s.blog.2", "s.shop.1", "s.shop.2", "s.shop.3", "s.shop.4"}
	if got := slices.Sorted(maps.Keys(tags)); !slices.Equal(got, want) {
		t.Fatalf("tags %v, want %v", got, want)
	}
	for _, res := range all {
		mustHold(t, b.Host("observer"), res.s, res.units)
	}
	if problems, err := b.Host("observer").Verify(t.Context(), nil); err != nil || len(problems) != 0 {
		t.Fatalf("verify: %v, %v", problems, err)
	}
}

// A registry that lets tags be overwritten: whoever finds another's record
// under its number takes the next one (docs/adr/0001).
func TestTagOverwrittenRightAfterCommit(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	theirs := mustSnapshot(t, b.Host("other"), "shop", nil, content(1, 5))
	f := faults.Fault{Op: faults.GetManifest, Arg: "s.shop.2", Call: 1, Kind: faults.Duplicate, Do: func() {
		b.Store.MoveTag("s.shop.2", theirs.Digest)
	}}
	r := b.HostOn("main", faults.New(t, b.Store, f))
	units := content(2, 10)
	s, _, err := snapshot(t.Context(), r, repo.WriterOptions{System: "shop"}, "main", units)
	if err != nil {
		t.Fatal(err)
	}
	if s.Tag != "s.shop.3" {
		t.Fatalf("the snapshot is under %s", s.Tag)
	}
	mustHold(t, b.Host("observer"), s, units)
}
