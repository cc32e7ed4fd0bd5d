package tree

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/internal/catalog"
	"lifeboat/internal/dr"
)

// UnitFetcher gives units out, authenticated (invariant 10). Fetch calls fn
// once for each ref, concurrently and in any order, with memory that is its
// own. repo.Reader is one.
type UnitFetcher interface {
	Fetch(ctx context.Context, refs []dr.UnitRef, fn func(i int, data []byte) error) error
}

// ApplyOptions say how a tree is brought to the state of a catalog.
type ApplyOptions struct {
	// Key, StateDir, CutKey, UnitID, TrustedFS and Now are those of
	// CaptureOptions. They serve to find out what is there, to check units that
	// are copied locally, and to record the statcache.
	Key       string
	StateDir  string
	CutKey    [32]byte
	UnitID    func(data []byte) dr.UnitID
	TrustedFS []int64
	Now       func() time.Time

	// Overlay: the tree is the upper directory of a container that is not
	// running. Whiteouts become 0:0 devices and opaque directories get the
	// overlay's attribute. Without it Whiteouts says what becomes of them, and
	// opaque directories are ordinary ones.
	Overlay   bool
	Whiteouts WhiteoutMode
	// CrossMounts also writes what is mounted below the root.
	CrossMounts bool
	// Exclude lists paths that are not touched, with all below.
	Exclude []string
	// Denied is told what could not be kept of an entry for lack of privilege,
	// or because the file system cannot; the entry is written without it. Nil
	// makes such a thing an error. Called concurrently.
	Denied func(path, what string, err error)
	// Progress may be nil. Called concurrently.
	Progress func(ApplyProgress)
	// NoSync leaves it to the caller to make the tree durable, and to record
	// the statcache (RecordCache) after that.
	NoSync bool

	// salvage is set by Extract alone.
	salvage *salvage
}

// WhiteoutMode says what becomes of deletions outside of an overlay.
type WhiteoutMode uint8

const (
	// WhiteoutsSkip leaves them out and counts them.
	WhiteoutsSkip WhiteoutMode = iota
	// WhiteoutsDevice makes the 0:0 device, as in an upper directory.
	WhiteoutsDevice
)

// ApplyProgress is how far an Apply is, in bytes of file content.
type ApplyProgress struct {
	Needed  int64 // not as wanted at the start
	Done    int64 // of these, written
	Fetched int64 // of these, from the UnitFetcher
}

// ApplyStats is what an Apply did.
type ApplyStats struct {
	Created, Changed, Removed int64 // entries
	Whiteouts                 int64 // left out
	BytesNeeded               int64
	BytesFetched              int64
	BytesCopied               int64 // found elsewhere in the old tree
	BytesWritten              int64
}

// Apply brings the directory or single file at root to the state of target and
// writes differences only. current is what is there now, nil if that is not
// known: then an empty or absent directory is taken as such, and anything else
// is read and hashed (LocalCatalog). What current says must be true: entries
// equal in both are not looked at. src gives the units that are not here.
//
// Marks of restores (dr.IsRestoreMark) are left out of the target, and go. Files are
// written in place, but for such as have names that are not the
// target's: nothing is written through a link. Directories, links, devices and metadata follow,
// times last. On return without an error everything is on disk, and the
// statcache of the tree is recorded. Killed at any point and run again without
// current, it ends in the same state (invariant 8); in between the tree is a
// mixture of two states, which the caller marks. Nothing may run on the tree.
func Apply(ctx context.Context, root string, current, target *catalog.Reader, src UnitFetcher, o ApplyOptions) (ApplyStats, error) {
	a, err := newApplier(ctx, root, target, src, o)
	if err != nil {
		return ApplyStats{}, fmt.Errorf("apply to tree %s: %w", root, err)
	}
	err = a.run(ctx, current)
	err = errors.Join(err, a.close())
	if err != nil {
		return a.result(), fmt.Errorf("apply to tree %s: %w", root, err)
	}
	return a.result(), nil
}

