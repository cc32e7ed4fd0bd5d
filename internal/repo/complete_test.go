package repo_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lifeboat/internal/dr"
	"lifeboat/internal/repo"
	"lifeboat/internal/repo/readlog"
	"lifeboat/internal/repo/repotest"
	"lifeboat/internal/store/memstore"
)

// leaveOut moves a snapshot to a new pack manifest that has everything of it but
// one unit, as a defect of compaction would, and takes its older tags away.
func leaveOut(t testing.TB, r *repo.Repo, s *repo.Snapshot, unit []byte) *repo.Snapshot {
	t.Helper()
	all := unitsOf(t, r, s)
	ref := dr.UnitRef{ID: r.UnitID(unit), Len: uint32(len(unit))}
	if all[ref] == nil {
		t.Fatalf("%s does not use it", s.Tag)
	}
	delete(all, ref)
	moved, err := r.Relocate(t.Context(), s, all)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.DropOlder(t.Context(), moved); err != nil {
		t.Fatal(err)
	}
	return moved
}

// unitsOf reads everything that a snapshot of treeSnapshot is made of.
func unitsOf(t testing.TB, r *repo.Repo, s *repo.Snapshot) map[dr.UnitRef][]byte {
	t.Helper()
	out, err := r.AllUnits(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// lackIs reports whether problems are one: that a snapshot lacks something of a
// file, among others.
func lackIs(ps []repo.Problem, s *repo.Snapshot, path string) bool {
	return len(ps) == 1 && ps[0].Snapshot == s.ID && ps[0].Tag == s.Tag && !ps[0].Foreign() &&
		strings.Contains(ps[0].Err.Error(), fmt.Sprintf("%q in volume:data", path))
}

// A unit that is in none of the indexes that a snapshot lists is told with the
// file that it belongs to, though every pack and index is sound: by verify of any
// snapshot, by check of the newest of a system, and by both again from then on.
func TestVerifyTellsWhatNoIndexHas(t *testing.T) {
	t.Parallel()
	small, large := []byte("!"), noise(9, 400<<10)
	many := func(n int) (units [][]byte) { // more than an entry lists itself
		for i := range n {
			units = append(units, noise(uint64(1000+i), 100))
		}
		return units
	}
	for name, c := range map[string]struct {
		files []file
		lost  []byte
		path  string
		more  []string // lose the same
	}{
		"a byte":    {files: []file{{"a", [][]byte{large}}, {"b", [][]byte{small}}}, lost: small, path: "b"},
		"one of":    {files: []file{{"a", [][]byte{large, small}}, {"b", [][]byte{large}}}, lost: large, path: "a", more: []string{"b"}},
		"of a list": {files: []file{{"a", [][]byte{small}}, {"long", many(200)}}, lost: noise(1150, 100), path: "long"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := repotest.NewBed(t)
			main := b.Host("main")
			s := treeSnapshot(t, main, "shop", nil, c.files...)
			other := treeSnapshot(t, main, "blog", nil, c.files...)
			read := repo.ExamineOptions{Read: &readlog.Subset{}}
			for _, o := range []repo.ExamineOptions{{}, read} {
				if ps := examine(t, b.Host("before"), o).Problems; len(ps) > 0 {
					t.Fatalf("nothing is wrong yet: %v", ps)
				}
			}
			leaveOut(t, main, s, c.lost)
			for _, o := range []repo.ExamineOptions{{}, read, {Read: &readlog.Subset{Within: 24 * time.Hour}}, {Read: &readlog.Subset{Percent: 1}}} {
				x := examine(t, b.Host("checker"), o)
				if !lackIs(x.Problems, s, c.path) {
					t.Fatalf("%+v: %v", o.Read, x.Problems)
				}
				var want []string
				for _, p := range append([]string{c.path}, c.more...) {
					want = append(want, "s.shop.1 volume:data /"+p)
				}
				if got := losses(t, x); !slices.Equal(got, want) {
					t.Fatal(cmp.Diff(want, got))
				}
			}
			// The system is whole again with its next snapshot, and check with it; what the
			// older one lacks is told to who has found it.
			next := treeSnapshot(t, main, "shop", nil, c.files...)
			if ps := examine(t, b.Host("fresh"), repo.ExamineOptions{}).Problems; len(ps) > 0 {
				t.Fatalf("check of %s: %v", next.Tag, ps)
			}
			for _, host := range []string{"checker", "fresh"} {
				o := read
				if host == "checker" {
					o.Read = nil
				}
				if ps := examine(t, b.Host(host), o).Problems; !lackIs(ps, s, c.path) {
					t.Fatalf("%s: %v", host, ps)
				}
			}
			if ps := examine(t, b.Host("checker"), repo.ExamineOptions{Only: func(s *repo.Snapshot) bool { return s.ID == other.ID || s.ID == next.ID }, Scope: "these", Read: &readlog.Subset{}}).Problems; len(ps) > 0 {
				t.Fatal(ps)
			}
		})
	}
}

// A page of a catalog that is in no index, too, is told with what it lists.
func TestVerifyTellsListThatNoIndexHas(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	main := b.Host("main")
	s := treeSnapshot(t, main, "shop", nil, file{"a", [][]byte{noise(1, 100)}})
	all := unitsOf(t, main, s)
	for ref, data := range all {
		if strings.HasPrefix(string(data), "LBCP") {
			leaveOut(t, main, s, data)
			ps := examine(t, b.Host("checker"), repo.ExamineOptions{}).Problems
			if len(ps) != 1 || !strings.Contains(ps[0].Err.Error(), "the list of files of volume:data") {
				t.Fatalf("without %s: %v", ref.ID, ps)
			}
			return
		}
	}
	t.Fatal("no page")
}

// Of a sample over some days each snapshot is looked at once in them, also the
// older ones that check leaves alone.
func TestSampleLooksAtAllSnapshots(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	main := b.Host("main")
	var s *repo.Snapshot
	var units [][]byte
	for i := range 6 {
		units = append(units, noise(uint64(i), 1000))
		s = treeSnapshot(t, main, "shop", s, file{"a", units})
	}
	old, err := main.Find(t.Context(), "shop", "#2")
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 5, 1, 3, 0, 0, 0, time.UTC)
	sample := func(day int) []repo.Problem {
		o := repo.ExamineOptions{Read: &readlog.Subset{Within: 4 * 24 * time.Hour}, Now: func() time.Time { return now.Add(time.Duration(day) * 24 * time.Hour) }}
		return examine(t, b.Host("checker"), o).Problems
	}
	leaveOut(t, main, old, units[1])
	if ps := examine(t, b.Host("checker"), repo.ExamineOptions{}).Problems; len(ps) > 0 {
		t.Fatalf("check looks at the newest: %v", ps)
	}
	found := -1
	for day := range 5 { // the fifth is four days after the first
		ps := sample(day)
		if found < 0 && len(ps) > 0 {
			found = day
		}
		if found >= 0 && !lackIs(ps, old, "a") {
			t.Fatalf("day %d: %v", day, ps)
		}
	}
	if found < 0 {
		t.Fatal("nobody looked at it")
	}
}

