package repo_test

import (
	"bytes"
	"errors"
	"sync"
	"testing"

	"filippo.io/age"
	"pgregory.net/rapid"

	"lifeboat/internal/dr"
	"lifeboat/internal/repo"
	"lifeboat/internal/repo/repotest"
	"lifeboat/internal/seal"
)

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	r := b.Host("main")
	units := content(1, 400)
	units = append(units, noise(99, dr.MaxUnit), []byte{1})
	s := mustSnapshot(t, r, "shop", nil, units)
	if s.Tag != "s.shop.1" || s.Number != 1 || s.System != "shop" || s.Site != "main" || s.Host != r.HostID() ||
		s.Kind != dr.KindCurrent || s.Freeze.Microseconds() != 1500 || s.BytesNew == 0 || s.BytesSent == 0 || s.Created.IsZero() {
		t.Fatalf("commit record: %+v", s)
	}
	mustHold(t, r, s, units)
	// A host that has never seen the repository, with nothing but the key.
	fresh := b.Host("stand-in")
	got, err := fresh.Find(t.Context(), "shop", "")
	if err != nil || got.ID != s.ID {
		t.Fatalf("found %v, %v", got, err)
	}
	mustHold(t, fresh, got, units)
	rd, err := fresh.NewReader(t.Context(), got)
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	root, err := rd.Root(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i, ref := range listOf(root) {
		u, err := rd.Unit(t.Context(), ref)
		if err != nil || !bytes.Equal(u, units[i]) {
			t.Fatalf("unit %d: %v", i, err)
		}
	}
	if _, err := rd.Unit(t.Context(), dr.UnitRef{Len: 3}); !errors.Is(err, dr.ErrTampered) {
		t.Fatalf("a unit that is not there: %v", err)
	}
	var last repo.VerifyProgress
	problems, err := fresh.Verify(t.Context(), func(p repo.VerifyProgress) {
		if p.Packs != last.Packs+1 || p.Bytes <= last.Bytes {
			t.Errorf("progress went from %+v to %+v", last, p)
		}
		last = p
	})
	if err != nil || len(problems) != 0 || last.Packs != last.PacksTotal || last.Bytes != last.BytesTotal || last.Packs == 0 {
		t.Fatalf("verify: %v, %v, %+v", problems, err, last)
	}
	problems, err = r.Check(t.Context())
	if err != nil || len(problems) != 0 {
		t.Fatalf("check: %v, %v", problems, err)
	}
}

// A second snapshot sends what is new and nothing else.
func TestDeduplication(t *testing.T) {
	t.Parallel()
	r := repotest.New(t)
	units := content(1, 300)
	first, st1, err := snapshot(t.Context(), r, repo.WriterOptions{System: "shop"}, "main", append(units, units...))
	if err != nil {
		t.Fatal(err)
	}
	if st1.UnitsNew != 301 || st1.UnitsKnown != 300 { // and the root
		t.Fatalf("first: %+v", st1)
	}
	changed := append(bytes2(units), noise(77, 5000))
	changed[3] = noise(78, 100)
	second, st2, err := snapshot(t.Context(), r, repo.WriterOptions{System: "shop", Parent: first}, "main", changed)
	if err != nil {
		t.Fatal(err)
	}
	if st2.UnitsNew != 3 || st2.BytesSent > 40<<10 {
		t.Fatalf("second: %+v", st2)
	}
	// Another system in the same repository shares what is equal.
	other, st3, err := snapshot(t.Context(), r, repo.WriterOptions{System: "blog"}, "main", units)
	if err != nil {
		t.Fatal(err)
	}
	if st3.UnitsNew != 1 {
		t.Fatalf("another system: %+v", st3)
	}
	mustHold(t, r, first, append(bytes2(units), units...))
	mustHold(t, r, second, changed)
	mustHold(t, r, other, units)
}

func bytes2(u [][]byte) [][]byte { return append([][]byte(nil), u...) }

