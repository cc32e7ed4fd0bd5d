// Package torture makes file trees that hold everything a file system can hold and a restore must bring
// back (invariant 3), and disturbs the files of an image in every way that a container can.
//
// Functions: [Populate], [PopulateRoot], [Image], [Disturb]. All are deterministic, so that two runs make
// equal trees but for the times of what was not given one. They need root; a container's default
// capabilities are enough. The package compares nothing: treecmp does.
package torture

import (
	"embed"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Source is the source of this package, for keys of what is built from it.
//
//go:embed *.go
var Source embed.FS

// Options of Populate.
type Options struct {
	// LongPaths adds a directory so deep that its path is longer than system calls take (PATH_MAX).
	LongPaths bool
}

// times are the modification times that clocks and formats stumble over, by name. Seconds and nanoseconds.
var times = []struct {
	name string
	ts   unix.Timespec
}{
	{"1901", unix.Timespec{Sec: -1 << 31, Nsec: 0}},
	{"1969", unix.Timespec{Sec: -1, Nsec: 500_000_001}},
	{"1970", unix.Timespec{Sec: 0, Nsec: 0}},
	{"1970-ns", unix.Timespec{Sec: 0, Nsec: 1}},
	{"2001", unix.Timespec{Sec: 1_000_000_000, Nsec: 999_999_999}},
	{"2038-before", unix.Timespec{Sec: 1<<31 - 1, Nsec: 999_999_999}},
	{"2038-after", unix.Timespec{Sec: 1 << 31, Nsec: 1}},
	{"2100", unix.Timespec{Sec: 4_102_444_800, Nsec: 123_456_789}},
	{"2106", unix.Timespec{Sec: 1 << 32, Nsec: 7}},
}

// builder makes entries below a directory and remembers the first error.
type builder struct {
	root string
	err  error
}

func (b *builder) at(name string) string { return b.root + "/" + name }

func (b *builder) check(err error) {
	if err != nil && b.err == nil {
		b.err = err
	}
}

func (b *builder) dir(name string) { b.check(os.MkdirAll(b.at(name), 0o755)) }

func (b *builder) file(name, content string) {
	b.check(os.WriteFile(b.at(name), []byte(content), 0o644))
}

func (b *builder) mtime(name string, ts unix.Timespec) {
	b.check(unix.UtimesNanoAt(unix.AT_FDCWD, b.at(name), []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
}

func (b *builder) xattr(name, attr string, value []byte) {
	if err := unix.Lsetxattr(b.at(name), attr, value, 0); err != nil {
		b.check(fmt.Errorf("set %s of %s: %w", attr, name, err))
	}
}

// Populate fills the existing directory root with one of everything. The root's own metadata is PopulateRoot's.
func Populate(root string, opts Options) error {
	b := &builder{root: root}
	b.plain()
	b.links()
	b.sparse()
	b.attributes()
	b.special()
	b.names()
	b.modes()
	if opts.LongPaths {
		b.longPath()
	}
	b.clocks() // last: it gives directories their times
	if b.err != nil {
		return fmt.Errorf("populate %s: %w", root, b.err)
	}
	return nil
}

// PopulateRoot gives the directory itself odd owner, mode, attributes and time.
func PopulateRoot(root string) error {
	b := &builder{root: root}
	b.check(os.Chown(root, 999, 888))
	b.check(unix.Chmod(root, 0o3771))
	b.xattr(".", "user.root", []byte("of the volume"))
	b.xattr(".", "system.posix_acl_default", acl(true))
	b.mtime(".", times[4].ts)
	if b.err != nil {
		return fmt.Errorf("populate root of %s: %w", root, b.err)
	}
	return nil
}

func (b *builder) plain() {
	b.dir("plain/empty-dir")
	b.file("plain/empty", "")
	b.file("plain/one", "x")
	b.file("plain/text", strings.Repeat("The quick brown fox jumps over the lazy dog.\n", 500))
	b.file("plain/random", noise(1, 5<<20))
	b.file("plain/zeros", strings.Repeat("\x00", 100_000))
	deep := "plain/deep"
	for i := range 40 {
		deep += fmt.Sprintf("/level-%02d-%s", i, strings.Repeat("d", 20))
	}
	b.dir(deep)
	b.file(deep+"/bottom", "deep")
	b.dir("plain/many")
	for i := range 500 {
		b.file(fmt.Sprintf("plain/many/%04d", i), fmt.Sprint(i))
	}
}

func (b *builder) links() {
	b.dir("links/sub/sub")
	b.file("links/a", "linked three times")
	b.check(os.Link(b.at("links/a"), b.at("links/b")))
	b.check(os.Link(b.at("links/a"), b.at("links/sub/sub/c")))
	for name, target := range map[string]string{
		"dangling": "no/such/file", "absolute": "/etc/passwd", "escape": "../../../../../../etc/shadow",
		"to-dir": "sub", "self": "self", "dot": ".", "odd": "\xff\n ", "long": strings.Repeat("l/", 2000),
	} {
		b.check(os.Symlink(target, b.at("links/sym-"+name)))
	}
	b.check(os.Link(b.at("links/sym-dangling"), b.at("links/sym-hard"))) // a symbolic link with two names
	b.check(os.Lchown(b.at("links/sym-self"), 1234, 4321))
}

func (b *builder) sparse() {
	b.dir("sparse")
	write := func(name string, size int64, at ...int64) {
		f, err := os.Create(b.at("sparse/" + name))
		if err != nil {
			b.check(err)
			return
		}
		for _, off := range at {
			_, err := f.WriteAt([]byte(noise(uint64(off)+2, 4096)), off)
			b.check(err)
		}
		b.check(f.Truncate(size))
		b.check(f.Close())
	}
	write("hole-only", 128<<20)
	write("leading", 64<<20+4096, 64<<20)
	write("trailing", 32<<20, 0)
	write("swiss", 16<<20, 0, 2<<20, 5<<20, 11<<20)
	write("odd-size", 1<<20+13, 512<<10)
}

func (b *builder) attributes() {
	b.dir("attr/dir")
	b.file("attr/file", "attributes")
	b.xattr("attr/file", "user.text", []byte("value"))
	b.xattr("attr/file", "user.empty", nil)
	b.xattr("attr/file", "user.binary", []byte{0, 255, '\n', 0})
	b.xattr("attr/file", "user.long", []byte(noise(3, 2000)))
	b.xattr("attr/dir", "user.dir", []byte("on a directory"))
	b.file("attr/acl", "access list")
	b.xattr("attr/acl", "system.posix_acl_access", acl(false))
	b.xattr("attr/dir", "system.posix_acl_access", acl(false))
	b.xattr("attr/dir", "system.posix_acl_default", acl(true))
	b.file("attr/dir/inherits", "its list comes from the directory's default")
	b.file("attr/capable", "#!/bin/sh\n")
	b.check(os.Chown(b.at("attr/capable"), 5, 6)) // before: a change of owner drops capabilities
	// cap_net_bind_service=ep, revision 2 of the attribute.
	b.xattr("attr/capable", "security.capability", []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
}

// acl is an access control list as the kernel takes it: version 2, then tag, permissions, id.
func acl(isDefault bool) []byte {
	entry := func(tag, perm uint16, id uint32) []byte {
		return []byte{byte(tag), byte(tag >> 8), byte(perm), byte(perm >> 8), byte(id), byte(id >> 8), byte(id >> 16), byte(id >> 24)}
	}
	const none = 1<<32 - 1
	perm := uint16(6)
	if isDefault {
		perm = 7
	}
	list := []byte{2, 0, 0, 0}
	for _, e := range [][]byte{
		entry(1, perm, none), entry(2, 4, 1001), entry(2, perm, 1002), entry(4, 4, none),
		entry(8, 5, 2001), entry(16, 7, none), entry(32, 0, none),
	} {
		list = append(list, e...)
	}
	return list
}

func (b *builder) special() {
	b.dir("special")
	b.check(unix.Mkfifo(b.at("special/fifo"), 0o640))
	b.check(os.Link(b.at("special/fifo"), b.at("special/fifo-linked")))
	b.check(unix.Mknod(b.at("special/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	b.check(unix.Mknod(b.at("special/char-big"), unix.S_IFCHR|0o600, int(unix.Mkdev(4095, 1048575))))
	b.check(unix.Mknod(b.at("special/loop"), unix.S_IFBLK|0o660, int(unix.Mkdev(7, 0))))
	b.check(os.Chown(b.at("special/loop"), 0, 6))
	// A socket outlives the one that bound it.
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		b.check(err)
		return
	}
	defer unix.Close(fd)
	dir, err := unix.Open(b.at("special"), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		b.check(err)
		return
	}
	defer unix.Close(dir)
	// The short way round, for a socket's path is limited to 107 bytes.
	b.check(unix.Bind(fd, &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/socket", dir)}))
}

func (b *builder) names() {
	b.dir("names")
	for _, name := range []string{
		"new\nline", "tab\there", " leading and trailing ", "-rf", "--", "invalid-\xff\xfe\x80-utf8", "\xc3\x28",
		strings.Repeat("n", 255), strings.Repeat("ü", 127), "...", "..name", "back\\slash", "quote'\"`$(x)", "*?[a]",
		"\x01\x02\x7f\x1b[31m", "emoji-🛟", "nfc-\u00e9", "nfd-e\u0301", ".hidden", "~", "CON", "UPPER", "upper",
		".wh.looks-like-a-deletion", ".wh..wh..opq",
	} {
		b.file("names/"+name, name)
	}
	b.dir("names/dir\nwith\xffodd/-name")
	b.file("names/dir\nwith\xffodd/-name/x", "x")
}

func (b *builder) modes() {
	b.dir("modes")
	for _, mode := range []uint32{0, 0o4755, 0o2755, 0o6755, 0o1644, 0o7777, 0o400, 0o001} {
		name := fmt.Sprintf("modes/file-%04o", mode)
		b.file(name, "mode")
		b.check(unix.Chmod(b.at(name), mode))
		name = fmt.Sprintf("modes/dir-%04o", mode)
		b.dir(name)
		b.check(unix.Chmod(b.at(name), mode))
	}
	for _, id := range []int{1, 33, 65534, 1 << 30, 1<<32 - 3} {
		name := fmt.Sprintf("modes/owner-%d", id)
		b.file(name, "owner")
		b.check(os.Lchown(b.at(name), id, id-1))
	}
	b.file("modes/setuid-of-another", "owner, then bits: a change of owner clears them")
	b.check(os.Lchown(b.at("modes/setuid-of-another"), 1000, 1000))
	b.check(unix.Chmod(b.at("modes/setuid-of-another"), 0o4711))
}

func (b *builder) clocks() {
	b.dir("clocks")
	for _, t := range times {
		b.file("clocks/file-"+t.name, t.name)
		b.mtime("clocks/file-"+t.name, t.ts)
		b.check(os.Symlink(t.name, b.at("clocks/link-"+t.name)))
		b.mtime("clocks/link-"+t.name, t.ts)
		b.dir("clocks/dir-" + t.name)
		b.file("clocks/dir-"+t.name+"/inside", "x")
		b.mtime("clocks/dir-"+t.name, t.ts)
	}
	b.mtime("special/null", times[7].ts)
	b.mtime("special/fifo", times[1].ts)
	b.mtime("special/socket", times[6].ts)
	b.mtime("plain/deep", times[2].ts)
	b.mtime("clocks", times[7].ts)
}

// longPath makes directories one in another, each relative to the one above.
func (b *builder) longPath() {
	b.dir("long")
	fd, err := unix.Open(b.at("long"), unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		b.check(err)
		return
	}
	name := strings.Repeat("p", 200)
	for range 25 {
		if err := unix.Mkdirat(fd, name, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
			b.check(err)
		}
		next, err := unix.Openat(fd, name, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		unix.Close(fd)
		if err != nil {
			b.check(err)
			return
		}
		fd = next
	}
	bottom, err := unix.Openat(fd, "bottom", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
	unix.Close(fd)
	if err != nil {
		b.check(err)
		return
	}
	_, err = unix.Write(bottom, []byte("long"))
	b.check(err)
	unix.Close(bottom)
}

// noise is n bytes that do not compress, the same for the same seed.
func noise(seed uint64, n int) string {
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	b := make([]byte, n)
	_, _ = rand.NewChaCha8(key).Read(b) // never fails
	return string(b)
}

// Image makes what Disturb expects of an image, below dir.
func Image(dir string) error {
	b := &builder{root: dir}
	for _, d := range []string{"replaced/sub", "replaced-twice", "deleted-dir/sub", "mixed", "dir-to-file", "untouched/sub", "emptied", "links"} {
		b.dir(d)
		b.file(d+"/of-the-image", "image: "+d)
	}
	for _, f := range []string{
		"deleted", "rewritten", "appended", "chowned", "chmodded", "touched", "attributed", "file-to-dir", "file-to-link",
		"mixed/kept", "mixed/deleted", "mixed/changed", "truncated", "links/a", "removed-and-back",
	} {
		b.file(f, "image: "+f+"\n"+noise(9, 10_000))
	}
	b.check(os.Link(b.at("links/a"), b.at("links/b")))
	b.check(os.Symlink("untouched", b.at("link-to-change")))
	if b.err != nil {
		return fmt.Errorf("make image files in %s: %w", dir, b.err)
	}
	return nil
}

// Disturb does to the files that Image made what containers do to their image: deletes, replaces,
// changes content, owner, mode, time and attributes, turns one type into another.
func Disturb(dir string) error {
	b := &builder{root: dir}
	for _, d := range []string{"replaced", "replaced-twice"} {
		b.check(os.RemoveAll(b.at(d)))
		b.dir(d) // an opaque directory
		b.file(d+"/new", "not of the image")
	}
	b.check(os.RemoveAll(b.at("replaced-twice")))
	b.dir("replaced-twice/deeper")
	b.check(os.RemoveAll(b.at("deleted-dir")))
	for _, f := range []string{"deleted", "mixed/deleted", "emptied/of-the-image", "links/b", "removed-and-back"} {
		b.check(os.Remove(b.at(f)))
	}
	b.file("removed-and-back", "another file of the same name")
	b.file("rewritten", "new content")
	b.file("mixed/changed", "new content")
	b.file("mixed/added", "new file")
	f, err := os.OpenFile(b.at("appended"), os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString("one more line\n")
		b.check(f.Close())
	}
	b.check(err)
	b.check(os.Chown(b.at("chowned"), 33, 33))
	b.check(unix.Chmod(b.at("chmodded"), 0o4750))
	b.check(unix.Chmod(b.at("untouched/sub"), 0o1777))
	b.mtime("touched", times[7].ts)
	b.xattr("attributed", "user.note", []byte("set in the container"))
	b.check(os.Truncate(b.at("truncated"), 100))
	b.check(os.Remove(b.at("file-to-dir")))
	b.dir("file-to-dir/inside")
	b.check(os.RemoveAll(b.at("dir-to-file")))
	b.file("dir-to-file", "was a directory")
	b.check(os.Remove(b.at("file-to-link")))
	b.check(os.Symlink("rewritten", b.at("file-to-link")))
	b.check(os.Remove(b.at("link-to-change")))
	b.check(os.Symlink("mixed", b.at("link-to-change")))
	if b.err != nil {
		return fmt.Errorf("disturb %s: %w", dir, b.err)
	}
	return nil
}

// Run is a container's life: what is not done yet of populating and disturbing, then ready is closed.
// dirs are populated, the roots of volumes get odd metadata of their own.
func Run(image string, dirs, volumes []string, ready chan<- struct{}) error {
	marker := filepath.Join(image, ".disturbed")
	if _, err := os.Stat(marker); errors.Is(err, os.ErrNotExist) {
		for _, d := range append(append([]string(nil), dirs...), volumes...) {
			if err := os.MkdirAll(d, 0o755); err != nil {
				return err
			}
			if err := Populate(d, Options{}); err != nil {
				return err
			}
		}
		for _, v := range volumes {
			if err := PopulateRoot(v); err != nil {
				return err
			}
		}
		if err := Disturb(image); err != nil {
			return err
		}
		if err := os.WriteFile(marker, []byte(time.Now().UTC().Format(time.RFC3339Nano)), 0o644); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	close(ready)
	return nil
}