// What no index has is found again in another repository or where the live
// system's next snapshot has stored it, and else named as lost.
func TestRepairWhatNoIndexHas(t *testing.T) {
	t.Parallel()
	a, c := file{"a", [][]byte{noise(1, 90<<10)}}, file{"c", [][]byte{[]byte("!")}}
	heals := func(t *testing.T, b *repotest.Bed, o repo.RepairOptions) {
		t.Helper()
		res, err := b.Host("main").Repair(t.Context(), o)
		if err != nil || !res.Healed() {
			t.Fatalf("%+v, %v", res, err)
		}
		if ps := examine(t, b.Host("witness"), repo.ExamineOptions{Read: &readlog.Subset{}}).Problems; len(ps) > 0 {
			t.Fatal(ps)
		}
	}
	setUp := func(t *testing.T) (*repotest.Bed, *repo.Snapshot, *memstore.Store) {
		b := repotest.NewBed(t)
		s := treeSnapshot(t, b.Host("main"), "shop", nil, a, c)
		before := b.Store.Clone()
		moved := leaveOut(t, b.Host("main"), s, c.units[0])
		for _, d := range s.Needs {
			b.Store.Vanish(d)
		}
		tags, err := b.Store.Tags(t.Context(), "m.")
		if err != nil || len(tags) != len(moved.Needs) {
			t.Fatal(tags, err)
		}
		b.Store.Collect()
		return b, moved, before
	}
	t.Run("nothing has it", func(t *testing.T) {
		t.Parallel()
		b, s, _ := setUp(t)
		res, err := b.Host("main").Repair(t.Context(), repo.RepairOptions{Read: true})
		if err != nil || res.Healed() || !lackIs(res.After.Problems, s, "c") {
			t.Fatalf("%+v, %v", res, err)
		}
		if got := losses(t, res.After); !slices.Equal(got, []string{"s.shop.1 volume:data /c"}) {
			t.Fatal(got)
		}
	})
	t.Run("the next snapshot", func(t *testing.T) {
		t.Parallel()
		b, s, _ := setUp(t)
		if len(examine(t, b.Host("main"), repo.ExamineOptions{}).Problems) == 0 {
			t.Fatal("nothing was found")
		}
		if _, err := b.Host("main").NewWriter(t.Context(), repo.WriterOptions{System: "shop", Parent: s}); !strings.Contains(fmt.Sprint(err), repo.ErrParentDamaged.Error()) {
			t.Fatalf("it was built upon: %v", err)
		}
		treeSnapshot(t, b.Host("main"), "shop", nil, a, c)
		heals(t, b, repo.RepairOptions{})
	})
	t.Run("a mirror that lists other manifests", func(t *testing.T) {
		t.Parallel()
		b, _, before := setUp(t)
		heals(t, b, repo.RepairOptions{From: []repo.RepairSource{{Name: "mirror", Exact: before}}})
	})
	t.Run("another repository", func(t *testing.T) {
		t.Parallel()
		b, _, _ := setUp(t)
		there := repotest.NewBed(t)
		treeSnapshot(t, there.Host("main"), "shop", nil, c)
		heals(t, b, repo.RepairOptions{From: []repo.RepairSource{{Name: "there", Other: there.Host("main")}}})
	})
}
