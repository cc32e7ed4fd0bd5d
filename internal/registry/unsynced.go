package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/distribution/distribution/v3/registry/storage/driver"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"lifeboat/internal/registry/direct"
)

const (
	// unsyncedMark is a file beside the storage that is there while blobs are not
	// known to be on disk.
	unsyncedMark = "unsynced"
	// maxUnsynced bounds the files whose fsync is put off.
	maxUnsynced = 4096
	// syncParallel is how many files are synced at a time.
	syncParallel = 4
	// clockSlack is how far back the clock may have been set between the mark and
	// the blobs after it.
	clockSlack = time.Hour
)

// unsynced holds what is not known to be on disk: blobs, some of them
// acknowledged, manifests, and the links that put both into a name. A blob means
// nothing before a manifest names it, so one sync of all of them before the
// manifest is acknowledged serves as well as several for each, and lets the disk
// write while more arrives. After a power cut the mark tells the next start to
// look for what is not what its name says (dropDamaged). Safe for concurrent
// use.
type unsynced struct {
	driver *diskDriver

	flushing sync.Mutex // one flush at a time; a second waits for the first
	// landing is held shared while a file gets its name: a flush that took its
	// path before would find nothing to sync, and nobody would come back to it.
	landing sync.RWMutex
	mu      sync.Mutex
	paths   map[string]struct{} // of the storage
	marked  bool
}

// add puts off the sync of p, which land puts there.
func (u *unsynced) add(p string, land func() error) error {
	u.landing.RLock()
	defer u.landing.RUnlock()
	if err := u.note(p); err != nil {
		return err
	}
	return land()
}

// note marks the storage before anything is there that is not on disk.
func (u *unsynced) note(p string) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.marked {
		if err := replaceFile(filepath.Join(u.driver.root, unsyncedMark), nil, 0o600); err != nil {
			return fmt.Errorf("note that blobs are not on disk yet: %w", err)
		}
		u.marked = true
	}
	if u.paths == nil {
		u.paths = map[string]struct{}{}
	}
	u.paths[p] = struct{}{}
	return nil
}

func (u *unsynced) full() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.paths) >= maxUnsynced
}

// flush makes durable all that was put off before the call. What cannot be is
// removed again: after a failed fsync nobody knows what of it is on disk, and
// its sender still has it.
func (u *unsynced) flush() error {
	u.flushing.Lock()
	defer u.flushing.Unlock()
	paths := u.take()
	if err := u.driver.sync(paths); err != nil {
		for _, p := range paths {
			err = errors.Join(err, os.RemoveAll(u.driver.file(path.Dir(p))))
		}
		return fmt.Errorf("what was sent lately could not be made durable and was removed; it has to be sent again: %w", err)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.paths) == 0 && u.marked {
		u.marked = false
		if err := os.Remove(filepath.Join(u.driver.root, unsyncedMark)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("blobs are on disk, the mark that they are not cannot be removed: %w", err)
		}
	}
	return nil
}

// take empties the list; all that was on it has its name.
func (u *unsynced) take() []string {
	u.landing.Lock()
	defer u.landing.Unlock()
	u.mu.Lock()
	defer u.mu.Unlock()
	paths := slices.Collect(maps.Keys(u.paths))
	u.paths = nil
	return paths
}

// sync makes files durable, then their names. One that was deleted meanwhile is
// nobody's loss.
func (d *diskDriver) sync(paths []string) error {
	dirs := map[string]struct{}{}
	d.mu.Lock()
	for _, p := range paths {
		dir := path.Dir(p)
		dirs[dir] = struct{}{}
		for ; dir != "/" && dir != "."; dir = path.Dir(dir) {
			if _, known := d.durable[dir]; known {
				break
			}
			dirs[path.Dir(dir)] = struct{}{}
		}
	}
	d.mu.Unlock()
	if err := d.syncEach(slices.Values(paths)); err != nil {
		return err
	}
	if err := d.syncEach(maps.Keys(dirs)); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range paths {
		for dir := path.Dir(p); dir != "/" && dir != "."; dir = path.Dir(dir) {
			d.know(dir)
		}
	}
	return nil
}

