package recover_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lifeboat/internal/capture"
	"lifeboat/internal/capture/capturetest"
	"lifeboat/internal/casetest"
	"lifeboat/internal/dr"
	"lifeboat/internal/engine/fake"
	"lifeboat/internal/fence"
	"lifeboat/internal/ledger"
	"lifeboat/internal/recover"
	"lifeboat/internal/repo"
	"lifeboat/internal/repo/repotest"
	"lifeboat/internal/store"
	"lifeboat/internal/store/faults"
)

func TestMain(m *testing.M) { os.Exit(capturetest.Main(m)) }

const (
	sys    = capturetest.System
	volume = "volume:" + capturetest.Volume
)

// party is one site with its host of the repository.
type party struct {
	*capturetest.Site
	host string
}

func (p party) deps(r *repo.Repo, l *ledger.Ledger) recover.Deps {
	return recover.Deps{Engine: p.Engine, Repo: r, Ledger: l, State: p.State, Log: capturetest.Log()}
}

func (p party) options() recover.Options { return recover.Options{System: sys, Site: p.Name} }

func (p party) snapshot(ctx context.Context, b *repotest.Bed, st store.Store) (*capture.Result, error) {
	r, l, closeRepo, err := capturetest.Open(ctx, b, p.host, st)
	if err != nil {
		return nil, err
	}
	defer closeRepo()
	return capture.Run(ctx, capture.Deps{Engine: p.Engine, Repo: r, Ledger: l, State: p.State, Log: capturetest.Log()},
		capture.Options{System: sys, Site: p.Name, Selector: capturetest.Selector()})
}

func (p party) failover(ctx context.Context, b *repotest.Bed, st store.Store, hook func(string)) (*recover.Result, error) {
	r, l, closeRepo, err := capturetest.Open(ctx, b, p.host, st)
	if err != nil {
		return nil, err
	}
	defer closeRepo()
	o := recover.FailoverOptions{Options: p.options()}
	o.Hook = hook
	return recover.Failover(ctx, p.deps(r, l), o)
}

func (p party) handOver(ctx context.Context, b *repotest.Bed, st store.Store, to dr.Site, takeBack bool) (*recover.HandOverResult, error) {
	r, l, closeRepo, err := capturetest.Open(ctx, b, p.host, st)
	if err != nil {
		return nil, err
	}
	defer closeRepo()
	return recover.HandOver(ctx, p.deps(r, l), recover.HandOverOptions{
		Options: p.options(), Selector: capturetest.Selector(), To: to, Patience: 2 * time.Minute, Poll: time.Millisecond, TakeBack: takeBack,
	})
}

// failback moves the system from giver to p; giverStore is the giver's way to
// the repository.
func (p party) failback(ctx context.Context, b *repotest.Bed, st store.Store, giver party, giverStore store.Store, hook func(string)) (*recover.Result, error) {
	r, l, closeRepo, err := capturetest.Open(ctx, b, p.host, st)
	if err != nil {
		return nil, err
	}
	defer closeRepo()
	o := recover.FailbackOptions{
		Options: p.options(), Patience: 2 * time.Minute, Poll: time.Millisecond,
		Giver: func(ctx context.Context) error {
			_, err := giver.handOver(ctx, b, giverStore, p.Name, false)
			return err
		},
	}
	o.Hook = hook
	return recover.Failback(ctx, p.deps(r, l), o)
}

// claims reads the epochs as somebody else, and makes sure that every visible
// snapshot is whole (invariant 1).
func claims(t *testing.T, b *repotest.Bed) []fence.Claim {
	t.Helper()
	r, l, closeRepo, err := capturetest.Open(t.Context(), b, "observer", b.Store)
	if err != nil {
		t.Fatal(err)
	}
	defer closeRepo()
	if problems, err := r.Check(t.Context()); err != nil || len(problems) > 0 {
		t.Fatalf("check: problems %v, %v", problems, err)
	}
	out, err := l.Claims(t.Context(), sys)
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range out {
		if c.Epoch != dr.Epoch(i+1) {
			t.Fatalf("claims %+v are not dense", out)
		}
	}
	return out
}

