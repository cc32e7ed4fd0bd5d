package tree_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/internal/catalog"
	"lifeboat/internal/tree"
	"lifeboat/lab/torture"
)

func randomBytes(seed uint64, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)}).Read(b)
	return b
}

// TestTorture: one of everything that a file system can hold is captured as it
// is, and an unchanged tree is not read again.
func TestTorture(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	if err := torture.Populate(f.root, torture.Options{LongPaths: true}); err != nil {
		t.Fatal(err)
	}
	if err := torture.PopulateRoot(f.root); err != nil {
		t.Fatal(err)
	}
	first, c := f.capture(nil)
	f.check(first)
	if r := c.Report(); len(r.Skipped)+len(r.Unstable)+len(r.LostXattrs) > 0 {
		t.Errorf("report: %+v", r)
	}
	second, c := f.capture(nil)
	f.check(second)
	if s := c.Stats(); s.FilesRead != 0 || s.FilesSecured != 0 || s.BytesRead != 0 {
		t.Errorf("an unchanged tree was read again: %+v", s)
	}
	if first.Hash != second.Hash {
		t.Error("equal trees have different hashes")
	}
	// Without the cache the result is the same.
	f.state = t.TempDir()
	third, _ := f.capture(nil)
	if first.Hash != third.Hash {
		t.Error("the statcache changes the result")
	}
}

func TestSingleFile(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.write("my.cnf", []byte("[mysqld]\n"))
	dir := f.root
	f.root = filepath.Join(dir, "my.cnf")
	res, _ := f.capture(nil)
	f.check(res)
	if res.Entries != 1 || res.Bytes != 9 {
		t.Errorf("%+v", res)
	}
	// Through a link of the operator's, replaced as editors do.
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(f.root, link); err != nil {
		t.Fatal(err)
	}
	f.root = link
	res, _ = f.capture(func() {
		tmp := filepath.Join(dir, "tmp")
		if err := errors.Join(os.WriteFile(tmp, []byte("[new]\n"), 0o600), os.Rename(tmp, filepath.Join(dir, "my.cnf"))); err != nil {
			t.Fatal(err)
		}
	})
	f.check(res)
	if res.Bytes != 6 {
		t.Errorf("%+v", res)
	}
}

