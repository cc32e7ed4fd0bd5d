package repo_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"lifeboat/internal/casetest"
	"lifeboat/internal/dr"
	"lifeboat/internal/repo"
	"lifeboat/internal/repo/repotest"
	"lifeboat/internal/retain"
	"lifeboat/internal/store"
	"lifeboat/internal/store/faults"
)

// TestNothingIsLost lets two hosts take snapshots while a third forgets, compacts
// and collects without grace. Each act may meet another one in the middle of any
// of its store calls, with a call that fails before or after its effect, happens
// twice or reads short, or at which the host is killed; and the registry removes
// unnamed blobs at once. After each act every visible snapshot restores in full
// for a host that has cached nothing, and nothing that was reported is gone
// unless it was to be forgotten (invariants 1, 2, 8, 11).
//
// The seed of a failing round is printed; LIFEBOAT_TEST_SEED runs it again.
func TestNothingIsLost(t *testing.T) {
	t.Parallel()
	first := repotest.NewBed(t)
	for _, name := range []string{"a", "b", "op"} {
		if _, err := first.Host(name).Enrol(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	rounds := 40
	from, one := casetest.Seed(t)
	switch {
	case one:
		rounds = 1
	case casetest.All():
		rounds = 3000
	}
	var sum stressed
	for i := range uint64(rounds) {
		s := newStress(t, first, from+i)
		s.run()
		sum.add(s.did)
		if t.Failed() {
			t.Fatalf("seed %d", from+i)
		}
	}
	t.Logf("%d rounds from seed %d: %+v", rounds, from, sum)
	if rounds >= 40 && (sum.Relocated == 0 || sum.Met == 0 || sum.Killed == 0 || sum.Refused == 0) {
		t.Errorf("the rounds did not reach what they are for: %+v", sum)
	}
}

// stressed counts what happened.
type stressed struct{ Taken, Refused, Forgotten, Relocated, Removed, Met, Killed int }

func (a *stressed) add(b stressed) {
	a.Taken, a.Refused, a.Forgotten, a.Relocated = a.Taken+b.Taken, a.Refused+b.Refused, a.Forgotten+b.Forgotten, a.Relocated+b.Relocated
	a.Removed, a.Met, a.Killed = a.Removed+b.Removed, a.Met+b.Met, a.Killed+b.Killed
}

// stress is one round. Acts are nested, never at the same time, so one seed gives
// one round, but for the order of calls that a host makes in parallel.
type stress struct {
	t     *testing.T
	seed  uint64
	rnd   *rand.Rand
	bed   *repotest.Bed
	eye   *repo.Repo
	clock clock
	next  time.Time
	known map[int64]*captured
	open  *openRun
	depth int
	did   stressed
}

func newStress(t *testing.T, first *repotest.Bed, seed uint64) *stress {
	b := first.Fork()
	s := &stress{
		t: t, seed: seed, rnd: rand.New(rand.NewPCG(seed, 9)), bed: b, clock: clock{time.Now().UTC()},
		next: time.Now().UTC().Add(-1000 * time.Hour), known: map[int64]*captured{},
	}
	if s.rnd.IntN(2) == 0 {
		b.Store.Unchecked()
	}
	o := b.Options("observer")
	o.StateDir, o.Location, o.Host = "", "", nil
	eye, err := repo.Open(t.Context(), b.Store, o)
	if err != nil {
		t.Fatal(err)
	}
	s.eye = eye
	return s
}

func (s *stress) run() {
	defer func() {
		if s.open != nil {
			s.open.w.Close()
			_ = s.open.repo.Close()
		}
		_ = s.eye.Close()
	}()
	for range 14 {
		s.act()
		s.check()
		if s.t.Failed() {
			return
		}
	}
	// What was begun is finished, and then nothing is wrong.
	for range 2 {
		if err := s.collect(s.t.Context(), s.bed.Store); err != nil && !expected(err) {
			s.t.Errorf("seed %d: at the end: %v", s.seed, err)
		}
		s.bed.Store.Collect()
	}
	s.check()
	if problems, err := s.bed.Host("fresh").Check(s.t.Context()); err != nil || len(problems) > 0 {
		s.t.Errorf("seed %d: check: %v, %v", s.seed, problems, err)
	}
}

// act does one thing, mostly with a fault in it.
func (s *stress) act() {
	if s.rnd.IntN(8) == 0 {
		s.bed.Store.Collect()
	}
	if s.rnd.IntN(6) == 0 {
		s.clock.now = s.clock.now.Add(time.Duration(s.rnd.IntN(3)) * repo.UncheckedWait)
	}
	acts := []func(context.Context, store.Store) error{s.snapshot, s.snapshot, s.snapshot, s.snapshot, s.begin, s.finish, s.forget, s.forget, s.forget, s.collect, s.collect, s.collect}
	act := acts[s.rnd.IntN(len(acts))]
	ctx, cancel := context.WithCancel(s.t.Context())
	defer cancel()
	var st store.Store = s.bed.Store
	switch s.rnd.IntN(4) {
	case 0, 1:
		kinds := []faults.Kind{faults.Before, faults.After, faults.Hang, faults.HangAfter, faults.Duplicate, faults.Short}
		f := faults.Fault{Call: 1 + s.rnd.IntN(90), Kind: kinds[s.rnd.IntN(len(kinds))]}
		if f.Kind == faults.Hang || f.Kind == faults.HangAfter {
			f.Do = func() { s.did.Killed++; cancel() }
		}
		st = faults.New(quiet{}, st, f)
	case 2:
		if s.depth < 2 {
			f := faults.Fault{Call: 1 + s.rnd.IntN(70), Kind: faults.Duplicate, Do: func() {
				s.depth++
				s.did.Met++
				s.act()
				s.depth--
			}}
			if s.rnd.IntN(2) == 0 { // where it matters most
				ops := []faults.Op{faults.DeleteTag, faults.DeleteManifest, faults.PutManifest, faults.Tags}
				f.Op, f.Call = ops[s.rnd.IntN(len(ops))], 1+s.rnd.IntN(5)
			}
			st = faults.New(quiet{}, st, f)
		}
	}
	if err := act(ctx, st); err != nil {
		s.did.Refused++
		if !expected(err) {
			s.t.Errorf("seed %d: %v", s.seed, err)
		}
	}
}

func (s *stress) as(ctx context.Context, st store.Store, host string, do func(*repo.Repo) error) error {
	r, err := repo.Open(ctx, st, s.bed.Options(host))
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	return do(r)
}

func (s *stress) host() string { return []string{"a", "b"}[s.rnd.IntN(2)] }

// write begins a run of one of the two hosts and puts units that others have too.
func (s *stress) write(ctx context.Context, r *repo.Repo) (*openRun, error) {
	run := &openRun{system: modelSystems[s.rnd.IntN(2)], created: s.next}
	s.next = s.next.Add(17 * time.Minute)
	var parent *repo.Snapshot
	if s.rnd.IntN(4) > 0 {
		p, err := r.Find(ctx, run.system, "")
		if err != nil && !errors.Is(err, dr.ErrNotFound) {
			return nil, err
		}
		parent = p
	}
	var err error
	if run.w, err = r.NewWriter(ctx, repo.WriterOptions{System: run.system, Parent: parent, Exact: s.rnd.IntN(2) == 0}); err != nil {
		return nil, err
	}
	run.w.SetLimits(1<<40, 1<<30, 2+s.rnd.IntN(5), time.Hour)
	for range 1 + s.rnd.IntN(3) {
		for range 1 + s.rnd.IntN(6) {
			seed := s.rnd.Uint64N(40)
			unit := noise(seed, 300+int(seed)*200)
			ref, err := run.w.Put(ctx, unit)
			if err != nil {
				run.w.Close()
				return nil, err
			}
			run.refs, run.units = append(run.refs, ref), append(run.units, unit)
		}
		if s.rnd.IntN(2) == 0 {
			if err := run.w.Flush(ctx); err != nil {
				run.w.Close()
				return nil, err
			}
		}
	}
	return run, nil
}

func (s *stress) commit(ctx context.Context, run *openRun) error {
	c := &captured{units: run.units, system: run.system}
	s.known[run.created.UnixNano()] = c
	root := rootOf(run.refs, "main")
	root.Created = run.created
	snap, err := run.w.Commit(ctx, root, repo.CommitInfo{})
	if err == nil {
		c.reported = snap
		s.did.Taken++
	}
	return err
}

func (s *stress) snapshot(ctx context.Context, st store.Store) error {
	return s.as(ctx, st, s.host(), func(r *repo.Repo) error {
		run, err := s.write(ctx, r)
		if err != nil {
			return err
		}
		defer run.w.Close()
		return s.commit(ctx, run)
	})
}

// begin leaves a run open over what follows.
func (s *stress) begin(context.Context, store.Store) error {
	if s.open != nil {
		return nil
	}
	r, err := repo.Open(s.t.Context(), s.bed.Store, s.bed.Options(s.host()))
	if err != nil {
		return err
	}
	run, err := s.write(s.t.Context(), r)
	if err != nil {
		_ = r.Close()
		return err
	}
	run.repo, s.open = r, run
	return nil
}

func (s *stress) finish(context.Context, store.Store) error {
	run := s.open
	if run == nil {
		return nil
	}
	s.open = nil
	err := s.commit(s.t.Context(), run)
	run.w.Close()
	_ = run.repo.Close()
	return err
}

func (s *stress) forget(ctx context.Context, st store.Store) error {
	policy := retain.Policy{Last: 1 + s.rnd.IntN(3)}
	system := modelSystems[s.rnd.IntN(2)]
	return s.as(ctx, st, "op", func(r *repo.Repo) error {
		plan, err := r.PlanForget(ctx, system, policy)
		if err != nil {
			return err
		}
		for _, row := range plan.Rows {
			if !row.Keep {
				s.known[row.Created.UnixNano()].going = true
				s.did.Forgotten++
			}
		}
		return r.Forget(ctx, plan)
	})
}

func (s *stress) collect(ctx context.Context, st store.Store) error {
	o := repo.CompactOptions{MaxUnused: float64(s.rnd.IntN(3)) / 4, MaxRepack: int64(s.rnd.IntN(3)) * 3000}.Eager()
	who := "op"
	if s.rnd.IntN(4) == 0 {
		who = s.host() // compactors that race
	}
	return s.as(ctx, st, who, func(r *repo.Repo) error {
		c, err := r.ListsAsCatalogs().Collect(ctx, repo.CollectOptions{Compact: &o, Now: s.clock.read})
		if c != nil && c.Compacted != nil {
			s.did.Relocated += c.Compacted.Relocated
			for _, p := range c.Compacted.Problems {
				if !errors.Is(p.Err, store.ErrUnreachable) { // else it was a planned fault
					s.t.Errorf("seed %d: %s", s.seed, p)
				}
			}
			n, _ := c.Freed(repo.CollectRemoved)
			s.did.Removed += n
		}
		return err
	})
}

// check reads everything back.
func (s *stress) check() {
	s.t.Helper()
	fail := func(format string, args ...any) {
		s.t.Helper()
		s.t.Errorf("seed %d: "+format, append([]any{s.seed}, args...)...)
	}
	ctx := s.t.Context()
	snaps, problems, err := s.eye.Snapshots(ctx, "")
	if err != nil || len(problems) > 0 {
		fail("problems %v, %v", problems, err)
		return
	}
	visible := map[int64]bool{}
	for i := range snaps {
		snap := &snaps[i]
		c := s.known[snap.Created.UnixNano()]
		if c == nil || c.system != snap.System {
			fail("nobody took %s", snap.Tag)
			continue
		}
		visible[snap.Created.UnixNano()] = true
		got, err := readAll(ctx, s.eye, snap)
		if err != nil || !slices.EqualFunc(got, c.units, bytes.Equal) {
			fail("%s at %s is not what was captured: %v", snap.Tag, snap.Place, err)
		}
		for _, d := range snap.Needs { // the observer's cache would hide that it is gone
			if _, err := s.bed.Store.GetManifest(ctx, d.String()); err != nil {
				fail("%s at %s needs %s: %v", snap.Tag, snap.Place, d, err)
			}
		}
	}
	for at, c := range s.known {
		if c.reported != nil && !c.going && !visible[at] {
			fail("%s was reported and is gone", fmt.Sprint(c.reported.Tag))
		}
	}
}