// holder is the site that holds the newest epoch.
func holder(t *testing.T, b *repotest.Bed) dr.Site {
	t.Helper()
	c := claims(t, b)
	return c[len(c)-1].Site
}

func equalTrees(t *testing.T, what string, want, got map[string]string) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Fatalf("%s: files differ (-want +got):\n%s", what, d)
	}
}

// prepared is a repository with one snapshot of a running system, of which the
// main site is lost afterwards.
func prepared(t *testing.T) (*repotest.Bed, party) {
	t.Helper()
	b := repotest.NewBed(t)
	main := party{capturetest.New(t, "main"), "main"}
	main.Fill(t)
	main.Start(t)
	if _, err := main.snapshot(t.Context(), b, b.Store); err != nil {
		t.Fatal(err)
	}
	return b, main
}

func TestFailover(t *testing.T) {
	t.Parallel()
	b, main := prepared(t)
	standIn := party{capturetest.New(t, "stand-in"), "stand-in"}
	res, err := standIn.failover(t.Context(), b, b.Store, nil)
	if err != nil {
		t.Fatal(err)
	}
	if res.Epoch != 2 || holder(t, b) != "stand-in" || !standIn.Serves(t) || res.Kept != nil {
		t.Fatalf("result %+v", res)
	}
	equalTrees(t, "stand-in", main.Files(t), standIn.Files(t))
	// The main site is stale now (invariant 6).
	if _, err := main.snapshot(t.Context(), b, b.Store); !errors.Is(err, dr.ErrFenced) {
		t.Errorf("a snapshot of the stale site: %v", err)
	}
	// A second failover to where it runs brings the newest snapshot up again.
	if res, err = standIn.failover(t.Context(), b, b.Store, nil); err != nil || holder(t, b) != "stand-in" {
		t.Errorf("again: %+v, %v", res, err)
	}
	equalTrees(t, "again", main.Files(t), standIn.Files(t))
}

// Each store call of a failover fails in each way. The stand-in never serves
// without the epoch, and the same command again ends as if nothing had been
// (invariants 6 and 8).
func TestFailoverStoreFaults(t *testing.T) {
	t.Parallel()
	b, main := prepared(t)
	want := main.Files(t)
	probe := faults.New(t, b.Fork().Store)
	if _, err := (party{capturetest.New(t, "stand-in"), "stand-in"}).failover(t.Context(), b.Fork(), probe, nil); err != nil {
		t.Fatal(err)
	}
	var cases []faults.Fault
	for i, c := range probe.Calls() {
		kinds := []faults.Kind{faults.Before}
		if c.Op == faults.PutManifest || c.Op == faults.PutBlob {
			kinds = []faults.Kind{faults.Before, faults.After, faults.Hang, faults.HangAfter}
		} else if i%3 == 0 {
			kinds[0] = faults.Hang
		}
		for _, kind := range kinds {
			cases = append(cases, faults.Fault{Call: i + 1, Kind: kind})
		}
	}
	for _, f := range casetest.Some(t, 10, cases) {
		t.Run(fmt.Sprintf("%d-%d", f.Call, f.Kind), func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if f.Kind == faults.Hang || f.Kind == faults.HangAfter {
				f.Do = cancel
			}
			fork := b.Fork()
			standIn := party{capturetest.New(t, "stand-in"), "stand-in"}
			_, first := standIn.failover(ctx, fork, faults.New(lenient{t}, fork.Store, f), nil)
			if standIn.Serves(t) && holder(t, fork) != "stand-in" {
				t.Fatalf("it serves without the epoch after %v", first)
			}
			if n := len(claims(t, fork)); n > 2 {
				t.Fatalf("%d epochs", n)
			}
			res, err := standIn.failover(t.Context(), fork, fork.Store, nil)
			if err != nil {
				t.Fatalf("first %v, again: %v", first, err)
			}
			if marked, err := standIn.State.Marked(sys); err != nil || len(marked) > 0 {
				t.Fatalf("marked %v, %v", marked, err)
			}
			if !standIn.Serves(t) || holder(t, fork) != "stand-in" || res.Epoch < 2 {
				t.Fatalf("first %v; again it does not serve, or %s holds the epoch", first, holder(t, fork))
			}
			if first != nil && len(claims(t, fork)) != 2 {
				t.Fatalf("first %v; then %d epochs", first, len(claims(t, fork)))
			}
			equalTrees(t, fmt.Sprint("first ", first), want, standIn.Files(t))
		})
	}
}

