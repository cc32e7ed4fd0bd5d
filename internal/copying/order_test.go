package copying_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"lifeboat/internal/copying"
	"lifeboat/internal/dr"
	"lifeboat/internal/ledger"
	"lifeboat/internal/repo"
	"lifeboat/internal/retain"
)

// number chooses snapshots by their numbers.
func number(list ...dr.Number) func(*repo.Snapshot) bool {
	return func(s *repo.Snapshot) bool { return slices.Contains(list, s.Number) }
}

// only copies nothing but these, as --snapshot latest does.
func only(list ...dr.Number) func(*copying.Options) {
	return func(o *copying.Options) { o.Only = number(list...) }
}

// named copies what is named one by one.
func named(list ...dr.Number) func(*copying.Options) {
	return func(o *copying.Options) { o.Only, o.Named = number(list...), number(list...) }
}

// copyWith copies with options, and returns the numbers that were copied and those
// that were too old.
func (p *pair) copyWith(t *testing.T, edit ...func(*copying.Options)) (copied, older []dr.Number) {
	t.Helper()
	for _, r := range mustCopy(t, p.copier(t, p.to.Store, edit...)).Rows {
		switch {
		case r.Copied || r.To == nil && r.Older == nil:
			copied = append(copied, r.From.Number)
		case r.Older != nil:
			older = append(older, r.From.Number)
		}
	}
	return copied, older
}

// headIs tells of which snapshot the newest of the copy has to be the copy.
func (p *pair) headIs(t *testing.T, n dr.Number) {
	t.Helper()
	head, err := p.to.Host("reader").Find(t.Context(), "shop", "latest")
	if err != nil || head.Origin == nil || head.Origin.Number != n {
		t.Errorf("the newest of the copy: %+v, %v; want a copy of #%d", head, err, n)
	}
}

