package tree_test

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"lifeboat/internal/dr"
	"lifeboat/internal/tree"
	"lifeboat/lab/treecmp"
)

// linkedPlace captures a tree whose file "db" is called "db2" and "sub/db3" too, and
// lays it down at a second place.
func linkedPlace(t *testing.T) (f *fixture, dest string, res dr.Tree, at func(string) string) {
	t.Helper()
	f = newFixture(t)
	f.write("db", randomBytes(1, 3<<20))
	f.write("sub/other", []byte("other"))
	if err := errors.Join(os.Link(f.path("db"), f.path("db2")), os.Link(f.path("db"), f.path("sub/db3"))); err != nil {
		t.Fatal(err)
	}
	res, _ = f.capture(nil)
	dest = filepath.Join(t.TempDir(), "dest")
	mustApply(t, f, dest, nil, res)
	return f, dest, res, func(p string) string { return filepath.Join(dest, p) }
}

func appendTo(path, s string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(s)
	return errors.Join(err, f.Close())
}

// entryAt is what an independent walker sees of a path, whatever else it is called.
func entryAt(t *testing.T, path string) treecmp.Entry {
	t.Helper()
	all, err := treecmp.Fingerprint(filepath.Dir(path), treecmp.Options{OneMount: true})
	if err != nil {
		t.Fatal(err)
	}
	e, ok := all[filepath.Base(path)]
	if !ok {
		t.Fatalf("%s is gone", path)
	}
	e.LinkedTo = ""
	return e
}

// TestLinkGroupSparesOtherNames: a file with several names in the snapshot that has
// still others on disk is made anew under the snapshot's names alone; the others keep
// content and metadata.
func TestLinkGroupSparesOtherNames(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(path string) error{
		"content":    func(path string) error { return appendTo(path, "changed") },
		"mode":       func(path string) error { return os.Chmod(path, 0o600) },
		"attributes": func(path string) error { return unix.Lsetxattr(path, "user.mine", []byte("x"), 0) },
		"both":       func(path string) error { return errors.Join(appendTo(path, "x"), os.Chmod(path, 0o600)) },
	} {
		for _, inside := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " inside ", inside), func(t *testing.T) {
				t.Parallel()
				f, dest, res, at := linkedPlace(t)
				extra := filepath.Join(filepath.Dir(dest), "safety")
				if inside {
					extra = at("safety")
				}
				if err := errors.Join(change(at("db")), os.Link(at("db"), extra)); err != nil {
					t.Fatal(err)
				}
				before := entryAt(t, extra)
				if _, err := f.inPlace(dest, res, tree.ExtractOptions{}); err != nil {
					t.Fatal(err)
				}
				if diff := treecmp.Report(treecmp.Compare(treecmp.Tree{".": before}, treecmp.Tree{".": entryAt(t, extra)}, treecmp.Rules{}), 20); diff != "" {
					t.Errorf("the name that is not the snapshot's:\n%s", diff)
				}
				if inside {
					if err := os.Rename(extra, filepath.Join(filepath.Dir(dest), "safety")); err != nil {
						t.Fatal(err)
					}
					if _, err := f.inPlace(dest, res, tree.ExtractOptions{}); err != nil { // the directory's times
						t.Fatal(err)
					}
				}
				same(t, f.root, dest)
			})
		}
	}
}

// TestLinkGroupStaysInPlace: without other names the file keeps its inode, and only
// what differs is written.
func TestLinkGroupStaysInPlace(t *testing.T) {
	t.Parallel()
	f, dest, res, at := linkedPlace(t)
	var before, after unix.Stat_t
	if err := errors.Join(appendTo(at("db"), "changed"), unix.Stat(at("db"), &before)); err != nil {
		t.Fatal(err)
	}
	st, err := f.inPlace(dest, res, tree.ExtractOptions{})
	if err = errors.Join(err, unix.Stat(at("sub/db3"), &after)); err != nil {
		t.Fatal(err)
	}
	if before.Ino != after.Ino || st.BytesWritten > 1<<20 {
		t.Errorf("inode %d and %d, %+v", before.Ino, after.Ino, st)
	}
	same(t, f.root, dest)
}

