package tree

import (
	"bytes"
	"maps"
	"path"
	"slices"

	"lifeboat/internal/catalog"
	"lifeboat/internal/dr"
)

// marksHalfRestored reports whether an entry is the mark of a restore that is not at
// its end, and takes note of it. A capture leaves it out: what the snapshot is restored
// into later was never cut off. A local catalog shows it, so that Apply takes it away.
func (c *Capture) marksHalfRestored(v *Visit) bool {
	if c.local || !v.Stat.IsRegular() {
		return false
	}
	base := v.Path[bytes.LastIndexByte(v.Path, '/')+1:]
	if len(base) == 0 || base[0] != '.' || !dr.IsRestoreMark(string(base)) {
		return false
	}
	c.marks[string(v.Path)] = struct{}{}
	return true
}

// forgetMarks drops what was noted at path and below it.
func (c *Capture) forgetMarks(path string) {
	maps.DeleteFunc(c.marks, func(m string, _ struct{}) bool { return m == path || catalog.Under(m, path) })
}

// halfRestored are the directories that hold marks, in order.
func (c *Capture) halfRestored() []string {
	dirs := map[string]struct{}{}
	for m := range c.marks {
		dirs[catalog.Parent(m)] = struct{}{}
	}
	return slices.Sorted(maps.Keys(dirs))
}

// isMark reports whether an entry of a catalog is a mark that a capture of an older
// version took with it. It is not brought back.
func isMark(e *catalog.Entry) bool { return isFile(e) && dr.IsRestoreMark(path.Base(e.Path)) }
