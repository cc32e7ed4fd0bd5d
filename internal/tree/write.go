package tree

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"lifeboat/internal/catalog"
	"lifeboat/internal/dr"
)

// file is a regular file that is being written.
type file struct {
	a     *applier
	entry catalog.Entry
	// whole: its only unit is its content; it is created when that is here.
	whole   bool
	fd      int
	pending atomic.Int64          // pieces on their way, and one while more may come
	fresh   bool                  // counted as created
	lost    atomic.Pointer[error] // why it is not whole (Salvage)
}

// write is the second pass: directories, files, links, devices, in order. Files
// that others are copied from change after the rest: a rotated log is copied
// before the new one takes its place.
func (a *applier) write(ctx context.Context) error {
	for _, late := range []bool{false, true} {
		if late && len(a.plan.sources) == 0 {
			break
		}
		if err := a.writeFiles(ctx, late); err != nil {
			return err
		}
	}
	return nil
}

func (a *applier) writeFiles(ctx context.Context, late bool) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(writers())
	a.win = &window{a: a, g: g, index: map[dr.UnitID]int{}, open: map[*file]struct{}{}}
	err := a.diff(ctx, func(c catalog.Change) error {
		if c.B == nil || a.isLate(c) != late {
			return nil
		}
		return a.writeEntry(ctx, c)
	})
	if err == nil {
		a.win.flush(ctx)
	}
	if werr := g.Wait(); werr != nil && (err == nil || errors.Is(err, context.Canceled)) {
		err = werr
	}
	for f := range a.win.open {
		_ = unix.Close(f.fd)
	}
	return err
}

// isLate reports whether a file changes in place that others are copied from.
func (a *applier) isLate(c catalog.Change) bool {
	if c.A == nil || c.A.Type != catalog.File || c.B.Type != catalog.File {
		return false
	}
	_, late := a.plan.sources[c.B.Path]
	return late
}

// writeEntry brings one entry about; c.B is what is wanted.
func (a *applier) writeEntry(ctx context.Context, c catalog.Change) error {
	e := c.B
	if err := a.ensureParent(e.Path); err != nil {
		return err
	}
	fresh := c.A == nil || c.A.Type != e.Type
	if e.Path == "" && !a.rootNew {
		fresh = false // a root that is there is there, whether it was known or not
	}
	if fresh {
		a.created.Add(1)
	} else {
		a.changed.Add(1)
	}
	switch e.Type {
	case catalog.File:
		return a.writeFile(ctx, c, fresh)
	case catalog.Directory:
		if !fresh || e.Path == "" {
			return nil // metadata comes last
		}
		return a.make(e, func(dir int, name string) error {
			err := unix.Mkdirat(dir, name, 0o700)
			if _, holds := a.above[e.Path]; holds && errors.Is(err, unix.EEXIST) {
				return nil
			}
			return err
		})
	case catalog.HardLink:
		return a.link(e)
	}
	if sameButGroup(c) {
		return nil
	}
	remake := c.Kind != catalog.Metadata
	if !remake && e.Type != catalog.Whiteout {
		var err error
		if remake, err = a.hasForeignNames(c); err != nil {
			return err
		}
	}
	if remake {
		if !fresh {
			if err := a.make(e, func(dir int, name string) error { return unix.Unlinkat(dir, name, 0) }); err != nil {
				return err
			}
			if e.LinkGroup {
				a.remade[e.Clone().Path] = struct{}{}
			}
			a.touched[catalog.Parent(e.Clone().Path)] = struct{}{}
		}
		done, err := a.makeNode(e)
		if !done || err != nil {
			return err
		}
	}
	if e.Type == catalog.Whiteout {
		return nil
	}
	w := a.writer()
	defer a.done(w)
	return a.setMetadata(w, e)
}

// make calls f with the place of e.
func (a *applier) make(e *catalog.Entry, f func(dir int, name string) error) error {
	dir, name, err := a.dirs.parent(e.Path)
	if err == nil {
		err = f(dir, name)
	}
	if err != nil {
		return fmt.Errorf("make %v %s: %w", e.Type, a.root.display(e.Path), err)
	}
	return nil
}