// TestLinkGroupInPart: with a path the other names of a file are not asked for and
// stay, also where nothing but the path differs from them.
func TestLinkGroupInPart(t *testing.T) {
	t.Parallel()
	f, dest, res, at := linkedPlace(t)
	if err := appendTo(at("db"), "changed"); err != nil {
		t.Fatal(err)
	}
	before := entryAt(t, at("sub/db3"))
	if _, err := f.inPlace(dest, res, tree.ExtractOptions{Path: "db"}); err != nil {
		t.Fatal(err)
	}
	if got, want := mustRead(t, at("db")), mustRead(t, f.path("db")); got != want {
		t.Error("db is not what was captured")
	}
	for _, p := range []string{"db2", "sub/db3"} {
		if diff := treecmp.Report(treecmp.Compare(treecmp.Tree{".": before}, treecmp.Tree{".": entryAt(t, at(p))}, treecmp.Rules{}), 20); diff != "" {
			t.Errorf("%s:\n%s", p, diff)
		}
	}
}

// TestSingleFileSparesOtherNames: so does a tree that is a single file.
func TestSingleFileSparesOtherNames(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.root = filepath.Join(f.root, "file")
	if err := os.WriteFile(f.root, []byte("captured"), 0o640); err != nil {
		t.Fatal(err)
	}
	res, _ := f.capture(nil)
	dir := t.TempDir()
	dest, safety := filepath.Join(dir, "dest"), filepath.Join(dir, "safety")
	if err := errors.Join(os.WriteFile(dest, []byte("now"), 0o600), os.Link(dest, safety)); err != nil {
		t.Fatal(err)
	}
	mustApply(t, f, dest, nil, res)
	if got, kept := mustRead(t, dest), mustRead(t, safety); got != "captured" || kept != "now" {
		t.Errorf("%q, other name %q", got, kept)
	}
}

// TestRandomForeignLinks: whatever links lead into a tree that is brought to another
// state, what has a name outside, or inside where that stays, is as it was there.
func TestRandomForeignLinks(t *testing.T) {
	t.Parallel()
	for seed := range uint64(12) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			rng := rand.New(rand.NewPCG(seed, 7))
			m := &mutator{root: f.root, rng: rng}
			dir := t.TempDir()
			dest, outside := filepath.Join(dir, "dest"), filepath.Join(dir, "outside")
			if err := os.Mkdir(outside, 0o700); err != nil {
				t.Fatal(err)
			}
			for range 200 {
				m.step()
			}
			prev, _ := f.capture(nil)
			mustApply(t, f, dest, nil, prev)
			for round := range 8 {
				known := f.open(prev)
				if round%2 == 0 {
					for range 20 { // also what is there is not what was laid down
						(&mutator{root: dest, rng: rng}).step()
					}
					known = nil
				}
				for range 60 {
					m.step()
				}
				next, _ := f.capture(nil)
				linkSome(t, rng, dest, func(n int) string { return filepath.Join(outside, fmt.Sprintf("%d.%d", round, n)) })
				keep := round%4 == 2
				if keep {
					linkSome(t, rng, dest, func(n int) string { return filepath.Join(dest, fmt.Sprintf("stays%d.%d", round, n)) })
				}
				out, in := fingerprint(t, outside), fingerprint(t, dest)
				if keep {
					if _, err := f.inPlace(dest, next, tree.ExtractOptions{}); err != nil && !errors.Is(err, dr.ErrUsage) {
						t.Fatal(err)
					}
					equal(t, staying(in), staying(fingerprint(t, dest)))
					known = nil
				} else {
					mustApply(t, f, dest, known, next)
					same(t, f.root, dest)
				}
				equal(t, out, fingerprint(t, outside))
				if keep {
					mustApply(t, f, dest, nil, next)
					same(t, f.root, dest)
				}
				prev = next
			}
		})
	}
}

// linkSome gives half of what is below dir another name.
func linkSome(t *testing.T, rng *rand.Rand, dir string, name func(n int) string) {
	t.Helper()
	var paths []string
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() && rng.IntN(2) == 0 {
			paths = append(paths, path)
		}
		return err
	})
	for n, p := range paths {
		err = errors.Join(err, os.Link(p, name(n)))
	}
	if err != nil {
		t.Fatal(err)
	}
}

func fingerprint(t *testing.T, dir string) treecmp.Tree {
	t.Helper()
	all, err := treecmp.Fingerprint(dir, treecmp.Options{OneMount: true})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// staying are the entries that no snapshot has.
func staying(all treecmp.Tree) treecmp.Tree {
	out := treecmp.Tree{}
	for p, e := range all {
		if strings.HasPrefix(p, "stays") {
			e.LinkedTo = ""
			out[p] = e
		}
	}
	return out
}

func equal(t *testing.T, want, got treecmp.Tree) {
	t.Helper()
	if diff := treecmp.Report(treecmp.Compare(want, got, treecmp.Rules{}), 20); diff != "" {
		t.Fatalf("what is not the tree's has changed:\n%s", diff)
	}
}
