// Package cut decides where the content of a file is cut into units
// (docs/format.md, Units).
//
// A Class says how: Whole for small files, Content for files that grow, shrink
// or are replaced (content-defined boundaries that an insertion does not
// move), Fixed for files that are rewritten in place (aligned pieces, so that a
// page written in place makes one new unit). ClassOf chooses by size, name and
// magic. A Cutter holds the gear table, which is derived from the
// repository's cut key: where boundaries fall tells nothing about the content
// to who does not hold the key.
//
// The package does no I/O beyond the io.Reader handed to Pieces, computes no
// ids and knows nothing of holes: the caller cuts each run of data by itself.
// Cutting is not part of the contract with readers, who only follow unit
// references; it may be tuned without a new format version.
package cut

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/zeebo/blake3"
)

// Class is the way a file is cut.
type Class uint8

const (
	// Whole files are one unit. ClassOf gives it to files below WholeBelow.
	Whole Class = iota + 1
	// Content is FastCDC with normalised piece sizes.
	Content
	// Fixed is aligned pieces of FixedPiece bytes.
	Fixed
)

// Sizes in bytes.
const (
	WholeBelow = 256 << 10 // smaller regular files are one unit
	MinPiece   = 256 << 10 // Content: no boundary before
	AvgPiece   = 1 << 20   // Content: the size aimed at
	MaxPiece   = 4 << 20   // Content and Whole: boundary at the latest
	FixedPiece = 32 << 10  // Fixed: every piece but the last
)

// Normalisation: before AvgPiece a boundary needs two more zero bits than the
// average asks for, after it two fewer. The bits are the top ones of the
// rolling hash, which depend on the last 64 bytes.
const (
	shiftBefore = 64 - (20 + 2)
	shiftAfter  = 64 - (20 - 2)
)

func (c Class) String() string {
	switch c {
	case Whole:
		return "whole"
	case Content:
		return "content"
	case Fixed:
		return "fixed"
	}
	return fmt.Sprintf("class %d", uint8(c))
}

// Cutter cuts content for one repository. It is immutable after New and safe
// for concurrent use.
type Cutter struct {
	gear [256]uint64
}

// New returns the cutter of the repository whose cut key is given.
func New(cutKey [32]byte) *Cutter {
	var table [256 * 8]byte
	blake3.DeriveKey("lifeboat v1 gear table", cutKey[:], table[:])
	c := new(Cutter)
	for i := range c.gear {
		c.gear[i] = binary.LittleEndian.Uint64(table[8*i:])
	}
	return c
}

// Next returns the length of the piece at the start of data, or 0 when data
// does not show it yet: then the caller brings more, up to MaxPiece bytes, or
// says atEOF. With MaxPiece bytes, or with atEOF and at least one byte, the
// answer is never 0. It depends on the bytes of the piece and nothing else, so
// not on how much data was shown. Fixed pieces are aligned only if data starts
// at an aligned offset. Next does not allocate.
func (c *Cutter) Next(class Class, data []byte, atEOF bool) int {
	switch class {
	case Fixed:
		if len(data) >= FixedPiece {
			return FixedPiece
		}
	case Whole:
		if len(data) >= MaxPiece {
			return MaxPiece
		}
	default:
		if n := c.boundary(data); n > 0 {
			return n
		}
	}
	if atEOF {
		return len(data)
	}
	return 0
}

// boundary finds the first content-defined boundary of data, or returns 0.
func (c *Cutter) boundary(data []byte) int {
	if len(data) > MaxPiece {
		data = data[:MaxPiece]
	}
	if len(data) <= MinPiece {
		return 0
	}
	end := min(len(data), AvgPiece)
	n, h := c.scan(0, data[MinPiece:end], 1<<shiftBefore)
	if n > 0 {
		return MinPiece + n
	}
	if n, _ = c.scan(h, data[end:], 1<<shiftAfter); n > 0 {
		return end + n
	}
	if len(data) == MaxPiece {
		return MaxPiece
	}
	return 0
}

// scan rolls h over data until it falls below limit and returns how many bytes
// that took, or 0 and the hash so far. Four bytes a turn run about twice as
// fast as one.
func (c *Cutter) scan(h uint64, data []byte, limit uint64) (int, uint64) {
	gear, i := &c.gear, 0
	for ; i+4 <= len(data); i += 4 {
		d := data[i : i+4 : i+4]
		if h = h<<1 + gear[d[0]]; h < limit {
			return i + 1, h
		}
		if h = h<<1 + gear[d[1]]; h < limit {
			return i + 2, h
		}
		if h = h<<1 + gear[d[2]]; h < limit {
			return i + 3, h
		}
		if h = h<<1 + gear[d[3]]; h < limit {
			return i + 4, h
		}
	}
	for ; i < len(data); i++ {
		if h = h<<1 + gear[data[i]]; h < limit {
			return i + 1, h
		}
	}
	return 0, h
}

// Pieces reads r to its end and calls fn for each piece in order. The slice
// belongs to Pieces and is overwritten after fn returns. An error of r or fn
// ends it and is returned as it is; only io.EOF is the end of r, so a source that
// was cut short (io.ErrUnexpectedEOF) is an error, whatever was given to fn
// before. One buffer of 2×MaxPiece is allocated per
// call; use PiecesBuffer to bring one.
func (c *Cutter) Pieces(class Class, r io.Reader, fn func(piece []byte) error) error {
	return c.PiecesBuffer(class, r, nil, fn)
}

// PiecesBuffer is Pieces with the caller's buffer; one that is shorter than
// MaxPiece is replaced.
func (c *Cutter) PiecesBuffer(class Class, r io.Reader, buf []byte, fn func(piece []byte) error) error {
	if len(buf) < MaxPiece {
		buf = make([]byte, 2*MaxPiece)
	}
	start, end, atEOF := 0, 0, false
	for {
		// Cut what is there before reading on, so that a slow reader's data
		// leaves as early as it can.
		for start < end {
			n := c.Next(class, buf[start:end], atEOF)
			if n == 0 {
				break
			}
			if err := fn(buf[start : start+n]); err != nil {
				return err
			}
			start += n
		}
		if atEOF {
			return nil
		}
		if len(buf)-start < MaxPiece {
			end = copy(buf, buf[start:end])
			start = 0
		}
		// Fill up to where Next must answer: asking it again after every
		// short read would scan the same bytes again.
		want := min(len(buf), start+MaxPiece) - end
		n, eof, err := fill(r, buf[end:], want)
		if err != nil {
			return err
		}
		end, atEOF = end+n, eof
	}
}

// maxEmptyReads is how often a reader may give nothing and no error in a row.
const maxEmptyReads = 100

// fill reads at least want bytes, fewer only where r ends. Nothing but io.EOF is
// the end: io.ErrUnexpectedEOF is how a source says that it was cut short, and a
// file that ends there would be a wrong one.
func fill(r io.Reader, buf []byte, want int) (n int, eof bool, err error) {
	for empty := 0; n < want; {
		m, err := r.Read(buf[n:])
		n += m
		switch {
		case err == io.EOF: // bare: a wrapped one is an error, not the end
			return n, true, nil
		case err != nil:
			return n, false, err
		case m > 0:
			empty = 0
		default:
			if empty++; empty == maxEmptyReads {
				return n, false, io.ErrNoProgress
			}
		}
	}
	return n, false, nil
}
