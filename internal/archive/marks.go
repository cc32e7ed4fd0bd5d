package archive

import (
	"maps"
	"path"
	"slices"

	"lifeboat/internal/catalog"
	"lifeboat/internal/dr"
)

// isMark reports whether an entry is the mark of a restore that is not at its end. It
// is neither captured nor brought back.
func isMark(e *catalog.Entry) bool {
	return (e.Type == catalog.File || e.Type == catalog.HardLink) && dr.IsRestoreMark(path.Base(e.Path))
}

// note remembers that a mark is there.
func (c *Capture) note(mark string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.marks != nil { // the second pass tells
		c.marks[mark] = struct{}{}
	}
}

// halfRestored are the directories that hold marks, in order.
func (c *Capture) halfRestored() []string {
	dirs := map[string]struct{}{}
	for m := range c.marks {
		dirs[catalog.Parent(m)] = struct{}{}
	}
	return slices.Sorted(maps.Keys(dirs))
}
