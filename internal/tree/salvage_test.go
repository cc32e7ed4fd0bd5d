package tree_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lifeboat/internal/catalog"
	"lifeboat/internal/dr"
	"lifeboat/internal/tree"
)

// holed is a repository of which some units are damaged.
type holed struct {
	*memory
	lost map[dr.UnitID]bool
	fail error // of everything that is fetched
}

func (h *holed) Unit(ctx context.Context, ref dr.UnitRef) ([]byte, error) {
	if h.lost[ref.ID] {
		return nil, fmt.Errorf("unit %v: %w", ref.ID, dr.ErrTampered)
	}
	return h.memory.Unit(ctx, ref)
}

func (h *holed) Fetch(ctx context.Context, refs []dr.UnitRef, fn func(int, []byte) error) error {
	for _, ref := range refs {
		if h.lost[ref.ID] {
			return fmt.Errorf("unit %v: %w", ref.ID, dr.ErrTampered)
		}
	}
	return h.memory.Fetch(ctx, refs, fn)
}

func (h *holed) fetchWhole(ctx context.Context, refs []dr.UnitRef, fn func(int, []byte) error, lost func(int, error) error) error {
	if h.fail != nil {
		return h.fail
	}
	for i, ref := range refs {
		if h.lost[ref.ID] {
			if err := lost(i, dr.ErrTampered); err != nil {
				return err
			}
			continue
		}
		if err := h.memory.Fetch(ctx, refs[i:i+1], func(_ int, data []byte) error { return fn(i, data) }); err != nil {
			return err
		}
	}
	return nil
}

// rescue extracts what is whole, and returns what is told to be lost, by path.
func (h *holed) rescue(t *testing.T, f *fixture, res dr.Tree, out string, again bool, o tree.ExtractOptions) (map[string]tree.Loss, error) {
	t.Helper()
	var mu sync.Mutex
	told := map[string]tree.Loss{}
	target, err := catalog.Open(t.Context(), h, res.Catalog)
	if err != nil {
		t.Fatal(err)
	}
	o.CutKey, o.UnitID, o.TempDir, o.Resume = cutKey, unitID, f.state, again
	o.Salvage = &tree.Salvage{
		Damage: func(err error) bool { return errors.Is(err, dr.ErrTampered) }, Fetch: h.fetchWhole,
		Lost: func(l tree.Loss) {
			mu.Lock()
			defer mu.Unlock()
			if _, twice := told[l.Path]; twice {
				t.Errorf("%q is told twice", l.Path)
			}
			told[l.Path] = l
		},
	}
	_, err = tree.Extract(t.Context(), out, target, h, o)
	return told, err
}

