package repo_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"lifeboat/internal/dr"
	"lifeboat/internal/repo"
	"lifeboat/internal/repo/repotest"
	"lifeboat/internal/retain"
	"lifeboat/internal/store"
	"lifeboat/internal/store/faults"
)

// clock is a clock that only tests move.
type clock struct{ now time.Time }

func (c *clock) read() time.Time { return c.now }

func collect(ctx context.Context, r *repo.Repo, grace time.Duration, c *clock) (*repo.Collection, error) {
	o := repo.CollectOptions{Grace: grace}
	if c != nil {
		o.Now = c.read
	}
	return r.Collect(ctx, o)
}

func states(c *repo.Collection) map[repo.CollectState]int {
	out := map[repo.CollectState]int{}
	for _, row := range c.Rows {
		out[row.State]++
	}
	return out
}

func packTags(t testing.TB, st store.Store) []string {
	t.Helper()
	tags, err := st.Tags(t.Context(), "m.")
	if err != nil {
		t.Fatal(err)
	}
	return tags
}

// The grace counts from when the manifest was first seen unneeded; what is
// removed is gone, its packs with the registry's next collection, and what is
// needed stays.
func TestCollect(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	r := b.Host("main")
	for i := range 4 {
		take(t, r, uint64(i), taken{created: ages(9 - i)})
	}
	if _, err := forget(t.Context(), r, retain.Policy{Last: 1}); err != nil {
		t.Fatal(err)
	}
	c := &clock{now: time.Now()}
	dry, err := r.Collect(t.Context(), repo.CollectOptions{DryRun: true, Now: c.read})
	if err != nil || states(dry)[repo.CollectDue] != 3 || dry.Needed != 1 {
		t.Fatalf("%+v, %v", dry, err)
	}
	for _, tc := range []struct {
		after time.Duration
		want  repo.CollectState
		left  int
	}{{0, repo.CollectYoung, 4}, {71 * time.Hour, repo.CollectYoung, 4}, {time.Hour, repo.CollectRemoved, 1}} {
		c.now = c.now.Add(tc.after)
		got, err := collect(t.Context(), r, repo.DefaultGrace, c)
		if err != nil || states(got)[tc.want] != 3 || len(packTags(t, b.Store)) != tc.left {
			t.Fatalf("after %s: %+v, %v", tc.after, got, err)
		}
		if n, size := got.Freed(tc.want); n != 3 || size < 3*500 {
			t.Errorf("freed %d, %d bytes", n, size)
		}
	}
	if n := b.Store.Collect(); n < 6 {
		t.Errorf("the registry's collector found %d blobs, want packs and indexes of three", n)
	}
	again, err := collect(t.Context(), r, repo.DefaultGrace, c)
	if err != nil || len(again.Rows) != 0 {
		t.Fatalf("again: %+v, %v", again, err)
	}
	s, err := r.Find(t.Context(), "shop", "")
	if err != nil {
		t.Fatal(err)
	}
	mustHold(t, b.Host("other"), s, [][]byte{noise(3, 500)})
}

// A registry that does not look what lists a manifest: its tag goes first, and
// after a wait it goes itself. One that deletes no tags is left as it is.
func TestCollectUnchecked(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	b.Store.Unchecked()
	r := b.Host("main")
	first := take(t, r, 1, taken{created: ages(2)})
	take(t, r, 2, taken{created: ages(1)})
	if _, err := forget(t.Context(), r, retain.Policy{Last: 1}); err != nil {
		t.Fatal(err)
	}
	weak := b.HostOn("main", faults.New(t, b.Store, faults.Fault{Op: faults.DeleteTag, Kind: faults.Before, Err: store.ErrUnsupported}))
	if _, err := collect(t.Context(), weak, 0, nil); !errors.Is(err, store.ErrUnsupported) {
		t.Fatalf("%v", err)
	}
	c := &clock{now: time.Now().Add(time.Minute)}
	for _, tc := range []struct {
		after time.Duration
		want  repo.CollectState
	}{{0, repo.CollectUntagged}, {repo.UncheckedWait - time.Second, repo.CollectUntagged}, {time.Second, repo.CollectRemoved}} {
		c.now = c.now.Add(tc.after)
		got, err := collect(t.Context(), r, 0, c)
		if err != nil || states(got)[tc.want] != 1 || len(packTags(t, b.Store)) != 1 {
			t.Fatalf("after %s: %+v, %v", tc.after, got, err)
		}
	}
	if _, err := b.Store.GetManifest(t.Context(), first.Needs[0].String()); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("it is there: %v", err)
	}
	if again, err := collect(t.Context(), r, 0, c); err != nil || len(again.Rows) != 0 {
		t.Fatalf("again: %+v, %v", again, err)
	}
}