// applier is one run of Apply.
type applier struct {
	o       ApplyOptions
	src     UnitFetcher
	root    *Root
	path    string
	current *catalog.Reader // nil: nothing is there but the root
	target  *catalog.Reader
	rootNew bool
	only    string // Extract: the path that is wanted, "" for all
	ownOnly bool   // Extract: what is there must be its own
	place   inPlace
	// match, if set, chooses entries; parents are the directories that lead to them.
	match   func(path string) bool
	parents map[string]bool
	exclude map[string]struct{}
	above   map[string]struct{} // directories that hold something excluded
	pages   *localStore

	dirs    *dirCache // of the planning goroutine
	poolMu  sync.Mutex
	pool    []*writerState // not in use
	plan    *plan
	back    writeback
	counted bool // whiteouts that are left out have been counted
	win     *window
	remade  map[string]struct{} // firsts of link groups with a new inode
	foreign map[string]struct{} // firsts of link groups that have other names on disk
	touched map[string]struct{} // directories changed without a trace in the difference
	late    []string            // removed paths that are sources of copies

	created, changed, removed, whiteouts      atomic.Int64
	needed, fetched, copied, written, handled atomic.Int64
}

func newApplier(ctx context.Context, root string, target *catalog.Reader, src UnitFetcher, o ApplyOptions) (_ *applier, err error) {
	a := &applier{
		o: o, src: src, path: root, exclude: map[string]struct{}{}, above: map[string]struct{}{},
		remade: map[string]struct{}{}, foreign: map[string]struct{}{}, touched: map[string]struct{}{},
	}
	for _, p := range o.Exclude {
		a.exclude[p] = struct{}{}
		for p != "" {
			p = catalog.Parent(p)
			a.above[p] = struct{}{}
		}
	}
	f, err := tempFile(o.StateDir)
	if err != nil {
		return nil, err
	}
	a.pages = &localStore{f: f, unitID: o.UnitID, at: map[dr.UnitID]int64{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.close())
		}
	}()
	// The target is gone through several times; its pages come once.
	a.target = target.CloneVia(func(s catalog.Source) catalog.Source { return &cachedSource{src: s, store: a.pages} })
	top, err := a.target.Lookup(ctx, "")
	if o.salvage.forgives(ctx, err) && a.target.NumPages() > 1 {
		top, err = catalog.Entry{Type: catalog.Directory}, nil // what has more than one page holds something
	}
	if err != nil {
		return nil, err
	}
	return a, a.open(&top)
}

// open opens the root, which is made when it is absent.
func (a *applier) open(top *catalog.Entry) error {
	st, err := os.Stat(a.path)
	switch {
	case errors.Is(err, os.ErrNotExist) && top.Type == catalog.Directory:
		a.rootNew = true
		if err := os.Mkdir(a.path, 0o700); err != nil {
			return err
		}
	case errors.Is(err, os.ErrNotExist):
		// A single file: its directory has to be there.
		a.rootNew = true
		return a.openNewFile()
	case err != nil:
		return err
	case st.IsDir() != (top.Type == catalog.Directory):
		return fmt.Errorf("it is a %s on disk and a %v in the snapshot; move it out of the way", kindOf(st), top.Type)
	}
	a.root, err = OpenRoot(a.path, RootOptions{CrossMounts: a.o.CrossMounts})
	if err == nil {
		a.dirs = newDirCache(a.root)
	}
	return err
}

func kindOf(st os.FileInfo) string {
	if st.IsDir() {
		return "directory"
	}
	return "file"
}

func (a *applier) openNewFile() error {
	r, err := OpenRoot(filepath.Dir(a.path), RootOptions{CrossMounts: a.o.CrossMounts})
	if err != nil {
		return err
	}
	r.base = filepath.Base(a.path)
	a.root, a.dirs = r, newDirCache(r)
	return nil
}

