package tree

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"lifeboat/internal/catalog"
	"lifeboat/internal/dr"
)

// Salvage makes an Extract write all that is whole of a tree of which something is
// damaged, and tell the rest. A file of which anything is lost is not there under its
// name afterwards. Apply has no such mode: a system is started from all of a tree or
// not at all.
type Salvage struct {
	// Damage reports whether an error says that what was asked for is damaged or
	// gone for good. Every other error ends the Extract.
	Damage func(err error) bool
	// Fetch is UnitFetcher.Fetch that tells lost of each unit that is damaged, and
	// goes on. lost is called concurrently; its error ends the Fetch.
	Fetch func(ctx context.Context, refs []dr.UnitRef, fn func(i int, data []byte) error, lost func(i int, err error) error) error
	// Lost is told what could not be written. Called concurrently.
	Lost func(Loss)
}

// Loss is something that an Extract could not write.
type Loss struct {
	// Path in the tree, raw: of a file, or the first that is lost of a List.
	Path string
	// List: a part of the list of files is lost. What it lists, from Path on to
	// before End (to the end of the tree where that is empty), cannot be named.
	List bool
	End  string
	Err  error
}

// salvage is one Extract that passes over what is damaged.
type salvage struct {
	Salvage
	only string // Extract: the path that is wanted

	mu    sync.Mutex
	pages []catalog.Page      // that were passed over
	links map[string]struct{} // paths of files with further names that are not there
	dirs  map[string]struct{} // directories that lost an entry
}

func newSalvage(s Salvage, only string) *salvage {
	return &salvage{Salvage: s, only: only, links: map[string]struct{}{}, dirs: map[string]struct{}{}}
}

// holds reports whether a path is one that a page would list.
func holds(p catalog.Page, path string) bool {
	return catalog.ComparePaths(p.First, path) <= 0 && (p.End == "" || catalog.ComparePaths(path, p.End) < 0)
}

// pass decides about a page that cannot be had, and tells it the first time if it may
// list something that is wanted.
func (s *salvage) pass(p catalog.Page, err error) bool {
	if !s.Damage(err) {
		return false
	}
	s.mu.Lock()
	for _, q := range s.pages {
		if q.First == p.First {
			s.mu.Unlock()
			return true
		}
	}
	s.pages = append(s.pages, p)
	s.mu.Unlock()
	wanted := s.only == "" || catalog.Under(p.First, s.only)
	for path := s.only; !wanted; path = catalog.Parent(path) {
		wanted = holds(p, path)
		if path == "" {
			break
		}
	}
	if wanted {
		s.Lost(Loss{Path: p.First, List: true, End: p.End, Err: err})
	}
	return true
}

// unlisted reports whether a path lies in a part of the list that is lost.
func (s *salvage) unlisted(path string) bool {
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.pages {
		if holds(p, path) {
			return true
		}
	}
	return false
}

// blind reports whether any part of the list is lost.
func (s *salvage) blind() bool {
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.pages) > 0
}

// forgives reports whether an error is damage that is passed over.
func (s *salvage) forgives(ctx context.Context, err error) bool {
	return s != nil && err != nil && ctx.Err() == nil && s.Damage(err)
}

// missing remembers that an entry is not there: what has it as its target is not
// either, and the directory's times have moved.
func (s *salvage) missing(path string, linked bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if linked {
		s.links[path] = struct{}{}
	}
	if path != "" {
		s.dirs[catalog.Parent(path)] = struct{}{}
	}
}

// errEarlier: nothing is known of a file that an earlier run has left.
var errEarlier = errors.New("it is there from an earlier run, and whether it is whole cannot be told: what lists it is damaged")

// spared reports whether what is on disk and in no list that can be read stays: it may
// be whole. Files are told, once.
func (a *applier) spared(e *catalog.Entry) bool {
	s := a.o.salvage
	if !s.unlisted(e.Path) {
		return false
	}
	if !a.counted && e.Type != catalog.Directory {
		s.Lost(Loss{Path: e.Clone().Path, Err: errEarlier})
	}
	return true
}

// ensureParent makes the directories above an entry that lie in a part of the list
// that is lost. Who writes the entry meets whatever else is wrong.
func (a *applier) ensureParent(path string) error {
	if path == "" || a.o.salvage == nil {
		return nil
	}
	dir := catalog.Parent(path)
	if _, _, err := a.dirs.parent(path); !errors.Is(err, unix.ENOENT) || !a.o.salvage.unlisted(dir) {
		return nil
	}
	if err := a.ensureParent(dir); err != nil {
		return err
	}
	return a.make(&catalog.Entry{Path: dir, Type: catalog.Directory}, func(at int, name string) error { return unix.Mkdirat(at, name, 0o700) })
}

// lose notes that a part of a file cannot be had.
func (f *file) lose(err error) { f.lost.CompareAndSwap(nil, &err) }

// drop ends a file of which something is lost: it is not there.
func (f *file) drop(w *writerState) error {
	s, path := f.a.o.salvage, f.entry.Path
	s.missing(path, f.entry.LinkGroup)
	if f.fresh {
		f.a.created.Add(-1)
	}
	s.Lost(Loss{Path: path, Err: *f.lost.Load()})
	if f.fd < 0 {
		return nil
	}
	dir, name, err := w.dirs.parent(path)
	if err == nil {
		err = unix.Unlinkat(dir, name, 0)
	}
	f.a.win.closed(f)
	if err = errors.Join(err, unix.Close(f.fd)); err != nil {
		return fmt.Errorf("take away %s, of which a part is lost: %w", f.a.root.display(path), err)
	}
	return nil
}

// unlinkLost takes away further names of files that are not there, and tells them.
func (a *applier) unlinkLost(ctx context.Context) error {
	s := a.o.salvage
	if s == nil || len(s.links) == 0 {
		return nil
	}
	err := catalog.Merge(ctx, nil, a.target, func(_, e *catalog.Entry) error {
		if e.Type != catalog.HardLink || a.excluded(e.Path) || !a.inScope(e.Path) {
			return nil
		}
		if _, lost := s.links[e.Target]; !lost {
			return nil
		}
		path := e.Clone().Path
		dir, name, err := a.dirs.parent(path)
		if err == nil {
			err = unix.Unlinkat(dir, name, 0)
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("take away %s, another name of a file that is lost: %w", a.root.display(path), err)
		}
		s.missing(path, false)
		s.Lost(Loss{Path: path, Err: fmt.Errorf("it is another name of /%s, which is lost", e.Target)})
		return nil
	})
	return err
}

// touchLost hands the directories that lost an entry to the last pass.
func (a *applier) touchLost(context.Context) error {
	if s := a.o.salvage; s != nil {
		for dir := range s.dirs {
			a.touched[dir] = struct{}{}
		}
	}
	return nil
}

// linkLost reports whether a further name cannot be made because the file is lost;
// unlinkLost tells it.
func (a *applier) linkLost(target string, err error) bool {
	s := a.o.salvage
	if s == nil || !errors.Is(err, unix.ENOENT) {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.links[target] = struct{}{}
	return true
}
