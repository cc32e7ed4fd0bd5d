package capture

import (
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"lifeboat/internal/dr"
)

// HalfRestored is a directory of the system that is marked: a restore into it was cut
// off, or is under way. What the snapshot has of it is a mixture.
type HalfRestored struct {
	// Tree is the tree's key at this site, Path where the directory lies on the engine's
	// host, or in the tree where the host's files are not reached.
	Tree string `json:"tree"`
	Path string `json:"path"`
	// Local is where this process reaches it; "" for nowhere.
	Local string `json:"-"`
}

// halfRestored notes what a tree says of itself, in the coverage report, too.
func (r *run) halfRestored(t *captured) {
	dirs := t.result.HalfRestored
	if len(dirs) == 0 {
		return
	}
	var shown []string
	for _, d := range dirs {
		h := HalfRestored{Tree: t.key, Path: "/" + d}
		if t.path != "" {
			h.Path, h.Local = path.Join(t.path, d), filepath.Join(t.local, d)
		}
		r.half = append(r.half, h)
		shown = append(shown, "/"+d)
	}
	what := fmt.Sprintf("a restore into it was cut off, so that it is a mixture of two states (in it: %s)", strings.Join(shown, ", "))
	list := &r.system.Coverage
	at := slices.IndexFunc(*list, func(c dr.CoverageItem) bool { return c.Object == t.key })
	if at < 0 {
		*list = append(*list, dr.CoverageItem{Object: t.key, Captured: true, Bytes: -1})
		at = len(*list) - 1
	}
	c := &(*list)[at]
	c.Partial = true
	if c.Reason != "" {
		what = c.Reason + "; " + what
	}
	c.Reason = what
}