// makeNode makes what is neither file nor directory. It reports false when
// that was passed over.
func (a *applier) makeNode(e *catalog.Entry) (bool, error) {
	kinds := map[catalog.Type]uint32{
		catalog.CharDevice: unix.S_IFCHR, catalog.BlockDevice: unix.S_IFBLK, catalog.Fifo: unix.S_IFIFO,
		catalog.Socket: unix.S_IFSOCK, catalog.Whiteout: unix.S_IFCHR,
	}
	done := true
	err := a.make(e, func(dir int, name string) error {
		if e.Type == catalog.Symlink {
			return unix.Symlinkat(e.Target, dir, name)
		}
		mode := kinds[e.Type] | 0o600
		if e.Type == catalog.Whiteout {
			mode = unix.S_IFCHR
		}
		err := unix.Mknodat(dir, name, mode, int(unix.Mkdev(e.Major, e.Minor)))
		if err != nil && a.denied(e.Path, "device node", err) == nil {
			done = false
			return nil
		}
		return err
	})
	return done, err
}

// link makes a further name of a file, unless it is one already.
func (a *applier) link(e *catalog.Entry) error {
	return a.make(e, func(dir int, name string) error {
		// The target's directory may be the one that the cache would drop.
		t := newDirCache(a.root)
		defer t.close()
		var want, have Stat
		tdir, tname, err := t.parent(e.Target)
		if err == nil {
			err = statAt(tdir, tname, &want)
		}
		if a.linkLost(e.Clone().Target, err) {
			return nil
		}
		if err != nil {
			return err
		}
		switch err := statAt(dir, name, &have); {
		case err == nil && have.Ino == want.Ino && have.Dev == want.Dev:
			return nil
		case err == nil:
			if err := unix.Unlinkat(dir, name, 0); err != nil {
				return err
			}
		case !errors.Is(err, unix.ENOENT):
			return err
		}
		a.touched[catalog.Parent(e.Clone().Path)] = struct{}{}
		return unix.Linkat(tdir, tname, dir, name, 0)
	})
}

// relink is the third pass: links that look unchanged but whose file was made
// anew.
func (a *applier) relink(ctx context.Context) error {
	if len(a.remade) == 0 {
		return nil
	}
	return catalog.Merge(ctx, nil, a.target, func(_, e *catalog.Entry) error {
		if e.Type != catalog.HardLink || a.excluded(e.Path) || !a.inScope(e.Path) {
			return nil
		}
		if _, ok := a.remade[e.Target]; !ok {
			return nil
		}
		return a.link(e)
	})
}

// writeFile plans what a regular file needs.
func (a *applier) writeFile(ctx context.Context, c catalog.Change, fresh bool) error {
	e := c.B
	if sameButGroup(c) {
		return nil
	}
	foreign := false
	if !fresh {
		var err error
		if foreign, err = a.hasForeignNames(c); err != nil {
			return err
		}
	}
	if c.Kind == catalog.Metadata && !foreign {
		w := a.writer()
		defer a.done(w)
		return a.setMetadata(w, e)
	}
	f := &file{a: a, entry: e.Clone(), fd: -1, fresh: fresh}
	f.pending.Store(1)
	if fresh && !e.LinkGroup && !e.Indirect && len(e.Refs) == 1 && !e.Refs[0].Hole {
		f.whole = true
		if err := a.win.add(ctx, dest{file: f}, e.Refs[0]); err != nil {
			return err
		}
		return f.release(nil)
	}
	old := -1
	var err error
	switch {
	case fresh:
		err = a.make(e, func(dir int, name string) error { return f.create(dir, name) })
	case foreign:
		old, err = f.makeAnew()
	default:
		err = f.openInPlace()
	}
	if err != nil {
		return err
	}
	if old >= 0 {
		fresh = true
		defer unix.Close(old)
	}
	a.win.opened(f)
	a.win.files++
	if err := unix.Ftruncate(f.fd, e.Size); err != nil {
		return fmt.Errorf("resize %s: %w", a.root.display(e.Path), err)
	}
	err = a.pieces(ctx, c, func(off int64, ref catalog.Ref, here bool) error {
		switch {
		case ref.Hole && (fresh || here):
			return nil
		case ref.Hole:
			return f.punch(off, ref.Len)
		case here && old < 0:
			return nil
		case here:
			return f.copyRange(old, off, ref.Len)
		}
		return a.win.add(ctx, dest{file: f, off: off}, ref)
	})
	if a.o.salvage.forgives(ctx, err) {
		f.lose(err)
		err = nil
	}
	if err != nil {
		return err
	}
	return f.release(nil)
}

