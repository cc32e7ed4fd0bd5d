package fake

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

func itoa(n int) string { return strconv.Itoa(n) }

// files are the files of a container: mounts, over its own layer, over its image.
type files struct {
	upper, lower string
	mounts       map[string]string // destination to host path
}

// mounted gives the host path of what lies in a mount.
func (f *files) mounted(path string) (string, bool) {
	best := ""
	for dest := range f.mounts {
		if (path == dest || strings.HasPrefix(path, dest+"/")) && len(dest) > len(best) {
			best = dest
		}
	}
	if best == "" {
		return "", false
	}
	return filepath.Join(f.mounts[best], strings.TrimPrefix(path, best)), true
}

// find gives the host path of what a container sees at path.
func (f *files) find(path string) (string, error) {
	path = filepath.Clean("/" + path)
	if p, ok := f.mounted(path); ok {
		return p, nil
	}
	up := filepath.Join(f.upper, path)
	st, err := os.Lstat(up)
	switch {
	case err == nil && whiteout(st):
		return "", &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	case err == nil:
		return up, nil
	}
	return filepath.Join(f.lower, path), nil
}

func whiteout(st fs.FileInfo) bool {
	s, ok := st.Sys().(*syscall.Stat_t)
	return ok && st.Mode()&fs.ModeCharDevice != 0 && s.Rdev == 0
}

func (f *files) ReadFile(path string) ([]byte, error) {
	p, err := f.find(path)
	if err != nil {
		return nil, err
	}
	return os.ReadFile(p)
}

func (f *files) Exists(path string) error {
	p, err := f.find(path)
	if err != nil {
		return err
	}
	_, err = os.Stat(p)
	return err
}

func (f *files) WriteFile(path string, text []byte) error {
	path = filepath.Clean("/" + path)
	if p, ok := f.mounted(path); ok {
		return os.WriteFile(p, text, 0o644)
	}
	up := filepath.Join(f.upper, path)
	if err := os.MkdirAll(filepath.Dir(up), 0o755); err != nil {
		return err
	}
	if st, err := os.Lstat(up); err == nil && whiteout(st) {
		if err := os.Remove(up); err != nil {
			return err
		}
	}
	return os.WriteFile(up, text, 0o644)
}

// Remove removes a tree; what the image has is hidden by a device 0:0, which
// needs no privilege.
func (f *files) Remove(path string) error {
	path = filepath.Clean("/" + path)
	if p, ok := f.mounted(path); ok {
		return os.RemoveAll(p)
	}
	up := filepath.Join(f.upper, path)
	if err := os.RemoveAll(up); err != nil {
		return err
	}
	if _, err := os.Lstat(filepath.Join(f.lower, path)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(up), 0o755); err != nil {
		return err
	}
	return syscall.Mknod(up, syscall.S_IFCHR|0o600, 0)
}