// lenient does not mind a fault that fell on nothing: calls that run side by
// side, and looks for the other side's word, are not the same number each time.
type lenient struct{ *testing.T }

func (lenient) Cleanup(func()) {}

// The engine fails while a failover works with it.
func TestFailoverEngineFaults(t *testing.T) {
	t.Parallel()
	b, main := prepared(t)
	want := main.Files(t)
	var cases []fake.Fault
	for _, kind := range []fake.FaultKind{fake.Refuse, fake.DropBefore, fake.DropAfter} {
		for _, f := range []fake.Fault{
			{Method: "POST", Path: "/images/load"},
			{Method: "POST", Path: "/networks/create"},
			{Method: "POST", Path: "/volumes/create"},
			{Method: "POST", Path: "/containers/create", Skip: 1},
			{Method: "POST", Path: "/containers/[^/]+/start"},
			{Method: "POST", Path: "/containers/[^/]+/start", Skip: 1},
			{Method: "POST", Path: "/containers/[^/]+/update"},
		} {
			f.Kind = kind
			cases = append(cases, f)
		}
	}
	for _, f := range casetest.Some(t, 6, cases) {
		t.Run(fmt.Sprintf("%s-%d-%d", strings.Trim(strings.ReplaceAll(f.Path, "/", "-"), "-"), f.Skip, f.Kind), func(t *testing.T) {
			t.Parallel()
			fork := b.Fork()
			standIn := party{capturetest.New(t, "stand-in"), "stand-in"}
			standIn.Fake.Break(f)
			_, first := standIn.failover(t.Context(), fork, fork.Store, nil)
			if standIn.Serves(t) && holder(t, fork) != "stand-in" {
				t.Fatalf("it serves without the epoch after %v", first)
			}
			if _, err := standIn.failover(t.Context(), fork, fork.Store, nil); err != nil {
				t.Fatalf("first %v, again: %v", first, err)
			}
			if left := standIn.Fake.Unused(); len(left) > 0 {
				t.Errorf("planned faults that hit nothing: %v", left)
			}
			if !standIn.Serves(t) || holder(t, fork) != "stand-in" {
				t.Fatal("it does not serve")
			}
			equalTrees(t, fmt.Sprint("first ", first), want, standIn.Files(t))
		})
	}
}