// create makes the file with the mode it is to have, which mostly saves setting
// it, but so that a run that goes on after a kill can open it.
func (f *file) create(dir int, name string) error {
	const flags = unix.O_RDWR | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
	mode := f.entry.Mode&0o777 | 0o600
	fd, err := retry(func() (int, error) { return unix.Openat(dir, name, flags, mode) })
	f.fd = fd
	return err
}

// openInPlace opens a file whose content changes.
func (f *file) openInPlace() error {
	return f.a.make(&f.entry, func(dir int, name string) error {
		const flags = unix.O_RDWR | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
		fd, err := retry(func() (int, error) { return unix.Openat(dir, name, flags, 0) })
		if err != nil {
			return err
		}
		if err := checkRegular(fd); err != nil {
			return errors.Join(err, unix.Close(fd))
		}
		f.fd = fd
		return nil
	})
}

// makeAnew puts a new file in the place of one that has names which are not the
// target's, and returns a descriptor of the old one. The names of the target follow
// (relink).
func (f *file) makeAnew() (int, error) {
	a, old := f.a, -1
	err := a.make(&f.entry, func(dir int, name string) error {
		fd, err := openRegular(dir, name)
		if err != nil {
			return err
		}
		if err := checkRegular(fd); err != nil {
			return errors.Join(err, unix.Close(fd))
		}
		a.touched[catalog.Parent(f.entry.Path)] = struct{}{}
		if f.entry.LinkGroup {
			a.remade[f.entry.Path] = struct{}{}
		}
		if err = unix.Unlinkat(dir, name, 0); err == nil {
			err = f.create(dir, name)
		}
		if err != nil {
			_ = unix.Close(fd)
			return err
		}
		old = fd
		return nil
	})
	return old, err
}

// checkRegular looks whether an open file is of the type that was told.
func checkRegular(fd int) error {
	var st Stat
	if err := statFd(fd, &st); err != nil {
		return err
	}
	if !st.IsRegular() {
		return unix.ESTALE
	}
	return nil
}

// punch makes a hole where there was data.
func (f *file) punch(off, n int64) error {
	err := unix.Fallocate(f.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if errors.Is(err, unix.EOPNOTSUPP) {
		// Zeros read the same.
		zeros := make([]byte, min(n, 1<<20))
		for err = nil; n > 0 && err == nil; {
			k := min(n, int64(len(zeros)))
			err = pwriteFull(f.fd, zeros[:k], off)
			off, n = off+k, n-k
		}
	}
	if err != nil {
		return fmt.Errorf("make a hole in %s: %w", f.a.root.display(f.entry.Path), err)
	}
	return nil
}

// copyRange takes over what is the same in the old file.
func (f *file) copyRange(old int, off, n int64) error {
	buf := make([]byte, n) // a unit at most
	k, err := preadFull(old, buf, off)
	if err == nil && int64(k) < n {
		err = unix.ESTALE
	}
	if err == nil {
		err = pwriteFull(f.fd, buf, off)
	}
	if err != nil {
		return fmt.Errorf("copy %s: %w", f.a.root.display(f.entry.Path), err)
	}
	return nil
}

func pwriteFull(fd int, b []byte, off int64) error {
	for len(b) > 0 {
		n, err := retry(func() (int, error) { return unix.Pwrite(fd, b, off) })
		if err != nil {
			return err
		}
		b, off = b[n:], off+int64(n)
	}
	return nil
}

// arrive writes a unit to its place.
func (f *file) arrive(w *writerState, off int64, data []byte) error {
	err := func() error {
		if !f.whole {
			return pwriteFull(f.fd, data, off)
		}
		dir, name, err := w.dirs.parent(f.entry.Path)
		if err != nil {
			return err
		}
		if err := f.create(dir, name); err != nil {
			return err
		}
		f.a.win.opened(f)
		return pwriteFull(f.fd, data, 0)
	}()
	if err != nil {
		return fmt.Errorf("write %s: %w", f.a.root.display(f.entry.Path), err)
	}
	f.a.written.Add(int64(len(data)))
	f.a.back.wrote(int64(len(data)))
	return f.release(w)
}

// release counts a piece as done; after the last one the file is finished.
func (f *file) release(w *writerState) error {
	if f.pending.Add(-1) > 0 {
		return nil
	}
	if w == nil {
		w = f.a.writer()
		defer f.a.done(w)
	}
	if f.lost.Load() != nil {
		return f.drop(w)
	}
	err := f.a.setFileMetadata(w, f.fd, &f.entry)
	f.a.back.wrote(writebackEntry)
	f.a.win.closed(f)
	return errors.Join(err, unix.Close(f.fd))
}
