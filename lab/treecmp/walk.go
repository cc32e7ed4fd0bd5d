package treecmp

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Options of a fingerprint.
type Options struct {
	// OneMount leaves out what is mounted below the root: with it /proc/PID/root of a running container
	// shows the container's own files and neither its volumes nor /proc. A bind mount of the same file
	// system is a mount too.
	OneMount bool
	// Exclude leaves out these names, relative to the root, and all below them.
	Exclude []string
	// KeepXattr, when set, says which extended attributes count; by default all do but the notes that an
	// overlay makes for itself (origin, impure, uuid, nlink).
	KeepXattr func(name string) bool
}

// overlayNotes of either namespace say nothing about what the container sees.
var overlayNotes = []string{
	"trusted.overlay.origin", "trusted.overlay.impure", "trusted.overlay.uuid", "trusted.overlay.nlink",
	"user.overlay.origin", "user.overlay.impure", "user.overlay.uuid", "user.overlay.nlink",
}

func defaultKeep(name string) bool { return !slices.Contains(overlayNotes, name) }

// Fingerprint reads the whole tree at root, which needs root's rights to be complete. The root may be
// a directory, or a single file as in a bind mount of one.
func Fingerprint(root string, opts Options) (Tree, error) {
	if opts.KeepXattr == nil {
		opts.KeepXattr = defaultKeep
	}
	w := walker{opts: opts, tree: Tree{}, inodes: map[inode][]string{}}
	// The root itself may be reached through a link such as /proc/PID/root.
	fd, err := unix.Open(root, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("take fingerprint of %s: %w", root, err)
	}
	defer unix.Close(fd)
	st, err := statAt(fd, "")
	if err != nil {
		return nil, fmt.Errorf("take fingerprint of %s: %w", root, err)
	}
	w.mount = st.Mnt_id
	if err := w.add(fd, "", ".", st); err != nil {
		return nil, fmt.Errorf("take fingerprint of %s: %w", root, err)
	}
	w.tree.link(maps.Values(w.inodes))
	return w.tree, nil
}

type inode struct {
	major, minor uint32
	number       uint64
}

type walker struct {
	opts   Options
	tree   Tree
	mount  uint64
	inodes map[inode][]string
}

func statAt(dir int, name string) (*unix.Statx_t, error) {
	var st unix.Statx_t
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	err := unix.Statx(dir, name, flags, unix.STATX_BASIC_STATS|unix.STATX_MNT_ID, &st)
	return &st, err
}

// add records the entry name of the open directory dir ("" is dir itself) under rel, and all below it.
// Names are looked up relative to open directories, so that no path is too long.
func (w *walker) add(dir int, name, rel string, st *unix.Statx_t) error {
	e := Entry{
		Mode: uint32(st.Mode) & 0o7777, UID: st.Uid, GID: st.Gid,
		MtimeSec: st.Mtime.Sec, MtimeNsec: st.Mtime.Nsec,
	}
	procPath := fmt.Sprintf("/proc/self/fd/%d", dir)
	if name != "" {
		procPath += "/" + name
	}
	kind := st.Mode & unix.S_IFMT
	var err error
	switch kind {
	case unix.S_IFREG:
		e.Type, e.Size = File, int64(st.Size)
		e.Data, e.SHA256, err = readFile(procPath)
	case unix.S_IFDIR:
		e.Type = Dir
	case unix.S_IFLNK:
		e.Type = Symlink
		e.Target, err = os.Readlink(procPath)
	case unix.S_IFCHR:
		e.Type, e.Major, e.Minor = Char, st.Rdev_major, st.Rdev_minor
		if e.Major == 0 && e.Minor == 0 {
			w.tree[rel] = Entry{Type: Whiteout}
			return nil
		}
	case unix.S_IFBLK:
		e.Type, e.Major, e.Minor = Block, st.Rdev_major, st.Rdev_minor
	case unix.S_IFIFO:
		e.Type = FIFO
	case unix.S_IFSOCK:
		e.Type = Socket
	default:
		err = fmt.Errorf("unknown type %#o", kind)
	}
	if err == nil {
		e.Xattrs, err = w.xattrs(procPath, name == "")
	}
	if err != nil {
		return fmt.Errorf("%q: %w", rel, err)
	}
	w.tree[rel] = e
	if kind != unix.S_IFDIR {
		if st.Nlink > 1 {
			key := inode{st.Dev_major, st.Dev_minor, st.Ino}
			w.inodes[key] = append(w.inodes[key], rel)
		}
		return nil
	}
	return w.addChildren(procPath, rel)
}