// What any tag lists stays: a snapshot that does not verify, and a tag that
// somebody gave a snapshot.
func TestCollectKeepsWhatIsListed(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	r := b.Host("main")
	a := take(t, r, 1, taken{created: ages(3)})
	kept := take(t, r, 2, taken{created: ages(2)})
	take(t, r, 3, taken{created: ages(1)})
	for tag, s := range map[string]*repo.Snapshot{"s.blog.1": a, "keep-this": kept} {
		m, err := b.Store.GetManifest(t.Context(), s.Digest.String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Store.PutManifest(t.Context(), tag, m.MediaType, m.Body); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := forget(t.Context(), r, retain.Policy{Last: 1}); err != nil {
		t.Fatal(err)
	}
	got, err := collect(t.Context(), r, 0, nil)
	if err != nil || len(got.Rows) != 0 || len(got.Problems) != 1 {
		t.Fatalf("%+v, %v", got, err)
	}
	if _, err := b.Store.GetManifest(t.Context(), kept.Digest.String()); err != nil {
		t.Errorf("the image index that somebody tagged: %v", err)
	}
	// Nothing goes while a tag cannot be read.
	f := faults.Fault{Op: faults.GetManifest, Arg: "s.blog.1", Kind: faults.Before, Err: store.ErrDigestMismatch}
	if err := b.Store.DeleteTag(t.Context(), "keep-this"); err != nil {
		t.Fatal(err)
	}
	if _, err := collect(t.Context(), b.HostOn("main", faults.New(t, b.Store, f)), 0, nil); !errors.Is(err, dr.ErrTampered) || len(packTags(t, b.Store)) != 3 {
		t.Fatalf("%v, %d manifests left", err, len(packTags(t, b.Store)))
	}
	// Nor when the registry shows less than this host has seen.
	if err := b.Store.DeleteTag(t.Context(), "s.shop.3"); err != nil {
		t.Fatal(err)
	}
	if _, err := collect(t.Context(), r, 0, nil); !errors.Is(err, dr.ErrTampered) || len(packTags(t, b.Store)) != 3 {
		t.Fatalf("%v, %d manifests left", err, len(packTags(t, b.Store)))
	}
}

// A needed manifest that has lost its tag gets it back.
func TestCollectPutsTagsBack(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	r := b.Host("main")
	s := take(t, r, 1, taken{created: ages(2)})
	tag := packTags(t, b.Store)[0]
	if err := b.Store.DeleteTag(t.Context(), tag); err != nil {
		t.Fatal(err)
	}
	got, err := collect(t.Context(), r, 0, nil)
	if err != nil || got.Retagged != 1 || !slices.Equal(packTags(t, b.Store), []string{tag}) {
		t.Fatalf("%+v, %v", got, err)
	}
	mustHold(t, r, s, [][]byte{noise(1, 500)})
}

// A snapshot is committed on a manifest that is being collected, at each step of
// the collection; its writer is killed right after the commit, so only the
// collector is left to see to it (invariant 2).
func TestCollectMeetsACommit(t *testing.T) {
	t.Parallel()
	units := [][]byte{noise(1, 500), noise(2, 700)}
	for _, unchecked := range []bool{false, true} {
		for _, at := range []struct {
			op   faults.Op
			call int
			kind faults.Kind
		}{
			{faults.Tags, 1, faults.Duplicate},
			{faults.DeleteTag, 1, faults.Duplicate},
			{faults.DeleteTag, 1, faults.Before},
			{faults.Tags, 3, faults.Duplicate},
			{faults.Tags, 4, faults.Duplicate},
			{faults.DeleteManifest, 1, faults.Duplicate},
		} {
			t.Run(fmt.Sprintf("unchecked %v, %s %d %d", unchecked, at.op, at.call, at.kind), func(t *testing.T) {
				t.Parallel()
				b := repotest.NewBed(t)
				if unchecked {
					b.Store.Unchecked()
				}
				main, op := b.Host("main"), b.Host("op")
				old := mustSnapshot(t, main, "shop", nil, units)
				take(t, main, 9, taken{created: time.Now()})
				if _, err := forget(t.Context(), op, retain.Policy{Last: 1}); err != nil {
					t.Fatal(err)
				}
				// The run began while its parent was there, and looks right before the
				// commit as right after nothing.
				w, err := main.NewWriter(t.Context(), repo.WriterOptions{System: "shop", Parent: old})
				if err != nil {
					t.Fatal(err)
				}
				defer w.Close()
				refs, err := putAll(t.Context(), w, units)
				if err != nil {
					t.Fatal(err)
				}
				var s *repo.Snapshot
				commit := func() {
					if s, err = w.CommitAndDie(t.Context(), rootOf(refs, "main")); err != nil && !errors.Is(err, store.ErrIncomplete) {
						t.Errorf("commit: %v", err)
					}
				}
				c := &clock{now: time.Now()}
				if unchecked { // the wait is over, so that the deletion itself is met
					if _, err := collect(t.Context(), op, 0, c); err != nil {
						t.Fatal(err)
					}
					c.now = c.now.Add(repo.UncheckedWait)
				}
				fault := faults.Fault{Op: at.op, Call: at.call, Kind: at.kind, Do: commit}
				if at.op == faults.DeleteTag && unchecked || at.op == faults.Tags && at.call == 4 {
					fault.Op, fault.Call = faults.Tags, 2
				}
				r := b.HostOn("op", faults.New(t, b.Store, fault))
				if _, err := collect(t.Context(), r, 0, c); err != nil && at.kind != faults.Before {
					t.Fatal(err)
				}
				b.Store.Collect()
				if s != nil {
					mustHold(t, b.Host("fresh"), s, units)
				}
				if _, err := collect(t.Context(), op, 0, c); err != nil {
					t.Fatal(err)
				}
				if problems, err := b.Host("fresh").Check(t.Context()); err != nil || len(problems) > 0 {
					t.Fatalf("%v, %v", problems, err)
				}
			})
		}
	}
}

// TestCollectFaults fails and kills collection at each of its calls. What is
// visible is whole after each, and running it again ends the work.
func TestCollectFaults(t *testing.T) {
	t.Parallel()
	for _, unchecked := range []bool{false, true} {
		t.Run(fmt.Sprintf("unchecked %v", unchecked), func(t *testing.T) {
			t.Parallel()
			b := repotest.NewBed(t)
			if unchecked {
				b.Store.Unchecked()
			}
			r := b.Host("main")
			for i := range 4 {
				take(t, r, uint64(i), taken{created: ages(5 - i)})
			}
			if _, err := forget(t.Context(), r, retain.Policy{Last: 2}); err != nil {
				t.Fatal(err)
			}
			run := func(ctx context.Context, b *repotest.Bed, st store.Store) error {
				r, err := repo.Open(ctx, st, b.Options("main"))
				if err != nil {
					return err
				}
				defer func() { _ = r.Close() }()
				c := &clock{now: time.Now()}
				for range 3 { // tags, then manifests where that takes a wait, then what is left to note
					if _, err := collect(ctx, r, 0, c); err != nil {
						return err
					}
					c.now = c.now.Add(repo.UncheckedWait)
				}
				return nil
			}
			eachCall(t, 16, b, run, func(t *testing.T, b *repotest.Bed) {
				b.Store.Collect()
				fresh := b.Host("fresh")
				if problems, err := fresh.Verify(t.Context(), nil); err != nil || len(problems) > 0 {
					t.Fatalf("verify: %v, %v", problems, err)
				}
				if err := run(t.Context(), b, b.Store); err != nil {
					t.Fatalf("running it again: %v", err)
				}
				if got := numbersOf(t, fresh); !slices.Equal(got, []int{3, 4}) || len(packTags(t, b.Store)) != 2 {
					t.Fatalf("left are %v and %v", got, packTags(t, b.Store))
				}
				if problems, err := fresh.Verify(t.Context(), nil); err != nil || len(problems) > 0 {
					t.Fatalf("verify: %v, %v", problems, err)
				}
			})
		})
	}
}

// Two hosts take snapshots while a third forgets and collects at once, and the
// registry removes blobs: what was reported and not forgotten is whole.
func TestCollectBesideWriters(t *testing.T) {
	t.Parallel()
	for round := range 4 {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			t.Parallel()
			b := repotest.NewBed(t)
			const each = 12
			var mu sync.Mutex
			contents := map[dr.SnapshotID][][]byte{}
			var wg sync.WaitGroup
			stop := make(chan struct{})
			for h, name := range []string{"a", "b"} {
				r, sys := b.Host(name), dr.System([]string{"shop", "blog"}[h])
				wg.Go(func() {
					var parent *repo.Snapshot
					for i := range each {
						units := append(content(uint64(round), 6), content(uint64(100*round+10*i+h), 3)...)
						s, _, err := snapshot(t.Context(), r, repo.WriterOptions{System: sys, Parent: parent, Exact: i%2 == 0}, "main", units)
						if errors.Is(err, store.ErrIncomplete) || errors.Is(err, repo.ErrParentDamaged) {
							parent = nil // collected under its feet: it has to send it again
							continue
						}
						if err != nil {
							t.Error(err)
							return
						}
						mu.Lock()
						contents[s.ID] = units
						mu.Unlock()
						if parent = s; i%5 == 4 {
							parent = nil
						}
					}
				})
			}
			op := b.Host("op")
			done := make(chan struct{})
			go func() {
				defer close(done)
				for {
					select {
					case <-stop:
						return
					default:
					}
					for _, sys := range []dr.System{"shop", "blog"} {
						plan, err := op.PlanForget(t.Context(), sys, retain.Policy{Last: 2})
						if err == nil {
							err = op.Forget(t.Context(), plan)
						}
						if err != nil && !errors.Is(err, dr.ErrNotFound) {
							t.Error(err)
						}
					}
					if _, err := collect(t.Context(), op, 0, nil); err != nil {
						t.Error(err)
					}
					b.Store.Collect()
				}
			}()
			wg.Wait()
			close(stop)
			<-done
			fresh := b.Host("fresh")
			snaps, problems, err := fresh.Snapshots(t.Context(), "")
			if err != nil || len(problems) > 0 || len(snaps) == 0 {
				t.Fatalf("%d snapshots, %v, %v", len(snaps), problems, err)
			}
			for i := range snaps {
				got, err := readAll(t.Context(), fresh, &snaps[i])
				if err != nil {
					t.Fatalf("%s: %v", snaps[i].Tag, err)
				}
				if want, ok := contents[snaps[i].ID]; !ok || !slices.EqualFunc(got, want, bytes.Equal) {
					t.Fatalf("%s is not what was captured (known %v)", snaps[i].Tag, ok)
				}
			}
			if problems, err := fresh.Check(t.Context()); err != nil || len(problems) > 0 {
				t.Fatalf("check: %v, %v", problems, err)
			}
			t.Logf("%d reported, %d left, %d pack manifests", len(contents), len(snaps), len(packTags(t, b.Store)))
		})
	}
}
