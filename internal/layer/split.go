package layer

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"lifeboat/internal/cut"
	"lifeboat/internal/dr"
)

// skeletonMagic begins a skeleton: name and version.
const skeletonMagic = "LBSK\x01"

const (
	// maxDescription bounds an extension header that is looked into. A bigger
	// one is cut like the content of a file.
	maxDescription = 1 << 20
	// maxRaw is when raw bytes go into the skeleton at the latest.
	maxRaw = 64 << 10
)

// splitter takes a tar archive apart into a skeleton and contents.
//
// The skeleton is skeletonMagic and then operations: uvarint (n << 1), then n
// bytes as they are; or uvarint (n << 1 | 1) for n bytes of content. The bytes
// of content stand in the content list one after the other, each operation
// ending at the end of a ref. Both streams are cut into units.
//
// It follows that the archive comes back byte for byte whatever the splitter
// made of it: garbage, truncation, headers of unknown dialects, sparse files
// (whose stored bytes are kept, not the logical ones) or no archive at all.
type splitter struct {
	ctx    context.Context
	sink   Sink
	cutter *cut.Cutter
	in     *bufio.Reader
	buf    []byte // for content

	skeleton *pieceWriter
	list     *pieceWriter
	raw      []byte // bytes for the skeleton that were not written yet
	scratch  []byte
	size     int64
	files    int64
}

// splitBuffers is the memory that splitting needs; it is used again from layer
// to layer.
type splitBuffers struct {
	in      *bufio.Reader
	content []byte
}

func newSplitBuffers() *splitBuffers {
	return &splitBuffers{in: bufio.NewReaderSize(nil, 256<<10), content: make([]byte, 2*cut.MaxPiece)}
}

// split reads r to its end and stores it. Only Skeleton, Contents, Files and
// Size of the layer are set.
func split(ctx context.Context, r io.Reader, sink Sink, cutter *cut.Cutter, bufs *splitBuffers) (Layer, error) {
	src := &source{r: r}
	bufs.in.Reset(src)
	l, err := splitFrom(ctx, sink, cutter, bufs)
	if src.err != nil {
		return Layer{}, src.err
	}
	return l, err
}

// source keeps the error of a reader to itself. A reader may fail with
// io.ErrUnexpectedEOF, as archive/tar does; helpers that read in blocks take
// that for the end of the data, and half a layer would pass for one.
type source struct {
	r   io.Reader
	err error // anything but io.EOF
}

var errSource = errors.New("source failed")

func (s *source) Read(p []byte) (int, error) {
	if s.err != nil {
		return 0, errSource
	}
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err, err = err, errSource
	}
	return n, err
}

// splitFrom is split with its input in place.
func splitFrom(ctx context.Context, sink Sink, cutter *cut.Cutter, bufs *splitBuffers) (Layer, error) {
	s := &splitter{
		ctx: ctx, sink: sink, cutter: cutter, in: bufs.in, buf: bufs.content,
		skeleton: newPieceWriter(ctx, sink, cutter),
		list:     newPieceWriter(ctx, sink, cutter),
	}
	if _, err := s.skeleton.Write([]byte(skeletonMagic)); err != nil {
		return Layer{}, err
	}
	if err := s.run(); err != nil {
		return Layer{}, err
	}
	if err := s.flushRaw(); err != nil {
		return Layer{}, err
	}
	l := Layer{Size: s.size, Files: s.files}
	var err error
	if l.Skeleton, err = s.skeleton.Close(); err != nil {
		return Layer{}, err
	}
	l.Contents, err = s.list.Close()
	return l, err
}

// run goes from header to header.
func (s *splitter) run() error {
	over := overrides{size: -1}
	for {
		block, err := s.take(blockSize)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		// Zero blocks end an archive, but more may follow: archives are
		// concatenated. Anything else that is no header is kept and skipped.
		if len(block) < blockSize || bytes.Equal(block, zeroBlock[:]) {
			over = overrides{size: -1}
			continue
		}
		h, ok := parseHeader(block)
		if !ok {
			over = overrides{size: -1}
			continue
		}
		described, content := h.body()
		switch {
		case described && h.size <= maxDescription:
			if err := s.description(h, &over); err != nil {
				return err
			}
			continue
		case described || content:
			if over.size >= 0 && content {
				h.size = over.size
			}
			if over.name != "" {
				h.name = over.name
			}
			if err := s.file(h); err != nil {
				return err
			}
		}
		over = overrides{size: -1}
	}
}

