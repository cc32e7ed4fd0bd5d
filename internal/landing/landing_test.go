package landing_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
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
	refused(t, dir, other, dr.ErrUsage, "another restore")
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

// TestInPlace: a directory is taken with all that it holds, but not what the restore of
// another snapshot has left half done; its time is as it was, in the end and when nothing was
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
	other := here
	other.Snapshot = dr.SnapshotID{2}
	refused(t, dir, other, dr.ErrUsage, "another restore")
	l = mustOpen(t, dir, here, true)
	if err := l.Finish(); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("%v, %v", left, err)
	}
}

// TestTakeOver: a restore in place takes over the marks of those that it brings to their
// end with itself. What it cannot bring there is refused, or, where only a path is
// wanted, stays marked.
func TestTakeOver(t *testing.T) {
	t.Parallel()
	const over, stays, no = "taken over", "stays", "refused"
	in := func(snapshot byte, path string, remove bool, trees ...string) landing.Purpose {
		return landing.Purpose{Repository: "r", Snapshot: dr.SnapshotID{snapshot}, Trees: trees, Path: path, InPlace: true, Remove: remove}
	}
	plain := in(1, "", false, "a")
	plain.InPlace = false
	elsewhere := in(1, "", false, "a")
	elsewhere.Repository = "other"
	file := in(1, "", true, "b")
	file.File = true
	half := in(2, "", true, "a")
	half.Half = true
	for _, tt := range []struct {
		name      string
		old, then landing.Purpose
		want      string
	}{
		{"the same snapshot, now with removal", in(1, "", false, "a"), in(1, "", true, "a"), over},
		{"the same snapshot, now without", in(1, "", true, "a"), in(1, "", false, "a"), over},
		{"another snapshot with removal", in(1, "", true, "a"), in(2, "", true, "a"), over},
		{"another snapshot, which is half restored itself", in(1, "", true, "a"), half, no},
		{"another snapshot without", in(1, "", true, "a"), in(2, "", false, "a"), no},
		{"another repository without", elsewhere, in(1, "", false, "a"), no},
		{"another repository with removal", elsewhere, in(1, "", true, "a"), over},
		{"one that was not in place", plain, in(1, "", false, "a"), over},
		{"one that is not in place", in(1, "", false, "a"), plain, no},
		{"all of a path", in(1, "d", false, "a"), in(1, "", false, "a"), over},
		{"all of a path of another snapshot", in(1, "d", true, "a"), in(2, "", true, "a"), over},
		{"a path of all", in(1, "", true, "a"), in(1, "d", true, "a"), stays},
		{"another path", in(1, "c", true, "a"), in(1, "d", true, "a"), stays},
		{"the same path of another snapshot", in(1, "d", true, "a"), in(2, "d", true, "a"), over},
		{"the same path of another snapshot without removal", in(1, "d", true, "a"), in(2, "d", false, "a"), stays},
		{"the same pattern of another snapshot", in(1, "*", true, "a"), in(2, "*", true, "a"), stays},
		{"another tree", in(1, "", true, "a"), in(1, "", true, "b"), over},
		{"another tree, without removal", in(1, "", true, "a"), in(1, "", false, "b"), no},
		{"another tree, which is a file", in(1, "", true, "a"), file, no},
		{"a path of another tree", in(1, "", true, "a"), in(1, "d", true, "b"), stays},
		{"all trees of some", in(1, "", true, "a", "b"), in(2, "", true, "a", "b", "c"), over},
		{"some trees of all", in(1, "", true, "a", "b", "c"), in(1, "", true, "a", "b"), no},
		{"all trees of one, which lie elsewhere", in(1, "", true, "a"), in(1, "", true, "a", "b"), no},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			first := mustOpen(t, dir, tt.old, false)
			held(t, dir, tt.then, "another process")
			name := first.Own(dir)[0]
			if err := errors.Join(first.Close(), os.WriteFile(filepath.Join(dir, "file"), nil, 0o600)); err != nil {
				t.Fatal(err)
			}
			if tt.want == no {
				var occupied *landing.OccupiedError
				if _, err := landing.Open(dir, tt.then); !errors.As(err, &occupied) || len(occupied.Marks) != 1 || occupied.Marks[0].Purpose.Path != tt.old.Path {
					t.Errorf("%v", err)
				}
				refused(t, dir, tt.then, dr.ErrUsage, "another restore")
				mustOpen(t, dir, tt.old, true)
				return
			}
			l := mustOpen(t, dir, tt.then, false)
			held(t, dir, tt.old, "another process")
			if err := errors.Join(l.Undo(), l.Close()); err != nil { // nothing was done
				t.Fatal(err)
			}
			l = mustOpen(t, dir, tt.then, false)
			if err := l.Close(); err != nil { // cut off: both marks stay
				t.Fatal(err)
			}
			l = mustOpen(t, dir, tt.then, true)
			if own := l.Own(dir); len(own) != 2 || !slices.Contains(own, name) {
				t.Errorf("%v", own)
			}
			if (len(l.Left()) == 1) != (tt.want == stays) || len(l.Left())+len(l.Taken()) != 1 {
				t.Errorf("taken %v, left %v", l.Taken(), l.Left())
			}
			if err := l.Finish(); err != nil {
				t.Fatal(err)
			}
			_, err := os.Stat(filepath.Join(dir, name))
			if left, lerr := os.ReadDir(dir); lerr != nil || (err == nil) != (tt.want == stays) || len(left) > 2 {
				t.Errorf("%v, %v, %v", err, left, lerr)
			}
			mustOpen(t, dir, in(3, "", true, tt.then.Trees...), false)
		})
	}
}

// TestMarkOfSomebody: what somebody has put into a mark begins no line of its own.
func TestMarkOfSomebody(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, p := range []landing.Purpose{
		{Trees: []string{"a\nnext: rm"}}, {Trees: []string{"a"}, Path: "b\n"}, {Trees: []string{"a"}, System: "\x1b[2J"},
	} {
		l := mustOpen(t, dir, p, false)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		marks, err := landing.Marks(dir)
		if err != nil || len(marks) != 1 || marks[0].Plain() || strings.ContainsAny(marks[0].String(), "\n\x1b") {
			t.Errorf("%q, %v", marks, err)
		}
		l = mustOpen(t, dir, p, true)
		if err := l.Finish(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDamagedAndOldMarks: a mark that says nothing is taken over by what brings back
// all, and one of an older version, which is only called by its snapshot, is gone on
// with.
func TestDamagedAndOldMarks(t *testing.T) {
	t.Parallel()
	here := shop
	here.InPlace = true
	dir := t.TempDir()
	old := filepath.Join(dir, ".lifeboat-restore."+here.Snapshot.String())
	if err := os.WriteFile(old, []byte("no mark"), 0o600); err != nil {
		t.Fatal(err)
	}
	refused(t, dir, here, dr.ErrUsage, "damaged mark")
	all := here
	all.Remove = true
	l := mustOpen(t, dir, all, false)
	if err := l.Finish(); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
	text := `{"repository":"r","snapshot":"` + here.Snapshot.String() + `","trees":["volume:data"],"path":"","in_place":true}`
	if err := os.WriteFile(old, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	named := here
	named.System = "shop"
	l = mustOpen(t, dir, named, true)
	if err := l.Finish(); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
}
