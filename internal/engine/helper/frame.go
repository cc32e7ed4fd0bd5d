package helper

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// The standard input of a helper carries frames: a type byte, a length (uint32
// big endian), that many bytes. The first frame is the job. The stream stays
// open for as long as whoever started the helper lives; its end without more
// frames is how the helper learns that it is alone.
const (
	frameJob   = 'J' // the job, JSON
	frameInput = 'I' // a piece of the job's standard input
	frameEnd   = 'E' // the end of the job's standard input; empty

	maxJob   = 16 << 20
	maxInput = 1 << 20
)

var errFrame = errors.New("not a helper's input")

func writeFrame(w io.Writer, kind byte, body []byte) error {
	head := [5]byte{kind}
	binary.BigEndian.PutUint32(head[1:], uint32(len(body)))
	if _, err := w.Write(append(head[:], body...)); err != nil {
		return err
	}
	return nil
}

// readFrame reads one frame. io.EOF is an end between frames; an end within one
// is io.ErrUnexpectedEOF.
func readFrame(r io.Reader) (kind byte, body []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	limit := uint32(maxInput)
	switch head[0] {
	case frameJob:
		limit = maxJob
	case frameInput:
	case frameEnd:
		limit = 0
	default:
		return 0, nil, fmt.Errorf("frame of type %#x: %w", head[0], errFrame)
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > limit {
		return 0, nil, fmt.Errorf("frame of %d bytes, at most %d: %w", n, limit, errFrame)
	}
	body = make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return head[0], body, nil
}