// TestBetweenPasses: whatever happens between the passes, the result is the
// state at Secure.
func TestBetweenPasses(t *testing.T) {
	t.Parallel()
	big := randomBytes(1, 5<<20)
	for name, change := range map[string]func(f *fixture) error{
		"content": func(f *fixture) error {
			return os.WriteFile(filepath.Join(f.root, "d/big"), append(bytes.Clone(big[:3<<20]), big[:3<<20]...), 0o644)
		},
		"removed":         func(f *fixture) error { return os.RemoveAll(filepath.Join(f.root, "d")) },
		"new file first":  func(f *fixture) error { return os.WriteFile(filepath.Join(f.root, "0"), []byte("new"), 0o600) },
		"new file last":   func(f *fixture) error { return os.WriteFile(filepath.Join(f.root, "zz"), []byte("new"), 0o600) },
		"mode":            func(f *fixture) error { return os.Chmod(filepath.Join(f.root, "d/small"), 0o4711) },
		"directory mode":  func(f *fixture) error { return os.Chmod(filepath.Join(f.root, "d"), 0o700) },
		"xattr":           func(f *fixture) error { return unix.Setxattr(filepath.Join(f.root, "d/big"), "user.x", []byte("1"), 0) },
		"directory xattr": func(f *fixture) error { return unix.Setxattr(filepath.Join(f.root, "d"), "user.x", []byte("1"), 0) },
		"file to dir": func(f *fixture) error {
			p := filepath.Join(f.root, "d/small")
			return errors.Join(os.Remove(p), os.MkdirAll(p+"/x", 0o755))
		},
		"dir to symlink": func(f *fixture) error {
			p := filepath.Join(f.root, "d")
			return errors.Join(os.RemoveAll(p), os.Symlink("/etc", p))
		},
		"renamed dir":     func(f *fixture) error { return os.Rename(filepath.Join(f.root, "d"), filepath.Join(f.root, "zd")) },
		"new link before": func(f *fixture) error { return os.Link(filepath.Join(f.root, "d/big"), filepath.Join(f.root, "a")) },
		"first link gone": func(f *fixture) error { return os.Remove(filepath.Join(f.root, "l/one")) },
		"links renamed":   func(f *fixture) error { return os.Rename(filepath.Join(f.root, "l"), filepath.Join(f.root, "n")) },
		"link written": func(f *fixture) error {
			return os.WriteFile(filepath.Join(f.root, "m/three"), []byte("changed"), 0o644)
		},
		"truncated":       func(f *fixture) error { return os.Truncate(filepath.Join(f.root, "d/big"), 1<<20+5) },
		"hole punched":    func(f *fixture) error { return punch(filepath.Join(f.root, "d/big"), 1<<20, 2<<20) },
		"grown by a hole": func(f *fixture) error { return os.Truncate(filepath.Join(f.root, "d/big"), 9<<20) },
		"symlink replaced": func(f *fixture) error {
			p := filepath.Join(f.root, "s")
			return errors.Join(os.Remove(p), os.Symlink("other", p))
		},
		"symlink to large file": func(f *fixture) error {
			return os.Rename(filepath.Join(f.root, "d/big"), filepath.Join(f.root, "s"))
		},
		"dir to large file": func(f *fixture) error {
			p := filepath.Join(f.root, "m")
			return errors.Join(os.RemoveAll(p), os.Rename(filepath.Join(f.root, "d/big"), p))
		},
		"large file to symlink": func(f *fixture) error {
			p := filepath.Join(f.root, "d/big")
			return errors.Join(os.Remove(p), os.Symlink("small", p))
		},
		"nothing": func(*fixture) error { return nil },
	} {
		for _, budget := range []int64{0, 64 << 10} {
			t.Run(fmt.Sprintf("%s/%d", name, budget), func(t *testing.T) {
				t.Parallel()
				f := newFixture(t)
				f.opts = func(o *tree.CaptureOptions) { o.Budget = tree.NewBudget(budget) }
				f.write("d/big", big)
				f.write("d/small", []byte("small"))
				f.write("l/one", []byte("linked"))
				err := errors.Join(os.Symlink("target", filepath.Join(f.root, "s")), os.Mkdir(filepath.Join(f.root, "m"), 0o755),
					os.Link(filepath.Join(f.root, "l/one"), filepath.Join(f.root, "l/two")), os.Link(filepath.Join(f.root, "l/one"), filepath.Join(f.root, "m/three")))
				if err != nil {
					t.Fatal(err)
				}
				res, _ := f.capture(func() {
					if err := change(f); err != nil {
						t.Fatal(err)
					}
				})
				f.check(res)
				// And again, with the cache that came of it.
				again, _ := f.capture(nil)
				f.check(again)
				if again.Hash != res.Hash {
					// Cutting may differ where pieces were kept; the state may not.
					t.Log("other pieces the second time")
				}
			})
		}
	}
}

func punch(path string, off, n int64) error {
	fd, err := unix.Open(path, unix.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n), unix.Close(fd))
}

