package tree_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"lifeboat/internal/catalog"
	"lifeboat/internal/dr"
	"lifeboat/internal/tree"
	"lifeboat/lab/torture"
	"lifeboat/lab/treecmp"
)

func (f *fixture) applyOptions() tree.ApplyOptions {
	o := f.options()
	return tree.ApplyOptions{
		Key: "volume:dest", StateDir: f.state, CutKey: cutKey, UnitID: unitID, Now: o.Now,
		Overlay: o.Overlay, Exclude: o.Exclude, NoSync: !f.sync,
	}
}

// same compares two directories by the independent walker.
func same(t testing.TB, want, got string) {
	t.Helper()
	a, err := treecmp.Fingerprint(want, treecmp.Options{OneMount: true})
	if err != nil {
		t.Fatal(err)
	}
	b, err := treecmp.Fingerprint(got, treecmp.Options{OneMount: true})
	if err != nil {
		t.Fatal(err)
	}
	if diff := treecmp.Report(treecmp.Compare(a, b, treecmp.Rules{}), 20); diff != "" {
		t.Fatalf("%s differs from %s:\n%s", got, want, diff)
	}
}

func mustApply(t testing.TB, f *fixture, dest string, current *catalog.Reader, res dr.Tree) tree.ApplyStats {
	t.Helper()
	st, err := tree.Apply(t.Context(), dest, current, f.open(res), f.repo, f.applyOptions())
	if err != nil {
		t.Fatal(err)
	}
	f.clean()
	return st
}

// TestApplyTorture: one of everything comes back into an absent directory, a
// second Apply does nothing, and the next capture reads nothing.
func TestApplyTorture(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.sync = true
	if err := errors.Join(torture.Populate(f.root, torture.Options{LongPaths: true}), torture.PopulateRoot(f.root)); err != nil {
		t.Fatal(err)
	}
	res, _ := f.capture(nil)
	dest := filepath.Join(t.TempDir(), "dest")
	st := mustApply(t, f, dest, nil, res)
	same(t, f.root, dest)
	if st.Created != res.Entries {
		t.Errorf("created %d of %d entries", st.Created, res.Entries)
	}
	f.repo.newRun()
	st = mustApply(t, f, dest, nil, res)
	same(t, f.root, dest)
	if st.Created+st.Changed+st.Removed+st.BytesWritten+st.BytesFetched != 0 {
		t.Errorf("nothing was to do: %+v", st)
	}
	st = mustApply(t, f, dest, f.open(res), res)
	if st.Created+st.Changed+st.Removed+st.BytesWritten != 0 {
		t.Errorf("nothing was to do: %+v", st)
	}
	// The statcache that Apply recorded serves a capture of the destination.
	g := &fixture{t: t, root: dest, state: f.state, repo: f.repo}
	g.opts = func(o *tree.CaptureOptions) { o.Key = "volume:dest" }
	again, c := g.capture(nil)
	if s := c.Stats(); s.FilesRead != 0 || s.BytesRead != 0 || again.Hash != res.Hash {
		t.Errorf("read again: %+v, same %v", s, again.Hash == res.Hash)
	}
}

// TestApplyOverlay: an upper directory comes back with its deletions.
func TestApplyOverlay(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.opts = func(o *tree.CaptureOptions) { o.Overlay = true }
	f.write("opaque/x", []byte("1"))
	f.write("kept", []byte("2"))
	p := func(s string) string { return filepath.Join(f.root, s) }
	err := errors.Join(unix.Mknod(p("gone"), unix.S_IFCHR, 0), os.Link(p("gone"), p("opaque/gone2")),
		unix.Setxattr(p("opaque"), "trusted.overlay.opaque", []byte("y"), 0))
	if err != nil {
		t.Fatal(err)
	}
	res, _ := f.capture(nil)
	dest := t.TempDir()
	mustApply(t, f, dest, nil, res)
	same(t, f.root, dest)
	// And away again: the file comes back where the whiteout was.
	err = errors.Join(os.Remove(p("gone")), os.WriteFile(p("gone"), []byte("back"), 0o644),
		unix.Removexattr(p("opaque"), "trusted.overlay.opaque"), os.Remove(p("kept")), unix.Mknod(p("kept"), unix.S_IFCHR, 0))
	if err != nil {
		t.Fatal(err)
	}
	second, _ := f.capture(nil)
	mustApply(t, f, dest, f.open(res), second)
	same(t, f.root, dest)
	// Files only: deletions are left out or made devices.
	for _, mode := range []tree.WhiteoutMode{tree.WhiteoutsSkip, tree.WhiteoutsDevice} {
		out := filepath.Join(t.TempDir(), "out")
		st, err := tree.Extract(t.Context(), out, f.open(res), f.repo, tree.ExtractOptions{UnitID: unitID, Whiteouts: mode, TempDir: f.state})
		if err != nil {
			t.Fatal(err)
		}
		_, err = os.Lstat(filepath.Join(out, "gone"))
		if (err == nil) != (mode == tree.WhiteoutsDevice) || (st.Whiteouts == 2) != (mode == tree.WhiteoutsSkip) {
			t.Errorf("mode %d: %v, %+v", mode, err, st)
		}
	}
}

