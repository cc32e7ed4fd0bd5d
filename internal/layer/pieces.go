package layer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"

	"lifeboat/internal/cut"
	"lifeboat/internal/dr"
)

// pieceWriter cuts a stream that is written to it into units, content-defined.
// Not safe for concurrent use. Memory: at most two maximal pieces.
type pieceWriter struct {
	ctx    context.Context
	sink   Sink
	cutter *cut.Cutter
	buf    []byte
	refs   []dr.UnitRef
	size   int64
}

func newPieceWriter(ctx context.Context, sink Sink, cutter *cut.Cutter) *pieceWriter {
	return &pieceWriter{ctx: ctx, sink: sink, cutter: cutter}
}

func (w *pieceWriter) Write(p []byte) (int, error) {
	total := len(p)
	w.size += int64(total)
	for len(p) > 0 {
		n := min(len(p), cut.MaxPiece-len(w.buf))
		w.buf = append(w.buf, p[:n]...)
		p = p[n:]
		// Asking only when the answer is certain: asking after every write
		// would scan the same bytes again and again.
		if len(w.buf) == cut.MaxPiece {
			if err := w.cut(false); err != nil {
				return 0, err
			}
		}
	}
	return total, nil
}

// cut stores one piece at least; all of them at the end.
func (w *pieceWriter) cut(atEOF bool) error {
	done := 0
	for done < len(w.buf) {
		n := w.cutter.Next(cut.Content, w.buf[done:], atEOF)
		if n == 0 {
			break
		}
		ref, err := w.sink.Put(w.ctx, w.buf[done:done+n])
		if err != nil {
			return err
		}
		w.refs = append(w.refs, ref)
		done += n
	}
	w.buf = w.buf[:copy(w.buf, w.buf[done:])]
	return nil
}

// Close stores what is left and returns the units in order. The writer can be
// used for another stream afterwards.
func (w *pieceWriter) Close() ([]dr.UnitRef, error) {
	err := w.cut(true)
	refs := w.refs
	w.refs, w.size = nil, 0
	return refs, err
}

// listWriter cuts a stream into units like pieceWriter, but gives the units
// of their list: for streams that may have many.
type listWriter struct {
	pieces *pieceWriter
	list   *pieceWriter
	enc    []byte
}

func newListWriter(ctx context.Context, sink Sink, cutter *cut.Cutter) *listWriter {
	return &listWriter{pieces: newPieceWriter(ctx, sink, cutter), list: newPieceWriter(ctx, sink, cutter)}
}

func (w *listWriter) Write(p []byte) (int, error) {
	n, err := w.pieces.Write(p)
	if err != nil {
		return n, err
	}
	return n, w.spill()
}

// spill moves the refs that there are into the list.
func (w *listWriter) spill() error {
	for _, ref := range w.pieces.refs {
		w.enc = appendRef(w.enc[:0], ref)
		if _, err := w.list.Write(w.enc); err != nil {
			return err
		}
	}
	w.pieces.refs = w.pieces.refs[:0]
	return nil
}

// Close returns the units of the list.
func (w *listWriter) Close() ([]dr.UnitRef, error) {
	refs, err := w.pieces.Close()
	if err != nil {
		return nil, err
	}
	w.pieces.refs = refs
	if err := w.spill(); err != nil {
		return nil, err
	}
	return w.list.Close()
}

// A list of content is a sequence of refs (docs/format.md, Catalog: ref):
// uvarint (length << 1 | hole), then 32 bytes of unit id unless it is a hole.
// A hole stands for that many zero bytes and needs no unit.

func appendRef(b []byte, ref dr.UnitRef) []byte {
	b = binary.AppendUvarint(b, uint64(ref.Len)<<1)
	return append(b, ref.ID[:]...)
}

func appendHole(b []byte, n int64) []byte {
	return binary.AppendUvarint(b, uint64(n)<<1|1)
}

// stretch is one decoded ref: a unit, or hole zero bytes.
type stretch struct {
	ref  dr.UnitRef
	hole int64
}

func (s stretch) len() int64 { return s.hole + int64(s.ref.Len) }

// byteReader is what the decoders of lists and skeletons read from.
type byteReader interface {
	io.Reader
	io.ByteReader
}

// readStretch decodes one ref. It returns io.EOF only before its first byte.
func readStretch(r byteReader) (stretch, error) {
	head, err := readUvarint(r)
	if err != nil {
		return stretch{}, err
	}
	n := head >> 1
	if head&1 == 1 {
		if n == 0 || n > math.MaxInt64/2 {
			return stretch{}, fmt.Errorf("content list: hole of %d bytes: %w", n, dr.ErrTampered)
		}
		return stretch{hole: int64(n)}, nil
	}
	if n == 0 || n > dr.MaxUnit {
		return stretch{}, fmt.Errorf("content list: unit of %d bytes: %w", n, dr.ErrTampered)
	}
	s := stretch{ref: dr.UnitRef{Len: uint32(n)}}
	if _, err := io.ReadFull(r, s.ref.ID[:]); err != nil {
		return stretch{}, truncated("content list", err)
	}
	return s, nil
}

// readUvarint decodes a number of at most 63 bits. It returns io.EOF only
// before the first byte.
func readUvarint(r io.ByteReader) (uint64, error) {
	var v uint64
	for shift := 0; ; shift += 7 {
		b, err := r.ReadByte()
		if err == io.EOF && shift == 0 {
			return 0, io.EOF
		}
		if err != nil {
			return 0, truncated("number", err)
		}
		if shift > 56 {
			return 0, fmt.Errorf("number of more than 63 bits: %w", dr.ErrTampered)
		}
		v |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return v, nil
		}
	}
}

// truncated makes dr.ErrTampered of an early end and leaves other errors.
func truncated(what string, err error) error {
	if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%s ends early: %w", what, dr.ErrTampered)
	}
	return err
}

// unitReader reads the bytes that refs stand for, in order, some units ahead,
// and hands out slices of the units themselves where that is possible.
type unitReader struct {
	ctx   context.Context
	src   Source
	refs  []dr.UnitRef
	ahead [][]byte
	cur   []byte
}

// readAhead is how much a unitReader fetches together, in bytes.
const readAhead = 4 << 20

// fill makes cur non-empty or returns io.EOF.
func (r *unitReader) fill() error {
	for len(r.cur) == 0 {
		if len(r.ahead) == 0 {
			if len(r.refs) == 0 {
				return io.EOF
			}
			n, bytes := 0, int64(0)
			for n < len(r.refs) && bytes < readAhead {
				bytes += int64(r.refs[n].Len)
				n++
			}
			var err error
			if r.ahead, err = fetch(r.ctx, r.src, r.refs[:n]); err != nil {
				return err
			}
			r.refs = r.refs[n:]
		}
		r.cur, r.ahead[0] = r.ahead[0], nil
		r.ahead = r.ahead[1:]
	}
	return nil
}

func (r *unitReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := r.fill(); err != nil {
		return 0, err
	}
	n := copy(p, r.cur)
	r.cur = r.cur[n:]
	return n, nil
}

func (r *unitReader) ReadByte() (byte, error) {
	if err := r.fill(); err != nil {
		return 0, err
	}
	b := r.cur[0]
	r.cur = r.cur[1:]
	return b, nil
}

// next hands out up to n bytes without copying. The slice stays valid.
func (r *unitReader) next(n int64) ([]byte, error) {
	if err := r.fill(); err != nil {
		return nil, err
	}
	n = min(n, int64(len(r.cur)))
	p := r.cur[:n:n]
	r.cur = r.cur[n:]
	return p, nil
}
