// Package limit decorates a store.Store with bounds: how many calls run at a
// time, and how many payload bytes pass in a second, both directions together.
// It knows nothing of what passes.
package limit

import (
	"context"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"lifeboat/internal/dr"
	"lifeboat/internal/store"
)

// Options are the bounds; zero means none.
type Options struct {
	// Concurrency bounds calls in progress. A reader of GetBlob counts until it
	// is closed.
	Concurrency int
	// BytesPerSecond bounds blob payload, sent and received together. Manifests
	// and headers are not counted.
	BytesPerSecond int64
}

// burst is how many bytes may pass at once; smaller would cost wake-ups, larger
// would make the rate uneven.
const burst = 128 << 10

// Store is the decorator. Safe for concurrent use as far as the inner store is.
type Store struct {
	inner store.Store
	calls *semaphore.Weighted
	bytes *rate.Limiter
}

var _ store.Store = (*Store)(nil)

// New returns inner with bounds. Negative options wrap dr.ErrUsage.
func New(inner store.Store, opts Options) (*Store, error) {
	if opts.Concurrency < 0 || opts.BytesPerSecond < 0 {
		return nil, fmt.Errorf("limits must not be negative: %w", dr.ErrUsage)
	}
	s := &Store{inner: inner}
	if opts.Concurrency > 0 {
		s.calls = semaphore.NewWeighted(int64(opts.Concurrency))
	}
	if opts.BytesPerSecond > 0 {
		s.bytes = rate.NewLimiter(rate.Limit(opts.BytesPerSecond), burst)
	}
	return s, nil
}

// Over returns a decorator of another store under the same bounds: what passes
// through both counts together.
func (s *Store) Over(inner store.Store) *Store {
	c := *s
	c.inner = inner
	return &c
}

func (s *Store) enter(ctx context.Context) (leave func(), err error) {
	if s.calls == nil {
		return func() {}, nil
	}
	if err := s.calls.Acquire(ctx, 1); err != nil {
		return nil, fmt.Errorf("wait for a free transfer: %w", err)
	}
	return func() { s.calls.Release(1) }, nil
}

// call runs f within the bound on calls.
func call[T any](ctx context.Context, s *Store, f func() (T, error)) (T, error) {
	leave, err := s.enter(ctx)
	if err != nil {
		var zero T
		return zero, err
	}
	defer leave()
	return f()
}

// paced slows a reader down.
type paced struct {
	io.ReadCloser
	ctx   context.Context // of the call; ends the waiting
	bytes *rate.Limiter
	leave func()
}

func (p *paced) Read(b []byte) (int, error) {
	if p.bytes == nil {
		return p.ReadCloser.Read(b)
	}
	n, err := p.ReadCloser.Read(b[:min(len(b), burst)])
	if n > 0 {
		if werr := p.bytes.WaitN(p.ctx, n); werr != nil && err == nil {
			err = fmt.Errorf("wait for the rate limit: %w", werr)
		}
	}
	return n, err
}

func (p *paced) Close() error {
	if p.leave != nil {
		p.leave()
		p.leave = nil
	}
	return p.ReadCloser.Close()
}

// PutBlob implements store.Blobs.
func (s *Store) PutBlob(ctx context.Context, d digest.Digest, size int64, open func() (io.ReadCloser, error)) (int64, error) {
	return call(ctx, s, func() (int64, error) {
		return s.inner.PutBlob(ctx, d, size, func() (io.ReadCloser, error) {
			r, err := open()
			if err != nil {
				return nil, err
			}
			return &paced{ReadCloser: r, ctx: ctx, bytes: s.bytes}, nil
		})
	})
}

// GetBlob implements store.Blobs.
func (s *Store) GetBlob(ctx context.Context, d digest.Digest, size, off, length int64) (io.ReadCloser, error) {
	leave, err := s.enter(ctx)
	if err != nil {
		return nil, err
	}
	r, err := s.inner.GetBlob(ctx, d, size, off, length)
	if err != nil {
		leave()
		return nil, err
	}
	return &paced{ReadCloser: r, ctx: ctx, bytes: s.bytes, leave: leave}, nil
}

// HasBlob implements store.Blobs.
func (s *Store) HasBlob(ctx context.Context, d digest.Digest) (bool, error) {
	return call(ctx, s, func() (bool, error) { return s.inner.HasBlob(ctx, d) })
}

// PutManifest implements store.Manifests.
func (s *Store) PutManifest(ctx context.Context, tag, mediaType string, body []byte) (digest.Digest, error) {
	return call(ctx, s, func() (digest.Digest, error) { return s.inner.PutManifest(ctx, tag, mediaType, body) })
}

// GetManifest implements store.Manifests.
func (s *Store) GetManifest(ctx context.Context, ref string) (store.Manifest, error) {
	return call(ctx, s, func() (store.Manifest, error) { return s.inner.GetManifest(ctx, ref) })
}

// ResolveTag implements store.Manifests.
func (s *Store) ResolveTag(ctx context.Context, tag string) (digest.Digest, error) {
	return call(ctx, s, func() (digest.Digest, error) { return s.inner.ResolveTag(ctx, tag) })
}

// First implements store.Remembering.
func (s *Store) First(ctx context.Context, tag string) (digest.Digest, error) {
	return store.First(ctx, s.inner, tag)
}

// Tags implements store.Manifests.
func (s *Store) Tags(ctx context.Context, prefix string) ([]string, error) {
	return call(ctx, s, func() ([]string, error) { return s.inner.Tags(ctx, prefix) })
}

// DeleteTag implements store.Manifests.
func (s *Store) DeleteTag(ctx context.Context, tag string) error {
	_, err := call(ctx, s, func() (struct{}, error) { return struct{}{}, s.inner.DeleteTag(ctx, tag) })
	return err
}

// DeleteManifest implements store.Manifests.
func (s *Store) DeleteManifest(ctx context.Context, d digest.Digest) error {
	_, err := call(ctx, s, func() (struct{}, error) { return struct{}{}, s.inner.DeleteManifest(ctx, d) })
	return err
}

// Capabilities implements store.Store.
func (s *Store) Capabilities(ctx context.Context) (store.Capabilities, error) {
	return call(ctx, s, func() (store.Capabilities, error) { return s.inner.Capabilities(ctx) })
}