// scenario is a change between two states of a tree, as Apply has to make it.
var scenarios = map[string]func(p func(string) string) error{
	"content in place": func(p func(string) string) error {
		f, err := os.OpenFile(p("db/ibdata1"), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteAt(randomBytes(77, 16<<10), 1<<20)
		return errors.Join(err, f.Close())
	},
	"insert":         func(p func(string) string) error { return insert(p("big"), 3<<20, []byte("inserted")) },
	"shrink":         func(p func(string) string) error { return os.Truncate(p("big"), 1<<20+3) },
	"grow by a hole": func(p func(string) string) error { return os.Truncate(p("big"), 20<<20) },
	"punch":          func(p func(string) string) error { return punch(p("big"), 1<<20, 2<<20) },
	"fill a hole":    func(p func(string) string) error { return insertAt(p("sparse"), 2<<20, randomBytes(9, 1<<20)) },
	"file to dir": func(p func(string) string) error {
		return errors.Join(os.Remove(p("a/f1")), os.MkdirAll(p("a/f1/x/y"), 0o711))
	},
	"dir to file": func(p func(string) string) error {
		return errors.Join(os.RemoveAll(p("a")), os.WriteFile(p("a"), []byte("now a file"), 0o600))
	},
	"dir to symlink": func(p func(string) string) error {
		return errors.Join(os.RemoveAll(p("a")), os.Symlink("/etc", p("a")))
	},
	"symlink to dir": func(p func(string) string) error {
		return errors.Join(os.Remove(p("s")), os.MkdirAll(p("s/in"), 0o755))
	},
	"symlink": func(p func(string) string) error { return errors.Join(os.Remove(p("s")), os.Symlink("else", p("s"))) },
	"fifo to file": func(p func(string) string) error {
		return errors.Join(os.Remove(p("fifo")), os.WriteFile(p("fifo"), []byte("x"), 0o600))
	},
	"device number": func(p func(string) string) error {
		return errors.Join(os.Remove(p("dev")), unix.Mknod(p("dev"), unix.S_IFBLK|0o660, int(unix.Mkdev(7, 200))))
	},
	"rename file": func(p func(string) string) error { return os.Rename(p("big"), p("z-big")) },
	"rename up":   func(p func(string) string) error { return os.Rename(p("db/ibdata1"), p("0")) },
	"rename dir":  func(p func(string) string) error { return os.Rename(p("db"), p("a/db2")) },
	"rotate": func(p func(string) string) error {
		return errors.Join(os.Rename(p("big"), p("big.1")), os.WriteFile(p("big"), []byte("fresh log"), 0o644))
	},
	"swap": func(p func(string) string) error {
		return errors.Join(os.Rename(p("big"), p("t")), os.Rename(p("db/ibdata1"), p("big")), os.Rename(p("t"), p("db/ibdata1")))
	},
	"unlink group": func(p func(string) string) error { return os.Remove(p("l/one")) },
	"break group": func(p func(string) string) error {
		return errors.Join(os.Remove(p("l/two")), os.WriteFile(p("l/two"), []byte("own"), 0o644))
	},
	"first of group": func(p func(string) string) error { return os.Link(p("l/two"), p("a/aa")) },
	"group content":  func(p func(string) string) error { return os.WriteFile(p("l/one"), []byte("all change"), 0o644) },
	"regroup": func(p func(string) string) error {
		return errors.Join(os.Remove(p("l/two")), os.Link(p("l/other"), p("l/two")))
	},
	"group of symlinks": func(p func(string) string) error { return os.Link(p("s"), p("s2")) },
	"group changes type": func(p func(string) string) error {
		return errors.Join(os.Remove(p("l/one")), os.Remove(p("l/two")), os.Remove(p("m/three")),
			os.Symlink("new", p("l/one")), os.Link(p("l/one"), p("l/two")), os.Link(p("l/one"), p("m/three")))
	},
	"metadata": func(p func(string) string) error {
		return errors.Join(os.Chown(p("a/f1"), 12, 34), os.Chmod(p("a/f1"), 0o6755|os.ModeSetuid), os.Lchown(p("s"), 5, 6), os.Chmod(p("a"), 0o2750|os.ModeSetgid),
			unix.Setxattr(p("a"), "user.dir", []byte("1"), 0), unix.Setxattr(p("big"), "user.big", bytes.Repeat([]byte("v"), 2000), 0),
			unix.Setxattr(p("a/f2"), "security.capability", capability, 0), unix.Removexattr(p("a/f3"), "user.old"), os.Chown(p(""), 9, 9))
	},
	"caps and content": func(p func(string) string) error {
		return errors.Join(os.WriteFile(p("caps"), []byte("other content of the tool"), 0o755), unix.Setxattr(p("caps"), "security.capability", capability, 0))
	},
	"default acl": func(p func(string) string) error {
		return errors.Join(unix.Setxattr(p("a"), "system.posix_acl_default", acl, 0), os.WriteFile(p("a/inherits"), []byte("x"), 0o644),
			os.Mkdir(p("a/below"), 0o755))
	},
	"times": func(p func(string) string) error {
		ts := func(s int64) []unix.Timespec { return []unix.Timespec{{Sec: s}, {Sec: s, Nsec: 123456789}} }
		return errors.Join(unix.UtimesNanoAt(unix.AT_FDCWD, p("a"), ts(-1000), 0), unix.UtimesNanoAt(unix.AT_FDCWD, p("big"), ts(1<<32+5), 0),
			unix.UtimesNanoAt(unix.AT_FDCWD, p("s"), ts(-5), unix.AT_SYMLINK_NOFOLLOW), unix.UtimesNanoAt(unix.AT_FDCWD, p(""), ts(4_000_000_000), 0))
	},
	"everything gone": func(p func(string) string) error {
		names, err := os.ReadDir(p(""))
		for _, n := range names {
			err = errors.Join(err, os.RemoveAll(p(n.Name())))
		}
		return err
	},
}

// capability is cap_net_bind_service=ep, acl one with a named user.
var (
	capability = []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	acl        = []byte("\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x02\x00\x06\x00\x64\x00\x00\x00\x04\x00\x05\x00\xff\xff\xff\xff\x10\x00\x07\x00\xff\xff\xff\xff\x20\x00\x05\x00\xff\xff\xff\xff")
)

func insert(path string, at int, what []byte) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return os.WriteFile(path, slices.Insert(data, at, what...), 0o644)
}

