package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/distribution/distribution/v3/registry/storage/driver"
	"github.com/distribution/distribution/v3/registry/storage/driver/factory"
	"github.com/distribution/distribution/v3/registry/storage/driver/filesystem"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"lifeboat/internal/registry/direct"
)

// Distribution finds storage drivers by name in a table of the process and
// hands them untyped parameters. One entry is enough: its parameter is the
// driver itself, which New has made.
func init() { factory.Register(driverName, givenDriver{}) }

const (
	driverName  = "lifeboat"
	driverParam = "driver"
)

type givenDriver struct{}

func (givenDriver) Create(_ context.Context, parameters map[string]any) (driver.StorageDriver, error) {
	d, ok := parameters[driverParam].(driver.StorageDriver)
	if !ok {
		return nil, errors.New("registry: no storage driver given")
	}
	return d, nil
}

// maxThreads bounds blocking file operations at a time.
const maxThreads = 100

// diskDriver keeps blobs and links in a directory. Distribution's own driver
// syncs files, but not the directories that it makes and renames into; after a
// power cut an acknowledged tag could be without a name. diskDriver syncs those
// too: all that came since (unsynced) before a tag leads to it or a manifest is
// acknowledged, then the tag (invariant 1 of docs/format.md needs no less). It
// notes when the disk is full.
type diskDriver struct {
	driver.StorageDriver
	root     string
	unsynced unsynced
	buffers  direct.Buffers // of uploads

	probing sync.Mutex // one probe at a time

	mu sync.Mutex
	// durable holds directories whose own entry is known to be on disk.
	durable map[string]struct{}
}

// maxDurable bounds diskDriver.durable; beyond it starts anew.
const maxDurable = 1 << 16

func newDiskDriver(root string) *diskDriver {
	d := &diskDriver{
		StorageDriver: filesystem.New(filesystem.DriverParameters{RootDirectory: root, MaxThreads: maxThreads}),
		root:          root,
		durable:       map[string]struct{}{},
	}
	d.unsynced.driver = d
	return d
}

// currentLink is the file of a tag that says what the tag names.
const currentLink = "current/link"

// volatile reports whether p belongs to an upload in progress. Nothing was
// promised about it, and the next start removes it, so it need not be on disk.
func volatile(p string) bool { return strings.Contains(p, "/_uploads/") }

// PutContent implements driver.StorageDriver.
func (d *diskDriver) PutContent(ctx context.Context, p string, content []byte) error {
	return d.failed(ctx, p, d.putContent(ctx, p, content))
}

func (d *diskDriver) putContent(ctx context.Context, p string, content []byte) error {
	switch {
	case volatile(p):
		return d.putVolatile(p, content)
	case !strings.HasSuffix(p, "/"+currentLink):
		return d.putUnsynced(p, content)
	}
	// From here on a tag leads to a manifest, so everything else comes first.
	if err := d.unsynced.flush(); err != nil {
		return err
	}
	if err := d.replacing(p, func() error { return d.StorageDriver.PutContent(ctx, p, content) }); err != nil {
		return err
	}
	return d.settle(path.Dir(p))
}

// putUnsynced writes a link or a manifest atomically. It becomes durable with
// the next flush.
func (d *diskDriver) putUnsynced(p string, content []byte) error {
	if !driver.PathRegexp.MatchString(p) {
		return driver.InvalidPathError{Path: p, DriverName: driverName}
	}
	full := d.file(p)
	// Only what is new is put off, for what cannot be made durable is removed.
	if old, err := os.ReadFile(full); err == nil && bytes.Equal(old, content) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(full), 0o700); err != nil {
		return err
	}
	t, err := os.CreateTemp(filepath.Dir(full), unsyncedTemp+"*.tmp")
	if err != nil {
		return err
	}
	_, err = t.Write(content)
	if err = errors.Join(err, t.Close()); err == nil {
		err = d.replacing(p, func() error { return d.unsynced.add(p, func() error { return os.Rename(t.Name(), full) }) })
	}
	if err != nil {
		return errors.Join(err, os.Remove(t.Name()))
	}
	return d.putOff()
}

// putOff bounds what is not synced.
func (d *diskDriver) putOff() error {
	if d.unsynced.full() {
		return d.unsynced.flush()
	}
	return nil
}

func (d *diskDriver) putVolatile(p string, content []byte) error {
	if !driver.PathRegexp.MatchString(p) {
		return driver.InvalidPathError{Path: p, DriverName: driverName}
	}
	full := filepath.Join(d.root, filepath.FromSlash(p))
	if err := os.MkdirAll(filepath.Dir(full), 0o700); err != nil {
		return err
	}
	return os.WriteFile(full, content, 0o600)
}

// Move implements driver.StorageDriver.
func (d *diskDriver) Move(ctx context.Context, from, to string) error {
	return d.failed(ctx, to, d.move(ctx, from, to))
}

func (d *diskDriver) move(ctx context.Context, from, to string) error {
	if volatile(from) { // a blob that has arrived
		land := func() error { return d.StorageDriver.Move(ctx, from, to) }
		if err := d.replacing(to, func() error { return d.unsynced.add(to, land) }); err != nil {
			return err
		}
		return d.putOff()
	}
	if err := d.StorageDriver.Move(ctx, from, to); err != nil {
		return err
	}
	if err := syncDir(filepath.Join(d.root, filepath.FromSlash(path.Dir(to)))); err != nil {
		return err
	}
	return d.settle(path.Dir(to))
}

// failed notes what an error of writing p means.
func (d *diskDriver) failed(ctx context.Context, p string, err error) error {
	return d.judge(ctx, p, noteFull(ctx, err))
}

