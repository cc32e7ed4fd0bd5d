// Package overlay decorates a store.Store so that nothing is changed in it: what
// is written, and what is taken away, is kept beside it and seen through the
// decorator alone. A run over it shows what the same run would do to the store
// below, and what would be left afterwards.
//
// Main types: [Store] is the decorator; its method Lend says that a blob may be
// read from another registry instead of being kept. It answers as the store below
// would (store.Capabilities), as far as that can be known without writing to it:
// not whether the login may write there, nor what others do meanwhile.
package overlay

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"lifeboat/internal/store"
)

// Store is the decorator. Safe for concurrent use as far as the inner store is.
type Store struct {
	inner store.Store
	*layer
}

var _ store.Copied = (*Store)(nil)

// layer is what was written and taken away. Views of one overlay share it.
type layer struct {
	dir string // blobs lie here

	mu        sync.Mutex
	blobs     map[digest.Digest]blob
	manifests map[digest.Digest]manifest
	tags      map[string]digest.Digest
	first     map[string]digest.Digest // what each of them was given first
	gone      map[string]digest.Digest // tags taken away, and what they named
	caps      *store.Capabilities      // asked for once
}

// blob is one that was written: a file of the directory, or lent by another store.
type blob struct {
	size int64
	from store.Blobs // nil: the file
}

// manifest is one that was written, or taken away.
type manifest struct {
	store.Manifest
	gone bool
}

// New returns inner with a layer over it. Blobs that are written are kept as files
// of mode 0600 in dir, which belongs to the caller and has to last as long as the
// store.
func New(inner store.Store, dir string) *Store {
	return &Store{inner, &layer{
		dir: dir, blobs: map[digest.Digest]blob{}, manifests: map[digest.Digest]manifest{},
		tags: map[string]digest.Digest{}, first: map[string]digest.Digest{}, gone: map[string]digest.Digest{},
	}}
}

// Primary implements store.Copied: the same layer over the one that takes what is
// written.
func (s *Store) Primary() store.Store { return &Store{store.Primary(s.inner), s.layer} }

// Lagging implements store.Copied.
func (s *Store) Lagging() bool { return store.Lagging(s.inner) }

// Capabilities implements store.Store.
func (s *Store) Capabilities(ctx context.Context) (store.Capabilities, error) {
	return s.inner.Capabilities(ctx)
}

// offers is Capabilities, asked for once.
func (s *Store) offers(ctx context.Context) (store.Capabilities, error) {
	s.mu.Lock()
	have := s.caps
	s.mu.Unlock()
	if have != nil {
		return *have, nil
	}
	caps, err := s.inner.Capabilities(ctx)
	if err == nil {
		s.mu.Lock()
		s.caps = &caps
		s.mu.Unlock()
	}
	return caps, err
}

// written returns the blob of the layer.
func (l *layer) written(d digest.Digest) (blob, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b, ok := l.blobs[d]
	return b, ok
}

