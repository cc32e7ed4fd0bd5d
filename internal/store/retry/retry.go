// Package retry decorates a store.Store with second tries: what
// store.Retryable allows is asked again after a jittered, growing delay, and a
// read that was cut off goes on where it stopped. The number of attempts bounds it
// until the store has answered for the first time; from then on, in the middle of
// work, so does the time for which it may be away. The caller's context ends it at
// once. No clock decides whether something was done.
//
// It relies on the contract: every call of a store can be repeated without
// harm (docs/format.md, invariant 8).
package retry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"lifeboat/internal/store"
)

// Options bounds the tries.
type Options struct {
	// Attempts in all, at least 1.
	Attempts int
	// Patience is for how long a store that has answered before may be away, counted
	// from the first attempt that failed: until then it is tried again, however many
	// attempts that takes. 0: Attempts alone count.
	Patience time.Duration
	// First is the mean delay before the second attempt; each later one is twice
	// as long, up to Max. Defaults: 200 ms, 15 s.
	First, Max time.Duration
	// Logger hears of each failed attempt at level debug; nil means silence.
	Logger *slog.Logger
	// Notice receives lines for the operator, may be nil: one when work is held up,
	// by a transfer that stalled or by attempts that fail one after the other, and
	// one when it goes on.
	Notice func(string)
	// Wait waits for d or until ctx is done; nil means with a timer. Tests put
	// their own here.
	Wait func(ctx context.Context, d time.Duration) error
	// Now is the clock of Patience; nil means time.Now.
	Now func() time.Time
}

// Store is the decorator. Safe for concurrent use as far as the inner store is.
type Store struct {
	inner store.Store
	opts  Options

	told     atomic.Bool // that work is held up
	answered atomic.Bool // at least once
}

var _ store.Store = (*Store)(nil)

