package repo_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lifeboat/internal/repo"
	"lifeboat/internal/repo/readlog"
	"lifeboat/internal/repo/repotest"
)

// alone is the dry run and then the real one, without any other place, which have to
// say the same.
func (l *linked) alone(host string) *repo.Repaired {
	l.t.Helper()
	var last *repo.Repaired
	var says [2][]string
	for i, dry := range []bool{true, false} {
		o := l.host(host)
		o.ForRepair = true
		r, err := open(l.t, l.store(l.reg), o)
		if err != nil {
			l.t.Fatal(err)
		}
		if last, err = r.Repair(l.t.Context(), repo.RepairOptions{DryRun: dry}); err != nil {
			l.t.Fatal(err)
		}
		says[i] = told(l.t, last)
	}
	if diff := cmp.Diff(says[1], says[0]); diff != "" {
		l.t.Errorf("the real run (-) and the dry run (+):\n%s", diff)
	}
	return last
}

// A tag whose link is torn, empty, garbled or gone is mended without any other
// registry: what it named is stored still, and this host knows its digest.
func TestRepairOfLinksFromHere(t *testing.T) {
	t.Parallel()
	for _, tag := range []string{"key.1", "host.1", "e.shop.1", "w.shop.1", "l.shop.1.1", "r.shop.1.1", "s.shop.1", "s.shop.3"} {
		for _, kind := range []string{"torn", "empty", "garbled", "no link", "no tag"} {
			t.Run(tag+" "+kind, func(t *testing.T) {
				t.Parallel()
				l := newLinked(t)
				main := l.open("main")
				if err := main.PutRecord(t.Context(), "w.shop.1", map[string]any{"host": main.HostID(), "system": "shop"}); err != nil {
					t.Fatal(err)
				}
				first, err := main.Find(t.Context(), "shop", "#1")
				if err != nil {
					t.Fatal(err)
				}
				if tag == "r.shop.1.1" {
					relocate(t, main, first)
				}
				if tag == "l.shop.1.1" {
					err = main.Lock(t.Context(), first, "evidence")
				}
				if err != nil {
					t.Fatal(err)
				}
				if ps, err := main.Check(t.Context()); err != nil || len(ps) > 0 {
					t.Fatal(ps, err)
				}
				link := filepath.Join(l.tagDir(tag), "current", "link")
				was, err := os.ReadFile(link)
				if err != nil {
					t.Fatal(err)
				}
				switch kind {
				case "torn":
					err = os.Truncate(link, 9)
				case "empty":
					err = os.Truncate(link, 0)
				case "garbled":
					err = os.WriteFile(link, []byte("sha256:rubbish"), 0o600)
				case "no link":
					err = os.Remove(link)
				case "no tag":
					err = os.RemoveAll(l.tagDir(tag))
				}
				if err != nil {
					t.Fatal(err)
				}
				res := l.alone("main")
				now, err := os.ReadFile(link)
				// A tag that is not listed may have been taken away by somebody.
				back := kind != "no tag" && kind != "no link" || !slices.Contains([]string{"l.shop.1.1", "r.shop.1.1", "s.shop.1"}, tag)
				if back != (err == nil && string(now) == string(was)) {
					t.Errorf("it names %q, was %q: %v", now, was, err)
				}
				if back && !res.Healed() {
					t.Errorf("%+v, %v", res.Steps, res.After.Problems)
				}
				if !back {
					return
				}
				for _, host := range []string{"main", "fresh"} {
					if ps := examine(t, l.open(host), repo.ExamineOptions{Read: &readlog.Subset{}}).Problems; len(ps) > 0 {
						t.Errorf("%s: %v", host, ps)
					}
				}
			})
		}
	}
}

// A host that remembers nothing of it takes the registry's word for what a tag was
// given first, if that is what the tag must name.
func TestRepairOfLinksByTheRegistrysWord(t *testing.T) {
	t.Parallel()
	for _, tag := range []string{"host.1", "e.shop.1", "s.shop.1", "s.shop.3"} {
		t.Run(tag, func(t *testing.T) {
			t.Parallel()
			l := newLinked(t)
			l.damage(tag, "sha256:", false)
			if res := l.alone("fresh"); !res.Healed() {
				t.Errorf("%+v, %v", res.Steps, res.After.Problems)
			}
			if ps := examine(t, l.open("main"), repo.ExamineOptions{}).Problems; len(ps) > 0 {
				t.Errorf("%v", ps)
			}
		})
	}
}