// syncEach syncs files or directories, several at a time.
func (d *diskDriver) syncEach(paths iter.Seq[string]) error {
	var g errgroup.Group
	g.SetLimit(syncParallel)
	for p := range paths {
		g.Go(func() error {
			if err := syncDir(d.file(p)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			return nil
		})
	}
	return g.Wait()
}

// file is where p of the storage lies on disk.
func (d *diskDriver) file(p string) string { return filepath.Join(d.root, filepath.FromSlash(p)) }

// uploadWriter writes an upload in progress. Unlike Distribution's it does not
// sync: what is big goes to the disk at once, past the page cache, for nobody reads
// it soon; the disk is told to begin writing the rest, and unsynced sees to it all.
type uploadWriter struct {
	f    *os.File
	out  *direct.Writer
	size int64
	done bool
}

func newUploadWriter(file string, appending bool, buffers *direct.Buffers) (*uploadWriter, error) {
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return nil, err
	}
	flags := os.O_WRONLY | os.O_CREATE
	if !appending {
		flags |= os.O_TRUNC
	}
	f, err := os.OpenFile(file, flags, 0o600)
	if err != nil {
		return nil, err
	}
	w := &uploadWriter{f: f}
	if w.size, err = f.Seek(0, io.SeekEnd); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	w.out = direct.NewWriter(f, w.size, buffers)
	return w, nil
}

func (w *uploadWriter) Write(p []byte) (int, error) {
	n, err := w.out.Write(p)
	w.size += int64(n)
	return n, err
}

// Size implements driver.FileWriter.
func (w *uploadWriter) Size() int64 { return w.size }

// Close implements driver.FileWriter.
func (w *uploadWriter) Close() error {
	if w.done {
		return nil
	}
	w.done = true
	return errors.Join(w.out.Flush(), w.f.Close())
}

// Cancel implements driver.FileWriter.
func (w *uploadWriter) Cancel(context.Context) error {
	if w.done {
		return errors.New("cancel of an upload that was closed")
	}
	w.done = true
	w.out.Release()
	return errors.Join(w.f.Close(), os.Remove(w.f.Name()))
}

// Commit implements driver.FileWriter.
func (w *uploadWriter) Commit(context.Context) error {
	if w.done {
		return errors.New("commit of an upload that was closed")
	}
	if err := w.out.Flush(); err != nil {
		return err
	}
	// Only a hint; not every file system takes it.
	_ = unix.SyncFileRange(int(w.f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
	return nil
}

var _ driver.FileWriter = (*uploadWriter)(nil)

// unsyncedTemp is how the temporary names of what is not synced begin.
const unsyncedTemp = ".unsynced-"

var (
	blobDirs  = regexp.MustCompile(`^[0-9a-f]{64}$`)
	linkBytes = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
)

// dropDamaged removes, at a start that follows a power cut, what was written
// since the mark and is not what its name says: blobs and manifests with another
// digest, links without content. No tag leads to them, and nobody was told that
// a manifest names them. What cannot be read stays, and is told as damaged to who asks
// for it. It returns how many.
func dropDamaged(d *diskDriver, log *slog.Logger) (int, error) {
	root := d.root
	mark, err := os.Stat(filepath.Join(root, unsyncedMark))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("look for blobs that a power cut damaged: %w", err)
	}
	since := mark.ModTime().Add(-clockSlack)
	dropped := 0
	drop := func(dir, why string) error {
		log.Warn("damaged by a power cut, and removed", "path", dir, "why", why)
		dropped++
		return os.RemoveAll(dir)
	}
	look := func(p string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		info, err := e.Info()
		if err != nil || info.ModTime().Before(since) {
			return err
		}
		dir, name := filepath.Split(p)
		dir = filepath.Clean(dir)
		switch {
		case name == "data" && blobDirs.MatchString(filepath.Base(dir)) && strings.HasPrefix(p, filepath.Join(root, filepath.FromSlash(blobsRoot))+"/sha256/"):
			right, err := hasDigest(p, filepath.Base(dir))
			if err != nil || right {
				return err
			}
			return drop(dir, "its content has another digest")
		case strings.HasPrefix(name, unsyncedTemp):
			return os.Remove(p)
		case name == "link" && strings.HasPrefix(p, filepath.Join(root, filepath.FromSlash(repositoriesRoot))):
			b, err := readBounded(p)
			if err != nil || linkBytes.Match(b) {
				return err
			}
			return drop(dir, "the link is empty")
		}
		return nil
	}
	err = filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		err = d.judge(context.Background(), filepath.ToSlash(strings.TrimPrefix(p, root)), look(p, e, err))
		if errors.Is(err, errUnreadable) {
			log.Error("it cannot be read whether a power cut damaged it", "path", p, "err", err)
			return nil
		}
		return err
	})
	if err == nil {
		err = os.Remove(filepath.Join(root, unsyncedMark))
	}
	if err != nil {
		return dropped, fmt.Errorf("look for blobs that a power cut damaged: %w", err)
	}
	return dropped, nil
}

// hasDigest reports whether the file's SHA-256 is hex.
func hasDigest(file, want string) (bool, error) {
	f, err := os.Open(file)
	if err != nil {
		return false, err
	}
	sum := sha256.New()
	_, err = io.Copy(sum, f)
	if err := errors.Join(err, f.Close()); err != nil {
		return false, err
	}
	return hex.EncodeToString(sum.Sum(nil)) == want, nil
}