// TestBeyondBudget: a database larger than the budget is compared in place, and
// only pages that differ are kept; a file that nobody knew is spooled.
func TestBeyondBudget(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.opts = func(o *tree.CaptureOptions) { o.Budget = tree.NewBudget(1 << 20) }
	f.write("db/ibdata1", randomBytes(2, 24<<20))
	f.write("db/log", randomBytes(3, 3<<20))
	res, _ := f.capture(nil)
	f.check(res)
	page := randomBytes(4, 16<<10)
	res, c := f.capture(func() {
		db, err := os.OpenFile(filepath.Join(f.root, "db/ibdata1"), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, off := range []int64{0, 5 << 20, 5<<20 + 16<<10, 24<<20 - 100, 24 << 20} {
			if _, err := db.WriteAt(page, off); err != nil {
				t.Fatal(err)
			}
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		f.write("fresh", randomBytes(5, 9<<20+77))
	})
	f.check(res)
	s := c.Stats()
	if s.BytesSecured > 10<<20 || s.BytesSpooled < 7<<20 {
		t.Errorf("secured %d bytes, spooled %d", s.BytesSecured, s.BytesSpooled)
	}
	if f.repo.puts > 40 {
		t.Errorf("%d puts for a few pages and a file of 9 MiB", f.repo.puts)
	}
}

// TestSpoolIsEncrypted: what exceeds the budget is on disk as noise only.
func TestSpoolIsEncrypted(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.opts = func(o *tree.CaptureOptions) { o.Budget = tree.NewBudget(4 << 10) }
	secret := []byte("the secret that must not be on any disk ")
	c, err := tree.NewCapture(f.options())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	f.write("file", bytes.Repeat(secret, 10_000))
	if err := c.Secure(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c.Stats().BytesSpooled == 0 {
		t.Fatal("nothing was spooled")
	}
	fds, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	looked := 0
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err != nil || filepath.Dir(to) != f.state {
			continue
		}
		data, err := os.ReadFile(fd)
		if err != nil {
			t.Fatal(err)
		}
		looked++
		if bytes.Contains(data, secret) {
			t.Error("the spool file shows the content")
		}
	}
	if looked == 0 {
		t.Error("no spool file was found")
	}
	res, err := c.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f.check(res)
}

// TestMissedChange: the three ways in which a change may hide from mtime
// (invariant 4). Each must be in the very capture during which it happened.
func TestMissedChange(t *testing.T) {
	t.Parallel()
	t.Run("same tick", func(t *testing.T) {
		t.Parallel()
		f := newFixture(t)
		f.opts = func(o *tree.CaptureOptions) { o.Now = time.Now }
		for i := range 20 {
			f.write("file", []byte(fmt.Sprintf("before %04d", i)))
			res, _ := f.capture(func() { f.write("file", []byte(fmt.Sprintf("after. %04d", i))) })
			f.check(res)
			res, _ = f.capture(nil)
			f.check(res)
		}
	})
	t.Run("mtime set back", func(t *testing.T) {
		t.Parallel()
		f := newFixture(t)
		f.write("file", []byte("before"))
		set := func() {
			old := []unix.Timespec{{Sec: 1_000_000_000}, {Sec: 1_000_000_000}}
			if err := unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(f.root, "file"), old, 0); err != nil {
				t.Fatal(err)
			}
		}
		set()
		change := func(s string) func() {
			return func() { f.write("file", []byte(s)); set() }
		}
		res, _ := f.capture(change("after!"))
		f.check(res)
		change("finis.")()
		res, _ = f.capture(nil)
		f.check(res)
	})
	t.Run("shared map", func(t *testing.T) {
		t.Parallel()
		f := newFixture(t)
		f.write("map", bytes.Repeat([]byte("a"), 8192))
		fd, err := unix.Open(filepath.Join(f.root, "map"), unix.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		m, err := unix.Mmap(fd, 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := unix.Munmap(m); err != nil {
				t.Error(err)
			}
		}()
		// The first store makes the page writable and stamps the file; without
		// write-back no later one would.
		for i := range byte(5) {
			m[0]++
			res, _ := f.capture(func() { m[4096], m[1] = m[4096]+1, i })
			f.check(res)
		}
		// Between two captures.
		m[17] = '!'
		res, _ := f.capture(nil)
		f.check(res)
	})
}

// TestUntrustedFS: on tmpfs a store through a map does not stamp, so every file
// is read every time, and those of OpenFiles at the freeze.
func TestUntrustedFS(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.root = mountTmpfs(t)
	f.write("file", bytes.Repeat([]byte("a"), 8192))
	fd, err := unix.Open(filepath.Join(f.root, "file"), unix.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	m, err := unix.Mmap(fd, 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(m) }()
	m[0] = 'b'
	res, _ := f.capture(func() { m[1] = 'c' })
	f.check(res)
	m[2] = 'd'
	res, _ = f.capture(nil)
	f.check(res)
}

func mountTmpfs(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("lbtest", dir, "tmpfs", 0, "size=64m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestMappedShared finds this process's own map, and what it names is secured
// although its timestamps say that nothing changed.
func TestMappedShared(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.write("mapped", make([]byte, 4096))
	f.write("other", make([]byte, 4096))
	path := filepath.Join(f.root, "mapped")
	fd, err := unix.Open(path, unix.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	m, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(m) }()
	// A process that is gone counts as having none.
	set, err := tree.OpenFiles([]int{os.Getpid(), 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	mapped := func(o tree.OpenFile) bool { return o.Mapped && o.Ino == st.Ino && o.Path == path }
	held := func(o tree.OpenFile) bool { return !o.Mapped && o.Ino == st.Ino && o.Dev == st.Dev && o.Path == path }
	if !slices.ContainsFunc(set, mapped) || !slices.ContainsFunc(set, held) {
		t.Errorf("the file is not in %v", set)
	}
	f.capture(nil)
	c, err := tree.NewCapture(f.options())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Precopy(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.AddOpen(set); err != nil {
		t.Fatal(err)
	}
	if err := c.Secure(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Once secured it is not trusted, so Precopy read it as well.
	if s := c.Stats(); s.FilesRead != 1 || s.FilesSecured != 1 {
		t.Errorf("%+v", s)
	}
}

// TestStatcacheIsNotBelieved when it is damaged, another repository's, or names
// units that the repository does not have.
func TestStatcacheIsNotBelieved(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for i := range 2000 {
		f.write(fmt.Sprintf("d%d/f%d", i%7, i), []byte(fmt.Sprint("content ", i)))
	}
	f.write("big", randomBytes(7, 3<<20))
	want, _ := f.capture(nil)
	caches, err := filepath.Glob(filepath.Join(f.state, "*.stat"))
	if err != nil || len(caches) != 1 {
		t.Fatal(caches, err)
	}
	good, err := os.ReadFile(caches[0])
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range 30 {
		bad := bytes.Clone(good)
		if i%3 == 0 {
			bad = bad[:rng.IntN(len(bad))]
		} else {
			bad[rng.IntN(len(bad))] ^= 1 << rng.IntN(8)
		}
		if err := os.WriteFile(caches[0], bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if res, _ := f.capture(nil); res.Hash != want.Hash {
			t.Fatal("a damaged cache changes the result")
		}
	}
	f.repo = newMemory()
	res, c := f.capture(nil)
	f.check(res)
	if c.Stats().FilesRead != 2001 {
		t.Errorf("units that the repository does not have were taken as known: %+v", c.Stats())
	}
}

// TestLargeAttributes: hundreds of files with attributes of 60 KiB make more
// than one batch holds.
func TestLargeAttributes(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.root = mountTmpfs(t)
	value := randomBytes(1, 60<<10)
	for i := range 40 {
		p := fmt.Sprintf("f%03d", i)
		f.write(p, []byte(p))
		if err := unix.Setxattr(filepath.Join(f.root, p), "trusted.large", value, 0); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		res, _ := f.capture(nil)
		f.check(res)
	}
}

// TestNotCommitted: a capture that was not committed leaves the cache alone.
func TestNotCommitted(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.write("a", []byte("a"))
	c, err := tree.NewCapture(f.options())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(c.Precopy(t.Context()), c.Secure(t.Context())); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(c.Close(), c.Close()); err != nil {
		t.Fatal(err)
	}
	if names, _ := filepath.Glob(filepath.Join(f.state, "*")); len(names) != 0 {
		t.Errorf("left behind: %v", names)
	}
}

// TestFailures: an error of the sink ends each pass with that error, and
// nothing is left behind.
func TestFailures(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for i := range 600 {
		f.write(fmt.Sprintf("f%d", i), []byte(fmt.Sprint("content ", i)))
	}
	boom := errors.New("boom")
	f.repo.fail = func(n int) error {
		if n > 300 {
			return boom
		}
		return nil
	}
	c, err := tree.NewCapture(f.options())
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Precopy(t.Context()); !errors.Is(err, boom) {
		t.Errorf("precopy: %v", err)
	}
	if err := c.Secure(t.Context()); err == nil {
		// Precopy's records are not whole: they must not pass as all there is.
		t.Error("secure after a failed precopy")
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	c, err = tree.NewCapture(f.options())
	if err != nil {
		t.Fatal(err)
	}
	f.repo.puts = 0
	if err := c.Secure(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Finish(t.Context()); !errors.Is(err, boom) {
		t.Errorf("finish: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if c, err = tree.NewCapture(f.options()); err != nil {
		t.Fatal(err)
	}
	if err := c.Precopy(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("precopy: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	f.clean()
	if _, err := tree.NewCapture(tree.CaptureOptions{Root: "/nonexistent", UnitID: unitID}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no tree: %v", err)
	}
}

// TestMountsAndExcludes: what is mounted below is passed over and named, what is
// excluded is passed over.
func TestMountsAndExcludes(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.write("a/keep", []byte("1"))
	f.write("a/data/inside", []byte("2"))
	f.write("b", []byte("3"))
	if err := os.Mkdir(filepath.Join(f.root, "m"), 0o755); err != nil {
		t.Fatal(err)
	}
	mount := func(what, at string) {
		if err := unix.Mount(what, at, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
	}
	mount("lbtest", filepath.Join(f.root, "m"))
	// A bind mount of the same file system, of a file.
	if err := unix.Mount(filepath.Join(f.root, "a/keep"), filepath.Join(f.root, "b"), "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(filepath.Join(f.root, "b"), unix.MNT_DETACH) })
	f.opts = func(o *tree.CaptureOptions) { o.Exclude = []string{"a/data"} }
	res, c := f.capture(nil)
	r := f.open(res)
	var got []string
	for {
		e, err := r.Next(t.Context())
		if err != nil {
			break
		}
		got = append(got, e.Path)
	}
	if fmt.Sprint(got) != "[ a a/keep]" {
		t.Errorf("%q", got)
	}
	if rep := c.Report(); len(rep.Skipped) != 2 || rep.Skipped[0].Path != "b" || rep.Skipped[1].Path != "m" {
		t.Errorf("%+v", rep)
	}
}

// TestOverlayTerms: an upper directory's own language becomes the catalog's.
func TestOverlayTerms(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.opts = func(o *tree.CaptureOptions) { o.Overlay = true }
	p := func(s string) string { return filepath.Join(f.root, s) }
	f.write("opaque/x", nil)
	f.write("marked", nil)
	f.write("userform", nil)
	f.write("plain", []byte("x"))
	err := errors.Join(
		unix.Mknod(p("gone"), unix.S_IFCHR, 0), os.Link(p("gone"), p("gone2")),
		unix.Mknod(p("dev"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))),
		unix.Setxattr(p("opaque"), "trusted.overlay.opaque", []byte("y"), 0),
		unix.Setxattr(p("opaque"), "trusted.overlay.origin", []byte("noise"), 0),
		unix.Setxattr(p(""), "trusted.overlay.opaque", []byte("x"), 0),
		unix.Setxattr(p("marked"), "trusted.overlay.whiteout", []byte("y"), 0),
		unix.Setxattr(p("userform"), "user.overlay.whiteout", []byte("y"), 0),
		unix.Setxattr(p("plain"), "user.kept", []byte("k"), 0),
		unix.Setxattr(p("plain"), "trusted.overlay.impure", []byte("y"), 0),
	)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		res, _ := f.capture(nil)
		r := f.open(res)
		for path, want := range map[string]string{
			"": "directory", "opaque": "directory opaque", "gone": "whiteout", "gone2": "whiteout", "dev": "character device",
			"marked": "whiteout", "userform": "whiteout", "plain": "file user.kept", "opaque/x": "file",
		} {
			e, err := r.Lookup(t.Context(), path)
			if err != nil {
				t.Fatal(err)
			}
			got := e.Type.String()
			if e.Opaque {
				got += " opaque"
			}
			for _, x := range e.Xattrs {
				got += " " + x.Name
			}
			if got != want {
				t.Errorf("%q is a %s, want %s", path, got, want)
			}
			if e.Type == catalog.Whiteout && (e.Mode != 0 || e.MtimeSec != 0) {
				t.Errorf("whiteout %q with metadata", path)
			}
		}
	}
	if err := unix.Setxattr(p("opaque"), "trusted.overlay.redirect", []byte("/a"), 0); err != nil {
		t.Fatal(err)
	}
	c, err := tree.NewCapture(f.options())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Precopy(t.Context()); !errors.Is(err, tree.ErrNeedsMerged) {
		t.Errorf("redirect: %v", err)
	}
}
