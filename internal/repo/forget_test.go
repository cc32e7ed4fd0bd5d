package repo_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/casetest"
	"lifeboat/internal/dr"
	"lifeboat/internal/fence"
	"lifeboat/internal/repo"
	"lifeboat/internal/repo/repotest"
	"lifeboat/internal/retain"
	"lifeboat/internal/store"
	"lifeboat/internal/store/faults"
)

// taken says what a snapshot of these tests is like.
type taken struct {
	created time.Time
	epoch   dr.Epoch
	kind    dr.Kind
}

// take takes a snapshot of one unit that no other has, built on nothing.
func take(t testing.TB, r *repo.Repo, seed uint64, how taken) *repo.Snapshot {
	t.Helper()
	w, err := r.NewWriter(t.Context(), repo.WriterOptions{System: "shop"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	refs, err := putAll(t.Context(), w, [][]byte{noise(seed, 500)})
	if err != nil {
		t.Fatal(err)
	}
	root := rootOf(refs, "main")
	root.Created, root.Epoch = how.created, how.epoch
	if how.kind != "" {
		root.Kind = how.kind
	}
	s, err := w.Commit(t.Context(), root, repo.CommitInfo{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func putClaim(t testing.TB, r *repo.Repo, epoch dr.Epoch, base *repo.Snapshot) {
	t.Helper()
	c := fence.Claim{Format: 1, System: "shop", Epoch: epoch, Site: "main", Host: r.HostID(), Reason: fence.ReasonFailover, Created: time.Now().UTC()}
	if base != nil {
		c.Base = &base.ID
	}
	if err := r.PutRecord(t.Context(), fmt.Sprintf("e.shop.%d", epoch), c); err != nil {
		t.Fatal(err)
	}
}

func putMove(t testing.TB, r *repo.Repo, n int, m fence.Move) {
	t.Helper()
	m.Format, m.System, m.Host, m.Created = 1, "shop", r.HostID(), time.Now().UTC()
	if err := r.PutRecord(t.Context(), fmt.Sprintf("w.shop.%d", n), m); err != nil {
		t.Fatal(err)
	}
}

// ages is when snapshots of these tests were taken: hours ago.
func ages(hours int) time.Time {
	return time.Now().UTC().Truncate(time.Hour).Add(-time.Duration(hours) * time.Hour)
}

func forget(ctx context.Context, r *repo.Repo, p retain.Policy) (*repo.ForgetPlan, error) {
	plan, err := r.PlanForget(ctx, "shop", p)
	if err != nil {
		return nil, err
	}
	return plan, r.Forget(ctx, plan)
}

func numbersOf(t testing.TB, r *repo.Repo) (out []int) {
	t.Helper()
	snaps, problems, err := r.Snapshots(t.Context(), "shop")
	if err != nil || len(problems) > 0 {
		t.Fatalf("%v, %v", problems, err)
	}
	for _, s := range snaps {
		out = append(out, int(s.Number))
	}
	return out
}

// What is forgotten is gone with its image index, what is kept is whole, and
// the numbers go on.
func TestForget(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	r := b.Host("main")
	var all []*repo.Snapshot
	for i := range 6 {
		all = append(all, take(t, r, uint64(i), taken{created: ages(6 - i)}))
	}
	plan, err := r.PlanForget(t.Context(), "shop", retain.Policy{Last: 2})
	if err != nil || plan.Going() != 4 || len(numbersOf(t, r)) != 6 {
		t.Fatalf("plan %+v, %v", plan, err)
	}
	if err := r.Forget(t.Context(), plan); err != nil {
		t.Fatal(err)
	}
	if got := numbersOf(t, b.Host("other")); !slices.Equal(got, []int{5, 6}) {
		t.Fatalf("left are %v", got)
	}
	for i, s := range all {
		_, err := b.Store.GetManifest(t.Context(), s.Digest.String())
		if gone := errors.Is(err, store.ErrNotFound); gone != (i < 4) {
			t.Errorf("image index of %s: %v", s.Tag, err)
		}
	}
	mustHold(t, r, all[5], [][]byte{noise(5, 500)})
	if again, err := forget(t.Context(), r, retain.Policy{Last: 2}); err != nil || again.Going() != 0 {
		t.Fatalf("again: %+v, %v", again, err)
	}
	if s := take(t, r, 9, taken{created: ages(0)}); s.Number != 7 {
		t.Errorf("the next number is %d", s.Number)
	}
	if problems, err := r.Check(t.Context()); err != nil || len(problems) > 0 {
		t.Errorf("check: %v, %v", problems, err)
	}
}

// Nothing that the line or a move needs is forgotten, whatever the policy.
func TestForgetKeepsWhatIsNeeded(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	main, other := b.Host("main"), b.Host("other")
	putClaim(t, main, 1, nil)
	base := take(t, main, 1, taken{created: ages(9), epoch: 1})
	late := take(t, main, 2, taken{created: ages(8), epoch: 1}) // raced with the failover: divergent
	_ = take(t, main, 3, taken{created: ages(7), epoch: 1, kind: dr.KindDivergent})
	putClaim(t, other, 2, base)
	policy := retain.Policy{Last: 1}

	// The newest epoch has no snapshot of its own: its base is the head.
	if _, err := forget(t.Context(), other, policy); err != nil {
		t.Fatal(err)
	}
	if got := numbersOf(t, main); !slices.Equal(got, []int{1, 3}) {
		t.Fatalf("left are %v, want the base and the newest of its host", got)
	}
	moved := take(t, other, 4, taken{created: ages(6), epoch: 2})
	for i := range 3 {
		take(t, other, uint64(10+i), taken{created: ages(5 - i), epoch: 2})
	}
	putMove(t, main, 1, fence.Move{ID: "a", Phase: fence.PhaseRequested, Epoch: 2, From: "cloud", To: "main"})
	putMove(t, other, 2, fence.Move{ID: "a", Phase: fence.PhaseAccepted, Epoch: 2, From: "cloud", To: "main", Snapshot: &moved.ID})
	plan, err := forget(t.Context(), other, policy)
	if err != nil {
		t.Fatal(err)
	}
	if got := numbersOf(t, main); !slices.Equal(got, []int{1, 3, 4, 7}) {
		t.Fatalf("left are %v, want base, newest divergent, what the move names, and the head", got)
	}
	for _, row := range plan.Rows {
		if row.Keep != (len(row.Reasons) > 0) || row.Removed == row.Keep {
			t.Errorf("row %d: %+v", row.Number, row)
		}
	}
	// The move is done; the base goes only when its epoch is not the newest.
	putMove(t, main, 3, fence.Move{ID: "a", Phase: fence.PhaseAborted, Epoch: 2, From: "cloud", To: "main"})
	if _, err := forget(t.Context(), other, policy); err != nil {
		t.Fatal(err)
	}
	if got := numbersOf(t, main); !slices.Equal(got, []int{1, 3, 7}) {
		t.Fatalf("left are %v", got)
	}
	head, err := main.Find(t.Context(), "shop", "")
	if err != nil || head.Number != 7 {
		t.Fatalf("head %+v, %v", head, err)
	}
	_ = late
}

// The base of an older claim stays as long as a snapshot that is judged by it.
func TestForgetKeepsOldBases(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	main, other := b.Host("main"), b.Host("other")
	putClaim(t, main, 1, nil)
	for i := range 3 {
		take(t, main, uint64(i), taken{created: ages(4000 - 1000*i), epoch: 1})
	}
	base, err := main.Find(t.Context(), "shop", "#3")
	if err != nil {
		t.Fatal(err)
	}
	putClaim(t, other, 2, base)
	second := take(t, other, 20, taken{created: ages(1000), epoch: 2})
	putClaim(t, main, 3, second)
	take(t, main, 30, taken{created: ages(1), epoch: 3})
	take(t, main, 31, taken{created: ages(0), epoch: 3})
	if _, err := forget(t.Context(), main, retain.Policy{Yearly: 9}); err != nil {
		t.Fatal(err)
	}
	got := numbersOf(t, main)
	if !slices.Contains(got, 1) || !slices.Contains(got, 3) {
		t.Fatalf("left are %v; number 1 is the oldest, and number 3 tells that it is on the line", got)
	}
}

// Somebody fails over to a snapshot while it is being forgotten: it is put
// back under its tag.
func TestForgetMeetsAClaim(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	main, other := b.Host("main"), b.Host("other")
	putClaim(t, main, 1, nil)
	var all []*repo.Snapshot
	for i := range 4 {
		all = append(all, take(t, main, uint64(i), taken{created: ages(6 - i), epoch: 1}))
	}
	f := faults.Fault{Op: faults.DeleteTag, Arg: "s.shop.3", Kind: faults.Duplicate, Do: func() { putClaim(t, other, 2, all[1]) }}
	op := b.HostOn("operator", faults.New(t, b.Store, f))
	_, err := forget(t.Context(), op, retain.Policy{Last: 1})
	if !errors.Is(err, dr.ErrHeld) {
		t.Fatalf("%v", err)
	}
	head, err := other.Find(t.Context(), "shop", "")
	if err != nil || head.ID != all[1].ID {
		t.Fatalf("head %+v, %v", head, err)
	}
	mustHold(t, other, head, [][]byte{noise(1, 500)})
}

func TestForgetRefuses(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	r := b.Host("main")
	if _, err := r.PlanForget(t.Context(), "shop", retain.Policy{Last: 1}); !errors.Is(err, dr.ErrNotFound) {
		t.Errorf("no snapshots: %v", err)
	}
	for i := range 3 {
		take(t, r, uint64(i), taken{created: ages(3 - i)})
	}
	if _, err := r.PlanForget(t.Context(), "shop", retain.Policy{}); !errors.Is(err, dr.ErrUsage) {
		t.Errorf("an empty policy: %v", err)
	}
	f := faults.Fault{Op: faults.DeleteTag, Kind: faults.Before, Err: store.ErrForbidden}
	if _, err := forget(t.Context(), b.HostOn("weak", faults.New(t, b.Store, f)), retain.Policy{Last: 1}); !errors.Is(err, store.ErrForbidden) {
		t.Errorf("role writer: %v", err)
	}
	if got := numbersOf(t, r); len(got) != 3 {
		t.Errorf("left are %v", got)
	}
	// The registry was set back: the newest that this host has seen is gone.
	if err := b.Store.DeleteTag(t.Context(), "s.shop.3"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.PlanForget(t.Context(), "shop", retain.Policy{Last: 1}); !errors.Is(err, dr.ErrTampered) || !strings.Contains(err.Error(), "nothing was removed") {
		t.Errorf("an older state: %v", err)
	}
}

// A registry that cannot delete tags deletes the image index with its tag.
func TestForgetWithoutTagDeletion(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	r := b.Host("main")
	for i := range 3 {
		take(t, r, uint64(i), taken{created: ages(3 - i)})
	}
	b.Store.Unchecked()
	plan := []faults.Fault{
		{Op: faults.DeleteTag, Kind: faults.Before, Err: store.ErrUnsupported}, {Op: faults.DeleteTag, Call: 2, Kind: faults.Before, Err: store.ErrUnsupported},
	}
	if _, err := forget(t.Context(), b.HostOn("op", faults.New(t, b.Store, plan...)), retain.Policy{Last: 1}); err != nil {
		t.Fatal(err)
	}
	if got := numbersOf(t, r); !slices.Equal(got, []int{3}) {
		t.Errorf("left are %v", got)
	}
}

// TestForgetFaults fails and kills forgetting at its calls. What the
// policy keeps is whole after each, and running it again ends the work
// (invariants 2 and 8).
func TestForgetFaults(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	r := b.Host("main")
	putClaim(t, r, 1, nil)
	for i := range 5 {
		take(t, r, uint64(i), taken{created: ages(5 - i), epoch: 1})
	}
	run := func(ctx context.Context, b *repotest.Bed, st store.Store) error {
		r, err := repo.Open(ctx, st, b.Options("main"))
		if err != nil {
			return err
		}
		defer func() { _ = r.Close() }()
		_, err = forget(ctx, r, retain.Policy{Last: 2})
		return err
	}
	eachCall(t, 24, b, run, func(t *testing.T, b *repotest.Bed) {
		got := numbersOf(t, b.Host("observer"))
		if !slices.Equal(got[len(got)-2:], []int{4, 5}) {
			t.Fatalf("left are %v", got)
		}
		if err := run(t.Context(), b, b.Store); err != nil {
			t.Fatalf("running it again: %v", err)
		}
		fresh := b.Host("fresh")
		if got := numbersOf(t, fresh); !slices.Equal(got, []int{4, 5}) {
			t.Fatalf("left are %v", got)
		}
		if problems, err := fresh.Verify(t.Context(), nil); err != nil || len(problems) > 0 {
			t.Fatalf("verify: %v, %v", problems, err)
		}
	})
}

// mishap is one way in which one store call goes wrong.
type mishap struct {
	op   faults.Op
	call int // of that kind, from 1
	name string
	kind faults.Kind
}

func (m mishap) String() string { return fmt.Sprintf("%s %d %s", m.op, m.call, m.name) }

// fault is the mishap for a store; cancel ends the run that is to be killed.
func (m mishap) fault(cancel func()) faults.Fault {
	f := faults.Fault{Op: m.op, Call: m.call, Kind: m.kind, At: 7}
	if m.kind == faults.Hang || m.kind == faults.HangAfter {
		f.Do = cancel
	}
	return f
}

// mishaps is each way in which each of the calls can go wrong, or so many of
// them, spread over the kinds of calls (casetest).
func mishaps(t testing.TB, n int, calls []faults.Call) []mishap {
	t.Helper()
	var all []mishap
	count := map[faults.Op]int{}
	for _, c := range calls {
		count[c.Op]++
		kinds := kindsOf(c.Op)
		for _, name := range slices.Sorted(maps.Keys(kinds)) {
			all = append(all, mishap{op: c.Op, call: count[c.Op], name: name, kind: kinds[name]})
		}
	}
	return casetest.Spread(t, n, all, func(m mishap) faults.Op { return m.op })
}

// eachCall runs something once for each store call that it makes and each way in
// which the call can fail, and checks what is left; an ordinary run takes n of
// them.
func eachCall(t *testing.T, n int, b *repotest.Bed, run func(context.Context, *repotest.Bed, store.Store) error, check func(*testing.T, *repotest.Bed)) {
	t.Helper()
	first := b.Fork()
	probe := faults.New(t, first.Store)
	if err := run(t.Context(), first, probe); err != nil {
		t.Fatal(err)
	}
	for _, m := range mishaps(t, n, probe.Calls()) {
		t.Run(m.String(), func(t *testing.T) {
			t.Parallel()
			f := b.ForkFor(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			_ = run(ctx, f, faults.New(t, f.Store, m.fault(cancel))) // whatever it says, this holds:
			check(t, f)
		})
	}
}

// kindsOf are the ways in which a call can go wrong.
func kindsOf(op faults.Op) map[string]faults.Kind {
	kinds := map[string]faults.Kind{
		"fails before": faults.Before, "fails after": faults.After, "killed before": faults.Hang, "killed after": faults.HangAfter, "twice": faults.Duplicate,
	}
	switch op {
	case faults.GetBlob:
		kinds["short"], kinds["altered"] = faults.Short, faults.Corrupt
	case faults.PutBlob:
		kinds["short"] = faults.Short
	}
	return kinds
}
