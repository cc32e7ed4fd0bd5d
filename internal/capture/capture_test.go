package capture_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lifeboat/internal/capture"
	"lifeboat/internal/capture/capturetest"
	"lifeboat/internal/casetest"
	"lifeboat/internal/dr"
	"lifeboat/internal/engine/fake"
	"lifeboat/internal/fence"
	"lifeboat/internal/repo"
	"lifeboat/internal/repo/repotest"
	"lifeboat/internal/store"
	"lifeboat/internal/store/faults"
	"lifeboat/internal/store/memstore"
)

func TestMain(m *testing.M) { os.Exit(capturetest.Main(m)) }

const sys = capturetest.System

// snapshot opens the repository over st as a host and takes a snapshot.
func snapshot(ctx context.Context, b *repotest.Bed, host string, s *capturetest.Site, st store.Store, o capture.Options) (*capture.Result, error) {
	return snapshotOf(ctx, sys, b, host, s, st, o)
}

// snapshotOf takes the containers as those of any system.
func snapshotOf(ctx context.Context, system dr.System, b *repotest.Bed, host string, s *capturetest.Site, st store.Store, o capture.Options) (*capture.Result, error) {
	r, l, closeRepo, err := capturetest.Open(ctx, b, host, st)
	if err != nil {
		return nil, err
	}
	defer closeRepo()
	o.System, o.Site, o.Selector = system, s.Name, capturetest.Selector()
	return capture.Run(ctx, capture.Deps{Engine: s.Engine, Repo: r, Ledger: l, State: s.State, Log: capturetest.Log()}, o)
}

// trees are the hashes of a snapshot's trees.
func trees(root *dr.Root) map[string]string {
	out := map[string]string{}
	for _, t := range root.Trees {
		out[t.Key] = t.Hash.String()
	}
	return out
}

// visible lists what another host sees, after making sure that all of it is
// whole (invariant 1) and that at most one host holds the epoch (invariant 6).
func visible(t *testing.T, b *repotest.Bed, observer string, st *memstore.Store) ([]repo.Snapshot, []fence.Claim) {
	t.Helper()
	r, l, closeRepo, err := capturetest.Open(context.WithoutCancel(t.Context()), b, observer, st)
	if err != nil {
		t.Fatal(err)
	}
	defer closeRepo()
	snaps, problems, err := r.Snapshots(t.Context(), sys)
	if err != nil || len(problems) > 0 {
		t.Fatalf("list: problems %v, %v", problems, err)
	}
	if problems, err := r.Verify(t.Context(), nil); err != nil || len(problems) > 0 {
		t.Fatalf("verify: problems %v, %v", problems, err)
	}
	claims, err := l.Claims(t.Context(), sys)
	if err != nil {
		t.Fatal(err)
	}
	return snaps, claims
}