func TestPutIsConcurrent(t *testing.T) {
	t.Parallel()
	r := repotest.New(t)
	units := content(5, 400)
	w, err := r.NewWriter(t.Context(), repo.WriterOptions{System: "shop"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	refs := make([]dr.UnitRef, len(units))
	var wg sync.WaitGroup
	for k := range 8 { // every unit is put by two goroutines
		wg.Go(func() {
			for i := k % 4; i < len(units); i += 4 {
				data := bytes.Clone(units[i])
				ref, err := w.Put(t.Context(), data)
				if err != nil {
					t.Error(err)
					return
				}
				clear(data) // Put copies
				if k < 4 {
					refs[i] = ref
				}
			}
		})
	}
	wg.Go(func() {
		for range 3 {
			if err := w.Flush(t.Context()); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	s, err := w.Commit(t.Context(), rootOf(refs, "main"), repo.CommitInfo{})
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	w.Close()
	if _, err := w.Put(t.Context(), []byte{1}); err == nil {
		t.Fatal("a closed writer took a unit")
	}
	mustHold(t, r, s, units)
}

func TestBadInputToWriter(t *testing.T) {
	t.Parallel()
	r := repotest.New(t)
	if _, err := r.NewWriter(t.Context(), repo.WriterOptions{System: "No"}); !errors.Is(err, dr.ErrUsage) {
		t.Errorf("system name: %v", err)
	}
	w, err := r.NewWriter(t.Context(), repo.WriterOptions{System: "shop"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for _, n := range []int{0, dr.MaxUnit + 1} {
		if _, err := w.Put(t.Context(), make([]byte, n)); !errors.Is(err, dr.ErrUsage) {
			t.Errorf("unit of %d bytes: %v", n, err)
		}
	}
	for name, spoil := range map[string]func(*dr.Root){
		"no site": func(r *dr.Root) { r.Site = "" },
		"no kind": func(r *dr.Root) { r.Kind = "" },
		"no time": func(r *dr.Root) { r.Created = (&dr.Root{}).Created },
	} {
		root := rootOf(nil, "main")
		spoil(root)
		if _, err := w.Commit(t.Context(), root, repo.CommitInfo{}); !errors.Is(err, dr.ErrUsage) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if snaps, problems, err := r.Snapshots(t.Context(), ""); err != nil || len(snaps)+len(problems) != 0 {
		t.Errorf("something became visible: %v, %v, %v", snaps, problems, err)
	}
}

// What was sent is told on the way and made findable when enough was.
func TestLongWork(t *testing.T) {
	t.Parallel()
	for name, set := range map[string]func(*repo.Writer){
		"by bytes": func(w *repo.Writer) { w.SetLimits(10<<20, 1<<30, 0, 1<<40) },
		"by units": func(w *repo.Writer) { w.SetLimits(1<<40, 30, 0, 1<<40) },
		"by time":  func(w *repo.Writer) { w.SetLimits(1<<40, 1<<30, 0, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := repotest.New(t)
			var sent int64
			w, err := r.NewWriter(t.Context(), repo.WriterOptions{System: "shop", Progress: func(s repo.Stats) {
				if s.BytesSent < sent {
					t.Errorf("bytes sent went from %d to %d", sent, s.BytesSent)
				}
				sent = s.BytesSent
			}})
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			set(w)
			var units [][]byte
			for i := range 60 {
				units = append(units, noise(uint64(i), 1<<20))
			}
			refs, err := putAll(t.Context(), w, units)
			if err != nil {
				t.Fatal(err)
			}
			s, err := w.Commit(t.Context(), rootOf(refs, "main"), repo.CommitInfo{})
			if err != nil {
				t.Fatal(err)
			}
			if len(s.Needs) < 2 || sent < 60<<20 || w.Stats().Packs < 4 {
				t.Fatalf("%d manifests, %d bytes, %+v", len(s.Needs), sent, w.Stats())
			}
			mustHold(t, r, s, units)
		})
	}
}

// Long work is made findable on the way, and more manifests than a snapshot may
// list are merged without sending packs again.
func TestManyManifestsAreMerged(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	r := b.Host("main")
	var all [][]byte
	var parent *repo.Snapshot
	for round := range 12 {
		w, err := r.NewWriter(t.Context(), repo.WriterOptions{System: "shop", Parent: parent})
		if err != nil {
			t.Fatal(err)
		}
		w.SetLimits(1<<40, 1<<30, 6, 1<<40)
		var refs []dr.UnitRef
		all = append(all, content(uint64(round), 20)...)
		for i, u := range all {
			ref, err := w.Put(t.Context(), u)
			if err != nil {
				t.Fatal(err)
			}
			refs = append(refs, ref)
			if i == len(all)-10 {
				if err := w.Flush(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
		}
		parent, err = w.Commit(t.Context(), rootOf(refs, "main"), repo.CommitInfo{})
		if err != nil {
			t.Fatal(err)
		}
		if st := w.Stats(); st.UnitsNew != 21 {
			t.Fatalf("round %d: %+v", round, st)
		}
		w.Close()
		if len(parent.Needs) > 6 {
			t.Fatalf("round %d needs %d manifests", round, len(parent.Needs))
		}
	}
	mustHold(t, r, parent, all)
	mustHold(t, b.Host("other"), parent, all)
	snaps, _, err := r.Snapshots(t.Context(), "shop")
	if err != nil || len(snaps) != 12 {
		t.Fatalf("%d snapshots, %v", len(snaps), err)
	}
	for i := range snaps {
		mustHold(t, r, &snaps[i], all[:20*(i+1)])
	}
	if problems, err := r.Verify(t.Context(), nil); err != nil || len(problems) != 0 {
		t.Fatalf("verify: %v, %v", problems, err)
	}
}

// Property: whatever is put in whatever order over several snapshots, hosts and
// flushes comes back from each snapshot.
func TestAnyHistoryReadsBack(t *testing.T) {
	t.Parallel()
	pool := content(7, 60)
	rapid.Check(t, func(rt *rapid.T) {
		b := repotest.NewBed(t)
		var hosts []*repo.Repo
		for range 2 { // without a state directory: nothing waits for the disk
			r, err := repo.Open(t.Context(), b.Store, repo.OpenOptions{Identities: []age.Identity{b.Identity}, Host: seal.NewHostKey()})
			if err != nil {
				rt.Fatal(err)
			}
			defer func() {
				if err := r.Close(); err != nil {
					rt.Error(err)
				}
			}()
			hosts = append(hosts, r)
		}
		type taken struct {
			s     *repo.Snapshot
			units [][]byte
		}
		var history []taken
		for range rapid.IntRange(1, 4).Draw(rt, "snapshots") {
			r := hosts[rapid.IntRange(0, 1).Draw(rt, "host")]
			o := repo.WriterOptions{System: rapid.SampledFrom([]dr.System{"shop", "blog"}).Draw(rt, "system")}
			if rapid.Bool().Draw(rt, "parent") {
				if p, err := r.Find(t.Context(), o.System, ""); err == nil {
					o.Parent = p
				}
			}
			o.Exact = rapid.Bool().Draw(rt, "exact")
			w, err := r.NewWriter(t.Context(), o)
			if err != nil {
				rt.Fatal(err)
			}
			w.SetLimits(int64(rapid.IntRange(1, 2<<20).Draw(rt, "limit")), 1<<30, rapid.IntRange(2, 5).Draw(rt, "needs"), 1<<40)
			var refs []dr.UnitRef
			var units [][]byte
			for _, i := range rapid.SliceOfN(rapid.IntRange(0, len(pool)-1), 1, 40).Draw(rt, "units") {
				if rapid.IntRange(0, 30).Draw(rt, "flush") == 0 {
					if err := w.Flush(t.Context()); err != nil {
						rt.Fatal(err)
					}
				}
				ref, err := w.Put(t.Context(), pool[i])
				if err != nil {
					rt.Fatal(err)
				}
				refs, units = append(refs, ref), append(units, pool[i])
			}
			s, err := w.Commit(t.Context(), rootOf(refs, "main"), repo.CommitInfo{})
			if err != nil {
				rt.Fatal(err)
			}
			w.Close()
			history = append(history, taken{s, units})
		}
		for _, h := range history {
			for _, r := range hosts {
				mustHold(t, r, h.s, h.units)
			}
		}
		if problems, err := hosts[0].Verify(t.Context(), nil); err != nil || len(problems) != 0 {
			rt.Fatalf("verify: %v, %v", problems, err)
		}
	})
}