func (p *pair) keepLast(t *testing.T, n int) (left []dr.Number) {
	t.Helper()
	r := p.to.Host("partner")
	plan, err := r.PlanForget(t.Context(), "shop", retain.Policy{Last: n})
	if err == nil {
		err = r.Forget(t.Context(), plan)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range plan.Rows {
		if row.Keep {
			left = append(left, row.Origin.Number)
		}
	}
	return left
}

func mustNumbers(t *testing.T, what string, got []dr.Number, want ...dr.Number) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

// line commits snapshots, each on the one before, and returns them.
func (p *pair) line(t *testing.T, n int) []*repo.Snapshot {
	t.Helper()
	main := p.from.Host("main")
	claim(t, main, 1, nil)
	var out []*repo.Snapshot
	var last *repo.Snapshot
	for i := range n {
		last = mustCommit(t, main, last, 1, dr.KindCurrent, system{"new": {noise(uint64(i), 500)}})
		out = append(out, last)
	}
	return out
}

// TestForgottenStaysForgotten: what a policy at the copy removed does not come back,
// the newest stays the newest, and the policy does its work each time.
func TestForgottenStaysForgotten(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	snaps := p.line(t, 5)
	copied, _ := p.copyWith(t)
	mustNumbers(t, "copied", copied, 1, 2, 3, 4, 5)
	mustNumbers(t, "kept", p.keepLast(t, 2), 4, 5)
	copied, _ = p.copyWith(t, only(5))
	mustNumbers(t, "copied again", copied)
	copied, older := p.copyWith(t)
	mustNumbers(t, "copied again", copied)
	mustNumbers(t, "older", older, 1, 2, 3)
	p.headIs(t, 5)

	mustCommit(t, p.from.Host("main"), snaps[4], 1, dr.KindCurrent, system{"new": {noise(9, 500)}})
	p.memory = t.TempDir() // what is known of the copy is read from it
	copied, older = p.copyWith(t, func(o *copying.Options) { o.DryRun = true })
	mustNumbers(t, "would be copied", copied, 6)
	mustNumbers(t, "older", older, 1, 2, 3)
	copied, _ = p.copyWith(t)
	mustNumbers(t, "copied", copied, 6)
	p.headIs(t, 6)
	mustNumbers(t, "kept", p.keepLast(t, 1), 6)
}

// TestOlderIsRefused: nothing is put above what is newer, in whatever order it is
// asked for; what is named is refused before anything is copied.
func TestOlderIsRefused(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.line(t, 5)
	copied, _ := p.copyWith(t, only(4))
	mustNumbers(t, "copied", copied, 4)
	for _, dry := range []bool{true, false} {
		c := p.copier(t, p.to.Store, named(2, 5), func(o *copying.Options) { o.DryRun = dry })
		var refused *copying.OlderError
		if err := c.Look(t.Context(), "shop"); !errors.As(err, &refused) || refused.Snapshot.Number != 2 || !errors.Is(err, dr.ErrUsage) {
			t.Errorf("look: %v", err)
		}
		if _, err := c.Copy(t.Context(), "shop"); !errors.As(err, &refused) {
			t.Errorf("copy: %v", err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	p.headIs(t, 4)
	copied, _ = p.copyWith(t, named(4)) // it is there
	mustNumbers(t, "copied", copied)
	copied, older := p.copyWith(t)
	mustNumbers(t, "copied", copied, 5)
	mustNumbers(t, "older", older, 1, 2, 3)
	p.headIs(t, 5)
}

// TestOrderOfLines: epochs go before numbers on the line; what is off the line
// keeps nothing off it.
func TestOrderOfLines(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	main, standby := p.from.Host("main"), p.from.Host("standby")
	snaps := p.line(t, 2)
	claim(t, standby, 2, snaps[0])
	three := mustCommit(t, standby, snaps[0], 2, dr.KindCurrent, some(3))
	mustCommit(t, main, snaps[1], 1, dr.KindCurrent, some(4)) // by a stale host: on no line
	copied, _ := p.copyWith(t, only(4))
	mustNumbers(t, "copied", copied, 4)
	copied, older := p.copyWith(t)
	mustNumbers(t, "copied", copied, 1, 3)
	mustNumbers(t, "older", older, 2) // off the line, and below #4
	p.headIs(t, 3)

	mustCommit(t, standby, three, 2, dr.KindCurrent, some(5))
	mustCommit(t, main, snaps[1], 1, dr.KindDivergent, some(6))
	copied, _ = p.copyWith(t)
	mustNumbers(t, "copied", copied, 5, 6)
	p.headIs(t, 5)
	mustNumbers(t, "kept", p.keepLast(t, 1), 5, 6)
	copied, _ = p.copyWith(t)
	mustNumbers(t, "copied again", copied)
}

// TestNewestOfTheCopyCannotBeRead: while it is damaged or hidden only the newest
// here is surely not older, and nothing else is copied; that it is readable again
// later makes nothing of it older.
func TestNewestOfTheCopyCannotBeRead(t *testing.T) {
	t.Parallel()
	for _, host := range []string{"copier", "other"} { // one that has seen it, one that has not
		p := newPair(t)
		snaps := p.line(t, 4)
		p.copyWith(t)
		last, err := p.to.Host("reader").Find(t.Context(), "shop", "latest")
		if err != nil {
			t.Fatal(err)
		}
		p.keepLast(t, 2)
		whole, err := p.to.Store.GetManifest(t.Context(), last.Digest.String())
		if err != nil {
			t.Fatal(err)
		}
		p.to.Store.CorruptManifest(last.Digest, noise(1, len(whole.Body)))
		five := mustCommit(t, p.from.Host("main"), snaps[3], 1, dr.KindCurrent, system{"new": {noise(5, 500)}})
		mustCommit(t, p.from.Host("main"), five, 1, dr.KindCurrent, system{"new": {noise(6, 500)}})

		adopt := func(o *copying.Options) { o.Adopt = host == "other" }
		c := p.copierAs(t, host, p.to.Store, adopt, named(5))
		var refused *copying.OlderError
		if _, err := c.Copy(t.Context(), "shop"); !errors.As(err, &refused) {
			t.Errorf("%s: named: %v", host, err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		res := mustCopy(t, p.copierAs(t, host, p.to.Store, adopt))
		for _, r := range res.Rows {
			if r.Copied != (r.From.Number == 6) || r.From.Number < 3 && r.Older == nil {
				t.Errorf("%s: %s: %+v", host, r.From.Tag, r)
			}
		}
		if len(res.Unread) == 0 {
			t.Errorf("%s: nobody says why", host)
		}
		p.headIs(t, 6)
		p.to.Store.CorruptManifest(last.Digest, whole.Body)
		p.headIs(t, 6)
	}
}

// TestForeignCopiesDoNotCount: another host of the copy, which holds nothing, says
// that everything was copied, and what is newer, too.
func TestForeignCopiesDoNotCount(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	snaps := p.line(t, 2)
	copied, _ := p.copyWith(t, only(1))
	mustNumbers(t, "copied", copied, 1)
	liar := p.to.Host("liar")
	for _, o := range []repo.Origin{
		{Repo: p.from.Host("main").ID(), Snapshot: snaps[1].ID, Number: 2, Epoch: 1},
		{Repo: p.from.Host("main").ID(), Snapshot: dr.SnapshotID{1}, Number: 1 << 60, Epoch: 1 << 60},
	} {
		for _, kind := range []dr.Kind{dr.KindCurrent, dr.KindDivergent} {
			mustLie(t, liar, kind, o)
		}
	}
	copied, older := p.copyWith(t)
	mustNumbers(t, "copied", copied, 2)
	mustNumbers(t, "older", older)
	p.headIs(t, 2)
}

// TestSourceFellBehind: where this repository shows an older state than was copied
// before, that is told, and the copy stays as it is.
func TestSourceFellBehind(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	snaps := p.line(t, 2)
	before := p.from.Fork()
	mustCommit(t, p.from.Host("main"), snaps[1], 1, dr.KindCurrent, system{"new": {noise(8, 500)}})
	mustNumbers(t, "copied", firstOf(p.copyWith(t)), 1, 2, 3)
	mustNumbers(t, "kept", p.keepLast(t, 1), 3)
	p.from = before
	res := mustCopy(t, p.copier(t, p.to.Store))
	if res.Ahead == nil || res.Ahead.Number != 3 || res.Rows[1].Older == nil {
		t.Errorf("%+v", res)
	}
	p.headIs(t, 3)
}

func firstOf(a, _ []dr.Number) []dr.Number { return a }

// mustLie commits something as the copy of anything.
func mustLie(t *testing.T, r *repo.Repo, kind dr.Kind, o repo.Origin) {
	t.Helper()
	w, err := r.NewWriter(t.Context(), repo.WriterOptions{System: "shop"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	claims, err := ledger.New(r, 0, ledger.Here{}).Claims(t.Context(), "shop")
	if err != nil {
		t.Fatal(err)
	}
	root := &dr.Root{Site: "main", Epoch: claims[0].Epoch, Kind: kind, Consistency: dr.ConsistentCrash, Created: time.Now()}
	if _, err := w.Commit(t.Context(), root, repo.CommitInfo{Origin: &o}); err != nil {
		t.Fatal(err)
	}
}
