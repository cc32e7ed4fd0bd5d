package tree_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/internal/tree"
	"lifeboat/lab/treecmp"
)

// watched is a fixture of some hundred entries that was captured once, so that
// the next capture looks at candidates only.
func watched(t *testing.T) *fixture {
	f := newFixture(t)
	for d := range 20 {
		for i := range 15 {
			f.write(fmt.Sprintf("dir%02d/sub/file%02d", d, i), fmt.Appendf(nil, "content %d %d", d, i))
		}
	}
	f.write("dir00/large", bytes.Repeat([]byte("large"), 400_000))
	must(t, os.Symlink("sub/file00", f.path("dir01/link")))
	must(t, unix.Mkfifo(f.path("dir02/fifo"), 0o600))
	res, _ := f.capture(nil)
	f.check(res)
	return f
}

func (f *fixture) path(name string) string { return filepath.Join(f.root, name) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestWatch: whatever happens between Precopy and Secure is in the snapshot
// (invariant 4), and only what it touched is looked at.
func TestWatch(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		full bool // speaks for entries that no event names
		do   func(t *testing.T, f *fixture)
	}{
		{"nothing", false, func(*testing.T, *fixture) {}},
		{"write", false, func(t *testing.T, f *fixture) { f.write("dir05/sub/file03", []byte("other")) }},
		{"write, mtime set back", false, func(t *testing.T, f *fixture) {
			var st unix.Stat_t
			must(t, unix.Stat(f.path("dir05/sub/file03"), &st))
			f.write("dir05/sub/file03", []byte("CONTENT 5 3"))
			must(t, unix.UtimesNanoAt(unix.AT_FDCWD, f.path("dir05/sub/file03"), []unix.Timespec{st.Atim, st.Mtim}, 0))
		}},
		{"create", false, func(t *testing.T, f *fixture) { f.write("dir05/sub/new", []byte("new")) }},
		{"create first and last", false, func(t *testing.T, f *fixture) {
			f.write("a first", []byte("1"))
			f.write("zz last", []byte("2"))
		}},
		{"create tree", false, func(t *testing.T, f *fixture) {
			for i := range 5 {
				f.write(fmt.Sprintf("dir05/new/deep/%d/file", i), []byte("x"))
			}
		}},
		{"truncate", false, func(t *testing.T, f *fixture) { must(t, os.Truncate(f.path("dir00/large"), 1000)) }},
		{"punch hole", false, func(t *testing.T, f *fixture) {
			fd, err := unix.Open(f.path("dir00/large"), unix.O_RDWR, 0)
			must(t, err)
			must(t, unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 1<<20))
			must(t, unix.Close(fd))
		}},
		{"remove", false, func(t *testing.T, f *fixture) { must(t, os.Remove(f.path("dir07/sub/file14"))) }},
		{"remove tree", false, func(t *testing.T, f *fixture) { must(t, os.RemoveAll(f.path("dir07"))) }},
		{"remove tree and make it anew", false, func(t *testing.T, f *fixture) {
			must(t, os.RemoveAll(f.path("dir07")))
			f.write("dir07/sub/file02", []byte("again"))
		}},
		{"directory becomes file", false, func(t *testing.T, f *fixture) {
			must(t, os.RemoveAll(f.path("dir07/sub")))
			f.write("dir07/sub", []byte("now a file"))
		}},
		{"file becomes directory", false, func(t *testing.T, f *fixture) {
			must(t, os.Remove(f.path("dir07/sub/file02")))
			f.write("dir07/sub/file02/inside", []byte("now in a directory"))
		}},
		{"rename file", false, func(t *testing.T, f *fixture) {
			must(t, os.Rename(f.path("dir03/sub/file02"), f.path("dir04/sub/file99")))
		}},
		{"rename over", false, func(t *testing.T, f *fixture) {
			must(t, os.Rename(f.path("dir03/sub/file02"), f.path("dir04/sub/file03")))
		}},
		{"rename tree", false, func(t *testing.T, f *fixture) { must(t, os.Rename(f.path("dir03"), f.path("dir04/moved"))) }},
		{"rename tree, write below", false, func(t *testing.T, f *fixture) {
			must(t, os.Rename(f.path("dir03"), f.path("moved")))
			f.write("moved/sub/file02", []byte("written after"))
		}},
		{"exchange trees", false, func(t *testing.T, f *fixture) {
			must(t, unix.Renameat2(unix.AT_FDCWD, f.path("dir03"), unix.AT_FDCWD, f.path("dir09"), unix.RENAME_EXCHANGE))
		}},
		{"tree moved away and back, written to meanwhile", false, func(t *testing.T, f *fixture) {
			out := filepath.Join(filepath.Dir(f.root), "outside")
			must(t, os.Rename(f.path("dir03"), out))
			must(t, os.WriteFile(filepath.Join(out, "sub/file02"), []byte("written outside"), 0o600))
			must(t, os.Rename(out, f.path("dir03")))
		}},
		{"tree moved in", false, func(t *testing.T, f *fixture) {
			out := filepath.Join(filepath.Dir(f.root), "outside")
			must(t, os.MkdirAll(filepath.Join(out, "a/b"), 0o700))
			must(t, os.WriteFile(filepath.Join(out, "a/b/file"), []byte("from outside"), 0o600))
			must(t, os.Rename(out, f.path("dir03/in")))
		}},
		{"mode, owner, attribute, times", false, func(t *testing.T, f *fixture) {
			must(t, os.Chmod(f.path("dir03/sub/file02"), 0o711))
			must(t, os.Chown(f.path("dir03/sub/file03"), 1000, 1000))
			must(t, unix.Setxattr(f.path("dir03/sub/file04"), "user.x", []byte("y"), 0))
			must(t, os.Chtimes(f.path("dir04/sub"), time.Unix(1, 2), time.Unix(3, 4)))
			must(t, os.Chmod(f.path("dir06"), 0o700))
			must(t, os.Chmod(f.root, 0o711))
			must(t, os.Lchown(f.path("dir01/link"), 5, 6))
			must(t, os.Chmod(f.path("dir02/fifo"), 0o644))
		}},
		{"symbolic link changed", false, func(t *testing.T, f *fixture) {
			must(t, os.Remove(f.path("dir01/link")))
			must(t, os.Symlink("elsewhere", f.path("dir01/link")))
		}},
		{"stored to through a map that is gone", false, func(t *testing.T, f *fixture) {
			fd, err := unix.Open(f.path("dir00/large"), unix.O_RDWR, 0)
			must(t, err)
			m, err := unix.Mmap(fd, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			must(t, err)
			must(t, unix.Close(fd))
			m[4711] = '!'
			must(t, unix.Munmap(m))
		}},
		{"hard link made", true, func(t *testing.T, f *fixture) {
			must(t, os.Link(f.path("dir03/sub/file02"), f.path("a link")))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := watched(t)
			for round := range 2 { // the second builds on a statcache made from candidates
				res, c := f.capture(func() {
					if round == 0 {
						tt.do(t, f)
					}
				})
				f.check(res)
				s := c.Stats()
				if full := s.Looked >= s.Entries; full != (tt.full && round == 0) {
					t.Errorf("looked at %d of %d entries", s.Looked, s.Entries)
				}
			}
		})
	}
}