// take moves up to n bytes into the skeleton and returns them; fewer than n
// only at the end of the archive, io.EOF when there are none. The slice is
// valid until the next call.
func (s *splitter) take(n int) ([]byte, error) {
	if len(s.raw) >= maxRaw {
		if err := s.flushRaw(); err != nil {
			return nil, err
		}
	}
	at := len(s.raw)
	s.raw = append(s.raw, make([]byte, n)...)
	got, err := io.ReadFull(s.in, s.raw[at:])
	s.raw = s.raw[:at+got]
	s.size += int64(got)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	return s.raw[at:], err
}

// description reads the body of an extension header.
func (s *splitter) description(h header, over *overrides) error {
	body, err := s.take(int(padded(h.size)))
	if err == io.EOF {
		return nil
	}
	if err != nil || int64(len(body)) < h.size {
		return err
	}
	switch body = body[:h.size]; h.typeflag {
	case 'x':
		over.parsePAX(body)
	case 'L':
		over.name = cString(body)
	}
	return nil
}

// file reads what follows the header of an entry with content, padding included.
func (s *splitter) file(h header) error {
	for h.extended {
		block, err := s.take(blockSize)
		if err == io.EOF || err == nil && len(block) < blockSize {
			return nil
		}
		if err != nil {
			return err
		}
		h.extended = block[504] != 0
	}
	if h.size == 0 {
		return nil
	}
	before := s.size
	if err := s.content(h); err != nil {
		return err
	}
	if s.size-before < h.size {
		return nil // the archive ends here; run will see it
	}
	if pad := padded(h.size) - h.size; pad > 0 {
		if _, err := s.take(int(pad)); err != nil && err != io.EOF {
			return err
		}
	}
	return nil
}

// content cuts h.size bytes, or what is left of the archive.
func (s *splitter) content(h header) error {
	head, err := s.in.Peek(int(min(h.size, cut.HeadLen)))
	if err != nil && err != io.EOF {
		return err
	}
	if len(head) == 0 {
		return nil
	}
	name := strings.TrimLeft(strings.TrimPrefix(h.name, "./"), "/")
	class := cut.ClassOf([]byte(name), h.size, head)
	var n int64
	err = s.cutter.PiecesBuffer(class, io.LimitReader(s.in, h.size), s.buf, func(piece []byte) error {
		n += int64(len(piece))
		return s.piece(piece)
	})
	if err != nil {
		return err
	}
	s.size += n
	s.files++
	if err := s.flushRaw(); err != nil {
		return err
	}
	s.scratch = binary.AppendUvarint(s.scratch[:0], uint64(n)<<1|1)
	_, err = s.skeleton.Write(s.scratch)
	return err
}

// piece stores one piece of content. A big one of zeros only is a hole.
func (s *splitter) piece(piece []byte) error {
	s.scratch = s.scratch[:0]
	if len(piece) >= cut.FixedPiece && allZero(piece) {
		s.scratch = appendHole(s.scratch, int64(len(piece)))
	} else {
		ref, err := s.sink.Put(s.ctx, piece)
		if err != nil {
			return err
		}
		s.scratch = appendRef(s.scratch, ref)
	}
	_, err := s.list.Write(s.scratch)
	return err
}

func (s *splitter) flushRaw() error {
	if len(s.raw) == 0 {
		return nil
	}
	s.scratch = binary.AppendUvarint(s.scratch[:0], uint64(len(s.raw))<<1)
	if _, err := s.skeleton.Write(s.scratch); err != nil {
		return err
	}
	_, err := s.skeleton.Write(s.raw)
	s.raw = s.raw[:0]
	return err
}

func padded(n int64) int64 { return (n + blockSize - 1) &^ (blockSize - 1) }

func allZero(b []byte) bool {
	for len(b) >= blockSize {
		if !bytes.Equal(b[:blockSize], zeroBlock[:]) {
			return false
		}
		b = b[blockSize:]
	}
	return bytes.Equal(b, zeroBlock[:len(b)])
}

// operation is one decoded operation of a skeleton: raw bytes, or content.
type operation struct {
	n       int64
	content bool
}

func readOperation(r io.ByteReader) (operation, error) {
	v, err := readUvarint(r)
	if err != nil {
		return operation{}, err
	}
	op := operation{n: int64(v >> 1), content: v&1 == 1}
	if op.n == 0 {
		return op, fmt.Errorf("skeleton: empty operation: %w", dr.ErrTampered)
	}
	return op, nil
}