// Reader implements driver.StorageDriver.
func (d *diskDriver) Reader(ctx context.Context, p string, offset int64) (io.ReadCloser, error) {
	r, err := d.StorageDriver.Reader(ctx, p, offset)
	return r, d.judge(ctx, p, err)
}

// List implements driver.StorageDriver.
func (d *diskDriver) List(ctx context.Context, p string) ([]string, error) {
	below, err := d.StorageDriver.List(ctx, p)
	return below, d.judge(ctx, p, err)
}

// Delete implements driver.StorageDriver. A deletion that was answered stays
// one: a tag must not come back after a power cut.
func (d *diskDriver) Delete(ctx context.Context, p string) error {
	if err := d.StorageDriver.Delete(ctx, p); err != nil {
		return d.judge(ctx, p, err)
	}
	if volatile(p) {
		return nil
	}
	d.mu.Lock()
	for dir := range d.durable {
		if dir == p || strings.HasPrefix(dir, p+"/") {
			delete(d.durable, dir)
		}
	}
	d.mu.Unlock()
	return syncDir(filepath.Join(d.root, filepath.FromSlash(path.Dir(p))))
}

// settle makes the entries of dir and of the directories above it durable, as
// far as this process does not know that they are.
func (d *diskDriver) settle(dir string) error {
	for ; dir != "/" && dir != "."; dir = path.Dir(dir) {
		d.mu.Lock()
		_, known := d.durable[dir]
		d.mu.Unlock()
		if known {
			return nil
		}
		if err := syncDir(filepath.Join(d.root, filepath.FromSlash(path.Dir(dir)))); err != nil {
			return err
		}
		d.mu.Lock()
		d.know(dir)
		d.mu.Unlock()
	}
	return nil
}

// know notes that the entry of dir is on disk; the caller holds mu.
func (d *diskDriver) know(dir string) {
	if len(d.durable) >= maxDurable {
		clear(d.durable)
	}
	d.durable[dir] = struct{}{}
}

// syncDir syncs a directory, or a file.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	return errors.Join(f.Sync(), f.Close())
}

// Writer implements driver.StorageDriver.
func (d *diskDriver) Writer(ctx context.Context, p string, appending bool) (driver.FileWriter, error) {
	var w driver.FileWriter
	var err error
	if volatile(p) {
		w, err = newUploadWriter(d.file(p), appending, &d.buffers)
	} else {
		w, err = d.StorageDriver.Writer(ctx, p, appending)
	}
	if err != nil {
		return nil, noteFull(ctx, err)
	}
	dw := &diskWriter{FileWriter: w, ctx: ctx}
	if n, ok := ctx.Value(noteKey{}).(*note); ok {
		n.opened(dw)
	}
	return dw, nil
}

type diskWriter struct {
	driver.FileWriter
	ctx context.Context // of the request; carries the note for a full disk
}

func (w *diskWriter) Write(p []byte) (int, error) {
	n, err := w.FileWriter.Write(p)
	return n, noteFull(w.ctx, err)
}

func (w *diskWriter) Close() error { return noteFull(w.ctx, w.FileWriter.Close()) }

func (w *diskWriter) Commit(ctx context.Context) error {
	return noteFull(w.ctx, w.FileWriter.Commit(ctx))
}

// note is put into a request's context by the guard, for the driver to leave
// there what Distribution does not hand up: that there was no room, or that an object
// is damaged (errors are flattened to text on the way), and which files are open (some are forgotten
// when a full disk makes an earlier step of closing them fail, and keep their
// room although they are deleted).
type note struct {
	full    atomic.Bool
	damaged atomic.Pointer[unix.Errno]    // of the last failure, if it was damage of one object
	rewrite atomic.Pointer[digest.Digest] // of bytes to be stored anew if they are damaged
	checked atomic.Bool                   // no tag needs what is to be deleted

	mu      sync.Mutex
	writers []*diskWriter
}

type noteKey struct{}

func withNote(ctx context.Context) (context.Context, *note) {
	n := &note{}
	return context.WithValue(ctx, noteKey{}, n), n
}

func (n *note) opened(w *diskWriter) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.writers = append(n.writers, w)
}

// closeAll closes what the request has left open; nothing is underway any more.
func (n *note) closeAll() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, w := range n.writers {
		_ = w.FileWriter.Close() // most are closed; what failed was answered
	}
	n.writers = nil
}

// noteFull notes that err means a full disk or a used-up quota, and returns it.
func noteFull(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if n, ok := ctx.Value(noteKey{}).(*note); ok {
		n.damaged.Store(nil) // judge says if it is that
		if c := cause(err); errors.Is(c, unix.ENOSPC) || errors.Is(c, unix.EDQUOT) {
			n.full.Store(true)
		}
	}
	return err
}

// repositoriesRoot is where Distribution keeps names; see its storage/paths.go.
const repositoriesRoot = "/docker/registry/v2/repositories"

// uploadPath is the directory of an upload in progress.
func uploadPath(name, id string) string {
	return path.Join(repositoriesRoot, name, "_uploads", id)
}

// dropUploads removes what uploads an earlier process has left behind: their
// tokens ended with it, nobody can go on with them. It returns how many.
func dropUploads(root string) (int, error) {
	dropped := 0
	top := filepath.Join(root, filepath.FromSlash(repositoriesRoot))
	err := filepath.WalkDir(top, func(p string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !e.IsDir() {
			return err
		}
		switch e.Name() {
		case "_layers", "_manifests":
			return fs.SkipDir
		case "_uploads":
			entries, err := os.ReadDir(p)
			if err != nil {
				return err
			}
			dropped += len(entries)
			if err := os.RemoveAll(p); err != nil {
				return err
			}
			return fs.SkipDir
		}
		return nil
	})
	if err != nil {
		return dropped, fmt.Errorf("remove uploads that were cut off: %w", err)
	}
	return dropped, nil
}