// TestWatchMissed: a change that the watch did not speak of (written through a
// name outside of the tree, which is gone again) is found by a full look, or by
// the next capture, and from then on everything is looked at.
func TestWatchMissed(t *testing.T) {
	t.Parallel()
	unheard := func(f *fixture, content string) {
		out := filepath.Join(filepath.Dir(f.root), "outside")
		must(t, os.Link(f.path("dir05/sub/file03"), out))
		must(t, os.WriteFile(out, []byte(content), 0o600))
		must(t, os.Remove(out))
	}
	t.Run("full look", func(t *testing.T) {
		t.Parallel()
		f := watched(t)
		f.opts = func(o *tree.CaptureOptions) { o.Now = func() time.Time { return time.Now().Add(8 * 24 * time.Hour) } }
		res, c := f.capture(func() { unheard(f, "unheard") })
		f.check(res)
		if m := c.Report().Missed; !slices.Equal(m, []string{"dir05/sub/file03"}) {
			t.Errorf("missed %q", m)
		}
		f.opts = nil
		if _, c = f.capture(nil); c.Stats().Looked < c.Stats().Entries {
			t.Error("the watch is relied upon again")
		}
	})
	t.Run("next capture", func(t *testing.T) {
		t.Parallel()
		f := watched(t)
		_, c := f.capture(func() { unheard(f, "unheard"); f.write("dir06/sub/file03", []byte("heard")) })
		if s := c.Stats(); s.Looked >= s.Entries || s.FilesSecured != 1 {
			t.Fatalf("the change was heard, so nothing is shown: %+v", s)
		}
		// As if that capture had come a minute later.
		names, err := filepath.Glob(filepath.Join(f.state, "*.stat"))
		must(t, err)
		cache, err := os.OpenFile(names[0], os.O_WRONLY, 0)
		must(t, err)
		at := binary.LittleEndian.AppendUint64(nil, uint64(later().Unix()))
		_, err = cache.WriteAt(at, 4+1+32+8)
		must(t, errors.Join(err, cache.Close()))
		res, c := f.capture(nil)
		f.check(res)
		if m := c.Report().Missed; !slices.Equal(m, []string{"dir05/sub/file03"}) {
			t.Errorf("missed %q", m)
		}
		if _, c = f.capture(nil); c.Stats().Looked < c.Stats().Entries {
			t.Error("the watch is relied upon again")
		}
	})
}

