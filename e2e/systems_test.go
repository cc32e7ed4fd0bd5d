package e2e

import (
	"log/slog"
	"testing"

	"lifeboat/lab"
	"lifeboat/lab/systems"
)

// TestWordPressUnderLoad: WordPress with MariaDB in two containers is captured
// while clients write, its host is lost, it serves at the stand-in with every
// entry that was acknowledged before the freeze, and comes back with every
// entry that was acknowledged at the stand-in (invariants 4 and 7).
func TestWordPressUnderLoad(t *testing.T) {
	underLoad(t, systems.WordPress(systems.Params{}), lab.EngineDocker20, lab.EngineDocker20)
}

// TestGuestbookAcrossEngines: a system with PostgreSQL moves from an engine of
// 2020 with overlay2 to a new one with the containerd image store, and back.
func TestGuestbookAcrossEngines(t *testing.T) {
	underLoad(t, systems.Guestbook(systems.Params{}), lab.EngineDocker20, lab.EngineContainerd)
}

func underLoad(t *testing.T, sys *systems.System, mainEngine, standinEngine lab.Engine) {
	r := newRig(t, mainEngine, standinEngine)
	ctx := t.Context()
	if err := sys.Up(ctx, r.main, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	if err := sys.Seed(ctx, r.main, systems.Seed{}); err != nil {
		t.Fatal(err)
	}
	r.init()
	r.must(r.main, nil, "protect", "shop", "--project", sys.Project)
	load, err := sys.StartLoad(ctx, r.main, systems.LoadOptions{Writers: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer load.Stop()
	var snap snapshotJSON
	for range 3 {
		if err := load.Await(ctx, 10); err != nil {
			t.Fatal(err)
		}
		r.must(r.main, &snap, "snapshot", "shop")
		t.Logf("scanned %d, new %d, sent %d bytes, frozen %.1f ms, %d ms", snap.BytesScanned, snap.BytesNew, snap.BytesSent, snap.FreezeMS, snap.ElapsedMS)
	}
	if err := load.Await(ctx, 5); err != nil {
		t.Fatal(err)
	}
	acked := load.Stop()
	if err := r.main.Crash(ctx); err != nil {
		t.Fatal(err)
	}

	var up bringJSON
	r.must(r.standin, &up, "failover", "shop", "--override", "paths."+r.main.Disk+"="+r.standin.Disk)
	serves(t, sys, r.standin)
	ledger, err := sys.Ledger(ctx, r.standin)
	if err != nil {
		t.Fatal(err)
	}
	if err := ledger.Check(); err != nil {
		t.Errorf("after the failover: %v", err)
	}
	if err := ledger.CheckAcked(acked, snap.Created); err != nil {
		t.Errorf("after the failover: %v", err)
	}

	load, err = sys.StartLoad(ctx, r.standin, systems.LoadOptions{Writers: 2, First: 100_000})
	if err != nil {
		t.Fatal(err)
	}
	if err := load.Await(ctx, 20); err != nil {
		t.Fatal(err)
	}
	if err := r.main.Start(ctx); err != nil {
		t.Fatal(err)
	}
	var back bringJSON
	r.must(r.main, &back, "failback", "shop", "--from", r.standin.DockerHost())
	written := load.Stop()
	t.Logf("failback fetched %d bytes", back.BytesFetched)
	serves(t, sys, r.main)
	if ledger, err = sys.Ledger(ctx, r.main); err != nil {
		t.Fatal(err)
	}
	if err := ledger.Check(); err != nil {
		t.Errorf("after the failback: %v", err)
	}
	if len(written) == 0 {
		t.Fatal("nothing was acknowledged at the stand-in")
	}
	if err := ledger.CheckAcked(written, written[len(written)-1].Acked); err != nil {
		t.Errorf("after the failback: %v", err)
	}
}

// serves waits for the front page and lets the database check itself.
func serves(t *testing.T, sys *systems.System, s *lab.Site) {
	t.Helper()
	if err := sys.AwaitServing(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if err := sys.Verify(t.Context(), s); err != nil {
		t.Errorf("%s: %v", s.Name, err)
	}
}
