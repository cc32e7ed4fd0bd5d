package engine

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/moby/moby/api/types/container"
)

// Users names the containers that run, or are paused, and have dir, something
// below it or a directory above it mounted, sorted. dir is a path of this process;
// host is that of the engine, whose paths may be others.
func (e *Engine) Users(ctx context.Context, host HostFS, dir string) ([]string, error) {
	all, err := e.listAll(ctx)
	if err != nil {
		return nil, err
	}
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	var names []string
	for _, c := range all {
		if c.State == container.StateExited || c.State == container.StateCreated || c.State == container.StateDead {
			continue
		}
		used := false
		for _, m := range c.Mounts {
			source, err := host.Path(m.Source)
			switch {
			case m.Source == "" || errors.Is(err, fs.ErrNotExist):
				continue
			case err != nil:
				return nil, err
			}
			used = used || within(source, dir) || within(dir, source)
		}
		if used {
			names = append(names, listName(c))
		}
	}
	slices.Sort(names)
	return names, nil
}

// within reports whether the absolute path inner is the file or directory outer or
// lies below it, whatever each is called.
func within(outer, inner string) bool {
	want, err := os.Stat(outer)
	if err != nil {
		return false
	}
	for {
		have, err := os.Stat(inner)
		if err == nil && os.SameFile(want, have) {
			return true
		}
		up := filepath.Dir(inner)
		if up == inner {
			return false
		}
		inner = up
	}
}
