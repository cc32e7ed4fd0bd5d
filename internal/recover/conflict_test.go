package recover_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/capture/capturetest"
	"lifeboat/internal/dr"
	"lifeboat/internal/engine"
	"lifeboat/internal/override"
	"lifeboat/internal/recover"
)

// TestProposedOverridesSolve: what a plan proposes for its conflicts is taken by
// the same command, and the system comes up beside what was in the way.
func TestProposedOverridesSolve(t *testing.T) {
	t.Parallel()
	b, _ := prepared(t)
	standIn := party{capturetest.New(t, "stand-in"), "stand-in"}
	ctx := t.Context()
	// Somebody else's system with the same names.
	standIn.Fill(t)
	r, l, closeRepo, err := capturetest.Open(ctx, b, "stand-in", b.Store)
	if err != nil {
		t.Fatal(err)
	}
	defer closeRepo()
	o := recover.FailoverOptions{Options: standIn.options()}
	res, err := recover.Failover(ctx, standIn.deps(r, l), o)
	var conflicts recover.Conflicts
	if !errors.As(err, &conflicts) || len(conflicts) < 4 || !errors.Is(err, dr.ErrHeld) || strings.Contains(err.Error(), "\n") {
		t.Fatalf("%v", err)
	}
	if res.Plan.FetchAtMost <= 0 || res.Plan.FetchExpected != res.Plan.FetchAtMost {
		t.Errorf("to fetch: at most %d, expected %d", res.Plan.FetchAtMost, res.Plan.FetchExpected)
	}
	var set override.Set
	for _, c := range conflicts {
		if err := set.ParsePair(c.Override); err != nil {
			t.Fatalf("%s: %v", c.Object, err)
		}
	}
	o.Overrides = set
	if res, err = recover.Failover(ctx, standIn.deps(r, l), o); err != nil {
		t.Fatal(err)
	}
	if res.Epoch != 2 || holder(t, b) != "stand-in" {
		t.Errorf("%+v", res)
	}
	inv, err := standIn.Engine.Inventory(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"shop-db", "shop-web", "shop-db-standin", "shop-web-standin"} {
		i := slices.IndexFunc(inv.Containers, func(c engine.InventoryContainer) bool { return c.Name == name })
		if i < 0 || (inv.Containers[i].State == "running") != strings.HasSuffix(name, "-standin") {
			t.Errorf("%s: %+v", name, inv.Containers)
		}
	}
}

// TestNameOfRestoredImage: the name that keeps an image while it is brought up is
// taken away once it has its own; where its own stays with another image it is
// kept, and never captured.
func TestNameOfRestoredImage(t *testing.T) {
	t.Parallel()
	b, _ := prepared(t)
	for name, taken := range map[string]bool{"empty": false, "taken": true} {
		standIn := party{capturetest.New(t, name), name}
		o := standIn.options()
		if taken {
			standIn.Fill(t)
			for _, pair := range []string{"names.prefix=other-", "networks.shop_net.subnet=10.9.0.0/24"} {
				if err := o.Overrides.ParsePair(pair); err != nil {
					t.Fatal(err)
				}
			}
		}
		r, l, closeRepo, err := capturetest.Open(t.Context(), b, name, b.Store)
		if err != nil {
			t.Fatal(err)
		}
		defer closeRepo()
		if _, err := recover.Failover(t.Context(), standIn.deps(r, l), recover.FailoverOptions{Options: o}); err != nil {
			t.Fatal(err)
		}
		sys, err := standIn.Engine.Discover(t.Context(), engine.Selector{Containers: []string{o.Overrides.Names.Prefix + "shop-db"}})
		if err != nil {
			t.Fatal(err)
		}
		img, err := standIn.Engine.Image(t.Context(), sys.Images[0].ID)
		if err != nil {
			t.Fatal(err)
		}
		own := func(tag string) bool { return strings.HasPrefix(tag, engine.RestoredRepo+":") }
		if got := slices.ContainsFunc(img.Tags, own); got != taken {
			t.Errorf("%s: the image has the names %q", name, img.Tags)
		}
		if slices.ContainsFunc(sys.Images[0].Tags, own) {
			t.Errorf("%s: captured are the names %q", name, sys.Images[0].Tags)
		}
	}
}

// TestFailbackTellsHowLong: what is to be fetched is expected to be the
// difference, and the time that nobody served is told.
func TestFailbackTellsHowLong(t *testing.T) {
	t.Parallel()
	b, main, standIn := moved(t)
	began := time.Now()
	res, err := main.failback(t.Context(), b, b.Store, standIn, b.Store, nil)
	if err != nil {
		t.Fatal(err)
	}
	whole := time.Since(began)
	if res.Down <= 0 || res.Down > whole || res.RTO < res.Down || res.RTO > whole || !res.Since.IsZero() {
		t.Errorf("down %v, served after %v, the command took %v, since %v", res.Down, res.RTO, whole, res.Since)
	}
	if p := res.Plan; p.FetchExpected >= p.FetchAtMost {
		t.Errorf("to fetch: at most %d, expected %d", p.FetchAtMost, p.FetchExpected)
	}
}