func insertAt(path string, at int64, what []byte) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(what, at)
	return errors.Join(err, f.Close())
}

// furnish is the state that all scenarios start from.
func furnish(t testing.TB, f *fixture) {
	t.Helper()
	p := func(s string) string { return filepath.Join(f.root, s) }
	f.write("big", randomBytes(1, 6<<20))
	f.write("db/ibdata1", randomBytes(2, 4<<20))
	f.write("caps", []byte("a tool"))
	for i := range 5 {
		f.write(fmt.Sprintf("a/f%d", i), []byte(fmt.Sprint("file ", i)))
	}
	f.write("l/one", []byte("linked content"))
	f.write("l/other", []byte("other content"))
	f.write("sparse", nil)
	err := errors.Join(os.Mkdir(p("m"), 0o755), os.Link(p("l/one"), p("l/two")), os.Link(p("l/one"), p("m/three")), os.Link(p("l/other"), p("m/other")),
		os.Symlink("target", p("s")), unix.Mkfifo(p("fifo"), 0o640), unix.Mknod(p("dev"), unix.S_IFBLK|0o660, int(unix.Mkdev(7, 99))),
		os.Truncate(p("sparse"), 8<<20), insertAt(p("sparse"), 5<<20, randomBytes(3, 100<<10)),
		unix.Setxattr(p("a/f3"), "user.old", []byte("old"), 0), os.Chmod(p("caps"), 0o755), unix.Setxattr(p("caps"), "security.capability", capability, 0))
	if err != nil {
		t.Fatal(err)
	}
}