// Lend lets d, of size bytes, be read from another store, as if it had been
// written here (store.Rewriting) from there. The caller has read it there and found
// it sound. It reports false where the store below has other bytes under d and
// cannot replace them: those stay.
func (s *Store) Lend(ctx context.Context, d digest.Digest, size int64, from store.Blobs) (bool, error) {
	keeps, err := s.keepsBlob(ctx, d)
	if err != nil || keeps {
		return false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.blobs[d] = blob{size, from}
	return true, nil
}

// keepsBlob reports whether the store below has a blob and keeps its bytes even if
// they are damaged. Only a registry that announces itself as Lifeboat's replaces
// them (docs/registries.md).
func (s *Store) keepsBlob(ctx context.Context, d digest.Digest) (bool, error) {
	caps, err := s.offers(ctx)
	if err != nil || caps.ImmutableTags {
		return false, err
	}
	return store.Primary(s.inner).HasBlob(ctx, d)
}

// PutBlob implements store.Blobs.
func (s *Store) PutBlob(ctx context.Context, d digest.Digest, size int64, open func() (io.ReadCloser, error)) (int64, error) {
	what := func(err error) error { return fmt.Errorf("keep blob %s aside: %w", d, err) }
	if err := ctx.Err(); err != nil {
		return 0, what(err)
	}
	if err := d.Validate(); err != nil {
		return 0, what(fmt.Errorf("%w: %w", err, store.ErrRefused))
	}
	if b, ok := s.written(d); ok {
		if b.size != size {
			return 0, what(store.ErrDigestMismatch)
		}
		return 0, nil
	}
	if store.IsRewriting(ctx) {
		if keeps, err := s.keepsBlob(ctx, d); err != nil || keeps {
			return 0, err
		}
	} else if has, err := s.has(ctx, d, size); err != nil || has {
		return 0, err
	}
	if err := s.keep(d, size, open); err != nil {
		return 0, what(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.blobs[d] = blob{size: size}
	return size, nil
}

// has reports whether the store below has a blob of that size.
func (s *Store) has(ctx context.Context, d digest.Digest, size int64) (bool, error) {
	below := store.Primary(s.inner)
	ok, err := below.HasBlob(ctx, d)
	if err != nil || !ok || size == 0 {
		return ok, err
	}
	src, err := below.GetBlob(ctx, d, size, size-1, 1)
	if err != nil {
		return false, err
	}
	_, err = io.Copy(io.Discard, src)
	return err == nil, errors.Join(err, src.Close())
}

func (l *layer) file(d digest.Digest) string { return filepath.Join(l.dir, d.Encoded()) }

// keep writes a blob into a file, whole or not at all.
func (l *layer) keep(d digest.Digest, size int64, open func() (io.ReadCloser, error)) error {
	src, err := open()
	if err != nil {
		return fmt.Errorf("open source: %w", err)
	}
	defer func() { _ = src.Close() }() // read-only source
	f, err := os.CreateTemp(l.dir, ".blob-*.tmp")
	if err != nil {
		return err
	}
	sum := d.Algorithm().Digester()
	n, err := io.Copy(io.MultiWriter(f, sum.Hash()), io.LimitReader(src, size+1))
	err = errors.Join(err, f.Close())
	if err == nil && (n != size || sum.Digest() != d) {
		err = store.ErrDigestMismatch
	}
	if err == nil {
		err = os.Rename(f.Name(), l.file(d))
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// HasBlob implements store.Blobs.
func (s *Store) HasBlob(ctx context.Context, d digest.Digest) (bool, error) {
	if _, ok := s.written(d); ok {
		return true, ctx.Err()
	}
	return s.inner.HasBlob(ctx, d)
}

// GetBlob implements store.Blobs.
func (s *Store) GetBlob(ctx context.Context, d digest.Digest, size, off, length int64) (io.ReadCloser, error) {
	b, ok := s.written(d)
	switch {
	case !ok:
		return s.inner.GetBlob(ctx, d, size, off, length)
	case b.size != size:
		return nil, fmt.Errorf("get blob %s: kept with %d bytes, not %d: %w", d, b.size, size, store.ErrDigestMismatch)
	case b.from != nil:
		return b.from.GetBlob(ctx, d, size, off, length)
	}
	n, err := store.SpanOf(size, off, length)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, fmt.Errorf("get blob %s: %w", d, err)
	}
	f, err := os.Open(s.file(d))
	if err != nil {
		return nil, fmt.Errorf("get blob %s: %w", d, err)
	}
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(f, off, n), f}, nil
}

// PutManifest implements store.Manifests.
func (s *Store) PutManifest(ctx context.Context, tag, mediaType string, body []byte) (digest.Digest, error) {
	fail := func(err error) (digest.Digest, error) {
		return "", fmt.Errorf("keep the manifest of tag %s aside: %w", tag, err)
	}
	if len(body) > store.MaxManifest {
		return fail(store.ErrTooLarge)
	}
	d := digest.FromBytes(body)
	if err := s.free(ctx, tag, d); err != nil {
		return fail(err)
	}
	if err := s.complete(ctx, mediaType, body); err != nil {
		return fail(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if now, ok := s.tags[tag]; ok && now != d { // meanwhile
		return fail(fmt.Errorf("it names %s: %w", now, store.ErrTagTaken))
	}
	delete(s.gone, tag)
	s.manifests[d] = manifest{Manifest: store.Manifest{MediaType: mediaType, Digest: d, Body: slices.Clone(body)}}
	s.tags[tag] = d
	if _, ok := s.first[tag]; !ok {
		s.first[tag] = d
	}
	return d, nil
}

// free reports by its error whether a tag may not be given d: it names something
// else, or was given something else first and takes nothing but that.
func (s *Store) free(ctx context.Context, tag string, d digest.Digest) error {
	have, err := s.Primary().ResolveTag(ctx, tag)
	if err != nil && !errors.Is(err, store.ErrNotFound) && !errors.Is(err, store.ErrDigestMismatch) {
		return err
	}
	if err == nil && have == d {
		return nil
	}
	caps, cerr := s.offers(ctx)
	if cerr != nil {
		return cerr
	}
	if caps.RetiredTags {
		first, ferr := s.First(ctx, tag)
		switch {
		case ferr == nil && first == d:
			return nil
		case ferr == nil && err != nil:
			return fmt.Errorf("it was given %s first: %w", first, store.ErrTagRetired)
		case errors.Is(ferr, store.ErrDigestMismatch): // nothing says that it was d
			return fmt.Errorf("%w: %w", ferr, store.ErrTagTaken)
		case ferr != nil && !errors.Is(ferr, store.ErrNotFound):
			return ferr
		}
	}
	if err == nil {
		return fmt.Errorf("it names %s: %w", have, store.ErrTagTaken)
	}
	return nil
}

// First implements store.Remembering: what the store below says, else what was
// written here.
func (s *Store) First(ctx context.Context, tag string) (digest.Digest, error) {
	d, err := store.First(ctx, s.inner, tag)
	if !errors.Is(err, store.ErrNotFound) {
		return d, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if d, ok := s.first[tag]; ok {
		return d, nil
	}
	return "", err
}

// complete refuses a manifest that names what is not there.
func (s *Store) complete(ctx context.Context, mediaType string, body []byte) error {
	var m struct {
		Config    *ocispec.Descriptor  `json:"config"`
		Layers    []ocispec.Descriptor `json:"layers"`
		Manifests []ocispec.Descriptor `json:"manifests"`
	}
	if mediaType != ocispec.MediaTypeImageManifest && mediaType != ocispec.MediaTypeImageIndex {
		return fmt.Errorf("media type %q: %w", mediaType, store.ErrRefused)
	}
	if err := json.NewDecoder(bytes.NewReader(body)).Decode(&m); err != nil {
		return fmt.Errorf("%w: %w", err, store.ErrRefused)
	}
	if m.Config != nil {
		m.Layers = append(m.Layers, *m.Config)
	}
	there := s.Primary()
	for _, b := range m.Layers {
		ok, err := there.HasBlob(ctx, b.Digest)
		if err == nil && !ok {
			err = fmt.Errorf("blob %s: %w", b.Digest, store.ErrIncomplete)
		}
		if err != nil {
			return err
		}
	}
	for _, o := range m.Manifests {
		_, err := there.GetManifest(ctx, o.Digest.String())
		switch {
		case errors.Is(err, store.ErrNotFound):
			return fmt.Errorf("manifest %s: %w", o.Digest, store.ErrIncomplete)
		case err != nil && !errors.Is(err, store.ErrDigestMismatch): // damaged, but there
			return err
		}
	}
	return nil
}

// GetManifest implements store.Manifests.
func (s *Store) GetManifest(ctx context.Context, ref string) (store.Manifest, error) {
	s.mu.Lock()
	d, tagged := s.tags[ref]
	_, gone := s.gone[ref]
	if !tagged {
		d = digest.Digest(ref)
	}
	m, ok := s.manifests[d]
	s.mu.Unlock()
	switch {
	case gone || ok && m.gone:
		return store.Manifest{}, fmt.Errorf("get manifest %s: %w", ref, store.ErrNotFound)
	case ok:
		m.Body = slices.Clone(m.Body)
		return m.Manifest, ctx.Err()
	case tagged:
		ref = d.String()
	}
	below, err := s.inner.GetManifest(ctx, ref)
	if err == nil && !tagged {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.manifests[below.Digest].gone { // and its tags with it
			return store.Manifest{}, fmt.Errorf("get manifest %s: %w", ref, store.ErrNotFound)
		}
	}
	if errors.Is(err, store.ErrDigestMismatch) && !tagged {
		return s.mended(ctx, ref, err)
	}
	return below, err
}

// mended is the manifest that a tag of the store below names, where its damaged
// bytes were replaced in the layer.
func (s *Store) mended(ctx context.Context, ref string, cause error) (store.Manifest, error) {
	d, err := s.inner.ResolveTag(ctx, ref)
	if err != nil {
		return store.Manifest{}, cause
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	m, ok := s.manifests[d]
	if !ok || m.gone {
		return store.Manifest{}, cause
	}
	m.Body = slices.Clone(m.Body)
	return m.Manifest, nil
}

// ResolveTag implements store.Manifests.
func (s *Store) ResolveTag(ctx context.Context, tag string) (digest.Digest, error) {
	s.mu.Lock()
	d, ok := s.tags[tag]
	_, gone := s.gone[tag]
	s.mu.Unlock()
	switch {
	case ok:
		return d, ctx.Err()
	case gone:
		return "", fmt.Errorf("resolve tag %s: %w", tag, store.ErrNotFound)
	}
	d, err := s.inner.ResolveTag(ctx, tag)
	if err != nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.manifests[d].gone {
		return "", fmt.Errorf("resolve tag %s: %w", tag, store.ErrNotFound)
	}
	return d, nil
}

// Tags implements store.Manifests.
func (s *Store) Tags(ctx context.Context, prefix string) ([]string, error) {
	below, err := s.inner.Tags(ctx, prefix)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	out := slices.DeleteFunc(slices.Clone(below), func(t string) bool { _, gone := s.gone[t]; return gone })
	for t := range s.tags {
		if strings.HasPrefix(t, prefix) && !slices.Contains(below, t) {
			out = append(out, t)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// DeleteTag implements store.Manifests.
func (s *Store) DeleteTag(ctx context.Context, tag string) error {
	d, err := s.Primary().ResolveTag(ctx, tag)
	if err != nil && !errors.Is(err, store.ErrDigestMismatch) {
		return fmt.Errorf("delete tag %s: %w", tag, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.tags, tag)
	s.gone[tag] = d
	return nil
}

// DeleteManifest implements store.Manifests. Where the store below checks
// deletions, what a tag or an index under a tag names is kept.
func (s *Store) DeleteManifest(ctx context.Context, d digest.Digest) error {
	what := func(err error) error { return fmt.Errorf("delete manifest %s: %w", d, err) }
	if _, err := s.Primary().GetManifest(ctx, d.String()); err != nil && !errors.Is(err, store.ErrDigestMismatch) {
		return what(err)
	}
	caps, err := s.offers(ctx)
	if err != nil {
		return what(err)
	}
	tags, err := s.Primary().Tags(ctx, "")
	if err != nil {
		return what(err)
	}
	var names []string
	for _, t := range tags {
		m, err := s.Primary().GetManifest(ctx, t)
		if err != nil && !errors.Is(err, store.ErrNotFound) && !errors.Is(err, store.ErrDigestMismatch) {
			return what(err)
		}
		if m.Digest == d {
			names = append(names, t)
		}
		var x ocispec.Index
		listed := json.Unmarshal(m.Body, &x) == nil && slices.ContainsFunc(x.Manifests, func(o ocispec.Descriptor) bool { return o.Digest == d })
		if caps.CheckedDelete && (m.Digest == d || listed) {
			return what(fmt.Errorf("tag %s: %w", t, store.ErrListed))
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.manifests[d] = manifest{gone: true}
	for _, t := range names {
		delete(s.tags, t)
		s.gone[t] = d
	}
	return nil
}
