// Package apply brings a directory or a single file on disk to the state of a
// catalog, writing only what differs (docs/adr/0005).
//
// Apply is the entry point. It is told what is there now by another catalog,
// fetches the units that are missing at their place, and writes them into the
// files where they are. The package decides nothing about whose data it
// overwrites and does not find out what is there (package tree does).
package apply

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"lifeboat/internal/catalog"
	"lifeboat/internal/dr"

	"golang.org/x/sys/unix"
)

// Source gives units out, authenticated. Fetch calls fn concurrently and in any
// order; data is valid only during the call.
type Source interface {
	Fetch(ctx context.Context, refs []dr.UnitRef, fn func(i int, data []byte) error) error
}

// Options of Apply.
type Options struct {
	// Root is the directory to change; it exists. With File it is the path of a
	// single file, whose directory exists.
	Root string
	File bool
	// Overlay writes whiteouts as 0:0 devices and opaque directories as the
	// overlay attribute, as the upper directory of an unmounted container has
	// them. Without it whiteouts are left out.
	Overlay bool
	// Current describes what is below Root now, nil for nothing. What it says
	// must be true: equal entries are not looked at.
	Current *catalog.Reader
	Target  *catalog.Reader
	Source  Source
	// Keep chooses entries by path; the others are left as if the target did not
	// have them and nothing were there. Nil keeps all. Directories above a kept
	// entry must be kept.
	Keep func(path string) bool
	// Progress is told of bytes of file content that are as wanted now; may be
	// nil. Calls may come from several goroutines.
	Progress func(n int64)
	// Denied is told of what could not be kept for lack of privilege or of
	// support by the file system; the entry is written without it. Nil makes
	// such things errors.
	Denied func(path string, err error)
}

// Stats is what an Apply did.
type Stats struct {
	Created, Changed, Removed int64
	BytesFetched              int64
	BytesWritten              int64
}

// Apply changes what is below Root to what Target says. It can be run again
// after it was cut off, with Current taken anew. Everything is on disk when it
// returns without an error. Nothing outside Root is touched: no symbolic link
// is followed and no mount point crossed (invariant 10).
func Apply(ctx context.Context, o Options) (Stats, error) {
	if o.Progress == nil {
		o.Progress = func(int64) {}
	}
	dir := o.Root
	a := &applier{o: o, remade: map[string]bool{}}
	if o.File {
		dir, a.base = filepath.Split(filepath.Clean(o.Root))
	}
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return a.stats, fmt.Errorf("open %s: %w", dir, err)
	}
	a.dirs = newDirs(root)
	defer a.dirs.close()
	if err := a.remove(ctx); err != nil {
		return a.stats, err
	}
	if err := a.write(ctx); err != nil {
		a.win.abandon()
		return a.stats, err
	}
	if err := a.directories(ctx); err != nil {
		return a.stats, err
	}
	return a.stats, a.sync(dir)
}

// applier is one run.
type applier struct {
	o    Options
	base string // with File: name of the file
	dirs *dirs
	win  window
	// remade holds firsts of hard link groups that were written anew, so that
	// their links have to be made again.
	remade map[string]bool
	stats  Stats
}

// denied passes over what a lesser mode allows to be lost.
func (a *applier) denied(path, what string, err error) error {
	if err == nil {
		return nil
	}
	err = fmt.Errorf("%s %q: %w", what, path, err)
	if a.o.Denied != nil && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EACCES)) {
		a.o.Denied(path, err)
		return nil
	}
	return err
}

// at gives the directory and name of an entry.
func (a *applier) at(path string) (dirfd int, name string, err error) {
	if path == "" && a.o.File {
		return a.dirs.root, a.base, nil
	}
	if path == "" {
		return a.dirs.root, ".", nil
	}
	if a.o.File {
		return -1, "", fmt.Errorf("catalog of a single file has the entry %q: %w", path, dr.ErrTampered)
	}
	dirfd, err = a.dirs.open(catalog.Parent(path))
	return dirfd, filepath.Base(path), err
}

// replaces reports whether b cannot be made from a in place.
func replaces(a, b *catalog.Entry) bool {
	if a.Type != b.Type {
		return true
	}
	switch a.Type {
	case catalog.Symlink, catalog.HardLink:
		return a.Target != b.Target
	case catalog.CharDevice, catalog.BlockDevice:
		return a.Major != b.Major || a.Minor != b.Minor
	case catalog.File:
		// A name leaves a group of hard links only by becoming another file.
		return a.LinkGroup && !b.LinkGroup
	}
	return false
}

// remove takes away what the target does not have or has as another thing.
func (a *applier) remove(ctx context.Context) error {
	gone := "" // directory that was removed as a whole
	return a.merge(ctx, func(cur, want *catalog.Entry) error {
		if cur == nil || gone != "" && catalog.Under(cur.Path, gone) {
			return nil
		}
		if want != nil && !replaces(cur, want) {
			return nil
		}
		if cur.Path == "" && !a.o.File {
			return fmt.Errorf("%s is a %v and should be a %v: %w", a.o.Root, cur.Type, want.Type, unix.ENOTDIR)
		}
		dirfd, name, err := a.at(cur.Path)
		if err != nil {
			return err
		}
		if cur.Type == catalog.Directory {
			gone = cur.Path
			a.dirs.forget(cur.Path)
		}
		a.stats.Removed++
		return removeAll(dirfd, name, cur.Path)
	})
}

