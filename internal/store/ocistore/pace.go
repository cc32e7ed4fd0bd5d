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
