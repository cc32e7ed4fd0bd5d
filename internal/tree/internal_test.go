package tree

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/internal/catalog"
)

// TestWithoutOpenat2: on kernels without it, or where a seccomp profile refuses
// it, one component is opened at a time and no link is followed either.
func TestWithoutOpenat2(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	long := "l" + strings.Repeat("/"+strings.Repeat("x", 200), 30)
	err := errors.Join(os.MkdirAll(filepath.Join(dir, "a/b"), 0o755), os.WriteFile(filepath.Join(dir, "a/b/f"), []byte("f"), 0o644),
		os.Symlink("b", filepath.Join(dir, "a/link")), os.Symlink("/etc", filepath.Join(dir, "etc")), os.Mkdir(filepath.Join(dir, "m"), 0o755))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("lbtest", filepath.Join(dir, "m"), "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(filepath.Join(dir, "m"), unix.MNT_DETACH) })
	for _, openat2 := range []bool{true, false} {
		r, err := OpenRoot(dir, RootOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if !r.openat2 {
			t.Error("this kernel has openat2 but it was not found")
		}
		r.openat2 = openat2
		makeDeep(t, r, long)
		for path, want := range map[string]error{
			"a/b/f": nil, "a/b": nil, "": nil, long: nil,
			"a/link/f": unix.ELOOP, "etc/passwd": unix.ELOOP, "etc": unix.ELOOP, "m": unix.EXDEV, "none": unix.ENOENT, "a/b/f/x": unix.ENOTDIR,
		} {
			fd, err := r.open(path, unix.O_RDONLY, 0)
			if err == nil {
				_ = unix.Close(fd)
			}
			// A link in the middle is ENOTDIR when each component must be a directory.
			if !errors.Is(err, want) && (want != unix.ELOOP || !errors.Is(err, unix.ENOTDIR)) {
				t.Errorf("openat2 %v, %.40q: %v, want %v", openat2, path, err, want)
			}
		}
		n := 0
		skipped, err := Walk(t.Context(), r, WalkOptions{}, func(*Visit) error { n++; return nil })
		if err != nil || n != 37 || len(skipped) != 1 {
			t.Errorf("openat2 %v: %d entries, %v, %v", openat2, n, skipped, err)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// makeDeep makes a path that is longer than system calls take.
func makeDeep(t *testing.T, r *Root, path string) {
	t.Helper()
	dirs := newDirCache(r)
	defer dirs.close()
	at := ""
	for name := range strings.SplitSeq(path, "/") {
		at = join(at, name)
		dir, name, err := dirs.parent(at)
		if err == nil {
			err = unix.Mkdirat(dir, name, 0o755)
		}
		if err != nil && !errors.Is(err, unix.EEXIST) {
			t.Fatal(err)
		}
	}
}

func TestYoung(t *testing.T) {
	t.Parallel()
	now := later()
	at := func(c, m int64) *Stat {
		return &Stat{CtimeSec: now.Unix() + c, MtimeSec: now.Unix() + m, CtimeNsec: uint32(now.Nanosecond()), MtimeNsec: uint32(now.Nanosecond())}
	}
	for _, tt := range []struct {
		c, m  int64
		young bool
	}{
		{-10, -10, false},
		{-1, -10, true},
		{-10, -1, true},
		{0, 0, true},
		{5, -10, true},        // a clock that was wrong
		{-10, 1 << 31, false}, // mtime set far ahead by a tool
		{-10, 1, true},        // or close
		{-2, -2, false},
		{-3, 2, false},
	} {
		if got := at(tt.c, tt.m).young(now); got != tt.young {
			t.Errorf("ctime %+d s, mtime %+d s: %v", tt.c, tt.m, got)
		}
	}
}

func TestParseMaps(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "maps")
	text := "7f12a000-7f12b000 rw-s 00000000 08:02 173521  /a file\n7f12a000-7f12b000 r--s 00000000 08:02 2  /b\n" +
		"7f12a000-7f12b000 rw-p 00000000 08:02 3 /c\n7f12a000-7f12b000 rw-s 00000000 00:01 0 /dev/zero\nff-ff --xp 0 00:00 0\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := process{rootDev: 7, set: map[OpenFile]struct{}{}}
	if err := p.maps(f); err != nil {
		t.Fatal(err)
	}
	want := OpenFile{Dev: unix.Mkdev(8, 2), Ino: 173521, Path: "/a file", RootDev: 7, Mapped: true}
	if _, ok := p.set[want]; !ok || len(p.set) != 1 {
		t.Errorf("%v", p.set)
	}
}

func TestSpool(t *testing.T) {
	t.Parallel()
	f, err := tempFile(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s, err := newSpool(f)
	if err != nil {
		t.Fatal(err)
	}
	a, err1 := s.put([]byte("first"), make([]byte, 0, 64))
	b, err2 := s.put([]byte("second"), make([]byte, 0, 64))
	got, err3 := s.get(nil, b, 6)
	if errors.Join(err1, err2, err3) != nil || string(got) != "second" {
		t.Fatalf("%q: %v", got, errors.Join(err1, err2, err3))
	}
	if _, err := f.WriteAt([]byte{0xff}, a+1); err != nil {
		t.Fatal(err)
	}
	if _, err := s.get(nil, a, 5); err == nil {
		t.Error("an altered spool was believed")
	}
	if _, err := s.get(nil, b+100, 5); err == nil {
		t.Error("read beyond the end")
	}
}

// FuzzRecords: a record file is local, but a damaged one must neither crash nor
// loop nor take memory that it has no bytes for.
func FuzzRecords(f *testing.F) {
	dir := f.TempDir()
	out, err := os.Create(filepath.Join(dir, "seed"))
	if err != nil {
		f.Fatal(err)
	}
	w, err := newRecordWriter(out, [32]byte{}, care{})
	if err != nil {
		f.Fatal(err)
	}
	for _, r := range []record{
		{path: []byte(""), flags: recUsable, stat: Stat{Mode: unix.S_IFDIR}},
		{path: []byte("a"), flags: recUsable | recTrusted, stat: Stat{Mode: unix.S_IFREG, Size: 1}, content: []byte{1, 3}, xattrs: []byte{0}},
	} {
		if err := w.add(&r); err != nil {
			f.Fatal(err)
		}
	}
	if err := w.finish(); err != nil {
		f.Fatal(err)
	}
	seed, err := os.ReadFile(out.Name())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := openRecords(bytes.NewReader(data), [32]byte{})
		if err != nil {
			return
		}
		for {
			rec, err := r.next()
			if err != nil {
				if rec != nil {
					t.Fatal("a record with an error")
				}
				break
			}
			_ = content(bytes.NewReader(data), rec.content, nopRef)
			_, _ = decodeXattrs(rec.xattrs)
		}
		// The frames' checksums keep most inputs out: try the parts as well.
		d := fields{b: data}
		var rec record
		for len(d.b) > 0 && d.next(&rec) == nil {
			_ = content(bytes.NewReader(data), rec.content, nopRef)
		}
		_ = content(bytes.NewReader(data), data, nopRef)
		_, _ = decodeXattrs(data)
		if len(data) > frameHeader {
			_, size, _, err := readFrameHeader(bytes.NewReader(data), 0)
			if err == nil && size > maxFrame {
				t.Fatal("frame too large")
			}
		}
	})
}

func nopRef(catalog.Ref) error { return nil }

func later() time.Time { return time.Now().Add(time.Minute) }