// TestWatchHardLink: what is written through one name is in all.
func TestWatchHardLink(t *testing.T) {
	t.Parallel()
	f := watched(t)
	must(t, os.Link(f.path("dir03/sub/file02"), f.path("a link")))
	must(t, os.Link(f.path("dir03/sub/file02"), f.path("z link")))
	res, _ := f.capture(nil)
	f.check(res)
	for _, do := range []func(){
		func() { f.write("z link", []byte("through the last")) },
		func() { must(t, os.Remove(f.path("a link"))) },
		func() { must(t, os.Rename(f.path("z link"), f.path("dir01/other"))) },
		func() { must(t, os.RemoveAll(f.path("dir01"))) },
		func() {},
	} {
		res, _ := f.capture(do)
		f.check(res)
	}
}

// TestWatchHeld: asynchronous writes and stores make no event while the file
// is open, so what processes hold is looked at.
func TestWatchHeld(t *testing.T) {
	t.Parallel()
	f := watched(t)
	fd, err := unix.Open(f.path("dir00/large"), unix.O_RDWR, 0)
	must(t, err)
	defer unix.Close(fd)
	m, err := unix.Mmap(fd, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	store := func(i int) { m[i]++ }
	for i := range 3 {
		res, c := f.capture(func() { store(4711 * i) })
		f.check(res)
		if s := c.Stats(); s.Looked >= s.Entries {
			t.Errorf("looked at %d of %d entries", s.Looked, s.Entries)
		}
	}
	// Stored to, then unmapped with the descriptor left open: no event at all.
	res, _ := f.capture(func() {
		store(99)
		must(t, unix.Munmap(m))
	})
	f.check(res)
}

// TestWatchLost: when something may have escaped the watch, every entry is
// looked at.
func TestWatchLost(t *testing.T) {
	t.Parallel()
	whole := func(t *testing.T, f *fixture, between func()) {
		t.Helper()
		res, c := f.capture(between)
		f.check(res)
		if s := c.Stats(); s.Looked < s.Entries {
			t.Errorf("looked at %d of %d entries only", s.Looked, s.Entries)
		}
		if r := c.Report(); len(r.Missed) > 0 {
			t.Errorf("missed %q", r.Missed)
		}
	}
	t.Run("more touched than is remembered", func(t *testing.T) {
		t.Parallel()
		f := watched(t)
		dir := f.path("dir05")
		whole(t, f, func() {
			for i := range 70_000 {
				must(t, unix.Mkfifo(filepath.Join(dir, fmt.Sprint(i)), 0o600))
			}
			for i := range 70_000 {
				must(t, unix.Unlink(filepath.Join(dir, fmt.Sprint(i))))
			}
			f.write("dir05/last", []byte("x"))
		})
	})
	t.Run("eight days later", func(t *testing.T) {
		t.Parallel()
		f := watched(t)
		f.opts = func(o *tree.CaptureOptions) {
			o.Now = func() time.Time { return time.Now().Add(8 * 24 * time.Hour) }
		}
		whole(t, f, func() { f.write("dir05/sub/file03", []byte("other")) })
	})
	t.Run("root moved away and back", func(t *testing.T) {
		t.Parallel()
		f := watched(t)
		whole(t, f, func() { must(t, os.Rename(f.root, f.root+".old")); must(t, os.Rename(f.root+".old", f.root)) })
	})
	t.Run("off", func(t *testing.T) {
		t.Parallel()
		f := watched(t)
		f.opts = func(o *tree.CaptureOptions) { o.NoWatch = true }
		whole(t, f, func() { f.write("dir05/sub/file03", []byte("other")) })
	})
}

// TestWatchOverlay: what a container writes through the merged mount is seen,
// copied up files and directories included.
func TestWatchOverlay(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	base := t.TempDir()
	lower, work, merged := filepath.Join(base, "lower"), filepath.Join(base, "work"), filepath.Join(base, "merged")
	for _, d := range []string{lower + "/low/deep/dir", lower + "/both", work, merged, f.path("both"), f.path("only")} {
		must(t, os.MkdirAll(d, 0o755))
	}
	for _, p := range []string{"low/deep/dir/file", "low/deep/dir/mapped", "low/gone", "both/lower"} {
		must(t, os.WriteFile(filepath.Join(lower, p), bytes.Repeat([]byte(p), 500), 0o644))
	}
	f.write("both/upper", []byte("upper"))
	f.write("only/file", []byte("file"))
	for i := range 40 {
		f.write(fmt.Sprintf("only/more%d", i), []byte("file"))
	}
	must(t, unix.Mount("overlay", merged, "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lower, f.root, work)))
	t.Cleanup(func() { must(t, unix.Unmount(merged, unix.MNT_DETACH)) })
	// What is mounted over a part of it cannot be written through, and is let alone.
	must(t, os.MkdirAll(f.path("covered/dir"), 0o755))
	f.opts = func(o *tree.CaptureOptions) { o.Overlay, o.Merged, o.Covered = true, merged, []string{"covered"} }
	in := func(p string) string { return filepath.Join(merged, p) }
	var held []*os.File
	defer func() {
		for _, h := range held {
			_ = h.Close()
		}
	}()
	var m []byte
	defer func() { _ = unix.Munmap(m) }()
	steps := []struct {
		name string
		do   func()
	}{
		{"first", func() {}},
		{"write", func() { must(t, os.WriteFile(in("only/file"), []byte("changed"), 0o644)) }},
		{"copy up with directories", func() { must(t, os.WriteFile(in("low/deep/dir/file"), []byte("changed"), 0o644)) }},
		{"write again", func() { must(t, os.WriteFile(in("low/deep/dir/file"), []byte("CHANGED"), 0o644)) }},
		{"delete of the image", func() { must(t, os.Remove(in("low/gone"))) }},
		{"chmod of the image", func() { must(t, os.Chmod(in("both/lower"), 0o600)) }},
		{"keep open", func() {
			h, err := os.OpenFile(in("low/deep/dir/mapped"), os.O_RDWR, 0)
			must(t, err)
			held = append(held, h)
			m, err = unix.Mmap(int(h.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			must(t, err)
			m[0] = '!'
		}},
		{"store", func() { m[1] = '!' }},
		{"store again", func() { m[2] = '!' }},
		{"rename", func() { must(t, os.Rename(in("only/file"), in("both/file"))) }},
		{"remove and make directory", func() {
			must(t, os.RemoveAll(in("low")))
			must(t, os.MkdirAll(in("low/new"), 0o755))
			must(t, os.WriteFile(in("low/new/file"), []byte("new"), 0o644))
		}},
		{"nothing", func() {}},
	}
	for _, s := range steps {
		res, c := f.capture(s.do)
		want, err := treecmp.Fingerprint(f.root, treecmp.Options{OneMount: true})
		must(t, err)
		for p, e := range want {
			maps.DeleteFunc(e.Xattrs, func(k, v string) bool {
				return strings.HasPrefix(k, "trusted.overlay.") && (k != "trusted.overlay.opaque" || v != "y")
			})
			if e.Type == treecmp.Whiteout {
				want[p] = treecmp.Entry{Type: e.Type}
			}
		}
		if diff := treecmp.Report(treecmp.Compare(want, f.fingerprint(res), treecmp.Rules{}), 20); diff != "" {
			t.Fatalf("%s: captured tree differs:\n%s", s.name, diff)
		}
		st := c.Stats()
		if st.Looked >= st.Entries {
			t.Errorf("%s: looked at %d of %d entries", s.name, st.Looked, st.Entries)
		}
	}
}

// TestUnchangedReuses: where nothing changed, the result is the one before, no
// catalog is made, and each of its units is asked for.
func TestUnchangedReuses(t *testing.T) {
	t.Parallel()
	f := watched(t)
	first, _ := f.capture(nil)
	f.check(first)
	again, _ := f.capture(nil)
	if f.repo.puts != 0 {
		t.Errorf("%d units were put", f.repo.puts)
	}
	if !reflect.DeepEqual(first, again) {
		t.Errorf("%+v\n%+v", first, again)
	}
	f.check(again) // all units were asked for

	// A catalog that the repository has lost is made again.
	f.repo.mu.Lock()
	for _, r := range first.Catalog {
		delete(f.repo.units, r.ID)
	}
	f.repo.mu.Unlock()
	again, _ = f.capture(nil)
	f.check(again)
	if f.repo.puts == 0 {
		t.Error("a catalog that is gone was referred to")
	}

	// Any change ends it, and what was left out is not in it.
	for _, change := range []func(){
		func() { f.write("dir05/sub/file03", []byte("other")) },
		func() { must(t, os.Remove(f.path("zz"))) },
		func() { must(t, os.Remove(f.path("dir19/sub/file14"))) },
		func() { must(t, os.RemoveAll(f.path("dir19"))) },
	} {
		f.write("zz", []byte("last of all"))
		res, _ := f.capture(nil)
		f.check(res)
		change()
		res, _ = f.capture(nil)
		f.check(res)
	}
	f.opts = func(o *tree.CaptureOptions) { o.Exclude = []string{"dir01"} }
	res, _ := f.capture(nil)
	if _, ok := f.fingerprint(res)["dir01"]; ok {
		t.Error("what is excluded is in the catalog")
	}
}
