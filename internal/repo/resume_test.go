package repo_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"

	"lifeboat/internal/casetest"
	"lifeboat/internal/dr"
	"lifeboat/internal/pack"
	"lifeboat/internal/registry/registrytest"
	"lifeboat/internal/repo"
	"lifeboat/internal/repo/repotest"
	"lifeboat/internal/seal"
	"lifeboat/internal/store/faults"
	"lifeboat/internal/store/ocistore"
)

// bulk is about n packs of incompressible units.
func bulk(n int) [][]byte {
	var out [][]byte
	for i := range n * 8 {
		out = append(out, noise(uint64(500+i), 1<<20-1000))
	}
	return out
}

// inFlight bounds what a killed run sends again: what was on its way, being
// filled and being compressed when it died.
const inFlight = 5 * pack.TargetSize

func state(t *testing.T, dir, what string) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, "repositories", "*", what, "*"))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// TestKilledAtEachPack: a run that dies while it sends pack n, long before a pack
// manifest is due, costs sending again only what was on its way.
func TestKilledAtEachPack(t *testing.T) {
	t.Parallel()
	units := bulk(8)
	total := int64(0)
	for _, u := range units {
		total += int64(len(u))
	}
	for _, n := range casetest.Some(t, 3, []int{1, 2, 3, 4, 5, 6, 7, 8}) {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			b := repotest.NewBed(t)
			b.Host("main")
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			dst := &counting{Store: b.Store}
			st := faults.New(t, dst, faults.Fault{Op: faults.PutBlob, Call: n + 1, Kind: faults.HangAfter, Do: cancel}) // the first is the empty blob
			if _, _, err := snapshot(ctx, b.HostOn("main", st), repo.WriterOptions{System: "shop"}, "main", units); err == nil {
				t.Fatal("it was not killed")
			}
			arrived := dst.sent
			r := b.HostOn("main", dst)
			s, stats, err := snapshot(t.Context(), r, repo.WriterOptions{System: "shop"}, "main", units)
			if err != nil {
				t.Fatal(err)
			}
			if most := total - arrived + inFlight; stats.BytesNew > most {
				t.Errorf("%d bytes arrived of %d, and %d were new again, want at most %d", arrived, total, stats.BytesNew, most)
			}
			mustHold(t, b.Host("other"), s, units)
			if left := state(t, b.Options("main").StateDir, "journal"); len(left) != 0 {
				t.Errorf("journals are left: %v", left)
			}
		})
	}
}

