package modeltest_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// mutator changes a tree as applications do. What cannot be done (the path is a
// directory by now, say) is not done.
type mutator struct {
	rt   *rapid.T
	root string
}

// path draws a path below the root that leads through directories only: a
// planted link must not take the test outside.
func (m mutator) path() string {
	p := m.root
	for range rapid.IntRange(1, 3).Draw(m.rt, "depth") {
		if st, err := os.Lstat(p); err != nil || !st.IsDir() {
			break
		}
		p = filepath.Join(p, rapid.SampledFrom([]string{"a", "b", "c.db", "d", "e\xff\n"}).Draw(m.rt, "name"))
	}
	return p
}

// plain reports whether p may be written to as a file: nothing is there, or a
// regular file, no link and nothing that blocks.
func plain(p string) bool {
	st, err := os.Lstat(p)
	return os.IsNotExist(err) || err == nil && st.Mode().IsRegular()
}

// bytes draws content. Few seeds, so that the same content comes again in other
// places, at other sites.
func (m mutator) bytes() []byte {
	size := rapid.SampledFrom([]int{0, 1, 100, 5000, 70 << 10, 300 << 10, 1200 << 10}).Draw(m.rt, "size")
	b := make([]byte, size)
	var seed [32]byte
	seed[0] = byte(rapid.IntRange(0, 20).Draw(m.rt, "seed"))
	if seed[0] < 4 { // compressible
		for i := range b {
			b[i] = seed[0] + byte(i>>9)
		}
		return b
	}
	_, _ = rand.NewChaCha8(seed).Read(b)
	return b
}

func (m mutator) offset() int64 { return int64(rapid.IntRange(0, 1<<20).Draw(m.rt, "offset")) }

// steps are the changes, by name.
var steps = map[string]func(m mutator, p, q string) error{
	"mkdir": func(_ mutator, p, _ string) error { return os.Mkdir(p, 0o755) },
	"write": func(m mutator, p, _ string) error {
		return onFile(p, func() error { return os.WriteFile(p, m.bytes(), 0o640) })
	},
	"overwrite": func(m mutator, p, _ string) error {
		return onFile(p, func() error { return writeAt(p, m.offset(), m.bytes()) })
	},
	"page": func(m mutator, p, _ string) error { // as databases do
		return onFile(p, func() error { return writeAt(p, m.offset()&^(16<<10-1), m.bytes()[:]) })
	},
	"truncate": func(m mutator, p, _ string) error {
		return onFile(p, func() error { return os.Truncate(p, m.offset()*2) })
	},
	"punch": func(m mutator, p, _ string) error {
		return onFile(p, func() error { return punch(p, m.offset(), m.offset()+1) })
	},
	"map": func(m mutator, p, _ string) error {
		return onFile(p, func() error { return storeMapped(p, m.offset(), byte(m.offset())) })
	},
	"rename":  func(_ mutator, p, q string) error { return os.Rename(p, q) },
	"link":    func(_ mutator, p, q string) error { return os.Link(p, q) },
	"remove":  func(_ mutator, p, _ string) error { return os.Remove(p) },
	"clear":   func(_ mutator, p, _ string) error { return os.RemoveAll(p) },
	"symlink": func(_ mutator, p, q string) error { return os.Symlink(filepath.Base(q), p) },
	"chown": func(m mutator, p, _ string) error {
		return os.Lchown(p, rapid.IntRange(0, 2).Draw(m.rt, "uid"), rapid.IntRange(0, 2).Draw(m.rt, "gid"))
	},
	"chmod": func(m mutator, p, _ string) error {
		return unix.Fchmodat(unix.AT_FDCWD, p, uint32(rapid.IntRange(0, 0o7777).Draw(m.rt, "mode")), unix.AT_SYMLINK_NOFOLLOW)
	},
	"setxattr": func(m mutator, p, _ string) error {
		name := fmt.Sprintf("trusted.t%d", rapid.IntRange(0, 2).Draw(m.rt, "attribute"))
		return unix.Lsetxattr(p, name, m.bytes()[:0:0], 0)
	},
	"xattr value": func(m mutator, p, _ string) error {
		return unix.Lsetxattr(p, "trusted.v", []byte(rapid.StringN(1, 40, 200).Draw(m.rt, "value")), 0)
	},
	"removexattr": func(m mutator, p, _ string) error {
		return unix.Lremovexattr(p, fmt.Sprintf("trusted.t%d", rapid.IntRange(0, 2).Draw(m.rt, "attribute")))
	},
	"touch": func(m mutator, p, _ string) error {
		at := unix.Timespec{Sec: rapid.Int64Range(-1<<31, 1<<33).Draw(m.rt, "seconds"), Nsec: rapid.Int64Range(0, 999_999_999).Draw(m.rt, "nanoseconds")}
		return unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{{}, at}, unix.AT_SYMLINK_NOFOLLOW)
	},
	"mknod": func(m mutator, p, _ string) error {
		kind := rapid.SampledFrom([]uint32{unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFCHR, unix.S_IFBLK}).Draw(m.rt, "kind")
		return unix.Mknod(p, kind|0o640, int(unix.Mkdev(9, 1)))
	},
}

// change makes n changes. What fails has changed nothing, or is a change too.
func (m mutator) change(n int) {
	for range n {
		do := rapid.SampledFrom(stepNames).Draw(m.rt, "step")
		_ = steps[do](m, m.path(), m.path())
	}
}

// stepNames weighs the steps: what takes away comes seldom.
var stepNames = []string{
	"mkdir", "mkdir", "write", "write", "write", "write", "overwrite", "overwrite", "page", "page", "page", "truncate", "punch", "map",
	"rename", "rename", "link", "link", "remove", "clear", "symlink", "chown", "chmod", "setxattr", "xattr value", "removexattr", "touch", "mknod",
}

func onFile(p string, do func() error) error {
	if !plain(p) {
		return nil
	}
	return do()
}

func writeAt(p string, at int64, b []byte) error {
	f, err := os.OpenFile(p, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, at)
	return errors.Join(err, f.Close())
}

func punch(p string, off, n int64) error {
	f, err := os.OpenFile(p, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	return errors.Join(err, f.Close())
}

// storeMapped changes a file through a shared memory map, without any call that
// the file system sees at the time of the store.
func storeMapped(p string, at int64, b byte) error {
	f, err := os.OpenFile(p, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil || st.Size() == 0 {
		return errors.Join(err, f.Close())
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	mem[at%st.Size()] = b
	return errors.Join(unix.Munmap(mem), f.Close())
}
