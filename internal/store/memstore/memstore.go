// Package memstore is a store.Store in memory, for tests. It keeps the same
// promises as Lifeboat's own registry: blobs are checked, manifests must not
// name what is missing, tags never move, and what a tag needs is not deleted
// (unless Unchecked). It is not durable and not bounded.
package memstore

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"lifeboat/internal/store"
)

// Store implements store.Store. Safe for concurrent use. The zero value is not
// usable; use New.
type Store struct {
	mu        sync.Mutex
	blobs     map[digest.Digest][]byte
	manifests map[digest.Digest]store.Manifest
	listed    map[digest.Digest][]digest.Digest // what the image indexes of manifests list
	tags      map[string]digest.Digest
	unchecked bool
}

// New returns an empty store.
func New() *Store {
	return &Store{
		blobs:     map[digest.Digest][]byte{},
		manifests: map[digest.Digest]store.Manifest{},
		listed:    map[digest.Digest][]digest.Digest{},
		tags:      map[string]digest.Digest{},
	}
}

var _ store.Store = (*Store)(nil)

// Capabilities implements store.Store.
func (s *Store) Capabilities(ctx context.Context) (store.Capabilities, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return store.Capabilities{ImmutableTags: true, CheckedDelete: !s.unchecked}, ctx.Err()
}

// PutBlob implements store.Blobs.
func (s *Store) PutBlob(ctx context.Context, d digest.Digest, size int64, open func() (io.ReadCloser, error)) (int64, error) {
	fail := func(err error) (int64, error) { return 0, fmt.Errorf("memory: put blob %s: %w", d, err) }
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	if err := d.Validate(); err != nil {
		return fail(fmt.Errorf("%w: %w", err, store.ErrRefused))
	}
	s.mu.Lock()
	have, ok := s.blobs[d]
	s.mu.Unlock()
	if ok && !store.IsRewriting(ctx) {
		if int64(len(have)) != size {
			return fail(fmt.Errorf("stored with %d bytes, not %d: %w", len(have), size, store.ErrDigestMismatch))
		}
		return 0, nil
	}
	r, err := open()
	if err != nil {
		return fail(fmt.Errorf("open source: %w", err))
	}
	defer func() { _ = r.Close() }() // read-only source
	b, err := io.ReadAll(io.LimitReader(r, size+1))
	if err != nil {
		return fail(fmt.Errorf("read source: %w", err))
	}
	if int64(len(b)) != size {
		return fail(fmt.Errorf("source gave %d bytes, want %d: %w", len(b), size, store.ErrDigestMismatch))
	}
	if digest.FromBytes(b) != d {
		return fail(store.ErrDigestMismatch)
	}
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	s.mu.Lock()
	s.blobs[d] = b
	s.mu.Unlock()
	return size, nil
}

// HasBlob implements store.Blobs.
func (s *Store) HasBlob(ctx context.Context, d digest.Digest) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.blobs[d]
	return ok, ctx.Err()
}

// GetBlob implements store.Blobs.
func (s *Store) GetBlob(ctx context.Context, d digest.Digest, size, off, length int64) (io.ReadCloser, error) {
	fail := func(err error) (io.ReadCloser, error) { return nil, fmt.Errorf("memory: get blob %s: %w", d, err) }
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	n, err := store.SpanOf(size, off, length)
	if err != nil {
		return fail(err)
	}
	s.mu.Lock()
	b, ok := s.blobs[d]
	s.mu.Unlock()
	if !ok {
		return fail(store.ErrNotFound)
	}
	if int64(len(b)) != size {
		return fail(fmt.Errorf("stored with %d bytes, not %d: %w", len(b), size, store.ErrDigestMismatch))
	}
	return io.NopCloser(bytes.NewReader(b[off : off+n])), nil
}

// PutManifest implements store.Manifests.
func (s *Store) PutManifest(ctx context.Context, tag, mediaType string, body []byte) (digest.Digest, error) {
	fail := func(err error) (digest.Digest, error) {
		return "", fmt.Errorf("memory: put manifest under tag %s: %w", tag, err)
	}
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	if len(body) > store.MaxManifest {
		return fail(store.ErrTooLarge)
	}
	d := digest.FromBytes(body)
	s.mu.Lock()
	defer s.mu.Unlock()
	if have, ok := s.tags[tag]; ok && have != d {
		return fail(fmt.Errorf("it names %s: %w", have, store.ErrTagTaken))
	}
	listed, err := s.checkReferences(mediaType, body)
	if err != nil {
		return fail(err)
	}
	if listed != nil {
		s.listed[d] = listed
	}
	s.manifests[d] = store.Manifest{MediaType: mediaType, Digest: d, Body: slices.Clone(body)}
	s.tags[tag] = d
	return d, nil
}

// checkReferences refuses a manifest that names what is missing, and returns what
// an image index lists; the caller holds mu.
func (s *Store) checkReferences(mediaType string, body []byte) (listed []digest.Digest, err error) {
	switch mediaType {
	case ocispec.MediaTypeImageManifest:
		var m ocispec.Manifest
		if err := json.Unmarshal(body, &m); err != nil {
			return nil, fmt.Errorf("%w: %w", err, store.ErrRefused)
		}
		for _, r := range append(m.Layers, m.Config) {
			if _, ok := s.blobs[r.Digest]; !ok {
				return nil, fmt.Errorf("blob %s: %w", r.Digest, store.ErrIncomplete)
			}
		}
	case ocispec.MediaTypeImageIndex:
		var x ocispec.Index
		if err := json.Unmarshal(body, &x); err != nil {
			return nil, fmt.Errorf("%w: %w", err, store.ErrRefused)
		}
		for _, r := range x.Manifests {
			if _, ok := s.manifests[r.Digest]; !ok {
				return nil, fmt.Errorf("manifest %s: %w", r.Digest, store.ErrIncomplete)
			}
			listed = append(listed, r.Digest)
		}
	default:
		return nil, fmt.Errorf("media type %q: %w", mediaType, store.ErrRefused)
	}
	return listed, nil
}

