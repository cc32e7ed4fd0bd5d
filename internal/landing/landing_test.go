package landing_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/dr"
	"lifeboat/internal/landing"
)

func mustOpen(t *testing.T, dir string, p landing.Purpose, resumed bool) *landing.Landing {
	t.Helper()
	l, err := landing.Open(dir, p)
	if err != nil {
		t.Fatal(err)
	}
	if l.Resumed() != resumed {
		t.Fatalf("resumed: %v", l.Resumed())
	}
	return l
}

func held(t *testing.T, dir string, p landing.Purpose, words string) {
	t.Helper()
	refused(t, dir, p, dr.ErrHeld, words)
}

func refused(t *testing.T, dir string, p landing.Purpose, kind error, words string) {
	t.Helper()
	before, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := landing.Open(dir, p); !errors.Is(err, kind) || !strings.Contains(err.Error(), words) {
		t.Errorf("%v, want an error that says %q", err, words)
	}
	if after, err := os.ReadDir(dir); err != nil || len(after) != len(before) {
		t.Errorf("%v, %v", after, err)
	}
}

var shop = landing.Purpose{Repository: "r", Snapshot: dr.SnapshotID{1}, Trees: []string{"volume:data"}}

// TestLanding: a directory is taken when it is empty or marked for the same, by
// one process at a time, and keeps its time in the end.
func TestLanding(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "new", "dir")
	l := mustOpen(t, dir, shop, false)
	held(t, dir, shop, "another process")
	if own := l.Own(dir + "/"); len(own) != 1 || len(l.Own(filepath.Join(dir, "tree"))) != 0 {
		t.Errorf("own %v", own)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil { // as when the process ends
		t.Fatal(err)
	}
	other := shop
	other.Path = "docs"
	refused(t, dir, other, dr.ErrUsage, "another restore")
	other = shop
	other.Snapshot = dr.SnapshotID{2}
	refused(t, dir, other, dr.ErrUsage, "another snapshot")
	l = mustOpen(t, dir, shop, true)
	then := time.Unix(1000, 5)
	if err := os.Chtimes(dir, then, then); err != nil {
		t.Fatal(err)
	}
	if err := l.Finish(); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(dir)
	if err != nil || !st.ModTime().Equal(then) {
		t.Errorf("%v, %v", st, err)
	}
	refused(t, dir, shop, dr.ErrUsage, "not empty")
}

// TestMarkCutOff: a mark that was cut off while it was written stands for an empty
// directory, and for nothing else.
func TestMarkCutOff(t *testing.T) {
	t.Parallel()
	for _, n := range []int64{0, 1, 30} {
		dir := t.TempDir()
		l := mustOpen(t, dir, shop, false)
		name := filepath.Join(dir, l.Own(dir)[0])
		if err := errors.Join(l.Close(), os.Truncate(name, n)); err != nil {
			t.Fatal(err)
		}
		l = mustOpen(t, dir, shop, true)
		if err := errors.Join(l.Close(), os.Truncate(name, n), os.WriteFile(filepath.Join(dir, "file"), nil, 0o600)); err != nil {
			t.Fatal(err)
		}
		refused(t, dir, shop, dr.ErrUsage, "not empty")
		if err := os.WriteFile(name, []byte(`{"repository":1}`), 0o600); err != nil {
			t.Fatal(err)
		}
		refused(t, dir, shop, dr.ErrUsage, "damaged mark")
	}
}

// TestUndo: a directory into which nothing was restored is as it was before, and what
// an earlier run has left stays.
func TestUndo(t *testing.T) {
	t.Parallel()
	there := t.TempDir()
	dir := filepath.Join(there, "new", "dir")
	l := mustOpen(t, dir, shop, false)
	if err := errors.Join(l.Undo(), l.Close()); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(there); err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
	l = mustOpen(t, there, shop, false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = mustOpen(t, there, shop, true)
	if err := errors.Join(l.Undo(), l.Close()); err != nil {
		t.Fatal(err)
	}
	l = mustOpen(t, there, shop, true)
	if err := errors.Join(os.WriteFile(filepath.Join(there, "file"), nil, 0o600), l.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestInPlace: a directory is taken with all that it holds, but not what another
// restore has left half done; its time is as it was, in the end and when nothing was
// restored.
func TestInPlace(t *testing.T) {
	t.Parallel()
	here := shop
	here.InPlace = true
	then := time.Unix(1000, 5)
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := errors.Join(os.WriteFile(file, []byte("mine"), 0o600), os.Chtimes(dir, then, then)); err != nil {
		t.Fatal(err)
	}
	untouched := func(what string) {
		t.Helper()
		st, err := os.Stat(dir)
		if err != nil || !st.ModTime().Equal(then) {
			t.Errorf("%s: %v, %v", what, st, err)
		}
	}
	refused(t, dir, shop, dr.ErrUsage, "not empty")
	l := mustOpen(t, dir, here, false)
	untouched("taken")
	held(t, dir, here, "another process")
	refused(t, dir, shop, dr.ErrHeld, "another process")
	if err := errors.Join(l.Undo(), l.Close()); err != nil {
		t.Fatal(err)
	}
	untouched("left")
	for _, n := range []int64{0, 30} { // a mark that was cut off while it was written
		l = mustOpen(t, dir, here, n > 0)
		name := filepath.Join(dir, l.Own(dir)[0])
		if err := errors.Join(l.Close(), os.Truncate(name, n)); err != nil {
			t.Fatal(err)
		}
	}
	l = mustOpen(t, dir, here, true)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	refused(t, dir, shop, dr.ErrUsage, "another restore")
	remove := here
	remove.Remove = true
	refused(t, dir, remove, dr.ErrUsage, "another restore")
	other := here
	other.Snapshot = dr.SnapshotID{2}
	refused(t, dir, other, dr.ErrUsage, "another snapshot")
	l = mustOpen(t, dir, here, true)
	if err := l.Finish(); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("%v, %v", left, err)
	}
}
