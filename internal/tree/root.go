package tree

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Root is an open tree: a directory, or a single file of any type. Everything
// below is reached from here. It is safe for concurrent use until Close.
type Root struct {
	name string // as opened, for messages
	fd   int    // the directory; for a single file the one that holds it
	base string // "" for a directory, else the file's name in fd
	stat Stat   // of the root entry when it was opened

	crossMounts bool
	openat2     bool
	fsMagic     int64 // statfs type of the root
}

// RootOptions say how a tree is opened.
type RootOptions struct {
	// CrossMounts goes into what is mounted below the root. The default passes
	// it over and reports it.
	CrossMounts bool
}

// OpenRoot opens the tree at path. Symbolic links in path itself are followed:
// it is the operator's, not the tree's.
func OpenRoot(path string, opts RootOptions) (*Root, error) {
	r := &Root{name: path, fd: -1, crossMounts: opts.CrossMounts}
	fd, err := retry(func() (int, error) {
		return unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if errors.Is(err, unix.ENOTDIR) {
		fd, err = r.openSingle(path)
	}
	if err != nil {
		return nil, fmt.Errorf("open tree %s: %w", path, err)
	}
	r.fd = fd
	if err := r.probe(); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("open tree %s: %w", path, err)
	}
	return r, nil
}

// openSingle opens the directory that holds the file at path.
func (r *Root) openSingle(path string) (int, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return -1, err
	}
	r.base = filepath.Base(real)
	return retry(func() (int, error) {
		return unix.Open(filepath.Dir(real), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
}

func (r *Root) probe() error {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH}
	if fd, err := unix.Openat2(r.fd, ".", &how); err == nil {
		r.openat2 = true
		_ = unix.Close(fd)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(r.fd, &fs); err != nil {
		return err
	}
	r.fsMagic = int64(fs.Type)
	return r.statRoot(&r.stat)
}

// statRoot looks at the root entry as it is now.
func (r *Root) statRoot(st *Stat) error {
	if r.base == "" {
		return statFd(r.fd, st)
	}
	return statAt(r.fd, r.base, st)
}

// Close releases the descriptor.
func (r *Root) Close() error { return unix.Close(r.fd) }

// Single reports whether the tree is a single file.
func (r *Root) Single() bool { return r.base != "" }

// Path is the path that the tree was opened with.
func (r *Root) Path() string { return r.name }

// display names path for messages.
func (r *Root) display(path string) string {
	if path == "" {
		return strconv.Quote(r.name)
	}
	return strconv.Quote(r.name + "/" + path)
}

// maxResolve is the longest path handed to the kernel at once; longer ones go
// in steps.
const maxResolve = 3 << 10

// open opens path ("" is the root directory itself) beneath the root without
// following any link.
func (r *Root) open(path string, flags int, mode uint32) (int, error) {
	flags |= unix.O_NOFOLLOW | unix.O_CLOEXEC
	at, path, err := r.step(path)
	if err != nil {
		return -1, err
	}
	fd, err := r.openAt(at, path, flags, mode)
	if at != r.fd {
		_ = unix.Close(at)
	}
	return fd, err
}

// step resolves so many leading directories of path that the rest is short.
// The descriptor returned is r.fd or the caller's to close.
func (r *Root) step(path string) (int, string, error) {
	at := r.fd
	for len(path) > maxResolve {
		cut := strings.LastIndexByte(path[:maxResolve], '/')
		if cut <= 0 {
			cut = strings.IndexByte(path, '/')
		}
		if cut < 0 {
			break
		}
		fd, err := r.openAt(at, path[:cut], unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if at != r.fd {
			_ = unix.Close(at)
		}
		if err != nil {
			return -1, "", err
		}
		at, path = fd, path[cut+1:]
	}
	return at, path, nil
}

func (r *Root) openAt(at int, path string, flags int, mode uint32) (int, error) {
	if path == "" {
		path = "."
	}
	if !r.openat2 {
		return r.openSteps(at, path, flags, mode)
	}
	how := unix.OpenHow{
		Flags: uint64(flags), Mode: uint64(mode),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	if !r.crossMounts {
		how.Resolve |= unix.RESOLVE_NO_XDEV
	}
	return retry(func() (int, error) { return unix.Openat2(at, path, &how) })
}

// openSteps is openAt for kernels without openat2: one component at a time.
func (r *Root) openSteps(at int, path string, flags int, mode uint32) (int, error) {
	dir := at
	defer func() {
		if dir != at {
			_ = unix.Close(dir)
		}
	}()
	for {
		name, rest, more := strings.Cut(path, "/")
		if !more {
			fd, err := retry(func() (int, error) { return unix.Openat(dir, name, flags, mode) })
			if err == nil && flags&unix.O_CREAT == 0 {
				err = r.sameMount(fd)
				if err != nil {
					_ = unix.Close(fd)
					return -1, err
				}
			}
			return fd, err
		}
		fd, err := retry(func() (int, error) {
			return unix.Openat(dir, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		})
		if err != nil {
			return -1, err
		}
		if dir != at {
			_ = unix.Close(dir)
		}
		dir, path = fd, rest
	}
}

func (r *Root) sameMount(fd int) error {
	var st Stat
	if err := statFd(fd, &st); err != nil {
		return err
	}
	if !r.crossMounts && r.foreign(&st) {
		return unix.EXDEV
	}
	return nil
}

// foreign reports whether st lies on another mount than the root. A btrfs
// subvolume has a device number of its own but is no mount.
func (r *Root) foreign(st *Stat) bool {
	if st.mount != 0 && r.stat.mount != 0 {
		return st.mount != r.stat.mount
	}
	return st.Dev != r.stat.Dev
}

// retry calls f again while a signal or a rename got in its way.
func retry(f func() (int, error)) (int, error) {
	for range 1000 {
		n, err := f()
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return n, err
		}
	}
	return f()
}

// dirCache keeps the descriptor of the directory used last: entries come in
// walk order, so most have the same parent as the one before. It is not safe
// for concurrent use.
type dirCache struct {
	root *Root
	dir  string
	fd   int
	open bool
}

func newDirCache(r *Root) *dirCache { return &dirCache{root: r} }

// parent returns a descriptor (O_PATH) of the directory that holds path and
// path's name in it. For the root itself it is the root and ".", for a single
// file its directory and its name. The descriptor stays the cache's.
func (c *dirCache) parent(path string) (int, string, error) {
	if path == "" {
		if c.root.base != "" {
			return c.root.fd, c.root.base, nil
		}
		return c.root.fd, ".", nil
	}
	dir, name := "", path
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		dir, name = path[:i], path[i+1:]
	}
	fd, err := c.at(dir)
	return fd, name, err
}

// at returns a descriptor of the directory dir.
func (c *dirCache) at(dir string) (int, error) {
	if dir == "" {
		return c.root.fd, nil
	}
	if c.open && c.dir == dir {
		return c.fd, nil
	}
	fd, err := c.root.open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return -1, err
	}
	c.close()
	c.dir, c.fd, c.open = strings.Clone(dir), fd, true
	return fd, nil
}

// forget drops the descriptor if it is of dir or below it; called when dir is
// removed or replaced.
func (c *dirCache) forget(dir string) {
	if c.open && (c.dir == dir || strings.HasPrefix(c.dir, dir+"/")) {
		c.close()
	}
}

func (c *dirCache) close() {
	if c.open {
		_ = unix.Close(c.fd)
		c.open = false
	}
}
