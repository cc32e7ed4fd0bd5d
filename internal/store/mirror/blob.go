package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/opencontainers/go-digest"

	"lifeboat/internal/store"
)

// GetBlob implements store.Blobs. The reader is a store.Doubtful.
func (s *Store) GetBlob(ctx context.Context, d digest.Digest, size, off, length int64) (io.ReadCloser, error) {
	n, err := store.SpanOf(size, off, length)
	if err != nil {
		return nil, fmt.Errorf("get blob %s: %w", d, err)
	}
	r := &reader{s: s, ctx: ctx, d: d, size: size, off: off, left: n, todo: s.holders(d), failed: s.failures()}
	if err := r.next(); err != nil {
		return nil, err
	}
	return r, nil
}

// holders lists the registries to ask for a blob: those that gave it wrong come
// last, for it may have been altered on the way.
func (s *Store) holders(d digest.Digest) []*copyState {
	list := s.awake()
	s.mu.Lock()
	defer s.mu.Unlock()
	slices.SortStableFunc(list, func(a, b *copyState) int {
		x, y := s.bad[badCopy{d, a.at}], s.bad[badCopy{d, b.at}]
		switch {
		case x == y:
			return 0
		case x:
			return 1
		default:
			return -1
		}
	})
	return list
}

// reader reads one stretch of a blob, from one registry after the other.
type reader struct {
	s         *Store
	ctx       context.Context // of the whole read, given to each request
	d         digest.Digest
	size      int64
	off, left int64
	todo      []*copyState // not asked yet
	used      []*copyState // the last one is being read
	body      io.ReadCloser
	failed    *failures
	err       error
}

var _ store.Doubtful = (*reader)(nil)

// next opens the rest at the next registry that gives it.
func (r *reader) next() error {
	for len(r.todo) > 0 {
		c := r.todo[0]
		r.todo = r.todo[1:]
		body, err := c.Store.GetBlob(r.ctx, r.d, r.size, r.off, r.left)
		if err == nil {
			r.body, r.used = body, append(r.used, c)
			if len(r.failed.errs) > 0 {
				r.lost(c)
			}
			return nil
		}
		if r.ctx.Err() != nil {
			return err
		}
		r.fail(c, err)
	}
	return r.failed.error()
}

func (r *reader) fail(c *copyState, err error) {
	r.failed.add(c, err)
	r.s.note(c, "blobs", err)
}

// lost tells the operator that one registry lacks what another has.
func (r *reader) lost(has *copyState) {
	for _, c := range r.s.copies {
		if errors.Is(r.failed.errs[c.at], store.ErrNotFound) {
			r.s.tellOnce(c, "lost", fmt.Sprintf("registry %s lacks blobs that %s has (the first: %s); run verify and repair there", c.Name, has.Name, r.d))
		}
	}
}

// Read implements io.Reader.
func (r *reader) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	for r.err == nil {
		n, err := r.body.Read(p)
		r.off += int64(n)
		r.left -= int64(n)
		if r.left == 0 {
			r.s.note(r.used[len(r.used)-1], "blobs", nil)
			return n, nil
		}
		if err != nil {
			r.err = r.turn(err)
		}
		if n > 0 || len(p) == 0 {
			return n, nil
		}
	}
	return 0, r.err
}

// turn goes on at another registry after the one at hand failed.
func (r *reader) turn(cause error) error {
	_ = r.body.Close() // failed already
	r.body = io.NopCloser(eof{})
	if r.ctx.Err() != nil {
		return cause
	}
	if errors.Is(cause, io.EOF) && !errors.Is(cause, io.ErrUnexpectedEOF) {
		cause = fmt.Errorf("get blob %s: ended %d bytes early: %w", r.d, r.left, io.ErrUnexpectedEOF)
	}
	r.fail(r.used[len(r.used)-1], cause)
	return r.next()
}

type eof struct{}

func (eof) Read([]byte) (int, error) { return 0, io.EOF }

// Close implements io.Closer.
func (r *reader) Close() error { return r.body.Close() }

// Doubt implements store.Doubtful. Where the blob came from several registries
// the last one, whose part may be right, is asked again for all of it.
func (r *reader) Doubt() bool {
	doubted := r.used[:max(1, len(r.used)-1)]
	r.s.mu.Lock()
	if len(r.s.bad) >= maxBad {
		clear(r.s.bad)
	}
	fresh := false
	for _, c := range doubted {
		k := badCopy{r.d, c.at}
		fresh = fresh || !r.s.bad[k]
		r.s.bad[k] = true
	}
	more := slices.ContainsFunc(r.s.copies, func(c *copyState) bool { return !r.s.bad[badCopy{r.d, c.at}] })
	r.s.mu.Unlock()
	for _, c := range doubted {
		r.s.opts.Logger.Warn("a registry gave damaged bytes", "registry", c.Name, "blob", r.d)
		if more {
			r.s.tellOnce(c, "damaged", fmt.Sprintf("registry %s gave damaged bytes (the first: blob %s), which are read elsewhere now; run verify and repair there", c.Name, r.d))
		}
	}
	return fresh && more
}

// Elsewhere implements store.Doubtful.
func (r *reader) Elsewhere() bool {
	return slices.ContainsFunc(r.used, func(c *copyState) bool { return c.at != 0 })
}