func TestSnapshot(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	s := capturetest.New(t, "main")
	s.Fill(t)
	first, err := snapshot(t.Context(), b, "main", s, b.Store, capture.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if !first.Committed || first.Root.Consistency != dr.ConsistentStopped || first.Snapshot.Epoch != 1 || len(first.Root.Images) != 1 ||
		len(first.Root.Networks) != 1 || len(first.Root.Containers) != 2 || first.Root.Parent != nil {
		t.Fatalf("first snapshot %+v", first.Root)
	}
	s.Write(t, "volume:"+capturetest.Volume, "dir/file1", "changed")
	second, err := snapshot(t.Context(), b, "main", s, b.Store, capture.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if *second.Root.Parent != first.Snapshot.ID || second.BytesNew > first.BytesNew/2 || second.Snapshot.Epoch != 1 {
		t.Fatalf("second snapshot: parent %v, %d bytes new after %d", second.Root.Parent, second.BytesNew, first.BytesNew)
	}
	a, c := trees(first.Root), trees(second.Root)
	for key, changed := range map[string]bool{"volume:shop_data": true, "layer:shop-db": false, "layer:shop-web": false} {
		if a[key] == "" || (a[key] != c[key]) != changed {
			t.Errorf("tree %s: %s, then %s", key, a[key], c[key])
		}
	}
	// Nothing new, and it was to be kept only if there is something.
	same, err := snapshot(t.Context(), b, "main", s, b.Store, capture.Options{Kind: dr.KindDivergent, OnlyIfNew: true})
	if err != nil || same.Committed || same.Snapshot.ID != second.Snapshot.ID {
		t.Fatalf("divergent snapshot of what is there: %+v, %v", same, err)
	}
	snaps, claims := visible(t, b, "observer", b.Store)
	if len(snaps) != 2 || len(claims) != 1 {
		t.Fatalf("%d snapshots, %d claims", len(snaps), len(claims))
	}
}

// imageBytes counts what is read of images.
type imageBytes struct {
	phase string
	n     int64
}

func (p *imageBytes) Phase(name string) { p.phase = name }
func (p *imageBytes) Expect(int64)      {}
func (p *imageBytes) Bytes(n int64) {
	if p.phase == "images" {
		p.n += n
	}
}

// An image that this host has stored for one system is not read for the next. What
// another host recorded of it is not relied upon.
func TestImageOfAnotherSystem(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	s := capturetest.New(t, "main")
	s.Fill(t)
	var first *capture.Result
	for _, c := range []struct {
		system dr.System
		host   string
		read   bool
	}{{"shop", "main", true}, {"forms", "main", false}, {"wiki", "standin", true}} {
		s.NewState(t)
		var p imageBytes
		res, err := snapshotOf(t.Context(), c.system, b, c.host, s, b.Store, capture.Options{Progress: &p})
		if err != nil {
			t.Fatalf("%s: %v", c.system, err)
		}
		if (p.n > 0) != c.read {
			t.Errorf("%s of host %s: %d bytes of images read", c.system, c.host, p.n)
		}
		if first == nil {
			first = res
		} else if d := cmp.Diff(first.Root.Images, res.Root.Images); d != "" {
			t.Errorf("%s: images:\n%s", c.system, d)
		}
	}
	if problems, err := b.Host("observer").Verify(t.Context(), nil); err != nil || len(problems) > 0 {
		t.Errorf("verify: %v, %v", problems, err)
	}
}

// A running system is frozen through the engine where its cgroups cannot be
// reached, and runs on afterwards.
func TestSnapshotOfWhatRuns(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	s := capturetest.New(t, "main")
	s.Fill(t)
	s.Start(t)
	frozen := map[string]string{}
	res, err := snapshot(t.Context(), b, "main", s, b.Store, capture.Options{Hook: func(point string) {
		if point == "frozen" {
			maps.Copy(frozen, s.States(t))
			s.Write(t, "volume:"+capturetest.Volume, "late", "written after the pre-copy")
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range capturetest.Containers {
		if now := s.States(t)[name]; frozen[name] != "paused" || now != "running" {
			t.Errorf("container %s was %s in the freeze and is %s", name, frozen[name], now)
		}
	}
	if res.Root.Consistency != dr.ConsistentCrash || res.Freeze.Containers != 2 {
		t.Errorf("consistency %s, %d frozen", res.Root.Consistency, res.Freeze.Containers)
	}
	for _, tr := range res.Root.Trees {
		if tr.Key == "volume:"+capturetest.Volume && tr.Entries != 9 { // root, dir, 5 files, big, late
			t.Errorf("%d entries in the volume", tr.Entries)
		}
	}
	// The engine refuses to freeze one: nothing stays frozen, nothing is visible.
	s.Fake.Break(fake.Fault{Method: "POST", Path: `/containers/[^/]+/pause`, Skip: 1, Kind: fake.Refuse})
	if _, err := snapshot(t.Context(), b, "main", s, b.Store, capture.Options{}); err == nil {
		t.Error("a snapshot of what could not be frozen")
	}
	for name, state := range s.States(t) {
		if state != "running" {
			t.Errorf("after a freeze that failed %s is %s", name, state)
		}
	}
	if snaps, _ := visible(t, b, "observer", b.Store); len(snaps) != 1 {
		t.Errorf("%d snapshots", len(snaps))
	}
	if left := s.Fake.Unused(); len(left) > 0 {
		t.Errorf("planned faults that hit nothing: %v", left)
	}
}

// A store call fails while the system stands still or right before: it is
// thawed all the same.
func TestFaultAroundTheFreeze(t *testing.T) {
	t.Parallel()
	for _, point := range []string{"freezing", "frozen", "thawed"} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			b := repotest.NewBed(t)
			s := capturetest.New(t, "main")
			s.Fill(t)
			s.Start(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			_, err := snapshot(ctx, b, "main", s, b.Store, capture.Options{Hook: func(p string) {
				if p == point {
					cancel()
				}
			}})
			if err == nil {
				t.Error("a run that was interrupted succeeded")
			}
			for name, state := range s.States(t) {
				if state != "running" {
					t.Errorf("container %s is %s", name, state)
				}
			}
			if snaps, claims := visible(t, b, "observer", b.Store); len(snaps)+len(claims) != 0 {
				t.Errorf("%d snapshots, %d claims", len(snaps), len(claims))
			}
			if _, err := snapshot(t.Context(), b, "main", s, b.Store, capture.Options{}); err != nil {
				t.Errorf("again: %v", err)
			}
		})
	}
}

// mishaps lists what can go wrong with each store call of a run.
func mishaps(calls []faults.Call) []faults.Fault {
	var out []faults.Fault
	for i, c := range calls {
		kinds := []faults.Kind{faults.Before}
		switch {
		case c.Op == faults.PutManifest || c.Op == faults.PutBlob:
			kinds = []faults.Kind{faults.Before, faults.After, faults.Hang, faults.HangAfter}
		case i%3 == 0:
			kinds = append(kinds, faults.Hang) // reading has no effect to come after
		}
		for _, k := range kinds {
			out = append(out, faults.Fault{Call: i + 1, Kind: k})
		}
	}
	return out
}

// Each store call of a first snapshot and of one that builds on it fails before
// its effect, after it, or hangs until the run is given up. No half snapshot is
// seen, at most one host holds the epoch, and the same command again gives the
// same (invariants 1, 6 and 8).
func TestStoreFaults(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"first", "second"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			b := repotest.NewBed(t)
			s := capturetest.New(t, "main")
			s.Fill(t)
			before := 0
			if kind == "second" {
				if _, err := snapshot(t.Context(), b, "main", s, b.Store, capture.Options{}); err != nil {
					t.Fatal(err)
				}
				before = 1
				s.Write(t, "volume:"+capturetest.Volume, "dir/file1", "changed")
				s.Write(t, "layer:shop-web", "etc/other", "new")
			}
			base := b.Store
			host := "main"
			probe := faults.New(t, base.Clone())
			s.NewState(t)
			want, err := snapshot(t.Context(), b.Fork(), host, s, probe, capture.Options{})
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range casetest.Some(t, 16, mishaps(probe.Calls())) {
				t.Run(fmt.Sprintf("%d-%s-%d", f.Call, probe.Calls()[f.Call-1].Op, f.Kind), func(t *testing.T) {
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					if f.Kind == faults.Hang || f.Kind == faults.HangAfter {
						f.Do = cancel
					}
					bed := b.Fork()
					inner := base.Clone()
					s.NewState(t)
					// Calls that run side by side come in another order now and then, so a
					// fault may fall on another one; that it falls is all that counts.
					st := faults.New(lenient{t}, inner, f)
					_, first := snapshot(ctx, bed, host, s, st, capture.Options{})
					snaps, claims := visible(t, bed, "observer", inner)
					if len(claims) > 1 {
						t.Fatalf("claims %+v", claims)
					}
					switch made := len(snaps) - before; {
					case first == nil && made != 1, made < 0, made > 1:
						t.Fatalf("error %v, and %d snapshots were made", first, made)
					case first != nil && made == 1 && !errors.Is(first, dr.ErrOutcomeUnknown) && !strings.Contains(first.Error(), "is visible as"):
						t.Fatalf("error %v does not say that the snapshot may be visible, and it is", first)
					}
					again, err := snapshot(t.Context(), bed, host, s, inner, capture.Options{})
					if err != nil {
						t.Fatalf("first: %v; again: %v", first, err)
					}
					if d := cmp.Diff(trees(want.Root), trees(again.Root)); d != "" {
						t.Fatalf("first: %v; again differs:\n%s", first, d)
					}
					if snaps, claims = visible(t, bed, "observer", inner); len(claims) != 1 || snaps[len(snaps)-1].ID != again.Snapshot.ID {
						t.Fatalf("%d claims, newest snapshot %s, want %s", len(claims), snaps[len(snaps)-1].ID.Short(), again.Snapshot.ID.Short())
					}
				})
			}
		})
	}
}

// lenient does not mind a fault that fell on nothing.
type lenient struct{ *testing.T }

func (lenient) Cleanup(func()) {}
