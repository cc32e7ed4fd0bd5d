package ocistore

import (
	"fmt"
	"io"
	"time"
)

// crawl is how many bytes must move within one stall timeout while somebody
// waits for them. A registry that lets one byte through now and then keeps no
// transfer from ending: that is as good as stalled.
const crawl = 4 << 10

// pace judges how a transfer moves. Only time in which somebody waits counts, so
// a consumer that is slow itself does no harm. Not safe for concurrent use.
type pace struct {
	stall  time.Duration
	waited time.Duration
	moved  int64
}

// note counts bytes that moved and how long was waited for them. It reports
// whether the transfer still goes on: false where fewer than crawl bytes moved
// in a whole stall timeout of waiting.
func (p *pace) note(n int, waited time.Duration) bool {
	p.moved += int64(n)
	p.waited += waited
	if p.waited < p.stall {
		return true
	}
	ok := p.moved >= crawl
	p.waited, p.moved = 0, 0
	return ok
}

// minPiece and maxPiece bound how many bytes are written at a time, under one
// deadline: few on a slow path, so that one that does move is not taken for a
// stalled one; many on a fast one, where each write costs more than its bytes.
const (
	minPiece = 16 << 10
	maxPiece = 256 << 10
)

// stride says how many bytes to write next. Not safe for concurrent use.
type stride struct {
	stall time.Duration
	n     int
}

func (s *stride) bytes() int { return max(s.n, minPiece) }

// note says how long the last piece took. One that took no more than a small
// part of the stall timeout may be followed by one of twice its size.
func (s *stride) note(took time.Duration) {
	if took > s.stall/64 {
		s.n = minPiece
		return
	}
	s.n = min(2*s.bytes(), maxPiece)
}

// pacedBody is the body of an answer, which must not crawl.
type pacedBody struct {
	io.ReadCloser
	pace pace
}

func newPacedBody(body io.ReadCloser, stall time.Duration) *pacedBody {
	return &pacedBody{ReadCloser: body, pace: pace{stall: stall}}
}

func (b *pacedBody) Read(p []byte) (int, error) {
	began := time.Now()
	n, err := b.ReadCloser.Read(p)
	if err == nil && !b.pace.note(n, time.Since(began)) {
		return n, fmt.Errorf("fewer than %d bytes came in %s: %w", crawl, b.pace.stall, errStalled)
	}
	return n, err
}
