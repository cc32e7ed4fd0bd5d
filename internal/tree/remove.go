package tree

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"lifeboat/internal/catalog"
)

// remove is the first pass: what is not in the target, or is of another type
// there, goes. It makes room before anything is written. Sources of copies stay
// until the end.
func (a *applier) remove(ctx context.Context) error {
	gone := "" // the directory removed last
	return a.diff(ctx, func(c catalog.Change) error {
		if c.A == nil || gone != "" && catalog.Under(c.A.Path, gone) {
			return nil
		}
		path := c.A.Path
		replaced := c.B != nil && c.A.Type != c.B.Type
		if c.B != nil && !replaced {
			return nil
		}
		if path == "" {
			return fmt.Errorf("the root cannot be replaced")
		}
		if c.A.Type == catalog.Directory {
			gone = c.A.Clone().Path
		}
		late := false
		if !replaced {
			_, source := a.plan.sources[path]
			_, above := a.plan.above[path]
			late = source || above
		}
		if late {
			// Only the sources are spared, their siblings go now.
			a.late = append(a.late, c.A.Clone().Path)
		}
		if err := a.removeTree(ctx, path, !replaced); err != nil {
			return err
		}
		if replaced && c.B.LinkGroup {
			a.remade[c.B.Clone().Path] = struct{}{}
		}
		return nil
	})
}

// removeLate removes the sources of copies, once nothing needs them.
func (a *applier) removeLate(ctx context.Context) error {
	for _, path := range a.late {
		if err := a.removeTree(ctx, path, false); err != nil {
			return err
		}
		a.touched[catalog.Parent(path)] = struct{}{}
	}
	return nil
}

// removeTree removes path and all below it, save for what is excluded, and for
// sources of copies if spare says so. What is gone already is fine.
func (a *applier) removeTree(ctx context.Context, path string, spare bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if a.excluded(path) {
		return nil
	}
	if spare {
		if _, ok := a.plan.sources[path]; ok {
			return nil
		}
	}
	dir, name, err := a.dirs.parent(path)
	if err == nil {
		err = unix.Unlinkat(dir, name, 0)
	}
	switch {
	case err == nil:
		a.removed.Add(1)
		return nil
	case errors.Is(err, unix.ENOENT):
		return nil
	case !errors.Is(err, unix.EISDIR):
		return fmt.Errorf("remove %s: %w", a.root.display(path), err)
	}
	names, err := a.list(path)
	if err != nil {
		return fmt.Errorf("remove %s: %w", a.root.display(path), err)
	}
	for _, n := range names {
		if err := a.removeTree(ctx, join(path, n), spare); err != nil {
			return err
		}
	}
	a.dirs.forget(path)
	if dir, name, err = a.dirs.parent(path); err == nil {
		err = unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
	}
	_, holds := a.above[path]
	switch {
	case err == nil:
		a.removed.Add(1)
	case errors.Is(err, unix.ENOENT):
	case (spare || holds) && errors.Is(err, unix.ENOTEMPTY):
	default:
		return fmt.Errorf("remove directory %s: %w", a.root.display(path), err)
	}
	return nil
}

// list returns the names in a directory.
func (a *applier) list(path string) ([]string, error) {
	fd, err := a.root.open(path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	raw, offs, err := readNames(fd, make([]byte, 32<<10))
	if err != nil {
		return nil, err
	}
	d := directory{names: raw, offs: offs}
	names := make([]string, len(offs))
	for i := range names {
		names[i] = string(d.name(i))
	}
	return names, nil
}