func (a *applier) close() error {
	errs := []error{a.back.wait()}
	if a.dirs != nil {
		a.dirs.close()
	}
	for _, w := range a.pool {
		w.dirs.close()
	}
	if a.root != nil {
		errs = append(errs, a.root.Close())
	}
	if a.pages != nil {
		errs = append(errs, a.pages.f.Close())
	}
	return errors.Join(errs...)
}

func (a *applier) result() ApplyStats {
	return ApplyStats{
		Created: a.created.Load(), Changed: a.changed.Load(), Removed: a.removed.Load(), Whiteouts: a.whiteouts.Load(),
		BytesNeeded: a.needed.Load(), BytesFetched: a.fetched.Load(), BytesCopied: a.copied.Load(), BytesWritten: a.written.Load(),
	}
}

func (a *applier) run(ctx context.Context, current *catalog.Reader) error {
	a.current = current
	if a.place.on && !a.rootNew {
		if err := a.setAside(); err != nil {
			return err
		}
	}
	if current == nil && !a.rootNew {
		local, err := a.lookAround(ctx)
		if err != nil {
			return err
		}
		if local != nil {
			defer local.Close()
			a.current = local.Reader
		}
	}
	if a.current != nil {
		a.current = a.current.Clone()
	}
	var err error
	if a.plan, err = a.makePlan(ctx); err != nil {
		return err
	}
	if a.current != nil {
		if err := a.admit(ctx); err != nil {
			return err
		}
	}
	a.back.fd, a.back.off = a.root.fd, a.o.NoSync
	a.progress(0, 0)
	for _, pass := range []func(context.Context) error{a.remove, a.findForeign, a.write, a.relink, a.unlinkLost, a.removeLate, a.touchLost, a.directories} {
		if err := pass(ctx); err != nil {
			return err
		}
	}
	if !a.o.NoSync {
		if err := errors.Join(a.back.wait(), unix.Syncfs(a.root.fd)); err != nil {
			return fmt.Errorf("sync: %w", err)
		}
		if a.rootNew {
			if err := syncDir(filepath.Dir(a.path)); err != nil {
				return err
			}
		}
	}
	return a.remember(ctx)
}

// lookAround finds out what is there, or returns nil for an empty directory.
func (a *applier) lookAround(ctx context.Context) (*Local, error) {
	if !a.root.Single() {
		fd, err := a.root.open("", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return nil, err
		}
		raw, offs, err := readNames(fd, make([]byte, 32<<10))
		_ = unix.Close(fd)
		d, found := directory{names: raw, offs: offs}, false
		for i := range offs {
			found = found || !a.excluded(string(d.name(i)))
		}
		if err != nil || !found {
			return nil, err
		}
	}
	return LocalCatalog(ctx, a.captureOptions())
}

func (a *applier) captureOptions() CaptureOptions {
	return CaptureOptions{
		Root: a.path, Key: a.o.Key, Overlay: a.o.Overlay, CrossMounts: a.o.CrossMounts,
		Exclude:  slices.Concat(a.o.Exclude, a.place.aside),
		StateDir: a.o.StateDir, CutKey: a.o.CutKey, UnitID: a.o.UnitID, TrustedFS: a.o.TrustedFS, Now: a.o.Now,
	}
}