// New returns inner with second tries.
func New(inner store.Store, opts Options) *Store {
	opts.Attempts = max(1, opts.Attempts)
	if opts.First <= 0 {
		opts.First = 200 * time.Millisecond
	}
	if opts.Max <= 0 {
		opts.Max = 15 * time.Second
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Wait == nil {
		opts.Wait = wait
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	return &Store{inner: inner, opts: opts}
}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// pause waits before attempt n+1, n counting from 1. The delay is drawn between
// half and one and a half of the nominal one, so that clients cut off together
// do not come back together.
func (s *Store) pause(ctx context.Context, n int) error {
	d := s.opts.Max
	if n < 20 {
		d = min(s.opts.First<<(n-1), s.opts.Max)
	}
	d = d/2 + rand.N(d)
	return s.opts.Wait(ctx, d)
}

// outage is one row of attempts that failed.
type outage struct {
	s      *Store
	since  time.Time // when the first one failed
	failed int
}

// lasts counts a failed attempt and reports whether another one is worth it.
func (o *outage) lasts() bool {
	now := o.s.opts.Now()
	if o.failed == 0 {
		o.since = now
	}
	o.failed++
	if o.failed < o.s.opts.Attempts {
		return true
	}
	return o.s.answered.Load() && now.Sub(o.since) < o.s.opts.Patience
}

// over ends the row: something was brought further.
func (o *outage) over() { o.failed = 0 }

// again runs f until it succeeds, fails for good, or the attempts are used up.
// The last error comes back; where any attempt left the outcome of a tag
// unknown and none settled it, the error says so.
func (s *Store) again(ctx context.Context, what string, f func() error) error {
	var unknown error
	out := outage{s: s}
	for n := 1; ; n++ {
		err := f()
		if err == nil {
			s.goesOn()
			return nil
		}
		if !store.Retryable(err) {
			s.answered.Store(true) // it said no
		}
		if errors.Is(err, store.ErrUnknownOutcome) {
			unknown = err
		}
		if ctx.Err() != nil || !store.Retryable(err) || !out.lasts() {
			return final(err, unknown, n)
		}
		s.opts.Logger.Debug("attempt failed", "what", what, "attempt", n, "err", err)
		s.heldUp(err, &out)
		if werr := s.pause(ctx, n); werr != nil {
			return final(fmt.Errorf("%w: %w", werr, err), unknown, n)
		}
	}
}

// heldUp tells the operator, once until work goes on. A single failed attempt
// that did not take long is nothing to tell.
func (s *Store) heldUp(err error, o *outage) {
	if s.opts.Notice == nil || (o.failed < 2 && !errors.Is(err, store.ErrStalled)) || s.told.Swap(true) {
		return
	}
	if s.answered.Load() && s.opts.Patience > 0 {
		s.opts.Notice(fmt.Sprintf("%v; the registry is away, and tried again for at least %s", err, s.opts.Patience))
		return
	}
	s.opts.Notice(fmt.Sprintf("%v; trying again (attempt %d of %d)", err, o.failed+1, s.opts.Attempts))
}

// goesOn takes back what heldUp told.
func (s *Store) goesOn() {
	s.answered.Store(true)
	if s.told.Load() && s.told.Swap(false) {
		s.opts.Notice("the registry answers again; going on")
	}
}

func final(err, unknown error, attempts int) error {
	if unknown != nil && store.Retryable(err) && !errors.Is(err, store.ErrUnknownOutcome) {
		err = fmt.Errorf("%w: %w", err, store.ErrUnknownOutcome)
	}
	if attempts > 1 {
		return fmt.Errorf("%w (after %d attempts)", err, attempts)
	}
	return err
}

// Capabilities implements store.Store.
func (s *Store) Capabilities(ctx context.Context) (c store.Capabilities, err error) {
	err = s.again(ctx, "capabilities", func() error { c, err = s.inner.Capabilities(ctx); return err })
	return c, err
}

// PutBlob implements store.Blobs; sent counts the bytes of all attempts.
func (s *Store) PutBlob(ctx context.Context, d digest.Digest, size int64, open func() (io.ReadCloser, error)) (sent int64, err error) {
	err = s.again(ctx, "put blob", func() error {
		n, err := s.inner.PutBlob(ctx, d, size, open)
		sent += n
		return err
	})
	return sent, err
}

// HasBlob implements store.Blobs.
func (s *Store) HasBlob(ctx context.Context, d digest.Digest) (ok bool, err error) {
	err = s.again(ctx, "has blob", func() error { ok, err = s.inner.HasBlob(ctx, d); return err })
	return ok, err
}

// GetBlob implements store.Blobs. A body that is cut off is asked for again
// from where it stopped; an attempt that brought bytes does not count.
func (s *Store) GetBlob(ctx context.Context, d digest.Digest, size, off, length int64) (io.ReadCloser, error) {
	n, err := store.SpanOf(size, off, length)
	if err != nil {
		return nil, fmt.Errorf("get blob %s: %w", d, err)
	}
	r := &reader{s: s, out: outage{s: s}, ctx: ctx, d: d, size: size, off: off, left: n}
	if err := s.again(ctx, "get blob", func() error { return r.open() }); err != nil {
		return nil, err
	}
	return r, nil
}

// headway is how many bytes an attempt must bring to count as a success: a
// registry that gives a few bytes each time would keep a read from ever ending.
const headway = 64 << 10

type reader struct {
	s         *Store
	ctx       context.Context // of the whole read, given to each request
	d         digest.Digest
	size      int64
	off, left int64
	body      io.ReadCloser
	out       outage // attempts in a row that brought it no further
	since     int64  // bytes since the last attempt began
	err       error
}

func (r *reader) open() (err error) {
	r.body, err = r.s.inner.GetBlob(r.ctx, r.d, r.size, r.off, r.left)
	return err
}

func (r *reader) Read(p []byte) (int, error) {
	for r.err == nil {
		if r.left == 0 {
			return 0, io.EOF
		}
		n, err := r.read(p)
		r.off += int64(n)
		r.left -= int64(n)
		if r.since += int64(n); r.since >= headway {
			r.out.over()
			r.s.goesOn()
		}
		if err != nil && r.left > 0 {
			r.err = r.reopen(err)
		}
		if n > 0 || len(p) == 0 {
			return n, nil
		}
	}
	return 0, r.err
}

// read reads from the body at hand; an early end without a reason gets one.
func (r *reader) read(p []byte) (int, error) {
	if int64(len(p)) > r.left {
		p = p[:r.left]
	}
	n, err := r.body.Read(p)
	if errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("get blob %s: ended %d bytes early: %w", r.d, r.left-int64(n), io.ErrUnexpectedEOF)
	}
	return n, err
}

// reopen replaces a body that failed with cause, or says why it does not.
func (r *reader) reopen(cause error) error {
	_ = r.body.Close() // failed already
	r.body, r.since = io.NopCloser(eof{}), 0
	for {
		if r.ctx.Err() != nil || !store.Retryable(cause) || !r.out.lasts() {
			return final(cause, nil, max(1, r.out.failed))
		}
		r.s.opts.Logger.Debug("read cut off", "blob", r.d, "left", r.left, "err", cause)
		r.s.heldUp(cause, &r.out)
		if err := r.s.pause(r.ctx, r.out.failed); err != nil {
			return fmt.Errorf("%w: %w", err, cause)
		}
		if cause = r.open(); cause == nil {
			return nil
		}
		r.body = io.NopCloser(eof{})
	}
}

type eof struct{}

func (eof) Read([]byte) (int, error) { return 0, io.EOF }

func (r *reader) Close() error { return r.body.Close() }

// PutManifest implements store.Manifests.
func (s *Store) PutManifest(ctx context.Context, tag, mediaType string, body []byte) (d digest.Digest, err error) {
	err = s.again(ctx, "put manifest", func() error { d, err = s.inner.PutManifest(ctx, tag, mediaType, body); return err })
	return d, err
}

// GetManifest implements store.Manifests.
func (s *Store) GetManifest(ctx context.Context, ref string) (m store.Manifest, err error) {
	err = s.again(ctx, "get manifest", func() error { m, err = s.inner.GetManifest(ctx, ref); return err })
	return m, err
}

// ResolveTag implements store.Manifests.
func (s *Store) ResolveTag(ctx context.Context, tag string) (d digest.Digest, err error) {
	err = s.again(ctx, "resolve tag", func() error { d, err = s.inner.ResolveTag(ctx, tag); return err })
	return d, err
}

// First implements store.Remembering.
func (s *Store) First(ctx context.Context, tag string) (d digest.Digest, err error) {
	err = s.again(ctx, "resolve tag", func() error { d, err = store.First(ctx, s.inner, tag); return err })
	return d, err
}

// Tags implements store.Manifests.
func (s *Store) Tags(ctx context.Context, prefix string) (tags []string, err error) {
	err = s.again(ctx, "list tags", func() error { tags, err = s.inner.Tags(ctx, prefix); return err })
	return tags, err
}

// DeleteTag implements store.Manifests. A tag that a lost first attempt removed
// counts as removed.
func (s *Store) DeleteTag(ctx context.Context, tag string) error {
	return s.remove(ctx, "delete tag", func() error { return s.inner.DeleteTag(ctx, tag) })
}

// DeleteManifest implements store.Manifests; see DeleteTag.
func (s *Store) DeleteManifest(ctx context.Context, d digest.Digest) error {
	return s.remove(ctx, "delete manifest", func() error { return s.inner.DeleteManifest(ctx, d) })
}

func (s *Store) remove(ctx context.Context, what string, f func() error) error {
	tried := false
	return s.again(ctx, what, func() error {
		err := f()
		if tried && errors.Is(err, store.ErrNotFound) {
			return nil
		}
		tried = true
		return err
	})
}
