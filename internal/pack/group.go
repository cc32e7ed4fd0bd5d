package pack

import (
	"math/bits"
	"slices"

	"lifeboat/internal/dr"
)

const (
	// GroupSize is the uncompressed size, in bytes, above which a group of small
	// units is not filled further.
	GroupSize = 1 << 20
	// MaxGroup is the largest uncompressed group: one unit of the largest size.
	MaxGroup = dr.MaxUnit
	// PayloadRoom is how much memory the payload of a group of GroupSize may need
	// while it is encoded.
	PayloadRoom = GroupSize + 64
	// MaxGroupUnits bounds the units of one group that is written.
	MaxGroupUnits = 4096
)

// Group is units that are compressed and sealed together, one after the other.
// Not safe for concurrent use.
type Group struct {
	Units []dr.UnitRef
	// Sorted says that only units for which Compressible holds are in it: it is
	// compressed without looking first whether that is worth it.
	Sorted bool

	raw []byte // the payload if nothing is compressed: codec byte and body
}

// NewGroup returns an empty group with room for a body of so many bytes.
func NewGroup(room int) *Group {
	return &Group{raw: append(make([]byte, 0, 1+room), codecRaw)}
}

// Body is the units' bytes, in the group's memory.
func (g *Group) Body() []byte { return g.raw[1:] }

// Room is how long the body can get without new memory.
func (g *Group) Room() int { return cap(g.raw) - 1 }

// Reset empties the group and keeps its memory.
func (g *Group) Reset() { g.raw, g.Units, g.Sorted = g.raw[:1], g.Units[:0], false }

// Fits reports whether a unit of n bytes may be added: always into an empty
// group.
func (g *Group) Fits(n int) bool {
	return len(g.Units) == 0 || (len(g.Body())+n <= GroupSize && len(g.Units) < MaxGroupUnits)
}

// Add appends a unit; data is copied.
func (g *Group) Add(id dr.UnitID, data []byte) {
	g.raw = append(g.raw, data...)
	g.Units = append(g.Units, dr.UnitRef{ID: id, Len: uint32(len(data))})
}

// Padme rounds n up to the next size of the Padmé series, so that a size tells
// at most the order of magnitude and a few bits (at most 12 % more, 3 % at
// 8 MiB). Nikitin et al., "Reducing Metadata Leakage from Encrypted Files and
// Communication with PURBs", 2019.
func Padme(n int64) int64 {
	if n < 2 {
		return n
	}
	e := bits.Len64(uint64(n)) - 1 // floor(log2 n)
	s := bits.Len64(uint64(e))
	mask := int64(1)<<max(e-s, 0) - 1
	return (n + mask) &^ mask
}

// clipUnits copies units for the index, without the spare capacity of a group.
func clipUnits(u []dr.UnitRef) []dr.UnitRef { return slices.Clip(slices.Clone(u)) }
