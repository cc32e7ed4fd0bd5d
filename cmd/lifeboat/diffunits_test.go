package main

import (
	"testing"

	"lifeboat/internal/catalog"
	"lifeboat/internal/dr"
)

// TestUnitBytes: what differs of a file is told by its units, wherever they lie.
func TestUnitBytes(t *testing.T) {
	t.Parallel()
	entry := func(ids ...byte) *catalog.Entry {
		e := &catalog.Entry{Type: catalog.File}
		for _, id := range ids {
			ref := catalog.Ref{ID: dr.UnitID{id}, Len: 100, Hole: id == 0}
			e.Refs, e.Size = append(e.Refs, ref), e.Size+ref.Len
		}
		return e
	}
	for name, tc := range map[string]struct {
		a, b        *catalog.Entry
		fresh, gone int64
	}{
		"a page":      {entry(1, 2, 3, 4), entry(1, 2, 9, 4), 100, 100},
		"moved along": {entry(1, 2, 3), entry(7, 1, 2, 3), 100, 0},
		"cut off":     {entry(1, 2, 3), entry(1), 0, 200},
		"a hole":      {entry(1, 2), entry(1, 0), 0, 100},
		"all":         {entry(1), entry(2, 3), 200, 100},
	} {
		fresh, gone, err := unitBytes(t.Context(), nil, nil, tc.a, tc.b)
		if err != nil || fresh != tc.fresh || gone != tc.gone {
			t.Errorf("%s: %d new, %d gone, %v; want %d, %d", name, fresh, gone, err, tc.fresh, tc.gone)
		}
	}
}