// TestApplyScenarios: forth and back again, told what is there and finding it
// out, and into nothing.
func TestApplyScenarios(t *testing.T) {
	t.Parallel()
	for name, change := range scenarios {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			furnish(t, f)
			old, _ := f.capture(nil)
			told, finds, fresh := t.TempDir(), t.TempDir(), filepath.Join(t.TempDir(), "fresh")
			for _, d := range []string{told, finds} {
				mustApply(t, f, d, nil, old)
				same(t, f.root, d)
			}
			before := filepath.Join(t.TempDir(), "before")
			mustApply(t, f, before, nil, old)
			if err := change(func(s string) string { return filepath.Join(f.root, s) }); err != nil {
				t.Fatal(err)
			}
			next, _ := f.capture(nil)
			f.check(next)
			f.repo.newRun()
			st := mustApply(t, f, told, f.open(old), next)
			same(t, f.root, told)
			switch name {
			case "rename file", "rename dir", "rotate":
				if st.BytesFetched > 1<<10 || st.BytesCopied < 4<<20 {
					t.Errorf("a renamed file was not copied: %+v", st)
				}
			}
			mustApply(t, f, finds, nil, next)
			same(t, f.root, finds)
			mustApply(t, f, fresh, nil, next)
			same(t, f.root, fresh)
			mustApply(t, f, told, f.open(next), old)
			same(t, before, told)
			mustApply(t, f, finds, nil, old)
			same(t, before, finds)
		})
	}
}

// TestApplyInPlaceIsSmall: a page of a database is one page to fetch and write,
// in the same inode.
func TestApplyInPlaceIsSmall(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.write("db/ibdata1", randomBytes(2, 16<<20))
	old, _ := f.capture(nil)
	dest := t.TempDir()
	mustApply(t, f, dest, nil, old)
	var before, after unix.Stat_t
	if err := unix.Stat(filepath.Join(dest, "db/ibdata1"), &before); err != nil {
		t.Fatal(err)
	}
	if err := insertAt(filepath.Join(f.root, "db/ibdata1"), 7<<20, randomBytes(5, 16<<10)); err != nil {
		t.Fatal(err)
	}
	next, _ := f.capture(nil)
	f.repo.newRun()
	st := mustApply(t, f, dest, nil, next)
	same(t, f.root, dest)
	if err := unix.Stat(filepath.Join(dest, "db/ibdata1"), &after); err != nil {
		t.Fatal(err)
	}
	if st.BytesFetched != 32<<10 || st.BytesWritten != 32<<10 || before.Ino != after.Ino {
		t.Errorf("%+v, inode %d then %d", st, before.Ino, after.Ino)
	}
}

// TestApplySparesWhatIsOutside: a file with names outside the tree is not
// written through them, and links planted in the way lead nowhere.
func TestApplySparesWhatIsOutside(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.write("d/f", []byte("old content"))
	f.write("e/g", []byte("g"))
	old, _ := f.capture(nil)
	f.write("d/f", []byte("new content!"))
	f.write("e/h", []byte("h"))
	next, _ := f.capture(nil)
	dest := t.TempDir()
	outside := t.TempDir()
	mustApply(t, f, dest, nil, old)
	if err := os.Link(filepath.Join(dest, "d/f"), filepath.Join(outside, "f")); err != nil {
		t.Fatal(err)
	}
	mustApply(t, f, dest, nil, next)
	same(t, f.root, dest)
	if data, _ := os.ReadFile(filepath.Join(outside, "f")); string(data) != "old content" {
		t.Errorf("the name outside shows %q", data)
	}
	// What is told to be there is a link to outside by now.
	mustApply(t, f, dest, nil, old)
	if err := errors.Join(os.RemoveAll(filepath.Join(dest, "e")), os.Symlink(outside, filepath.Join(dest, "e"))); err != nil {
		t.Fatal(err)
	}
	if _, err := tree.Apply(t.Context(), dest, f.open(old), f.open(next), f.repo, f.applyOptions()); err == nil {
		t.Error("wrote through a link")
	}
	if names, _ := os.ReadDir(outside); len(names) != 1 {
		t.Errorf("%v outside", names)
	}
	// Found out, it is replaced.
	mustApply(t, f, dest, nil, next)
	same(t, f.root, dest)
}

