package tree_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/internal/dr"
	"lifeboat/internal/tree"
)

func (f *fixture) inPlace(dest string, res dr.Tree, o tree.ExtractOptions) (tree.ApplyStats, error) {
	f.t.Helper()
	f.repo.newRun()
	o.CutKey, o.UnitID, o.TempDir, o.InPlace = cutKey, unitID, f.t.TempDir(), true
	return tree.Extract(f.t.Context(), dest, f.open(res), f.repo, o)
}

func mustRead(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// furnishPlace makes a tree, captures it, and lays it down at a second place.
func furnishPlace(t *testing.T) (f *fixture, dest string, res dr.Tree, at func(string) string) {
	t.Helper()
	f = newFixture(t)
	f.write("db/ibdata1.ibd", randomBytes(1, 4<<20))
	f.write("uploads/a.pdf", randomBytes(2, 300<<10))
	f.write("uploads/b.pdf", []byte("b"))
	f.write("other/c", randomBytes(3, 2<<20))
	res, _ = f.capture(nil)
	dest = filepath.Join(t.TempDir(), "dest")
	if _, err := tree.Extract(t.Context(), dest, f.open(res), f.repo, tree.ExtractOptions{CutKey: cutKey, UnitID: unitID, TempDir: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	return f, dest, res, func(p string) string { return filepath.Join(dest, p) }
}

// TestInPlaceFetchesWhatDiffers: a page of a database file, a file that is gone and
// one that was renamed cost what differs of them; what the snapshot does not have
// stays unless it is to go.
func TestInPlaceFetchesWhatDiffers(t *testing.T) {
	t.Parallel()
	f, dest, res, at := furnishPlace(t)
	if st, err := f.inPlace(dest, res, tree.ExtractOptions{}); err != nil || st.BytesFetched+st.BytesWritten+st.Changed+st.Created+st.Removed != 0 {
		t.Errorf("nothing was to do: %+v, %v", st, err)
	}
	db, err := os.OpenFile(at("db/ibdata1.ibd"), os.O_RDWR, 0)
	if err == nil {
		_, err = db.WriteAt(bytes.Repeat([]byte("x"), 16<<10), 1<<20)
	}
	if err = errors.Join(err, db.Close(), os.Remove(at("uploads/b.pdf")), os.Rename(at("uploads/a.pdf"), at("uploads/moved.pdf")),
		os.WriteFile(at("uploads/mine"), []byte("mine"), 0o640), os.Chmod(at("other/c"), 0o600)); err != nil {
		t.Fatal(err)
	}
	st, err := f.inPlace(dest, res, tree.ExtractOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// Two pages of 16 KiB at the most, a.pdf, which is not known to lie in what stays,
	// and one byte.
	if st.BytesFetched > 300<<10+64<<10 || st.Removed != 0 {
		t.Errorf("%+v", st)
	}
	if got := mustRead(t, at("uploads/mine")); got != "mine" {
		t.Errorf("what is not in the snapshot: %q", got)
	}
	if err := os.Remove(at("uploads/a.pdf")); err != nil {
		t.Fatal(err)
	}
	st, err = f.inPlace(dest, res, tree.ExtractOptions{Remove: true})
	if err != nil || st.BytesFetched != 0 || st.BytesCopied == 0 || st.Removed != 2 {
		t.Errorf("%+v, %v", st, err)
	}
	same(t, f.root, dest)
}

// TestInPlaceLeavesTheRestAlone: with a path nothing else is read, written or
// removed, not even the directories that lead there.
func TestInPlaceLeavesTheRestAlone(t *testing.T) {
	t.Parallel()
	f, dest, res, at := furnishPlace(t)
	stamp := time.Unix(1_600_000_000, 5)
	err := errors.Join(os.WriteFile(at("db/ibdata1.ibd"), []byte("changed"), 0o600), os.WriteFile(at("uploads/a.pdf"), []byte("changed"), 0o600),
		os.WriteFile(at("uploads/b.pdf"), []byte("changed"), 0o600), os.Chmod(at("uploads"), 0o711),
		os.Chtimes(dest, stamp, stamp), os.Chtimes(at("uploads"), stamp, stamp))
	if err != nil {
		t.Fatal(err)
	}
	// Not in the snapshot, and not asked about either.
	if err := unix.Mkfifo(at("other/fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	st, err := f.inPlace(dest, res, tree.ExtractOptions{Path: "uploads/a.pdf", Remove: true})
	if err != nil || st.Changed != 1 || st.Created+st.Removed != 0 {
		t.Fatalf("%+v, %v", st, err)
	}
	if got, want := mustRead(t, at("uploads/a.pdf")), mustRead(t, filepath.Join(f.root, "uploads/a.pdf")); got != want {
		t.Error("a.pdf is not what was captured")
	}
	for _, p := range []string{"db/ibdata1.ibd", "uploads/b.pdf"} {
		if got := mustRead(t, at(p)); got != "changed" {
			t.Errorf("%s was not asked for and is %d bytes", p, len(got))
		}
	}
	if _, err := os.Lstat(at("other/fifo")); err != nil {
		t.Error(err)
	}
	for _, p := range []string{dest, at("uploads")} {
		fi, err := os.Stat(p)
		if err != nil || !fi.ModTime().Equal(stamp) {
			t.Errorf("%s leads there only: %v, %v", p, fi, err)
		}
	}
	if fi, err := os.Stat(at("uploads")); err != nil || fi.Mode().Perm() != 0o711 {
		t.Errorf("%v, %v", fi, err)
	}
	st, err = f.inPlace(dest, res, tree.ExtractOptions{Match: func(p string) bool { return p == "uploads/b.pdf" || p == "uploads/extra.pdf" }})
	if err != nil || st.Changed != 1 || st.Created+st.Removed != 0 || mustRead(t, at("uploads/b.pdf")) != "b" {
		t.Errorf("%+v, %v", st, err)
	}
}

// TestInPlaceStopsBeforeItChangesAnything: what cannot make way is told first.
func TestInPlaceStopsBeforeItChangesAnything(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		hurt func(t *testing.T, at func(string) string)
		o    tree.ExtractOptions
		ok   bool
	}{
		"directory in the place of a file": {hurt: replace("uploads/a.pdf", true)},
		"directory that may go":            {hurt: replace("uploads/a.pdf", true), o: tree.ExtractOptions{Remove: true}, ok: true},
		"file in the place of a directory": {hurt: replace("uploads", false), ok: true},
		"file on the way":                  {hurt: replace("uploads", false), o: tree.ExtractOptions{Path: "uploads/a.pdf", Remove: true}},
		"link on the way": {hurt: func(t *testing.T, at func(string) string) {
			if err := errors.Join(os.Rename(at("uploads"), at("elsewhere")), os.Symlink("elsewhere", at("uploads"))); err != nil {
				t.Fatal(err)
			}
		}, o: tree.ExtractOptions{Path: "uploads/a.pdf", Remove: true}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, dest, res, at := furnishPlace(t)
			if err := os.WriteFile(at("db/ibdata1.ibd"), []byte("changed"), 0o600); err != nil {
				t.Fatal(err)
			}
			c.hurt(t, at)
			st, err := f.inPlace(dest, res, c.o)
			switch {
			case c.ok && err != nil:
				t.Error(err)
			case c.ok:
				same(t, filepath.Join(f.root, "uploads"), at("uploads"))
			case !errors.Is(err, dr.ErrUsage) || st.Changed+st.Created+st.Removed+st.BytesFetched != 0 || mustRead(t, at("db/ibdata1.ibd")) != "changed":
				t.Errorf("%+v, %v", st, err)
			}
		})
	}
}

func replace(path string, dir bool) func(t *testing.T, at func(string) string) {
	return func(t *testing.T, at func(string) string) {
		t.Helper()
		err := os.RemoveAll(at(path))
		if dir {
			err = errors.Join(err, os.Mkdir(at(path), 0o755), os.WriteFile(filepath.Join(at(path), "x"), []byte("x"), 0o600))
		} else {
			err = errors.Join(err, os.WriteFile(at(path), []byte("x"), 0o600))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestInPlaceSparesOtherNames: a file that has names outside the tree is made anew,
// and what they name stays.
func TestInPlaceSparesOtherNames(t *testing.T) {
	t.Parallel()
	f, dest, res, at := furnishPlace(t)
	outside := filepath.Join(filepath.Dir(dest), "outside")
	if err := errors.Join(os.WriteFile(at("other/c"), []byte("changed"), 0o600), os.Link(at("other/c"), outside)); err != nil {
		t.Fatal(err)
	}
	if _, err := f.inPlace(dest, res, tree.ExtractOptions{}); err != nil {
		t.Fatal(err)
	}
	same(t, f.root, dest)
	if got := mustRead(t, outside); got != "changed" {
		t.Errorf("%d bytes", len(got))
	}
}
