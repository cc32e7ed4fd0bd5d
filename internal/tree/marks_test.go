package tree_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"lifeboat/internal/catalog"
	"lifeboat/internal/dr"
	"lifeboat/internal/tree"
)

var markName = dr.RestoreMark(dr.SnapshotID{7}, "0f12")

// paths are those of a captured tree.
func (f *fixture) paths(res dr.Tree) (out []string) {
	f.t.Helper()
	r := f.open(res)
	must(f.t, catalog.Merge(f.t.Context(), nil, r, func(_, e *catalog.Entry) error {
		out = append(out, e.Clone().Path)
		return nil
	}))
	return out
}

// TestMarksAreNotCaptured: the mark of a restore that was cut off is not in a snapshot,
// which says instead that the tree is half restored: where the mark was there before,
// came or went while the tree was read, and where only candidates are looked at.
func TestMarksAreNotCaptured(t *testing.T) {
	t.Parallel()
	f := watched(t)
	const sub = "dir03/sub/"
	steps := []struct {
		name            string
		before, between func()
		looked          bool // all entries were
		want            []string
	}{
		{"there before", func() { f.write(markName, []byte("{}")) }, nil, false, []string{""}},
		{"nothing has changed", nil, nil, false, []string{""}},
		{"another comes", nil, func() { f.write(sub+markName, []byte("{}")) }, false, []string{"", "dir03/sub"}},
		{"its directory goes", nil, func() { must(t, os.RemoveAll(f.path("dir03"))) }, false, []string{""}},
		{"the first goes", nil, func() { must(t, os.Remove(f.path(markName))) }, false, nil},
		{"with another name", func() {
			f.write(markName, []byte("{}"))
			must(t, os.Link(f.path(markName), f.path("dir04/sub/linked")))
		}, nil, true, []string{""}},
		{"all are gone", func() { must(t, os.Remove(f.path(markName))) }, nil, true, nil},
		{"a directory of that name", func() { f.write(markName+"/file", []byte("mine")) }, nil, true, nil},
	}
	for _, s := range steps {
		if s.before != nil {
			s.before()
		}
		between := s.between
		if between == nil {
			between = func() {}
		}
		res, c := f.capture(between)
		if !slices.Equal(res.HalfRestored, s.want) {
			t.Errorf("%s: half restored: %q", s.name, res.HalfRestored)
		}
		if n := c.Stats().Looked; !s.looked && n > 20 {
			t.Errorf("%s: %d entries were looked at", s.name, n)
		}
		for _, p := range f.paths(res) {
			if st, err := os.Lstat(f.path(p)); filepath.Base(p) == markName && (err != nil || !st.IsDir()) {
				t.Errorf("%s: %s was captured", s.name, p)
			}
		}
	}
}

// olderCapture is a tree as an older version captured it, with the mark of a restore
// and a further name of it.
func olderCapture(t *testing.T) (*fixture, dr.Tree) {
	t.Helper()
	f := newFixture(t)
	f.write("a", []byte("a"))
	f.write("placeholder", []byte("{}"))
	must(t, os.Link(f.path("placeholder"), f.path("z")))
	old, _ := f.capture(nil)
	r := f.open(old)
	b := catalog.NewBuilder(f.repo, cutKey, unitID)
	var entries []catalog.Entry
	must(t, catalog.Merge(t.Context(), nil, r, func(_, e *catalog.Entry) error {
		entries = append(entries, e.Clone())
		return nil
	}))
	for i := range entries {
		if e := &entries[i]; e.Path == "placeholder" {
			e.Path = markName
		} else if e.Target == "placeholder" {
			e.Target = markName
		}
	}
	slices.SortFunc(entries, func(a, b catalog.Entry) int { return catalog.ComparePaths(a.Path, b.Path) })
	for i := range entries {
		must(t, b.Add(t.Context(), entries[i]))
	}
	sum, err := b.Close(t.Context())
	must(t, err)
	return f, dr.Tree{Catalog: sum.Table, Entries: sum.Entries, Bytes: sum.Bytes, Hash: sum.Hash}
}

// TestMarksAreNotBroughtBack: an older snapshot that has a mark in it makes none, with
// each way to bring a tree back, and Apply takes away what is there.
func TestMarksAreNotBroughtBack(t *testing.T) {
	t.Parallel()
	f, res := olderCapture(t)
	mustHold := func(dir string) {
		t.Helper()
		names, err := os.ReadDir(dir)
		must(t, err)
		if len(names) != 2 || names[0].Name() != "a" || names[1].Name() != "z" || mustRead(t, filepath.Join(dir, "z")) != "{}" {
			t.Errorf("%v", names)
		}
	}
	out := filepath.Join(t.TempDir(), "out")
	_, err := tree.Extract(t.Context(), out, f.open(res), f.repo, tree.ExtractOptions{CutKey: cutKey, UnitID: unitID, TempDir: t.TempDir()})
	must(t, err)
	mustHold(out)
	_, err = f.inPlace(out, res, tree.ExtractOptions{Remove: true})
	must(t, err)
	mustHold(out)
	must(t, os.WriteFile(filepath.Join(out, markName), []byte("{}"), 0o600))
	_, err = f.inPlace(out, res, tree.ExtractOptions{Exclude: []string{markName}, Remove: true})
	must(t, err)
	must(t, os.WriteFile(filepath.Join(out, "extra"), nil, 0o600))
	_, err = tree.Apply(t.Context(), out, nil, f.open(res), f.repo, tree.ApplyOptions{Key: "volume:x", StateDir: t.TempDir(), CutKey: cutKey, UnitID: unitID})
	must(t, err)
	mustHold(out)
}