// diff goes through what has to change. Excluded paths and whiteouts that are
// left out are not shown.
func (a *applier) diff(ctx context.Context, fn func(catalog.Change) error) error {
	filter := func(c catalog.Change) error {
		if a.excluded(c.Path()) || !a.inScope(c.Path()) {
			return nil
		}
		if c.B != nil && isMark(c.B) {
			if c.A == nil {
				return nil
			}
			c.Kind, c.B = catalog.Removed, nil
		}
		if c.B == nil && a.spared(c.A) {
			return nil
		}
		if c.B != nil {
			b, err := a.unlinked(ctx, c.B)
			if a.o.salvage.forgives(ctx, err) {
				if !a.counted {
					a.o.salvage.Lost(Loss{Path: c.B.Clone().Path, Err: err})
				}
				return nil
			}
			if err != nil {
				return err
			}
			c.B = b
		}
		if c.B != nil && c.B.Type == catalog.Whiteout && !a.o.Overlay && a.o.Whiteouts == WhiteoutsSkip {
			if !a.counted {
				a.whiteouts.Add(1)
			}
			if c.A == nil {
				return nil
			}
			c.Kind, c.B = catalog.Removed, nil
		}
		if c.B == nil && a.place.keeps() || a.place.on && c.A != nil && c.A.Type == catalog.Directory && a.wayThere(c.Path()) {
			return nil
		}
		return fn(c)
	}
	if a.current != nil {
		return catalog.Diff(ctx, a.current, a.target, filter)
	}
	return catalog.Merge(ctx, nil, a.target, func(_, b *catalog.Entry) error {
		return filter(catalog.Change{Kind: catalog.Added, B: b})
	})
}

// excluded reports whether path is not to be touched.
func (a *applier) excluded(path string) bool {
	if len(a.exclude) == 0 {
		return false
	}
	for {
		if _, ok := a.exclude[path]; ok {
			return true
		}
		i := strings.LastIndexByte(path, '/')
		if i < 0 {
			return false
		}
		path = path[:i]
	}
}

func (a *applier) progress(done, fetched int64) {
	d, f := a.handled.Add(done), a.fetched.Add(fetched)
	if a.o.Progress != nil {
		a.o.Progress(ApplyProgress{Needed: a.needed.Load(), Done: d, Fetched: f})
	}
}

// denied decides about an error that a lesser mode may pass over.
func (a *applier) denied(path, what string, err error) error {
	if err == nil {
		return nil
	}
	if a.o.Denied != nil && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL)) {
		a.o.Denied(path, what, err)
		return nil
	}
	return fmt.Errorf("%s of %s: %w", what, a.root.display(path), err)
}

// writerState is what one writing goroutine holds.
type writerState struct {
	dirs *dirCache
	xr   *xattrReader
	buf  []byte
}

// writer lends a writerState until done gets it back.
func (a *applier) writer() *writerState {
	a.poolMu.Lock()
	defer a.poolMu.Unlock()
	if n := len(a.pool); n > 0 {
		w := a.pool[n-1]
		a.pool = a.pool[:n-1]
		return w
	}
	return &writerState{dirs: newDirCache(a.root), xr: newXattrReader(false)}
}

func (a *applier) done(w *writerState) {
	a.poolMu.Lock()
	defer a.poolMu.Unlock()
	a.pool = append(a.pool, w)
}

// cachedSource keeps the units of a catalog that were read once in a local file.
type cachedSource struct {
	src   catalog.Source
	store *localStore
}

func (s *cachedSource) Unit(ctx context.Context, ref dr.UnitRef) ([]byte, error) {
	data, err := s.store.Unit(ctx, ref)
	if !errors.Is(err, dr.ErrNotFound) {
		return data, err
	}
	if data, err = s.src.Unit(ctx, ref); err != nil {
		return nil, err
	}
	return data, s.store.keep(ref, data)
}

func (s *cachedSource) Fetch(ctx context.Context, refs []dr.UnitRef, fn func(int, []byte) error) error {
	batch, ok := s.src.(catalog.BatchSource)
	var missing []dr.UnitRef
	var at []int
	for i, ref := range refs {
		if ok && !s.store.has(ref) {
			missing, at = append(missing, ref), append(at, i)
			continue
		}
		data, err := s.Unit(ctx, ref)
		if err == nil {
			err = fn(i, data)
		}
		if err != nil {
			return err
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return batch.Fetch(ctx, missing, func(i int, data []byte) error {
		if err := s.store.keep(missing[i], data); err != nil {
			return err
		}
		return fn(at[i], data)
	})
}

// writers is how many windows are fetched and written at the same time.
func writers() int { return max(2, min(4, runtime.GOMAXPROCS(0))) }
