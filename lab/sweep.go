package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/lab/cgroup"
	"lifeboat/lab/warden"
)

// Sweep removes what laboratories below root left whose warden is dead: after kill -9 of everything,
// or a reboot of the machine. Laboratories that live are not touched. New does it too.
func Sweep(ctx context.Context, root string, log *slog.Logger) error {
	unlock, err := lockRoot(ctx, root)
	if err != nil {
		return err
	}
	defer unlock()
	return sweep(ctx, root, log)
}

// claim sweeps, makes the directory of a new laboratory and locks it.
func claim(ctx context.Context, root string, conf warden.Config, log *slog.Logger) (*os.File, error) {
	unlock, err := lockRoot(ctx, root)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := sweep(ctx, root, log); err != nil {
		return nil, err
	}
	if err := mkdirBoth(root, conf.Dir); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(conf.Dir, warden.LockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock laboratory: %w", err)
	}
	data, err := json.Marshal(conf)
	if err == nil {
		err = os.WriteFile(filepath.Join(conf.Dir, warden.ConfigFile), data, 0o600)
	}
	if err == nil {
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock laboratory: %w", err), lock.Close(), os.RemoveAll(conf.Dir))
	}
	return lock, nil
}

// mkdirBoth makes root and dir in it; another laboratory that ends may take an empty root away in between.
func mkdirBoth(root, dir string) error {
	for range 100 {
		if err := os.MkdirAll(root, 0o755); err != nil {
			return fmt.Errorf("make directory of laboratories: %w", err)
		}
		err := os.Mkdir(dir, 0o755)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, fs.ErrExist):
			return fmt.Errorf("a laboratory of this name is up already: %w", err)
		case !errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("make directory of laboratory: %w", err)
		}
	}
	return fmt.Errorf("make directory of laboratory: %s vanishes again and again", root)
}

// lockRoot keeps others from sweeping and claiming at the same time. It locks the parent directory of
// root, which is always there, so that no lock file stays behind.
func lockRoot(ctx context.Context, root string) (unlock func(), err error) {
	f, err := os.Open(filepath.Dir(filepath.Clean(root)))
	if err != nil {
		return nil, fmt.Errorf("lock laboratories: %w", err)
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock laboratories: %w", err), f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("wait for another process that makes a laboratory: %w", ctx.Err()), f.Close())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// sweep is called with the root locked.
func sweep(ctx context.Context, root string, log *slog.Logger) error {
	entries, err := os.ReadDir(root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look for dead laboratories: %w", err)
	}
	prefix := groupPrefix(root)
	tree, err := cgroup.New(strings.TrimSuffix(prefix, "."))
	if err != nil {
		return err
	}
	groups, err := tree.List(prefix)
	if err != nil {
		return err
	}
	var ids []string
	for _, e := range entries {
		if e.Name() != "lost+found" { // the root may be a file system of its own
			ids = append(ids, e.Name())
		}
	}
	for _, g := range groups { // a group whose directory is gone is left from a laboratory too
		if id := strings.TrimPrefix(g, prefix); !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	var errs []error
	for _, id := range ids {
		errs = append(errs, sweepOne(ctx, root, id, log))
	}
	if len(entries) > 0 {
		_ = os.Remove(root) // fails while a laboratory is in it
	}
	return errors.Join(errs...)
}

func sweepOne(ctx context.Context, root, id string, log *slog.Logger) error {
	dir := filepath.Join(root, id)
	lock, err := os.Open(filepath.Join(dir, warden.LockFile))
	if err == nil {
		defer lock.Close()
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil // it lives
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("sweep laboratory %s: %w", id, err)
	}
	log.Info("sweep dead laboratory", "lab", id)
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tree, err := cgroup.New(groupPrefix(root) + id)
	if err != nil {
		return err
	}
	if err := tree.Kill(ctx, ""); err != nil {
		return fmt.Errorf("sweep laboratory %s: %w", id, err)
	}
	if err := unmountBelow(dir); err != nil {
		return fmt.Errorf("sweep laboratory %s: %w", id, err)
	}
	if err := errors.Join(tree.Remove(ctx, ""), os.RemoveAll(dir)); err != nil {
		return fmt.Errorf("sweep laboratory %s: %w", id, err)
	}
	return nil
}

// unmountBelow lets go of mounts that somebody made by hand in the machine's own namespace; the
// laboratory's are gone with its processes.
func unmountBelow(dir string) error {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	var points []string
	for line := range bytes.Lines(data) {
		fields := strings.Fields(string(line))
		if len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			points = append(points, fields[4])
		}
	}
	for _, p := range slices.Backward(points) {
		if err := unix.Unmount(p, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %s: %w", p, err)
		}
	}
	return nil
}