// GetManifest implements store.Manifests.
func (s *Store) GetManifest(ctx context.Context, ref string) (store.Manifest, error) {
	if err := ctx.Err(); err != nil {
		return store.Manifest{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	d, ok := s.tags[ref]
	if !ok {
		d = digest.Digest(ref)
	}
	m, ok := s.manifests[d]
	if !ok {
		return store.Manifest{}, fmt.Errorf("memory: get manifest %s: %w", ref, store.ErrNotFound)
	}
	if digest.FromBytes(m.Body) != d {
		return store.Manifest{}, fmt.Errorf("memory: get manifest %s: %w", ref, store.ErrDigestMismatch)
	}
	m.Body = slices.Clone(m.Body)
	return m, nil
}

// ResolveTag implements store.Manifests.
func (s *Store) ResolveTag(ctx context.Context, tag string) (digest.Digest, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	d, ok := s.tags[tag]
	if _, stored := s.manifests[d]; !ok || !stored {
		return "", fmt.Errorf("memory: resolve tag %s: %w", tag, store.ErrNotFound)
	}
	return d, nil
}

// Tags implements store.Manifests.
func (s *Store) Tags(ctx context.Context, prefix string) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, t := range slices.Sorted(maps.Keys(s.tags)) {
		if strings.HasPrefix(t, prefix) {
			out = append(out, t)
		}
	}
	return out, nil
}

// DeleteTag implements store.Manifests.
func (s *Store) DeleteTag(ctx context.Context, tag string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.tags[tag]; !ok {
		return fmt.Errorf("memory: delete tag %s: %w", tag, store.ErrNotFound)
	}
	delete(s.tags, tag)
	return nil
}

// DeleteManifest implements store.Manifests. After Unchecked it lets go of the
// tags that name d, and does not ask whether an index lists it.
func (s *Store) DeleteManifest(ctx context.Context, d digest.Digest) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.manifests[d]; !ok {
		return fmt.Errorf("memory: delete manifest %s: %w", d, store.ErrNotFound)
	}
	if tag := s.lister(d); tag != "" && !s.unchecked {
		return fmt.Errorf("memory: delete manifest %s: tag %s: %w", d, tag, store.ErrListed)
	}
	s.remove(d)
	return nil
}

// remove takes a manifest away with the tags that name it; the caller holds mu.
func (s *Store) remove(d digest.Digest) {
	delete(s.manifests, d)
	delete(s.listed, d)
	maps.DeleteFunc(s.tags, func(_ string, have digest.Digest) bool { return have == d })
}

// lister returns a tag that names d or whose index lists it; the caller holds
// mu.
func (s *Store) lister(d digest.Digest) string {
	for tag, named := range s.tags {
		if named == d || slices.Contains(s.listed[named], d) {
			return tag
		}
	}
	return ""
}

// Unchecked makes the store one that deletes whatever it is told to, as other
// registries do.
func (s *Store) Unchecked() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unchecked = true
}

// Vanish removes a manifest with its tags, whatever needs it, as a collector does
// that knows nothing of repositories. It reports whether d was there.
func (s *Store) Vanish(d digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.manifests[d]
	s.remove(d)
	return ok
}

// Collect removes all blobs that no manifest names, as a registry's collector
// does, and returns how many.
func (s *Store) Collect() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	named := map[digest.Digest]bool{}
	for _, m := range s.manifests {
		var x ocispec.Manifest
		if m.MediaType != ocispec.MediaTypeImageManifest || json.Unmarshal(m.Body, &x) != nil {
			continue
		}
		for _, l := range append(x.Layers, x.Config) {
			named[l.Digest] = true
		}
	}
	before := len(s.blobs)
	maps.DeleteFunc(s.blobs, func(d digest.Digest, _ []byte) bool { return !named[d] })
	return before - len(s.blobs)
}

// Size is how many bytes the blobs have.
func (s *Store) Size() (n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.blobs {
		n += int64(len(b))
	}
	return n
}

// Clone returns a store that holds the same and goes its own way, for tests
// that begin many times from one state.
func (s *Store) Clone() *Store {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &Store{blobs: maps.Clone(s.blobs), manifests: maps.Clone(s.manifests), listed: maps.Clone(s.listed), tags: maps.Clone(s.tags), unchecked: s.unchecked}
}

// Corrupt replaces the stored bytes of blob d, whatever their digest, for tests
// that must notice. It reports whether d was there.
func (s *Store) Corrupt(d digest.Digest, b []byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.blobs[d]; !ok {
		return false
	}
	s.blobs[d] = slices.Clone(b)
	return true
}

// CorruptManifest replaces the stored bytes of manifest d, as Corrupt does those
// of blobs.
func (s *Store) CorruptManifest(d digest.Digest, b []byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, ok := s.manifests[d]
	m.Body = slices.Clone(b)
	if ok {
		s.manifests[d] = m
	}
	return ok
}

// Drop removes blob d as if the disk below had lost it. It reports whether d
// was there.
func (s *Store) Drop(d digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.blobs[d]
	delete(s.blobs, d)
	return ok
}

// DropManifest removes manifest d, as Drop does blobs: its tags stay listed.
func (s *Store) DropManifest(d digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.manifests[d]
	delete(s.manifests, d)
	return ok
}

// MoveTag lets tag name d, which the contract forbids: a hostile or broken
// registry, for tests.
func (s *Store) MoveTag(tag string, d digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tags[tag] = d
}
