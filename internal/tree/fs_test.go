package tree_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/internal/tree"
	"lifeboat/lab/torture"
)

// fileSystems are made in sparse image files, those whose mkfs is installed.
var fileSystems = map[string]struct {
	mkfs    []string
	reflink bool
}{
	"xfs":   {[]string{"mkfs.xfs", "-q"}, true},
	"btrfs": {[]string{"mkfs.btrfs", "-q"}, true},
	"ext4":  {[]string{"mkfs.ext4", "-q", "-F"}, false},
	// Timestamps of whole seconds: what is younger than two is never trusted.
	"ext4-128": {[]string{"mkfs.ext4", "-q", "-F", "-I", "128"}, false},
}

// mountImage mounts a new file system for the test, or returns "".
func mountImage(t *testing.T, kind string) string {
	t.Helper()
	mkfs := fileSystems[kind].mkfs
	if _, err := exec.LookPath(mkfs[0]); err != nil {
		t.Logf("%s is not installed: %s is not tried", mkfs[0], kind)
		return ""
	}
	dir := t.TempDir()
	image, at := filepath.Join(dir, "image"), filepath.Join(dir, "mount")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 512<<20), os.Mkdir(at, 0o755)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(mkfs[0], append(mkfs[1:], image)...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if out, err := exec.Command("mount", "-o", "loop", image, at).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", at).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	return at
}

// TestFileSystems: one of everything, there and back, on each file system; and
// a large file that changes between the passes is reflinked where that works,
// although there is next to no memory.
func TestFileSystems(t *testing.T) {
	t.Parallel()
	for kind := range fileSystems {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			at := mountImage(t, kind)
			if at == "" {
				return
			}
			f := newFixture(t)
			f.sync = true
			f.root = filepath.Join(at, "tree")
			f.opts = func(o *tree.CaptureOptions) {
				o.Budget = tree.NewBudget(64 << 10)
				if kind == "ext4-128" {
					o.Now = time.Now // a clock of its own would trust what is of this second
				}
			}
			if err := os.Mkdir(f.root, 0o755); err != nil {
				t.Fatal(err)
			}
			switch kind {
			case "ext4-128": // cannot hold all times
			case "xfs": // cannot hold long targets of links
				furnish(t, f)
			default:
				if err := errors.Join(torture.Populate(f.root, torture.Options{}), torture.PopulateRoot(f.root)); err != nil {
					t.Fatal(err)
				}
			}
			f.write("db/ibdata1", randomBytes(1, 20<<20))
			f.write("gone", randomBytes(2, 3<<20))
			f.capture(nil)
			res, c := f.capture(func() {
				db := filepath.Join(f.root, "db/ibdata1")
				err := errors.Join(insertAt(db, 5<<20+100, []byte("changed")), punch(db, 8<<20, 1<<20), os.Remove(filepath.Join(f.root, "gone")))
				if err != nil {
					t.Fatal(err)
				}
				f.write("new", randomBytes(3, 4<<20))
			})
			f.check(res)
			if s := c.Stats(); fileSystems[kind].reflink != (s.BytesSpooled == 0) || fileSystems[kind].reflink != (s.BytesSecured >= 24<<20) {
				t.Errorf("%+v", s)
			}
			if names, err := os.ReadDir(at); err != nil || len(names) > 2 {
				t.Errorf("left behind: %v, %v", names, err)
			}
			dest := filepath.Join(at, "dest")
			mustApply(t, f, dest, nil, res)
			same(t, f.root, dest)
			f.write("db/ibdata1", randomBytes(4, 12<<20))
			res, _ = f.capture(nil)
			mustApply(t, f, dest, nil, res)
			same(t, f.root, dest)
		})
	}
}

// TestApplyAcross: a tree captured on one file system comes back on another;
// what tmpfs cannot hold is told, or is an error.
func TestApplyAcross(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.write("a/b", []byte("x"))
	f.write("sparse", nil)
	if err := errors.Join(os.Truncate(filepath.Join(f.root, "sparse"), 1<<20), insertAt(filepath.Join(f.root, "sparse"), 512<<10, []byte("y"))); err != nil {
		t.Fatal(err)
	}
	res, _ := f.capture(nil)
	dest := mountTmpfs(t)
	mustApply(t, f, filepath.Join(dest, "d"), nil, res)
	same(t, f.root, filepath.Join(dest, "d"))
}

// TestDiskFull: the error says what happened where; after room was made, the
// same call ends in the right state.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for i := range 8 {
		f.write(fmt.Sprintf("f%d", i), randomBytes(uint64(i), 2<<20))
	}
	res, _ := f.capture(nil)
	dest := t.TempDir()
	if err := unix.Mount("lbtest", dest, "tmpfs", 0, "size=8m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dest, unix.MNT_DETACH) })
	at := filepath.Join(dest, "tree")
	_, err := tree.Apply(t.Context(), at, nil, f.open(res), f.repo, f.applyOptions())
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("got %v", err)
	}
	if n := descriptors(t, dest); n != 0 {
		t.Errorf("%d descriptors are left open", n)
	}
	if err := unix.Mount("lbtest", dest, "tmpfs", unix.MS_REMOUNT, "size=64m"); err != nil {
		t.Fatal(err)
	}
	mustApply(t, f, at, nil, res)
	same(t, f.root, at)
}