// write creates and changes everything but the metadata of directories.
func (a *applier) write(ctx context.Context) error {
	a.win = window{a: a}
	err := a.merge(ctx, func(cur, want *catalog.Entry) error {
		if want == nil {
			return nil
		}
		if cur != nil && replaces(cur, want) {
			cur = nil
		}
		return a.entry(ctx, cur, want)
	})
	if err != nil {
		return err
	}
	return a.win.flush(ctx)
}

func (a *applier) entry(ctx context.Context, cur, want *catalog.Entry) error {
	switch want.Type {
	case catalog.File:
		return a.file(ctx, cur, want)
	case catalog.Directory:
		return a.mkdir(cur, want)
	case catalog.HardLink:
		return a.link(cur, want)
	case catalog.Whiteout:
		if !a.o.Overlay {
			return nil
		}
	}
	if cur != nil && catalog.SameMetadata(cur, want) {
		return nil
	}
	dirfd, name, err := a.at(want.Path)
	if err != nil {
		return err
	}
	if cur == nil {
		a.stats.Created++
		if want.LinkGroup {
			a.remade[want.Path] = true
		}
		if err := a.special(dirfd, name, want); err != nil {
			return a.denied(want.Path, "create "+want.Type.String(), err)
		}
	} else {
		a.stats.Changed++
	}
	return a.metadata(dirfd, name, want, xattrsOf(cur))
}

// special creates what is neither file nor directory.
func (a *applier) special(dirfd int, name string, e *catalog.Entry) error {
	switch e.Type {
	case catalog.Symlink:
		return unix.Symlinkat(e.Target, dirfd, name)
	case catalog.CharDevice:
		return unix.Mknodat(dirfd, name, unix.S_IFCHR|0o600, int(unix.Mkdev(e.Major, e.Minor)))
	case catalog.BlockDevice:
		return unix.Mknodat(dirfd, name, unix.S_IFBLK|0o600, int(unix.Mkdev(e.Major, e.Minor)))
	case catalog.Fifo:
		return unix.Mknodat(dirfd, name, unix.S_IFIFO|0o600, 0)
	case catalog.Socket:
		return unix.Mknodat(dirfd, name, unix.S_IFSOCK|0o600, 0)
	case catalog.Whiteout:
		return unix.Mknodat(dirfd, name, unix.S_IFCHR, 0)
	}
	return fmt.Errorf("entry of unknown type %v: %w", e.Type, dr.ErrTampered)
}

func (a *applier) mkdir(cur, want *catalog.Entry) error {
	if cur != nil || want.Path == "" {
		return nil
	}
	dirfd, name, err := a.at(want.Path)
	if err != nil {
		return err
	}
	a.stats.Created++
	if err := unix.Mkdirat(dirfd, name, 0o700); err != nil {
		return fmt.Errorf("create directory %q: %w", want.Path, err)
	}
	return nil
}

// link makes a hard link to the first of its group, which stands before it.
func (a *applier) link(cur, want *catalog.Entry) error {
	if cur != nil && !a.remade[want.Target] {
		return nil
	}
	dirfd, name, err := a.at(want.Path)
	if err != nil {
		return err
	}
	if cur != nil {
		if err := unix.Unlinkat(dirfd, name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("replace hard link %q: %w", want.Path, err)
		}
	}
	a.stats.Created++
	firstDir, err := a.dirs.openKeep(catalog.Parent(want.Target))
	if err != nil {
		return fmt.Errorf("hard link %q: %w", want.Path, err)
	}
	defer unix.Close(firstDir)
	if err := unix.Linkat(firstDir, filepath.Base(want.Target), dirfd, name, 0); err != nil {
		return fmt.Errorf("hard link %q to %q: %w", want.Path, want.Target, err)
	}
	return nil
}

// directories sets the metadata of directories, deepest first as far as it
// matters: a directory's times change with its content only, which is done.
func (a *applier) directories(ctx context.Context) error {
	return a.merge(ctx, func(cur, want *catalog.Entry) error {
		if want == nil || want.Type != catalog.Directory {
			return nil
		}
		if cur != nil && replaces(cur, want) {
			cur = nil
		}
		dirfd, name, err := a.at(want.Path)
		if err != nil {
			return err
		}
		if cur != nil && catalog.SameMetadata(cur, want) {
			return a.times(dirfd, name, want) // children may have moved them
		}
		return a.metadata(dirfd, name, want, xattrsOf(cur))
	})
}

// sync makes everything durable at once.
func (a *applier) sync(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}

// merge is catalog.Merge over readers of its own, so that calls can be nested.
func (a *applier) merge(ctx context.Context, fn func(cur, want *catalog.Entry) error) error {
	var c *catalog.Reader
	if a.o.Current != nil {
		c = a.o.Current.Clone()
	}
	return catalog.Merge(ctx, c, a.o.Target.Clone(), func(cur, want *catalog.Entry) error {
		e := want
		if e == nil {
			e = cur
		}
		if a.o.Keep != nil && !a.o.Keep(e.Path) {
			return nil
		}
		return fn(cur, want)
	})
}
