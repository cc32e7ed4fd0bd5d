package engine

import (
	"context"
	"errors"
	"path/filepath"
	"strings"

	"lifeboat/internal/archive"
	"lifeboat/internal/dr"
)

const notReached = "the archive API reaches it through a container that mounts the whole of it only, and the system has none"

// kept says what the degraded mode does not keep of a tree; empty in any other.
func (d *discovery) kept(layer bool) string {
	if !d.sel.Archive {
		return ""
	}
	return archive.Kept(layer)
}

// reachByArchive finds for each volume and bind a container through which the
// archive API reaches it, and what the binds are.
func (d *discovery) reachByArchive(ctx context.Context) {
	for i := range d.sys.Volumes {
		v := &d.sys.Volumes[i]
		_, v.Via = d.via(ctx, func(m dr.Mount) bool { return m.Type == "volume" && m.Name == v.Name })
	}
	for i := range d.sys.Binds {
		b := &d.sys.Binds[i]
		b.Kind, b.Via = d.via(ctx, func(m dr.Mount) bool { return m.Type == "bind" && filepath.Clean(m.Source) == b.Source })
		b.File = b.Kind == "file"
	}
}

// via finds the container that shows most of what is mounted: one in which
// nothing, or the least, is mounted on top.
func (d *discovery) via(ctx context.Context, fits func(dr.Mount) bool) (kind string, best *Via) {
	kind = "unknown"
	fewest := 0
	for i, c := range d.sys.Containers {
		var all []string
		for _, m := range c.Mounts {
			all = append(all, m.Destination)
		}
		for _, m := range c.Mounts {
			if !fits(m) || d.isPart(i, m.Destination) {
				continue
			}
			k, real, err := d.e.pathKind(ctx, c.ID, m.Destination)
			if err != nil {
				if errors.Is(err, dr.ErrNotFound) && best == nil {
					kind = "missing"
				}
				d.e.log.Info("a mount cannot be looked at", "container", c.Name, "destination", m.Destination, "error", err)
				continue
			}
			nested := 0
			for _, o := range all {
				if o != m.Destination && under(o, m.Destination) {
					nested++
				}
			}
			if best == nil || nested < fewest {
				kind, best, fewest = k, &Via{Container: c.ID, Path: real, Mounts: all}, nested
			}
		}
	}
	return kind, best
}

// isPart reports whether a mount shows only a part of its volume.
func (d *discovery) isPart(container int, destination string) bool {
	for _, m := range d.cs[container].HostConfig.Mounts {
		if m.VolumeOptions != nil && m.VolumeOptions.Subpath != "" && strings.TrimSuffix(m.Target, "/") == strings.TrimSuffix(destination, "/") {
			return true
		}
	}
	return false
}
