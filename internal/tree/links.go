package tree

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"lifeboat/internal/catalog"
)

// findForeign is the pass between removing and writing: it finds the link groups
// that are to change and whose file has more names on disk than the target gives
// it. What else it is called, outside of the tree or beside what is wanted, is
// somebody's: such a file is made anew and its names of the target are linked to
// it, so that nothing is written through a link.
func (a *applier) findForeign(ctx context.Context) error {
	type group struct {
		st  Stat
		own uint32 // names of the target's that are links of this file
	}
	groups := map[string]*group{}
	for _, path := range a.plan.linked {
		g := &group{own: 1}
		err := a.statPath(path, &g.st)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
		if err == nil && g.st.Nlink > 1 {
			groups[path] = g
		}
	}
	if len(groups) == 0 {
		return nil
	}
	err := catalog.Merge(ctx, nil, a.target, func(_, e *catalog.Entry) error {
		if e.Type != catalog.HardLink || a.excluded(e.Path) || !a.inScope(e.Path) {
			return nil
		}
		g := groups[e.Target]
		if g == nil {
			return nil
		}
		var st Stat
		switch err := a.statPath(e.Path, &st); {
		case err == nil && st.Ino == g.st.Ino && st.Dev == g.st.Dev:
			g.own++
		case err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR):
			return err
		}
		return nil
	})
	for path, g := range groups {
		if g.st.Nlink > g.own {
			a.foreign[path] = struct{}{}
		}
	}
	return err
}

// hasForeignNames reports whether what is at the path of a change has names that
// are not the target's.
func (a *applier) hasForeignNames(c catalog.Change) (bool, error) {
	if c.A.LinkGroup || c.B.LinkGroup {
		_, foreign := a.foreign[c.B.Path]
		return foreign, nil
	}
	var st Stat
	err := a.statPath(c.B.Path, &st)
	return st.Nlink > 1, err
}

// sameButGroup reports whether metadata differs in nothing but whether the tree
// holds other names of the file, of which the file itself knows nothing.
func sameButGroup(c catalog.Change) bool {
	if c.Kind != catalog.Metadata {
		return false
	}
	was := *c.A
	was.LinkGroup = c.B.LinkGroup
	return catalog.SameMetadata(&was, c.B)
}

func (a *applier) statPath(path string, st *Stat) error {
	dir, name, err := a.dirs.parent(path)
	if err != nil {
		return err
	}
	return statAt(dir, name, st)
}
