package seal

import (
	"bufio"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"lifeboat/internal/dr"
)

// SegmentSize is the plaintext of one segment of a sealed stream, in bytes.
const SegmentSize = 1 << 20

const (
	indexMagic = "LBIX"
	// streamHeader is magic, version, generation, salt.
	streamHeader = 4 + 1 + 4 + SaltSize
)

// StreamWriter seals a stream in segments (docs/format.md, Index). It keeps one
// segment in memory. Not safe for concurrent use.
type StreamWriter struct {
	w      io.Writer
	a      cipher.AEAD
	data   []byte
	buf    []byte
	sealed []byte
	n      uint64
	err    error
}

// NewIndexWriter begins a sealed index on w with the newest data key.
func (r *Ring) NewIndexWriter(w io.Writer) (*StreamWriter, error) {
	salt := NewSalt()
	head := make([]byte, streamHeader)
	copy(head, indexMagic)
	head[4] = 1
	binary.BigEndian.PutUint32(head[5:], uint32(r.Generation()))
	copy(head[9:], salt[:])
	a, err := r.aead("lifeboat v1 index", r.Generation(), salt[:])
	if err != nil {
		return nil, fmt.Errorf("seal index: %w", err)
	}
	if _, err := w.Write(head); err != nil {
		return nil, fmt.Errorf("write index: %w", err)
	}
	return &StreamWriter{w: w, a: a, data: append(head, r.secret.repo[:]...)}, nil
}

// Write implements io.Writer.
func (s *StreamWriter) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 && s.err == nil {
		if len(s.buf) == SegmentSize { // more follows, so this one is not the last
			s.flush(0)
		}
		n := min(len(p), SegmentSize-len(s.buf))
		s.buf = append(s.buf, p[:n]...)
		p = p[n:]
	}
	if s.err != nil {
		return 0, s.err
	}
	return total, nil
}

// Close seals the last segment. It does not close the writer below.
func (s *StreamWriter) Close() error {
	if s.err == nil {
		s.flush(1)
	}
	if s.err != nil {
		return s.err
	}
	s.err = errors.New("write to a closed stream")
	return nil
}

func (s *StreamWriter) flush(last byte) {
	nonce := CounterNonce(last, s.n)
	s.sealed = append(s.sealed[:0], 0, 0, 0, 0)
	s.sealed = s.a.Seal(s.sealed, nonce[:], s.buf, s.data)
	binary.BigEndian.PutUint32(s.sealed, uint32(len(s.sealed)-4))
	s.n++
	s.buf = s.buf[:0]
	if _, err := s.w.Write(s.sealed); err != nil {
		s.err = fmt.Errorf("write sealed segment: %w", err)
	}
}

// streamReader opens what StreamWriter sealed, one segment at a time.
type streamReader struct {
	r      *bufio.Reader
	a      cipher.AEAD
	data   []byte
	plain  []byte // what was opened and not yet read
	sealed []byte
	open   []byte // memory of the opened segment
	n      uint64
	last   bool
	err    error
}

// NewIndexReader opens a sealed index. Every byte that its Read yields is
// authenticated and in order; the end is authenticated too, so a truncated
// stream fails. Errors wrap dr.ErrTampered, are ErrGeneration, or are those of
// src. It keeps one segment in memory.
func (r *Ring) NewIndexReader(src io.Reader) (io.Reader, error) {
	br := bufio.NewReader(src)
	head := make([]byte, streamHeader)
	if _, err := io.ReadFull(br, head); err != nil {
		return nil, fmt.Errorf("read index header: %w", truncated(err))
	}
	if string(head[:4]) != indexMagic || head[4] != 1 {
		return nil, fmt.Errorf("not an index of version 1: %w", dr.ErrTampered)
	}
	a, err := r.aead("lifeboat v1 index", Generation(binary.BigEndian.Uint32(head[5:])), head[9:])
	if err != nil {
		return nil, fmt.Errorf("open index: %w", err)
	}
	return &streamReader{r: br, a: a, data: append(head, r.secret.repo[:]...)}, nil
}

// Read implements io.Reader.
func (s *streamReader) Read(p []byte) (int, error) {
	for len(s.plain) == 0 && s.err == nil {
		if s.last {
			s.err = io.EOF
			break
		}
		s.err = s.next()
	}
	if len(s.plain) == 0 {
		return 0, s.err
	}
	n := copy(p, s.plain)
	s.plain = s.plain[n:]
	return n, nil
}

func (s *streamReader) next() error {
	var size [4]byte
	if _, err := io.ReadFull(s.r, size[:]); err != nil {
		return fmt.Errorf("read segment %d: %w", s.n, truncated(err))
	}
	n := binary.BigEndian.Uint32(size[:])
	if n < Overhead || n > SegmentSize+Overhead {
		return fmt.Errorf("segment %d: %d bytes is out of bounds: %w", s.n, n, dr.ErrTampered)
	}
	if uint32(cap(s.sealed)) < n {
		s.sealed = make([]byte, n)
	}
	s.sealed = s.sealed[:n]
	if _, err := io.ReadFull(s.r, s.sealed); err != nil {
		return fmt.Errorf("read segment %d: %w", s.n, truncated(err))
	}
	var flag byte
	if _, err := s.r.Peek(1); err == io.EOF {
		flag, s.last = 1, true
	} else if err != nil {
		return fmt.Errorf("read after segment %d: %w", s.n, err)
	}
	nonce := CounterNonce(flag, s.n)
	plain, err := s.a.Open(s.open[:0], nonce[:], s.sealed, s.data)
	if err != nil {
		return fmt.Errorf("segment %d: %w", s.n, ErrOpen)
	}
	s.open, s.plain = plain, plain
	s.n++
	return nil
}

// truncated turns an end where none may be into tampering.
func truncated(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return fmt.Errorf("it ends too early: %w", dr.ErrTampered)
	}
	return err
}
