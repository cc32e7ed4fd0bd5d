package apply_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"testing"

	"lifeboat/internal/apply"
	"lifeboat/internal/catalog"
	"lifeboat/internal/dr"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// memory is a unit store.
type memory struct {
	mu    sync.Mutex
	units map[dr.UnitID][]byte
}

func newMemory() *memory { return &memory{units: map[dr.UnitID][]byte{}} }

func id(data []byte) dr.UnitID { return sha256.Sum256(data) }

func (m *memory) Put(_ context.Context, data []byte) (dr.UnitRef, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.units[id(data)] = bytes.Clone(data)
	return dr.UnitRef{ID: id(data), Len: uint32(len(data))}, nil
}

func (m *memory) Unit(_ context.Context, ref dr.UnitRef) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	data, ok := m.units[ref.ID]
	if !ok {
		return nil, dr.ErrNotFound
	}
	return data, nil
}

func (m *memory) Fetch(ctx context.Context, refs []dr.UnitRef, fn func(int, []byte) error) error {
	for i, r := range refs {
		data, err := m.Unit(ctx, r)
		if err != nil {
			return err
		}
		if err := fn(i, data); err != nil {
			return err
		}
	}
	return nil
}

const piece = 4096

// scan reads a tree in the plainest way, independently of package tree.
func scan(t testing.TB, m *memory, root string) *catalog.Reader {
	t.Helper()
	b := catalog.NewBuilder(m, [32]byte{1}, id)
	firsts := map[uint64]string{}
	var paths []string
	err := filepath.WalkDir(root, func(p string, _ os.DirEntry, err error) error {
		rel, _ := filepath.Rel(root, p)
		if rel == "." {
			rel = ""
		}
		paths = append(paths, rel)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	sort.Slice(paths, func(i, j int) bool { return catalog.ComparePaths(paths[i], paths[j]) < 0 })
	for _, rel := range paths {
		if err := b.Add(t.Context(), entryOf(t, m, root, rel, firsts)); err != nil {
			t.Fatalf("%q: %v", rel, err)
		}
	}
	sum, err := b.Close(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r, err := catalog.Open(t.Context(), m, sum.Table)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func entryOf(t testing.TB, m *memory, root, rel string, firsts map[uint64]string) catalog.Entry {
	t.Helper()
	p := filepath.Join(root, rel)
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil {
		t.Fatal(err)
	}
	e := catalog.Entry{Path: rel, Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid, MtimeSec: st.Mtim.Sec, MtimeNsec: uint32(st.Mtim.Nsec)}
	if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if first, ok := firsts[st.Ino]; ok {
			return catalog.Entry{Path: rel, Type: catalog.HardLink, Target: first}
		}
		firsts[st.Ino], e.LinkGroup = rel, true
	}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		e.Type = catalog.Directory
	case unix.S_IFLNK:
		e.Type, e.Mode = catalog.Symlink, 0o777
		e.Target, err = os.Readlink(p)
	case unix.S_IFIFO:
		e.Type = catalog.Fifo
	case unix.S_IFSOCK:
		e.Type = catalog.Socket
	case unix.S_IFCHR:
		e.Type, e.Major, e.Minor = catalog.CharDevice, unix.Major(st.Rdev), unix.Minor(st.Rdev)
		if st.Rdev == 0 {
			e.Type, e.Major, e.Minor = catalog.Whiteout, 0, 0
		}
	case unix.S_IFREG:
		e.Type, e.Size = catalog.File, st.Size
		var data []byte
		data, err = os.ReadFile(p)
		for len(data) > 0 {
			n := min(piece, len(data))
			ref, _ := m.Put(t.Context(), data[:n])
			hole := n == piece && bytes.Equal(data[:n], make([]byte, piece))
			r := catalog.Ref{ID: ref.ID, Len: int64(n)}
			if hole {
				r = catalog.Ref{Len: int64(n), Hole: true}
			}
			if k := len(e.Refs); hole && k > 0 && e.Refs[k-1].Hole {
				e.Refs[k-1].Len += int64(n)
			} else {
				e.Refs = append(e.Refs, r)
			}
			data = data[n:]
		}
		if len(e.Refs) > catalog.MaxDirect {
			t.Fatalf("%q is too big for this test", rel)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	names := make([]byte, 4096)
	if n, err := unix.Llistxattr(p, names); err == nil {
		for _, name := range strings.Split(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00") {
			value := make([]byte, 4096)
			if n, err := unix.Lgetxattr(p, name, value); err == nil {
				if name == "trusted.overlay.opaque" {
					e.Opaque = true
					continue
				}
				e.Xattrs = append(e.Xattrs, catalog.Xattr{Name: name, Value: value[:n]})
			}
		}
		sort.Slice(e.Xattrs, func(i, j int) bool { return e.Xattrs[i].Name < e.Xattrs[j].Name })
	}
	return e
}

// dump lists the entries of a catalog for comparison.
func dump(t testing.TB, r *catalog.Reader) []string {
	t.Helper()
	var out []string
	err := catalog.Merge(t.Context(), nil, r.Clone(), func(_, e *catalog.Entry) error {
		c := e.Clone()
		out = append(out, fmt.Sprintf("%+v", c))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// grow makes a random tree below root from a few names, so that two trees share
// many of them with other types and contents.
func grow(t *rapid.T, root string) {
	rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
	dirs := []string{root}
	var files []string
	for range rng.IntN(40) {
		p := filepath.Join(dirs[rng.IntN(len(dirs))], string(rune('a'+rng.IntN(6))))
		if _, err := os.Lstat(p); err == nil {
			continue
		}
		var err error
		switch rng.IntN(9) {
		case 0, 1:
			err = os.Mkdir(p, 0o700)
			dirs = append(dirs, p)
		case 2:
			err = os.Symlink(strings.Repeat("x", 1+rng.IntN(3)), p)
		case 3:
			err = unix.Mkfifo(p, 0o600)
		case 4:
			err = unix.Mknod(p, unix.S_IFCHR|0o600, int(unix.Mkdev(1, uint32(3+rng.IntN(2)))))
		case 5:
			err = unix.Mknod(p, unix.S_IFCHR, 0)
		case 6:
			if len(files) > 0 {
				err = os.Link(files[rng.IntN(len(files))], p)
			}
		default:
			data := make([]byte, rng.IntN(6)*piece+rng.IntN(100))
			for at := 0; at < len(data); at += piece {
				if rng.IntN(3) > 0 { // else zeros
					for i := at; i < min(at+piece, len(data)); i++ {
						data[i] = byte(rng.IntN(3))
					}
				}
			}
			err = os.WriteFile(p, data, 0o600)
			files = append(files, p)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	_ = filepath.WalkDir(root, func(p string, _ os.DirEntry, _ error) error {
		dress(t, rng, p)
		return nil
	})
	for i := len(dirs) - 1; i >= 0; i-- {
		ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: rng.Int64N(1<<33) - 1<<31, Nsec: rng.Int64N(1e9)}}
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, dirs[i], ts, 0); err != nil {
			t.Fatal(err)
		}
	}
}

// dress gives an entry random metadata.
func dress(t *rapid.T, rng *rand.Rand, p string) {
	var st unix.Stat_t
	if unix.Lstat(p, &st) != nil {
		return
	}
	check := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	check(os.Lchown(p, rng.IntN(3), rng.IntN(3)))
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		check(unix.Chmod(p, uint32(rng.IntN(0o10000))|0o400))
	}
	if kind := st.Mode & unix.S_IFMT; (kind == unix.S_IFREG || kind == unix.S_IFDIR) && rng.IntN(3) == 0 {
		check(unix.Lsetxattr(p, fmt.Sprintf("user.%d", rng.IntN(2)), []byte{byte(rng.IntN(3))}, 0))
		if kind == unix.S_IFREG {
			check(unix.Lsetxattr(p, "security.capability", []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0))
		} else if rng.IntN(2) == 0 {
			check(unix.Lsetxattr(p, "trusted.overlay.opaque", []byte("y"), 0))
		}
	}
	ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: rng.Int64N(1<<33) - 1<<31, Nsec: rng.Int64N(1e9)}}
	check(unix.UtimesNanoAt(unix.AT_FDCWD, p, ts, unix.AT_SYMLINK_NOFOLLOW))
}

// TestApplyInvariant3 goes from nothing to a random tree, and from that one to
// another in place: what is on disk equals what was captured each time.
func TestApplyInvariant3(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		base, err := os.MkdirTemp("", "lbtest-apply-")
		if err != nil {
			rt.Fatal(err)
		}
		defer os.RemoveAll(base)
		m := newMemory()
		for _, name := range []string{"a", "b", "dst"} {
			if err := os.Mkdir(filepath.Join(base, name), 0o755); err != nil {
				rt.Fatal(err)
			}
		}
		grow(rt, filepath.Join(base, "a"))
		grow(rt, filepath.Join(base, "b"))
		dst := filepath.Join(base, "dst")
		a, b := scan(t, m, filepath.Join(base, "a")), scan(t, m, filepath.Join(base, "b"))
		if _, err := apply.Apply(t.Context(), apply.Options{Root: dst, Overlay: true, Target: a, Source: m}); err != nil {
			rt.Fatal(err)
		}
		now := scan(t, m, dst)
		if diff := cmp.Diff(dump(t, a), dump(t, now)); diff != "" {
			rt.Fatalf("fresh: %s", diff)
		}
		if _, err := apply.Apply(t.Context(), apply.Options{Root: dst, Overlay: true, Current: now, Target: b, Source: m}); err != nil {
			rt.Fatal(err)
		}
		if diff := cmp.Diff(dump(t, b), dump(t, scan(t, m, dst))); diff != "" {
			rt.Fatalf("in place: %s", diff)
		}
		st, err := apply.Apply(t.Context(), apply.Options{Root: dst, Overlay: true, Current: scan(t, m, dst), Target: b, Source: m})
		if err != nil {
			rt.Fatal(err)
		}
		if st.Created+st.Changed+st.Removed+st.BytesFetched != 0 {
			rt.Fatalf("nothing was to be done, and this was: %+v", st)
		}
	})
}

// TestApplySingleFile: a bind mount of one file keeps its inode, which a running
// container may hold.
func TestApplySingleFile(t *testing.T) {
	t.Parallel()
	m, dir := newMemory(), t.TempDir()
	src, dst := filepath.Join(dir, "src"), filepath.Join(dir, "dst")
	for p, text := range map[string]string{src: strings.Repeat("new", 3000), dst: strings.Repeat("old", 5000)} {
		if err := os.WriteFile(p, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	before, err := os.Stat(dst)
	if err != nil {
		t.Fatal(err)
	}
	o := apply.Options{Root: dst, File: true, Current: scan(t, m, dst), Target: scan(t, m, src), Source: m}
	if _, err := apply.Apply(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(dst)
	if err != nil || string(got) != strings.Repeat("new", 3000) {
		t.Fatalf("content is wrong (%d bytes), %v", len(got), err)
	}
	after, err := os.Stat(dst)
	if err != nil || !os.SameFile(before, after) {
		t.Error("the file was replaced instead of changed in place")
	}
}

// TestApplyFetchesOnlyDifferences: one changed piece of a file is one unit.
func TestApplyFetchesOnlyDifferences(t *testing.T) {
	t.Parallel()
	m, a, b := newMemory(), t.TempDir(), t.TempDir()
	data := make([]byte, 40*piece)
	for i := range data {
		data[i] = byte(i/piece + 1)
	}
	for _, d := range []string{a, b} {
		if err := os.WriteFile(filepath.Join(d, "db"), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	data[7*piece+5] = 99
	if err := os.WriteFile(filepath.Join(b, "db"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	st, err := apply.Apply(t.Context(), apply.Options{Root: a, Current: scan(t, m, a), Target: scan(t, m, b), Source: m})
	if err != nil {
		t.Fatal(err)
	}
	if st.BytesFetched != piece {
		t.Errorf("fetched %d bytes, want %d", st.BytesFetched, piece)
	}
	if got, _ := os.ReadFile(filepath.Join(a, "db")); !bytes.Equal(got, data) {
		t.Error("content differs")
	}
}

// TestApplyStaysInsideInvariant10: a link planted where a directory is expected
// leads nowhere.
func TestApplyStaysInsideInvariant10(t *testing.T) {
	t.Parallel()
	m, want, dst, outside := newMemory(), t.TempDir(), t.TempDir(), t.TempDir()
	if err := os.MkdirAll(filepath.Join(want, "d"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(want, "d", "f"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	target := scan(t, m, want)
	if err := os.Mkdir(filepath.Join(dst, "d"), 0o755); err != nil {
		t.Fatal(err)
	}
	current := scan(t, m, dst)
	if err := os.Remove(filepath.Join(dst, "d")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dst, "d")); err != nil {
		t.Fatal(err)
	}
	_, err := apply.Apply(t.Context(), apply.Options{Root: dst, Current: current, Target: target, Source: m})
	if !errors.Is(err, unix.ELOOP) && !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("error %v, want the link refused", err)
	}
	if names, _ := os.ReadDir(outside); len(names) != 0 {
		t.Errorf("%v was written outside the root", names)
	}
}

// TestApplyReportsMissingUnit: a unit that the repository lacks is an error, and
// the rest can be tried again.
func TestApplyReportsMissingUnit(t *testing.T) {
	t.Parallel()
	m, want, dst := newMemory(), t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(want, "f"), []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	target := scan(t, m, want)
	lost := id([]byte("content"))
	data := m.units[lost]
	delete(m.units, lost)
	if _, err := apply.Apply(t.Context(), apply.Options{Root: dst, Target: target, Source: m}); !errors.Is(err, dr.ErrNotFound) {
		t.Fatalf("error %v, want ErrNotFound", err)
	}
	m.units[lost] = data
	if _, err := apply.Apply(t.Context(), apply.Options{Root: dst, Current: scan(t, m, dst), Target: target, Source: m}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(dump(t, target), dump(t, scan(t, m, dst))); diff != "" {
		t.Error(diff)
	}
}