// Where neither says anything it is damage still, to be told and not a failure.
func TestRepairWhereNothingSaysWhatATagNamed(t *testing.T) {
	t.Parallel()
	for _, tag := range []string{"e.shop.1", "s.shop.1"} {
		t.Run(tag, func(t *testing.T) {
			t.Parallel()
			l := newLinked(t)
			l.damage(tag, "sha256:", true)
			if res := l.alone("fresh"); res.Healed() || !slices.ContainsFunc(res.After.Problems, func(p repo.Problem) bool { return p.Tag == tag }) {
				t.Errorf("%+v, %v", res.Steps, res.After.Problems)
			}
			// With a copy the registry does not take it back, for nothing says that it
			// was that; a snapshot's record is carried by a relocation.
			res := l.repair()
			if healed := tag == "s.shop.1"; res.Healed() != healed {
				t.Errorf("%+v, %v", res.Steps, res.After.Problems)
			}
		})
	}
}

// What the host has seen counts more than what the registry says: another snapshot is
// not put there, and what was forgotten does not come back.
func TestRepairFromHereBringsNothingElse(t *testing.T) {
	t.Parallel()
	l := newLinked(t)
	main := l.open("main")
	third, err := main.Find(t.Context(), "shop", "#3")
	if err != nil {
		t.Fatal(err)
	}
	if err := main.Close(); err != nil {
		t.Fatal(err)
	}
	st := l.store(l.reg)
	if err := st.DeleteTag(t.Context(), "s.shop.1"); err != nil { // its manifest stays
		t.Fatal(err)
	}
	other, err := st.ResolveTag(t.Context(), "s.shop.2")
	if err != nil {
		t.Fatal(err)
	}
	l.damage("s.shop.3", "sha256:", true)
	index := filepath.Join(l.tagDir("s.shop.3"), "index", "sha256", other.Encoded())
	if err := errors.Join(os.MkdirAll(index, 0o700), os.WriteFile(filepath.Join(index, "link"), []byte(other), 0o600)); err != nil {
		t.Fatal(err)
	}
	res := l.alone("fresh")
	if res.Healed() {
		t.Errorf("%+v", res.Steps)
	}
	// Nor does the registry take it back there; its record carries a relocation.
	if res = l.alone("main"); !res.Healed() || len(res.Steps) != 1 || res.Steps[0].As != "r.shop.3.1" {
		t.Errorf("%+v, %v", res.Steps, res.After.Problems)
	}
	for _, host := range []string{"main", "fresh"} {
		snaps, problems, err := l.open(host).Snapshots(t.Context(), "shop")
		if err != nil || len(problems) > 0 || len(snaps) != 2 || snaps[0].Number != 2 || snaps[1].Number != 3 || snaps[1].ID != third.ID {
			t.Errorf("%s: %+v, %v, %v", host, snaps, problems, err)
		}
	}
}

// Of an older state only the newest snapshot comes back from here, which nobody
// forgets: those between another host may have forgotten.
func TestRepairOfAnOlderStateFromHere(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	main := b.Host("main")
	var last *repo.Snapshot
	for n := range 4 {
		last = mustSnapshot(t, main, "shop", last, content(uint64(n), 3))
	}
	for _, tag := range []string{"s.shop.1", "s.shop.3", "s.shop.4"} { // what they name stays
		if err := b.Store.DeleteTag(t.Context(), tag); err != nil {
			t.Fatal(err)
		}
	}
	if ps, err := main.Check(t.Context()); err != nil || !slices.ContainsFunc(ps, repo.Problem.SetBack) {
		t.Fatalf("%v, %v; want that it was set back", ps, err)
	}
	done, err := main.Repair(t.Context(), repo.RepairOptions{})
	if err != nil || !done.Healed() {
		t.Errorf("%+v, %v", done, err)
	}
	if tags, err := b.Store.Tags(t.Context(), "s."); err != nil || !slices.Equal(tags, []string{"s.shop.2", "s.shop.4"}) {
		t.Errorf("left: %v, %v", tags, err)
	}
	if !slices.Equal(done.After.Forgotten, []string{"s.shop.1", "s.shop.3"}) {
		t.Errorf("forgotten or hidden: %v", done.After.Forgotten)
	}
}