// damaged makes a tree, and damages a piece of a large file, the content of one with
// two names, a part of an indirect list, and the page that lists a directory and some
// of what is in it. What the page lists is returned.
func damaged(t *testing.T) (f *fixture, res dr.Tree, h *holed, unlisted []string) {
	t.Helper()
	f = newFixture(t)
	for i := range 300 {
		f.write(fmt.Sprintf("small/d%02d/f%03d", i/60, i), randomBytes(uint64(i), 1+i*7))
	}
	f.write("large/a.bin", randomBytes(71, 9<<20))
	f.write("large/whole.bin", randomBytes(72, 3<<20))
	f.write("large/table.ibd", randomBytes(73, 6<<20)) // in pieces of 32 KiB
	f.write("names/one", randomBytes(74, 70<<10))
	if err := errors.Join(os.Link(filepath.Join(f.root, "names/one"), filepath.Join(f.root, "names/two"))); err != nil {
		t.Fatal(err)
	}
	res, _ = f.capture(nil)
	h = &holed{memory: f.repo, lost: map[dr.UnitID]bool{}}
	r := f.open(res)
	for _, path := range []string{"large/a.bin", "large/table.ibd", "names/one", "small/d00/f050"} {
		e, err := r.Lookup(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		h.lost[e.Refs[len(e.Refs)/2].ID] = true
	}
	for i := range r.NumPages() {
		p := r.Page(i)
		data, err := f.repo.Unit(t.Context(), p.Ref)
		if err != nil {
			t.Fatal(err)
		}
		entries, err := r.OpenPage(i, data)
		if err != nil {
			t.Fatal(err)
		}
		has := func(e catalog.Entry) bool { return e.Path == "small/d03" }
		if slices.ContainsFunc(entries, has) {
			h.lost[p.Ref.ID] = true
			for _, e := range entries {
				unlisted = append(unlisted, e.Clone().Path)
			}
		}
	}
	if len(unlisted) == 0 || unlisted[0] == "" || slices.Contains(unlisted, "small/d03/f239") {
		t.Fatalf("the page is of no use here: %q", unlisted)
	}
	return f, res, h, unlisted
}

// mustHoldWhole: out has every file of root but those that are left out, and nothing
// else.
func mustHoldWhole(t *testing.T, root, out string, without []string) {
	t.Helper()
	var want, got []string
	for dir, list := range map[string]*[]string{root: &want, out: &got} {
		err := filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
			rel, _ := filepath.Rel(dir, name)
			if err != nil || e.IsDir() || dir == root && slices.Contains(without, rel) {
				return err
			}
			*list = append(*list, rel)
			a, aerr := os.ReadFile(filepath.Join(root, rel))
			b, berr := os.ReadFile(filepath.Join(out, rel))
			if aerr == nil && berr == nil && !bytes.Equal(a, b) {
				t.Errorf("%s differs", rel)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestExtractGoesOnPastDamage: all that is whole is written, a file of which anything
// is lost is not there and is named; a second run tries only what is missing, and once
// the damage is mended it completes the tree.
func TestExtractGoesOnPastDamage(t *testing.T) {
	t.Parallel()
	f, res, h, unlisted := damaged(t)
	files := []string{"large/a.bin", "large/table.ibd", "names/one", "names/two", "small/d00/f050"}
	want := append(slices.Clone(files), unlisted[0])
	slices.Sort(want)
	out := filepath.Join(f.state, "out")
	for _, again := range []bool{false, true} {
		h.fetched = 0
		told, err := h.rescue(t, f, res, out, again, tree.ExtractOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, slices.Sorted(maps.Keys(told))); diff != "" {
			t.Errorf("again %v: %s", again, diff)
		}
		if l := told[unlisted[0]]; !l.List || l.End == "" {
			t.Errorf("%+v", l)
		}
		mustHoldWhole(t, f.root, out, append(slices.Clone(files), unlisted...))
		whole := int64(0)
		for _, l := range told {
			if l.Err == nil {
				t.Errorf("%q without a reason", l.Path)
			}
		}
		// What is whole of a file of which something is lost comes again, no more.
		for _, path := range files {
			st, err := os.Stat(filepath.Join(f.root, path))
			if err != nil {
				t.Fatal(err)
			}
			whole += st.Size()
		}
		if again && h.fetched > whole {
			t.Errorf("%d bytes were fetched again, and %d are missing", h.fetched, whole)
		}
	}
	clear(h.lost)
	told, err := h.rescue(t, f, res, out, true, tree.ExtractOptions{})
	if err != nil || len(told) > 0 {
		t.Fatalf("%v, %v", told, err)
	}
	f.compare(out, res)
}

// TestExtractStopsAtTrouble: what is no damage ends the run, and without Salvage
// damage does.
func TestExtractStopsAtTrouble(t *testing.T) {
	t.Parallel()
	f, res, h, _ := damaged(t)
	h.fail = errCutOff
	if _, err := h.rescue(t, f, res, filepath.Join(f.state, "out"), false, tree.ExtractOptions{}); !errors.Is(err, errCutOff) {
		t.Errorf("%v", err)
	}
	target, err := catalog.Open(t.Context(), h, res.Catalog)
	if err != nil {
		t.Fatal(err)
	}
	o := tree.ExtractOptions{CutKey: cutKey, UnitID: unitID, TempDir: f.state}
	if _, err := tree.Extract(t.Context(), filepath.Join(f.state, "strict"), target, h, o); !errors.Is(err, dr.ErrTampered) {
		t.Errorf("%v", err)
	}
	to := filepath.Join(f.state, "applied")
	if _, err := tree.Apply(t.Context(), to, nil, target.Clone(), h, tree.ApplyOptions{StateDir: f.state, CutKey: cutKey, UnitID: unitID}); !errors.Is(err, dr.ErrTampered) {
		t.Errorf("%v", err)
	}
}

// TestExtractWithoutTheFirstPage: the root itself is in the part of the list that is
// lost, and of a part of a tree only losses that concern it are told.
func TestExtractWithoutTheFirstPage(t *testing.T) {
	t.Parallel()
	f, res, h, unlisted := damaged(t)
	out := filepath.Join(f.state, "part")
	told, err := h.rescue(t, f, res, out, false, tree.ExtractOptions{Path: "large/whole.bin"})
	if err != nil || len(told) > 0 {
		t.Errorf("%v, %v", told, err)
	}
	told, err = h.rescue(t, f, res, filepath.Join(f.state, "below"), false, tree.ExtractOptions{Path: "small/d03/f239"})
	if err != nil || len(told) != 1 || !told[unlisted[0]].List {
		t.Errorf("%v, %v", told, err)
	}
	if _, err := os.Stat(filepath.Join(f.state, "below/small/d03/f239")); err != nil {
		t.Error(err)
	}
	clear(h.lost)
	r := f.open(res)
	h.lost[r.Page(0).Ref.ID] = true
	if told, err = h.rescue(t, f, res, filepath.Join(f.state, "rootless"), false, tree.ExtractOptions{}); err != nil || len(told) != 1 {
		t.Fatalf("%v, %v", told, err)
	}
	var lost []string
	for {
		e, err := r.Next(t.Context())
		if errors.Is(err, io.EOF) || err == nil && catalog.ComparePaths(e.Path, r.Page(0).End) >= 0 {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		lost = append(lost, e.Clone().Path)
	}
	mustHoldWhole(t, f.root, filepath.Join(f.state, "rootless"), lost)
}
