package main

import (
	"context"
	"encoding/binary"
	"errors"

	"lifeboat/internal/catalog"
	"lifeboat/internal/dr"
)

// maxDiffUnits bounds how many units of a file are remembered for a comparison, so
// that memory is bounded (some 32 MiB); a larger file counts as a whole.
const maxDiffUnits = 1 << 20

var errManyUnits = errors.New("more units than are compared")

// unitBytes says how many bytes of a file's content are only in the second of two
// versions of it, and how many only in the first, by units: a unit that both have
// counts as the same wherever in the file it lies. Holes are no content.
func unitBytes(ctx context.Context, a, b *catalog.Reader, x, y *catalog.Entry) (fresh, gone int64, err error) {
	before, err := unitsOf(ctx, a, x)
	if err == nil {
		var after map[uint64]int64
		if after, err = unitsOf(ctx, b, y); err == nil {
			return only(after, before), only(before, after), nil
		}
	}
	if errors.Is(err, errManyUnits) {
		return y.Size, x.Size, nil
	}
	return 0, 0, err
}

// unitsOf are a file's units by 8 bytes of their ids, which are hashes, with their
// bytes in all.
func unitsOf(ctx context.Context, r *catalog.Reader, e *catalog.Entry) (map[uint64]int64, error) {
	out := map[uint64]int64{}
	err := r.Content(ctx, e, func(_ int64, ref catalog.Ref) error {
		if ref.Hole {
			return nil
		}
		if len(out) == maxDiffUnits {
			return errManyUnits
		}
		out[unitKey(ref.ID)] += ref.Len
		return nil
	})
	return out, err
}

func unitKey(id dr.UnitID) uint64 { return binary.LittleEndian.Uint64(id[:8]) }

// only sums what is in the first alone.
func only(a, b map[uint64]int64) (n int64) {
	for id, size := range a {
		if _, both := b[id]; !both {
			n += size
		}
	}
	return n
}
