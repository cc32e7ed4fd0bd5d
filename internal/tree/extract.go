package tree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"lifeboat/internal/catalog"
	"lifeboat/internal/dr"
)

// ExtractOptions say how files of a snapshot are laid out for people.
type ExtractOptions struct {
	// Path takes only this entry and what is below it, with the directories
	// that lead there; "" takes all.
	Path string
	// Match takes only the entries for which it is true, with the directories that
	// lead there; nil takes all. It is called for each path, some twice.
	Match func(path string) bool
	// Whiteouts says what becomes of deletions in a writable layer.
	Whiteouts WhiteoutMode
	// Denied is told what could not be kept (owners without privilege, say);
	// nil makes such a thing an error. Called concurrently.
	Denied func(path, what string, err error)
	// UnitID is the keyed hash of the repository.
	UnitID func(data []byte) dr.UnitID
	// TempDir takes temporary files; "" is the system's.
	TempDir string
	// Resume goes on with what an Extract of the same has left that was cut off:
	// what is there is read and hashed with CutKey, and only the rest is fetched.
	// What such a run cannot have made is an error that wraps dr.ErrUsage, before
	// anything is written.
	Resume bool
	CutKey [32]byte
	// InPlace writes over what is there: what differs is brought to the state of the
	// target, what is the same is read, and not written. What the target does not
	// have stays, save for Remove. A directory where the target has something else,
	// and anything else than a directory on the way to Path, is an error that wraps
	// dr.ErrUsage, before anything is changed. Goes without Salvage: a file that
	// cannot be had whole is not touched to be removed.
	InPlace bool
	// Remove takes away what is in the way of InPlace, and what the target does not
	// have of what is wanted.
	Remove bool
	// Exclude lists paths that are the caller's: they are not looked at.
	Exclude []string
	// Salvage goes on past what is damaged; nil ends at the first of it.
	Salvage *Salvage
	// Progress may be nil. Called concurrently.
	Progress func(ApplyProgress)
}

// Extract writes a tree, or a part of it, below dir, which is absent or empty
// unless Resume or InPlace is set: what is there is nobody's to overwrite. A tree that is a
// single file is written to dir as its path. Opaque directories become ordinary
// ones. Without root it keeps what it can and reports the rest to Denied. It may
// be cut off anywhere and run again with Resume (invariant 8).
func Extract(ctx context.Context, dir string, target *catalog.Reader, src UnitFetcher, o ExtractOptions) (_ ApplyStats, err error) {
	if err := catalog.CheckPath(o.Path); err != nil {
		return ApplyStats{}, fmt.Errorf("extract: %w: %w", err, dr.ErrUsage)
	}
	if o.Path != "" {
		if _, err := target.Clone().Lookup(ctx, o.Path); err != nil {
			return ApplyStats{}, fmt.Errorf("extract: %w", err)
		}
	}
	if !o.Resume && !o.InPlace {
		if err := vacant(dir, o.Exclude); err != nil {
			return ApplyStats{}, fmt.Errorf("extract to %s: %w", dir, err)
		}
	}
	// A directory of its own: what is found out of the tree is of no use later.
	state, err := os.MkdirTemp(o.TempDir, "lifeboat-extract-")
	if err != nil {
		return ApplyStats{}, fmt.Errorf("extract to %s: %w", dir, err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(state)) }()
	var s *salvage
	if o.Salvage != nil {
		s = newSalvage(*o.Salvage, o.Path)
		target = target.CloneLenient(s.pass)
	}
	a, err := newApplier(ctx, dir, target, src, ApplyOptions{
		StateDir: state, CutKey: o.CutKey, UnitID: o.UnitID, Whiteouts: o.Whiteouts, Denied: o.Denied, Progress: o.Progress,
		Exclude: o.Exclude, salvage: s,
	})
	if err != nil {
		return ApplyStats{}, fmt.Errorf("extract to %s: %w", dir, err)
	}
	a.only, a.match, a.ownOnly = o.Path, o.Match, o.Resume && !o.InPlace
	a.place = inPlace{on: o.InPlace, remove: o.Remove}
	if err := a.findParents(ctx); err != nil {
		return ApplyStats{}, errors.Join(fmt.Errorf("extract: %w", err), a.close())
	}
	err = errors.Join(a.run(ctx, nil), a.close())
	if err != nil {
		return a.result(), fmt.Errorf("extract to %s: %w", dir, err)
	}
	return a.result(), nil
}

// vacant reports an error for anything but an absent path or a directory that
// holds nothing but what is excluded.
func vacant(path string, exclude []string) error {
	names, err := os.ReadDir(path)
	names = slices.DeleteFunc(names, func(e os.DirEntry) bool { return slices.Contains(exclude, e.Name()) })
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case errors.Is(err, unix.ENOTDIR):
		return fmt.Errorf("it is a file; name a directory that does not exist yet: %w", dr.ErrUsage)
	case err != nil:
		return err
	case len(names) > 0:
		return fmt.Errorf("the directory is not empty; name one that is, or that does not exist yet: %w", dr.ErrUsage)
	}
	return nil
}

// admit looks whether what is there may be changed.
func (a *applier) admit(ctx context.Context) error {
	switch {
	case a.place.on:
		return a.obstacles(ctx)
	case a.ownOnly:
		return a.strangers(ctx)
	}
	return nil
}

// strangers looks for what is there and no earlier Extract of the target made.
func (a *applier) strangers(ctx context.Context) error {
	return a.diff(ctx, func(c catalog.Change) error {
		if c.A == nil || c.B != nil && c.A.Type == c.B.Type || c.B != nil && isFile(c.A) && isFile(c.B) {
			return nil
		}
		return fmt.Errorf("there is %s, which is not of what was being extracted here; move it away: %w", a.root.display(c.A.Path), dr.ErrUsage)
	})
}

// isFile: which name of a file is its first depends on which of them are there.
func isFile(e *catalog.Entry) bool { return e.Type == catalog.File || e.Type == catalog.HardLink }

// inScope reports whether an entry is wanted: the path itself, what is below
// it, and the directories above.
func (a *applier) inScope(path string) bool {
	if a.match != nil && !a.match(path) && !a.parents[path] {
		return false
	}
	return a.only == "" || path == a.only || catalog.Under(path, a.only) || catalog.Under(a.only, path)
}

// findParents looks for the directories that lead to what match chooses. The
// error wraps dr.ErrNotFound where it chooses nothing.
func (a *applier) findParents(ctx context.Context) error {
	if a.match == nil {
		return nil
	}
	a.parents = map[string]bool{}
	found := false
	in := a.target.Clone()
	for {
		e, err := in.Next(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if !a.match(e.Path) {
			continue
		}
		found = true
		for p := e.Path; p != ""; {
			p = catalog.Parent(p)
			if a.parents[p] {
				break
			}
			a.parents[p] = true
		}
	}
	if !found && !a.o.salvage.blind() {
		return fmt.Errorf("nothing in the tree fits: %w", dr.ErrNotFound)
	}
	return nil
}

// unlinked turns a link to a file that is not wanted into a file of its own.
func (a *applier) unlinked(ctx context.Context, e *catalog.Entry) (*catalog.Entry, error) {
	wanted := (a.only == "" || e.Target == a.only || catalog.Under(e.Target, a.only)) && !dr.IsRestoreMark(path.Base(e.Target))
	if e.Type != catalog.HardLink || (wanted && (a.match == nil || a.match(e.Target))) {
		return e, nil
	}
	t, err := a.target.Lookup(ctx, e.Target)
	if err != nil {
		return nil, err
	}
	t.Path, t.LinkGroup = e.Path, false
	return &t, nil
}
