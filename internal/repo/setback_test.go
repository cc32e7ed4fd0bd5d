package repo_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"lifeboat/internal/dr"
	"lifeboat/internal/repo"
	"lifeboat/internal/repo/repotest"
	"lifeboat/internal/retain"
	"lifeboat/internal/store"
)

// shots takes n snapshots of a system, one built on the other.
func shots(t *testing.T, r *repo.Repo, system dr.System, n int) []*repo.Snapshot {
	t.Helper()
	var out []*repo.Snapshot
	var parent *repo.Snapshot
	for i := range n {
		parent = mustSnapshot(t, r, system, parent, content(uint64(i)+1, 3))
		out = append(out, parent)
	}
	return out
}

// setBacks are the problems that say so.
func setBacks(problems []repo.Problem) (out []string) {
	for _, p := range problems {
		if p.SetBack() {
			out = append(out, p.String())
		}
	}
	return out
}

// mustCheck is Examine without the data.
func mustCheck(t *testing.T, r *repo.Repo) *repo.Examination {
	t.Helper()
	x, err := r.Examine(t.Context(), repo.ExamineOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// mustName fails where a text lacks one of several words.
func mustName(t *testing.T, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("%q is missing in: %s", w, text)
		}
	}
}

func tagDigest(t *testing.T, st store.Store, tag string) digest.Digest {
	t.Helper()
	d, err := st.ResolveTag(t.Context(), tag)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestSetBackStands: the whole registry is put back to an older state. The next
// snapshot takes place, under a number that nothing had; what happened stands all
// the same, in every later run, and nothing is removed, until the operator accepts
// it.
func TestSetBackStands(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	older := shots(t, b.Host("main"), "mini", 2)[1]
	mustSnapshot(t, b.Host("main"), "blog", nil, content(9, 3))
	was := b.Store.Clone() // from here on the registry keeps its old state somewhere
	shots(t, b.Host("main"), "mini", 2)
	main := func(accept bool) *repo.Repo {
		t.Helper()
		o := b.Options("main")
		o.AcceptOlder = accept
		r, err := open(t, was, o)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	stands := func(when string, r *repo.Repo) {
		t.Helper()
		for what, find := range map[string]func() ([]repo.Problem, error){
			"check":     func() ([]repo.Problem, error) { return r.Check(t.Context()) },
			"snapshots": func() ([]repo.Problem, error) { _, p, err := r.Snapshots(t.Context(), ""); return p, err },
			"set backs": func() ([]repo.Problem, error) { return r.SetBacks(t.Context(), "mini") },
		} {
			problems, err := find()
			said := setBacks(problems)
			if err != nil || len(said) != 1 {
				t.Fatalf("%s, %s: %v, %v", when, what, problems, err)
			}
			mustName(t, said[0], "older state", "s.mini.*", "number 2", "number 4", "--accept-older")
		}
		for _, sys := range []dr.System{"mini", "blog"} {
			if _, err := r.PlanForget(t.Context(), sys, retain.Policy{Last: 1}); !errors.Is(err, dr.ErrTampered) || !strings.Contains(err.Error(), "nothing was removed") {
				t.Errorf("%s: forget of %s: %v", when, sys, err)
			}
		}
		for _, o := range []repo.CollectOptions{{}, {Compact: &repo.CompactOptions{}}} {
			if _, err := r.Collect(t.Context(), o); !errors.Is(err, dr.ErrTampered) {
				t.Errorf("%s: gc: %v", when, err)
			}
		}
	}
	// The run that takes the snapshot is the first that sees it, as with a timer.
	r := main(false)
	if _, err := r.Find(t.Context(), "mini", ""); !errors.Is(err, dr.ErrTampered) {
		t.Fatalf("the newest: %v", err)
	}
	s := mustSnapshot(t, r, "mini", older, content(5, 3))
	if s.Number != 5 {
		t.Errorf("the next snapshot is %s", s.Tag)
	}
	stands("the run that took it", r)
	stands("the next run", main(false))
	var told []string
	o := b.Options("main")
	o.Notice = func(text string) { told = append(told, text) }
	r, err := open(t, was, o)
	if err != nil {
		t.Fatal(err)
	}
	if now, err := r.Find(t.Context(), "mini", ""); err != nil || now.Number != 5 || len(told) != 1 {
		t.Errorf("the newest that there is: %v, %v; told %q", now, err, told)
	} else {
		mustName(t, told[0], "s.mini.3 and s.mini.4")
	}
	r = main(true)
	for _, r := range []*repo.Repo{r, main(false)} {
		if said := setBacks(mustCheck(t, r).Problems); len(said) != 0 {
			t.Errorf("accepted, and yet %q", said)
		}
	}
	if _, err := r.PlanForget(t.Context(), "mini", retain.Policy{Last: 1}); err != nil {
		t.Errorf("accepted, and yet %v", err)
	}
}

// TestSetBackEnds: what was missing is there again, and nothing is said any more.
// It has to be the same: another record under that number is none of it.
func TestSetBackEnds(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	shots(t, b.Host("main"), "mini", 4)
	v := &view{Store: b.Store, hide: without("s.mini.3", "s.mini.4")}
	if said := setBacks(mustCheck(t, b.HostOn("main", v)).Problems); len(said) != 1 {
		t.Fatalf("%q", said)
	}
	mustSnapshot(t, b.HostOn("main", v), "mini", nil, content(7, 3))
	v.set(without("s.mini.4"))
	if said := setBacks(mustCheck(t, b.HostOn("main", v)).Problems); len(said) != 1 {
		t.Fatalf("one of two is there: %q", said)
	}
	v.set(nil)
	var told []string
	o := b.Options("main")
	o.Notice = func(text string) { told = append(told, text) }
	r, err := open(t, v, o)
	if err != nil {
		t.Fatal(err)
	}
	if x := mustCheck(t, r); len(x.Problems) != 0 || len(told) != 1 || !strings.Contains(told[0], "there again") {
		t.Errorf("%v; told %q", x.Problems, told)
	}
	if x := mustCheck(t, b.HostOn("main", v)); len(x.Problems) != 0 {
		t.Errorf("%v", x.Problems)
	}
}

// TestSetBackIsRepaired: what an older state lacks is brought back from where it is,
// also after there is a higher number.
func TestSetBackIsRepaired(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	shots(t, b.Host("main"), "mini", 4)
	whole := b.Store.Clone()
	for _, tag := range []string{"s.mini.3", "s.mini.4"} {
		if err := b.Store.DeleteTag(t.Context(), tag); err != nil {
			t.Fatal(err)
		}
	}
	if said := setBacks(mustCheck(t, b.Host("main")).Problems); len(said) != 1 {
		t.Fatalf("%q", said)
	}
	mustSnapshot(t, b.Host("main"), "mini", nil, content(7, 3))
	res, err := b.Host("main").Repair(t.Context(), repo.RepairOptions{From: []repo.RepairSource{{Name: "mirror", Exact: whole}}})
	if err != nil || len(res.After.Problems) != 0 || len(res.After.Forgotten) != 0 {
		t.Fatalf("%v, %v", res.After.Problems, err)
	}
	if snaps, problems, err := b.Host("main").Snapshots(t.Context(), "mini"); err != nil || len(problems) != 0 || len(snaps) != 5 {
		t.Errorf("%d snapshots, %v, %v", len(snaps), problems, err)
	}
}

// TestAcceptedNumbersAreGivenToNobodyElse: what is written after an older state was
// accepted takes none of the numbers that this host has seen.
func TestAcceptedNumbersAreGivenToNobodyElse(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	shots(t, b.Host("main"), "mini", 2)
	was := b.Store.Clone()
	shots(t, b.Host("main"), "mini", 2)
	o := b.Options("main")
	o.AcceptOlder = true
	for _, want := range []dr.Number{5, 6} {
		r, err := open(t, was, o)
		if err != nil {
			t.Fatal(err)
		}
		if s := mustSnapshot(t, r, "mini", nil, content(uint64(want), 3)); s.Number != want {
			t.Errorf("the next snapshot is %s", s.Tag)
		}
	}
	if x := mustCheck(t, b.HostOn("main", was)); len(x.Problems)+len(x.Forgotten) != 0 {
		t.Errorf("%v, %v", x.Problems, x.Forgotten)
	}
}

// TestSecondSetBack: each older state stands by itself.
func TestSecondSetBack(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	shots(t, b.Host("main"), "mini", 3)
	v := &view{Store: b.Store, hide: without("s.mini.3")}
	mustCheck(t, b.HostOn("main", v))
	shots(t, b.HostOn("main", v), "mini", 2) // 4 and 5
	v.set(without("s.mini.3", "s.mini.5"))
	for range 2 {
		said := setBacks(mustCheck(t, b.HostOn("main", v)).Problems)
		if len(said) != 2 {
			t.Fatalf("%q", said)
		}
		mustName(t, strings.Join(said, "\n"), "s.mini.3", "number 4, this host has seen number 5")
	}
	v.set(without("s.mini.3"))
	if said := setBacks(mustCheck(t, b.HostOn("main", v)).Problems); len(said) != 1 || !strings.Contains(said[0], "missing since: s.mini.3;") {
		t.Errorf("%q", said)
	}
}

// TestMovedSnapshotTagIsDamage: a tag that this host has seen name a snapshot names
// another one's manifest now. That is a lost snapshot, not somebody's tag.
func TestMovedSnapshotTagIsDamage(t *testing.T) {
	t.Parallel()
	for _, class := range []string{"s.shop.", "e.shop."} {
		t.Run(class, func(t *testing.T) {
			t.Parallel()
			b := repotest.NewBed(t)
			main := b.Host("main")
			shots(t, main, "shop", 6)
			for i := range dr.Epoch(6) {
				if err := main.PutRecord(t.Context(), fmt.Sprintf("e.shop.%d", i+1), claim(main, i+1, nil)); err != nil {
					t.Fatal(err)
				}
			}
			was := tagDigest(t, b.Store, class+"5")
			now := tagDigest(t, b.Store, class+"6")
			b.Store.MoveTag(class+"5", now)
			for _, r := range []*repo.Repo{main, b.Host("main")} {
				x := mustCheck(t, r)
				i := slices.IndexFunc(x.Problems, func(p repo.Problem) bool { return p.Tag == class+"5" })
				if len(x.Problems) != 1 || i < 0 || x.Problems[0].Foreign() {
					t.Fatalf("%v", x.Problems)
				}
				mustName(t, x.Problems[0].String(), "lost", was.String(), now.String(), "lifeboat repair", "--accept-older")
			}
			snaps, problems, err := b.Host("main").Snapshots(t.Context(), "shop")
			if class == "s.shop." && (err != nil || len(snaps) != 5 || len(problems) != 1 || problems[0].Foreign()) {
				t.Errorf("%d snapshots, %v, %v", len(snaps), problems, err)
			}
			// Who has never seen it cannot tell it from somebody's tag.
			if x := mustCheck(t, b.Host("other")); len(x.Problems) != 1 || !x.Problems[0].Foreign() {
				t.Errorf("%v", x.Problems)
			}
			// Put right, it is as it was.
			b.Store.MoveTag(class+"5", was)
			if x := mustCheck(t, b.Host("main")); len(x.Problems) != 0 {
				t.Errorf("%v", x.Problems)
			}
		})
	}
}

// TestRevokedIsNotMoved: what a revocation does not keep is no damage.
func TestRevokedIsNotMoved(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	main, bad := b.Host("main"), b.Host("bad")
	mustSnapshot(t, bad, "mini", nil, content(1, 3))
	mustSnapshot(t, main, "mini", nil, content(2, 3)) // has seen number 1
	mustCheck(t, main)
	if err := main.Revoke(t.Context(), bad.HostID(), func(*repo.Snapshot) bool { return false }); err != nil {
		t.Fatal(err)
	}
	if x := mustCheck(t, b.Host("main")); len(x.Problems) != 1 || !x.Problems[0].Foreign() || len(x.Forgotten) != 0 {
		t.Errorf("%v, %v", x.Problems, x.Forgotten)
	}
}

// TestMissingInTheMiddle: of a snapshot that this host has seen and that is not
// there it says what can be known: its own forgetting is no news, another host's
// and hiding look the same, and what no forgetting removes is lost.
func TestMissingInTheMiddle(t *testing.T) {
	t.Parallel()
	look := func(b *repotest.Bed, st store.Store, forgotten []string, lost ...string) {
		t.Helper()
		for range 2 {
			x := mustCheck(t, b.HostOn("main", st))
			if !slices.Equal(x.Forgotten, forgotten) {
				t.Errorf("forgotten: %q, want %q", x.Forgotten, forgotten)
			}
			var have []string
			for _, p := range x.Problems {
				if p.Foreign() || !errors.Is(p.Err, dr.ErrTampered) {
					t.Errorf("%v", p)
				}
				mustName(t, p.String(), "not there any more", "--accept-older")
				have = append(have, p.Tag)
			}
			if !slices.Equal(have, lost) {
				t.Errorf("lost: %q, want %q", x.Problems, lost)
			}
		}
	}
	keep := func(t *testing.T, r *repo.Repo, n int) {
		t.Helper()
		if _, err := forget(t.Context(), r, retain.Policy{Last: n}); err != nil {
			t.Fatal(err)
		}
	}
	bed := func(t *testing.T) *repotest.Bed {
		t.Helper()
		b := repotest.NewBed(t)
		main := b.Host("main")
		for i := range 4 {
			take(t, main, uint64(i), taken{created: ages(10 - i)})
		}
		return b
	}
	t.Run("own forgetting", func(t *testing.T) {
		t.Parallel()
		b := bed(t)
		keep(t, b.Host("main"), 2)
		look(b, b.Store, nil)
	})
	t.Run("own forgetting beside a snapshot", func(t *testing.T) {
		t.Parallel()
		b := bed(t)
		beside := b.Host("main") // another process of the host, which has seen them all
		all, _, err := beside.Snapshots(t.Context(), "")
		if err != nil || len(all) != 4 {
			t.Fatalf("%v, %v", all, err)
		}
		keep(t, b.Host("main"), 2)
		take(t, beside, 9, taken{created: ages(1)})
		look(b, b.Store, nil)
		if x := mustCheck(t, beside); len(x.Forgotten) != 0 {
			t.Errorf("what is told while it runs: %q", x.Forgotten)
		}
	})
	t.Run("another host's", func(t *testing.T) {
		t.Parallel()
		b := bed(t)
		keep(t, b.Host("other"), 2)
		look(b, b.Store, []string{"s.shop.1", "s.shop.2"})
	})
	t.Run("hidden", func(t *testing.T) {
		t.Parallel()
		b := bed(t)
		v := &view{Store: b.Store, hide: without("s.shop.2")}
		look(b, v, []string{"s.shop.2"})
		v.set(nil)
		look(b, v, nil)
	})
	t.Run("locked", func(t *testing.T) {
		t.Parallel()
		b := bed(t)
		other := b.Host("other")
		s, err := other.Find(t.Context(), "shop", "#2")
		if err != nil {
			t.Fatal(err)
		}
		if err := other.Lock(t.Context(), s, "audit"); err != nil {
			t.Fatal(err)
		}
		look(b, &view{Store: b.Store, hide: without("s.shop.2")}, nil, "s.shop.2")
	})
	t.Run("own newest", func(t *testing.T) {
		t.Parallel()
		b := bed(t)
		take(t, b.Host("other"), 9, taken{created: ages(0)})
		look(b, b.Store, nil)
		look(b, &view{Store: b.Store, hide: without("s.shop.4")}, nil, "s.shop.4")
	})
}