// TestPacksOfAKilledRunAreGone: what a collector took meanwhile is sent again.
func TestPacksOfAKilledRunAreGone(t *testing.T) {
	t.Parallel()
	units := bulk(6)
	b := repotest.NewBed(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	st := faults.New(t, b.Store, faults.Fault{Op: faults.PutBlob, Call: 6, Kind: faults.HangAfter, Do: cancel})
	if _, _, err := snapshot(ctx, b.HostOn("main", st), repo.WriterOptions{System: "shop"}, "main", units); err == nil {
		t.Fatal("it was not killed")
	}
	if b.Store.Collect() == 0 {
		t.Fatal("nothing was stored")
	}
	s, stats, err := snapshot(t.Context(), b.Host("main"), repo.WriterOptions{System: "shop"}, "main", units)
	if err != nil || stats.UnitsNew != int64(len(units))+1 {
		t.Fatalf("%d new units, %v", stats.UnitsNew, err)
	}
	mustHold(t, b.Host("other"), s, units)
}

// TestResumeFaults fails each call that resuming makes, before and after its
// effect; the run after that is whole.
func TestResumeFaults(t *testing.T) {
	t.Parallel()
	units := bulk(6)
	prepared := repotest.NewBed(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	kill := faults.New(t, prepared.Store, faults.Fault{Op: faults.PutBlob, Call: 6, Kind: faults.HangAfter, Do: cancel})
	if _, _, err := snapshot(ctx, prepared.HostOn("main", kill), repo.WriterOptions{System: "shop"}, "main", units); err == nil {
		t.Fatal("it was not killed")
	}
	if len(state(t, prepared.Options("main").StateDir, "journal")) != 1 {
		t.Fatal("no journal is left")
	}
	begin := func(b *repotest.Bed, st *faults.Store) error {
		r, err := repo.Open(t.Context(), st, b.Options("main"))
		if err != nil {
			return err
		}
		defer func() { _ = r.Close() }()
		w, err := r.NewWriter(t.Context(), repo.WriterOptions{System: "shop"})
		if err == nil {
			w.Close()
		}
		return err
	}
	b := prepared.Fork()
	probe := faults.New(t, b.Store)
	if err := begin(b, probe); err != nil {
		t.Fatal(err)
	}
	if len(state(t, b.Options("main").StateDir, "journal")) != 0 || len(state(t, b.Options("main").StateDir, "pending")) != 1 {
		t.Fatal("the packs were not named")
	}
	var all []mishap
	count := map[faults.Op]int{}
	for _, c := range probe.Calls() {
		count[c.Op]++
		all = append(all,
			mishap{op: c.Op, call: count[c.Op], name: "fails before", kind: faults.Before},
			mishap{op: c.Op, call: count[c.Op], name: "fails after", kind: faults.After})
	}
	for _, m := range casetest.Spread(t, 16, all, func(m mishap) faults.Op { return m.op }) {
		t.Run(m.String(), func(t *testing.T) {
			t.Parallel()
			b := prepared.ForkFor(t)
			err := begin(b, faults.New(t, b.Store, m.fault(nil)))
			s, stats, again := snapshot(t.Context(), b.Host("main"), repo.WriterOptions{System: "shop"}, "main", units)
			if again != nil || stats.UnitsNew > int64(len(units)) {
				t.Fatalf("%v: %d units were sent again: %v", err, stats.UnitsNew, again)
			}
			mustHold(t, b.Host("other"), s, units)
		})
	}
}

// childEnv tells the test binary to be the process that is killed.
const childEnv = "LIFEBOAT_TEST_KILLED_WRITER"

// TestKilledWriterProcess is the process that TestKilledProcess kills: it sends
// packs to a registry and stands still once some have arrived.
func TestKilledWriterProcess(t *testing.T) {
	args := strings.Split(os.Getenv(childEnv), "\n")
	if len(args) != 4 {
		return
	}
	st, err := ocistore.Open(t.Context(), args[0], ocistore.Options{Fingerprint: args[1]})
	if err != nil {
		t.Fatal(err)
	}
	id, err := age.ParseX25519Identity(args[2])
	if err != nil {
		t.Fatal(err)
	}
	r, err := repo.Open(t.Context(), st, killedHost(t, args[0], args[3], id))
	if err != nil {
		t.Fatal(err)
	}
	stop := func(s repo.Stats) {
		if s.Packs >= 6 {
			fmt.Println("packs are there")
			select {}
		}
	}
	w, err := r.NewWriter(t.Context(), repo.WriterOptions{System: "shop", Progress: stop})
	if err != nil {
		t.Fatal(err)
	}
	_, err = putAll(t.Context(), w, bulk(12))
	t.Fatalf("it went on to the end: %v", err)
}

func killedHost(t *testing.T, url, dir string, id age.Identity) repo.OpenOptions {
	key, err := repo.LoadOrCreateHostKey(dir)
	if err != nil {
		t.Fatal(err)
	}
	return repo.OpenOptions{
		Local:      repo.Local{Location: url, StateDir: filepath.Join(dir, "state"), CacheDir: filepath.Join(dir, "cache")},
		Identities: []age.Identity{id}, Host: key, HostName: "main",
	}
}

// TestKilledProcess: a process is killed with SIGKILL while it sends to a real
// registry; the next one goes on from what has arrived.
func TestKilledProcess(t *testing.T) {
	t.Parallel()
	reg := registrytest.Start(t)
	rc, id := recipient(t, "ops")
	url, dir := reg.URL("dr/killed"), t.TempDir()
	connect := func() *counting {
		st, err := ocistore.Open(t.Context(), url, reg.Options())
		if err != nil {
			t.Fatal(err)
		}
		return &counting{Store: st}
	}
	created, err := repo.Create(t.Context(), connect(), repo.CreateOptions{Local: repo.Local{Location: url}, Recipients: []seal.Recipient{rc}})
	if err != nil {
		t.Fatal(err)
	}
	if err := created.Close(); err != nil {
		t.Fatal(err)
	}
	child := exec.Command(os.Args[0], "-test.run=^TestKilledWriterProcess$")
	child.Env = append(os.Environ(), childEnv+"="+strings.Join([]string{url, reg.Fingerprint, id.String(), dir}, "\n"))
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewScanner(out)
	for in.Scan() && in.Text() != "packs are there" {
		t.Log(in.Text())
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait() // it was killed
	if left := state(t, filepath.Join(dir, "state"), "journal"); len(left) != 1 {
		t.Fatalf("journals %v", left)
	}
	st := connect()
	r, err := open(t, st, killedHost(t, url, dir, id))
	if err != nil {
		t.Fatal(err)
	}
	units := bulk(12)
	s, _, err := snapshot(t.Context(), r, repo.WriterOptions{System: dr.System("shop")}, "main", units)
	if err != nil {
		t.Fatal(err)
	}
	if most := int64(12-6)*(pack.TargetSize+1<<20) + inFlight; st.sent > most {
		t.Errorf("six packs had arrived, and %d bytes were sent, want at most %d", st.sent, most)
	}
	mustHold(t, r, s, units)
}