func (w *walker) addChildren(procPath, rel string) error {
	d, err := os.Open(procPath)
	if err != nil {
		return fmt.Errorf("%q: %w", rel, err)
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("%q: %w", rel, err)
	}
	for _, name := range names {
		// path.Join would clean; names are kept as they are.
		child := name
		if rel != "." {
			child = rel + "/" + name
		}
		if slices.Contains(w.opts.Exclude, child) {
			continue
		}
		st, err := statAt(int(d.Fd()), name)
		if err != nil {
			return fmt.Errorf("%q: %w", child, err)
		}
		if w.opts.OneMount && st.Mnt_id != w.mount {
			continue
		}
		if err := w.add(int(d.Fd()), name, child, st); err != nil {
			return err
		}
	}
	return nil
}

// readFile finds the data extents before it reads: cached pages of a preallocated range count as data.
func readFile(procPath string) ([]Extent, string, error) {
	f, err := os.Open(procPath)
	if err != nil {
		return nil, "", err
	}
	defer f.Close()
	extents, err := dataExtents(f)
	if err != nil {
		return nil, "", fmt.Errorf("find holes: %w", err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, "", err
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return nil, "", err
	}
	return extents, hex.EncodeToString(h.Sum(nil)), nil
}

func dataExtents(f *os.File) ([]Extent, error) {
	var all []Extent
	var at int64
	for {
		start, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		end, err := unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return nil, err
		}
		all = append(all, Extent{start, end})
		at = end
	}
}

// xattrs reads all extended attributes that count. follow is for the root, which is a link to an open directory.
func (w *walker) xattrs(procPath string, follow bool) (map[string]string, error) {
	list, get := unix.Llistxattr, unix.Lgetxattr
	if follow {
		list, get = unix.Listxattr, unix.Getxattr
	}
	names, err := grow(func(b []byte) (int, error) { return list(procPath, b) })
	if errors.Is(err, unix.ENOTSUP) || len(names) == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list xattrs: %w", err)
	}
	var all map[string]string
	for _, n := range bytes.Split(bytes.TrimSuffix(names, []byte{0}), []byte{0}) {
		name := string(n)
		if !w.opts.KeepXattr(name) {
			continue
		}
		value, err := grow(func(b []byte) (int, error) { return get(procPath, name, b) })
		if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
			continue // overlay lists what its lower layers cannot give
		}
		if err != nil {
			return nil, fmt.Errorf("read xattr %s: %w", name, err)
		}
		if all == nil {
			all = map[string]string{}
		}
		all[name] = string(value)
	}
	return all, nil
}

// grow calls f with a buffer that is large enough.
func grow(f func([]byte) (int, error)) ([]byte, error) {
	for size := 256; ; size *= 4 {
		b := make([]byte, size)
		n, err := f(b)
		if errors.Is(err, unix.ERANGE) && size < 1<<20 {
			continue
		}
		if err != nil {
			return nil, err
		}
		return b[:n], nil
	}
}

// Under returns the part of the tree below dir, with dir as its root. Hard links that lead out of the
// part do not count.
func (t Tree) Under(dir string) Tree {
	dir = path.Clean(dir)
	part := Tree{}
	groups := map[string][]string{}
	for p, e := range t {
		name := "."
		if p != dir {
			if !strings.HasPrefix(p, dir+"/") {
				continue
			}
			name = p[len(dir)+1:]
		}
		if e.LinkedTo != "" {
			groups[e.LinkedTo] = append(groups[e.LinkedTo], name)
			e.LinkedTo = ""
		}
		part[name] = e
	}
	part.link(maps.Values(groups))
	return part
}

// link notes in the entries which names are of one file.
func (t Tree) link(groups iter.Seq[[]string]) {
	for names := range groups {
		if len(names) < 2 {
			continue
		}
		first := slices.Min(names)
		for _, n := range names {
			e := t[n]
			e.LinkedTo = first
			t[n] = e
		}
	}
}
