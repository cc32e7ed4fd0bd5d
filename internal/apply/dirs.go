package apply

import (
	"errors"
	"fmt"
	"strings"

	"lifeboat/internal/catalog"

	"golang.org/x/sys/unix"
)

// dirs opens directories below a root without following links or crossing
// mounts (invariant 10), remembering the last one: entries come in order.
type dirs struct {
	root int
	path string
	fd   int
}

func newDirs(root int) *dirs { return &dirs{root: root, fd: -1} }

// open returns a handle that is valid until the next call.
func (d *dirs) open(path string) (int, error) {
	if path == "" {
		return d.root, nil
	}
	if d.fd >= 0 && d.path == path {
		return d.fd, nil
	}
	fd, err := d.openKeep(path)
	if err != nil {
		return -1, err
	}
	d.drop()
	d.path, d.fd = strings.Clone(path), fd
	return fd, nil
}

// openKeep returns a handle that the caller closes.
func (d *dirs) openKeep(path string) (int, error) {
	if path == "" {
		path = "."
	}
	fd, err := unix.Openat2(d.root, path, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	})
	if errors.Is(err, unix.EXDEV) {
		return -1, fmt.Errorf("directory %q lies on another file system mounted there; unmount it first: %w", path, err)
	}
	if err != nil {
		return -1, fmt.Errorf("open directory %q: %w", path, err)
	}
	return fd, nil
}

// forget drops the remembered handle if it lies at or below path.
func (d *dirs) forget(path string) {
	if d.fd >= 0 && (d.path == path || catalog.Under(d.path, path)) {
		d.drop()
	}
}

func (d *dirs) drop() {
	if d.fd >= 0 {
		unix.Close(d.fd)
	}
	d.fd, d.path = -1, ""
}

func (d *dirs) close() {
	d.drop()
	unix.Close(d.root)
}

// removeAll removes an entry with everything below it; what is gone already is
// fine. It does not leave the file system.
func removeAll(dirfd int, name, path string) error {
	err := unix.Unlinkat(dirfd, name, 0)
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
		return nil
	case !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM):
		return fmt.Errorf("remove %q: %w", path, err)
	}
	err = unix.Unlinkat(dirfd, name, unix.AT_REMOVEDIR)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("remove %q: %w", path, err)
	}
	fd, err := unix.Openat2(dirfd, name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return fmt.Errorf("remove %q: %w", path, err)
	}
	defer unix.Close(fd)
	names, err := list(fd)
	if err != nil {
		return fmt.Errorf("remove %q: %w", path, err)
	}
	for _, n := range names {
		if err := removeAll(fd, n, path+"/"+n); err != nil {
			return err
		}
	}
	if err := unix.Unlinkat(dirfd, name, unix.AT_REMOVEDIR); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove %q: %w", path, err)
	}
	return nil
}

func list(fd int) ([]string, error) {
	var names []string
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Getdents(fd, buf)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return names, nil
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
}