// TestApplyExclude: what is excluded stays, whatever the target says.
func TestApplyExclude(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.write("a/x", []byte("x"))
	res, _ := f.capture(nil)
	dest := t.TempDir()
	for _, p := range []string{"gone/data/keep", "a/data/keep", "gone/other"} {
		p = filepath.Join(dest, p)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte("k"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	f.opts = func(o *tree.CaptureOptions) { o.Exclude = []string{"gone/data", "a/data"} }
	mustApply(t, f, dest, nil, res)
	for p, want := range map[string]bool{"gone/data/keep": true, "a/data/keep": true, "gone/other": false, "a/x": true} {
		if _, err := os.Stat(filepath.Join(dest, p)); (err == nil) != want {
			t.Errorf("%s: %v", p, err)
		}
	}
}

func TestApplySingleFile(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	dir := f.root
	f.write("my.cnf", bytes.Repeat([]byte("[mysqld]\n"), 100))
	f.write("bystander", []byte("b"))
	f.root = filepath.Join(dir, "my.cnf")
	res, _ := f.capture(nil)
	dest := filepath.Join(t.TempDir(), "my.cnf")
	mustApply(t, f, dest, nil, res)
	same(t, f.root, dest)
	var before, after unix.Stat_t
	err := errors.Join(unix.Stat(dest, &before), os.WriteFile(dest, []byte("[other]\n"), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	mustApply(t, f, dest, nil, res)
	same(t, f.root, dest)
	// A bind mount of it would still show it.
	if err := unix.Stat(dest, &after); err != nil || before.Ino != after.Ino {
		t.Errorf("inode %d then %d, %v", before.Ino, after.Ino, err)
	}
	if _, err := tree.Apply(t.Context(), t.TempDir(), nil, f.open(res), f.repo, f.applyOptions()); err == nil {
		t.Error("a file replaced a directory")
	}
}

func TestExtractPart(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	furnish(t, f)
	res, _ := f.capture(nil)
	out := filepath.Join(t.TempDir(), "out")
	opts := tree.ExtractOptions{UnitID: unitID, TempDir: f.state, Path: "m"}
	if _, err := tree.Extract(t.Context(), out, f.open(res), f.repo, opts); err != nil {
		t.Fatal(err)
	}
	same(t, filepath.Join(f.root, "m", "three"), filepath.Join(out, "m", "three"))
	if names, _ := os.ReadDir(out); len(names) != 1 {
		t.Errorf("%v", names)
	}
	if _, err := tree.Extract(t.Context(), out, f.open(res), f.repo, opts); !errors.Is(err, dr.ErrUsage) {
		t.Errorf("into a directory with files: %v", err)
	}
	opts.Path = "none/such"
	if _, err := tree.Extract(t.Context(), out+"2", f.open(res), f.repo, opts); !errors.Is(err, dr.ErrNotFound) {
		t.Errorf("no such path: %v", err)
	}
	opts.Path = "../etc"
	if _, err := tree.Extract(t.Context(), out+"3", f.open(res), f.repo, opts); !errors.Is(err, dr.ErrUsage) {
		t.Errorf("path outside: %v", err)
	}
	f.clean()
}

// TestApplyKilled: killed anywhere and run again it ends in the same state
// (invariant 8). The test binary runs itself as the one that is killed.
func TestApplyKilled(t *testing.T) {
	f := newFixture(t)
	furnish(t, f)
	for i := range 300 {
		f.write(fmt.Sprintf("many/d%d/f%d", i%20, i), randomBytes(uint64(i), 1+i*37))
	}
	old, _ := f.capture(nil)
	oldRoot := filepath.Join(t.TempDir(), "old")
	mustApply(t, f, oldRoot, nil, old)
	for _, name := range []string{"content in place", "rename dir", "group content", "metadata", "dir to file", "fill a hole"} {
		if err := scenarios[name](func(s string) string { return filepath.Join(f.root, s) }); err != nil && name != "metadata" {
			t.Fatal(err)
		}
		if name == "metadata" {
			break
		}
	}
	if err := errors.Join(os.RemoveAll(filepath.Join(f.root, "many/d3")), os.Rename(filepath.Join(f.root, "many/d4"), filepath.Join(f.root, "many/e4"))); err != nil {
		t.Fatal(err)
	}
	for i := range 150 {
		f.write(fmt.Sprintf("many/n%d/f%d", i%7, i), randomBytes(uint64(1000+i), 50+i*91))
	}
	next, _ := f.capture(nil)
	dump := f.dump(next, old)
	dest := t.TempDir()
	mustApply(t, f, dest, nil, old)
	completed := false
	for n := 1; !completed; n += 1 + n/2 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilledChild$")
		cmd.Env = append(os.Environ(), "LBTEST_KILL_AFTER="+fmt.Sprint(n), "LBTEST_DUMP="+dump, "LBTEST_DEST="+dest, "LBTEST_STATE="+f.state)
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		switch {
		case err == nil:
			completed = true
		case errors.As(err, &exit) && exit.ProcessState.Sys().(interface{ Signaled() bool }).Signaled():
		default:
			t.Fatalf("after %d units: %v\n%s", n, err, out)
		}
		if n > 100000 {
			t.Fatal("never completed")
		}
		if n%2 == 1 {
			// Resumed at once, and back, so that the next kill finds work.
			mustApply(t, f, dest, nil, next)
			same(t, f.root, dest)
			if !completed {
				mustApply(t, f, dest, nil, old)
				same(t, oldRoot, dest)
			}
		}
	}
	mustApply(t, f, dest, nil, next)
	same(t, f.root, dest)
	f.clean()
}

// TestUnprivileged: without root, Extract keeps content, modes, times and what
// attributes it may, and says what it could not keep.
func TestUnprivileged(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	furnish(t, f)
	f.write("closed-dir/inside", []byte("x"))
	if err := errors.Join(os.Chmod(filepath.Join(f.root, "closed-dir"), 0o555), os.Lchown(filepath.Join(f.root, "a/f1"), 3, 4)); err != nil {
		t.Fatal(err)
	}
	res, _ := f.capture(nil)
	// The child can reach neither the test's directories nor its binary.
	dir, err := os.MkdirTemp("", "lbtest-nobody-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	binary, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	dump, err := os.ReadFile(f.dump(res, res))
	if err != nil {
		t.Fatal(err)
	}
	p := func(s string) string { return filepath.Join(dir, s) }
	err = errors.Join(os.Chmod(dir, 0o755), os.WriteFile(p("test"), binary, 0o755), os.WriteFile(p("dump"), dump, 0o644),
		os.Mkdir(p("work"), 0o700), os.Chown(p("work"), 65534, 65534))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(p("test"), "-test.run=^TestUnprivilegedChild$")
	cmd.Dir = p("work")
	cmd.Env = []string{"LBTEST_NOBODY=" + p("dump"), "LBTEST_DEST=" + p("work/out"), "LBTEST_STATE=" + p("work"), "TMPDIR=" + p("work")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	want, err := treecmp.Fingerprint(f.root, treecmp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	got, err := treecmp.Fingerprint(p("work/out"), treecmp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	delete(want, "dev")
	rules := treecmp.Rules{Ignore: func(d treecmp.Difference) bool {
		// The child put a file into the root of the tree and took it away again.
		return d.Field == "owner" || d.Path == "caps" && strings.HasPrefix(d.Field, "xattr") || d.Path == "."
	}}
	if diff := treecmp.Report(treecmp.Compare(want, got, rules), 20); diff != "" {
		t.Error(diff)
	}
}