// moved is a system that runs at the stand-in after a failover, with writes of
// its own there; the main site has come back, stopped, with writes that no
// snapshot has.
func moved(t *testing.T) (b *repotest.Bed, main, standIn party) {
	t.Helper()
	b, main = prepared(t)
	standIn = party{capturetest.New(t, "stand-in"), "stand-in"}
	main.Write(t, volume, "lost", "acknowledged after the last snapshot")
	for _, c := range capturetest.Containers {
		if err := main.Engine.Stop(t.Context(), c, -1); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := standIn.failover(t.Context(), b, b.Store, nil); err != nil {
		t.Fatal(err)
	}
	standIn.Write(t, volume, "dir/file2", "written at the stand-in")
	standIn.Write(t, "layer:shop-web", "etc/own", "changed at the stand-in")
	return b, main, standIn
}

// exclusive fails if both sites serve (invariant 6).
func exclusive(t *testing.T, what string, a, b party) {
	t.Helper()
	if a.Serves(t) && b.Serves(t) {
		t.Fatalf("%s: both sites serve", what)
	}
}

func TestFailback(t *testing.T) {
	t.Parallel()
	b, main, standIn := moved(t)
	late := false
	res, err := main.failback(t.Context(), b, b.Store, standIn, b.Store, func(point string) {
		exclusive(t, point, main, standIn)
		if strings.HasPrefix(point, "done:") && strings.HasSuffix(point, ":record") && !late {
			late = true // staged: the stand-in serves on until it is asked to stop
			standIn.Write(t, volume, "dir/late", "written while the main site was being prepared")
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if !late || res.Epoch != 3 || holder(t, b) != "main" || !main.Serves(t) || standIn.Serves(t) {
		t.Fatalf("result %+v", res)
	}
	equalTrees(t, "main", standIn.Files(t), main.Files(t))
	if !strings.Contains(main.Files(t)[volume+"/dir/late"], "written while") {
		t.Error("the last write is missing (invariant 7)")
	}
	// What the main site held and no snapshot had is kept.
	if res.Kept == nil || res.Kept.Kind != dr.KindDivergent {
		t.Fatalf("kept %+v", res.Kept)
	}
}

// Store calls of either side fail during a failback. Never do both sites serve,
// nothing is lost, and the same command again, as often as needed, ends at the
// main site (invariants 6, 7 and 8).
func TestFailbackStoreFaults(t *testing.T) {
	t.Parallel()
	type mishap struct {
		side string
		f    faults.Fault
	}
	var cases []mishap
	for side, name := range []string{"taker", "giver"} {
		// What is written last decides: each record and snapshot of either side, each
		// in two ways. What is read, and what is written before, only delays.
		for call := 1; call <= 7; call++ {
			for _, kind := range [][]faults.Kind{{faults.Before, faults.HangAfter}, {faults.After, faults.Hang}}[(call+side)%2] {
				cases = append(cases, mishap{name, faults.Fault{Op: faults.PutManifest, Call: call, Kind: kind}})
			}
		}
		for i, op := range []faults.Op{faults.PutBlob, faults.GetBlob, faults.GetManifest, faults.ResolveTag, faults.Tags} {
			cases = append(cases, mishap{name, faults.Fault{Op: op, Call: []int{1, 3, 9, 27}[(i+side)%4], Kind: faults.Before}})
		}
	}
	cases = casetest.Some(t, 4, cases)
	var struck atomic.Int64
	t.Cleanup(func() {
		if n := int(struck.Load()); n == 0 {
			t.Errorf("only %d of %d planned faults were exercised", n, len(cases))
		}
	})
	for _, c := range cases {
		t.Run(fmt.Sprintf("%s-%s-%d-%d", c.side, c.f.Op, c.f.Call, c.f.Kind), func(t *testing.T) {
			t.Parallel()
			b, main, standIn := moved(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			f := c.f
			if f.Kind == faults.Hang || f.Kind == faults.HangAfter {
				f.Do = cancel
			}
			broken := faults.New(lenient{t}, b.Store, f)
			takerStore, giverStore := store.Store(b.Store), store.Store(b.Store)
			if c.side == "taker" {
				takerStore = broken
			} else {
				giverStore = broken
			}
			_, first := main.failback(ctx, b, takerStore, standIn, giverStore, func(point string) { exclusive(t, point, main, standIn) })
			if len(broken.Unexercised()) == 0 {
				struck.Add(1)
			}
			exclusive(t, fmt.Sprint("after ", first), main, standIn)
			if main.Serves(t) && holder(t, b) == "main" || first == nil {
				if standIn.Serves(t) || !main.Serves(t) {
					t.Fatalf("after %v the wrong site serves", first)
				}
			}
			var history []string
			for range 4 {
				if holder(t, b) == "main" && main.Serves(t) {
					break
				}
				_, err := main.failback(t.Context(), b, b.Store, standIn, b.Store, func(point string) { exclusive(t, point, main, standIn) })
				history = append(history, fmt.Sprint(err))
				exclusive(t, fmt.Sprint("again: ", err), main, standIn)
			}
			if holder(t, b) != "main" || !main.Serves(t) || standIn.Serves(t) {
				t.Fatalf("first %v; then %q: %s holds the epoch, main serves: %v, stand-in serves: %v", first, history, holder(t, b), main.Serves(t), standIn.Serves(t))
			}
			equalTrees(t, fmt.Sprint("first ", first), standIn.Files(t), main.Files(t))
		})
	}
}
