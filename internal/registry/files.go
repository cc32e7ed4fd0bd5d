package registry

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"lifeboat/internal/dr"
)

// maxSmallFile bounds htpasswd, roles, certificate and key files, in bytes.
const maxSmallFile = 1 << 20

// lockDir lets one process at a time change a file of dir.
func lockDir(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("lock directory: %w: %w", err, dr.ErrUsage)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock directory %s: %w", dir, err), f.Close())
	}
	return func() { _ = f.Close() }, nil // closing gives the lock back
}

// readBounded reads a regular file of at most maxSmallFile bytes.
func readBounded(file string) ([]byte, error) {
	fi, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", file)
	}
	if fi.Size() > maxSmallFile {
		return nil, fmt.Errorf("%s has %d bytes, at most %d", file, fi.Size(), maxSmallFile)
	}
	return os.ReadFile(file)
}

// replaceFile writes a file atomically and durably, with exactly this mode. An
// existing owner is kept: a registry that runs as another user than the one who
// changes its users must still be able to read them.
func replaceFile(file string, content []byte, mode fs.FileMode) error {
	t, err := renameio.NewPendingFile(file, renameio.WithStaticPermissions(mode))
	if err != nil {
		return err
	}
	defer func() { _ = t.Cleanup() }() // nothing to do after the rename
	if fi, err := os.Stat(file); err == nil {
		if st, ok := fi.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
			if err := t.Chown(int(st.Uid), int(st.Gid)); err != nil {
				return fmt.Errorf("keep the owner: %w", err)
			}
		}
	}
	if _, err := t.Write(content); err != nil {
		return err
	}
	if err := t.CloseAtomicallyReplace(); err != nil {
		return err
	}
	return syncDir(filepath.Dir(file))
}

// inode tells a replaced file from the one before, also within one clock tick.
func inode(fi fs.FileInfo) uint64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return st.Ino
	}
	return 0
}
