// Package store is the contract between the repository and whatever keeps its
// blobs and tags: an OCI registry (package ocistore), memory (package
// memstore, for tests), and decorators over either (packages retry, limit,
// faults). Package storetest is the conformance suite that all of them pass.
//
// The package knows OCI's words (blob, manifest, tag, digest) and nothing of
// snapshots, keys or packs. It neither encrypts nor authenticates content:
// callers do (docs/format.md, invariant 10).
package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/opencontainers/go-digest"

	"lifeboat/internal/dr"
)

// MaxManifest is the largest manifest, in bytes, that is written or read. Both
// versions of CNCF Distribution refuse more (measured).
const MaxManifest = 4 << 20

// Sentinel errors. Every error of a store wraps one of them where one fits,
// names the host and what was being done, and never holds a credential or the
// query of a URL.
var (
	// ErrNotFound: the blob, manifest or tag does not exist in this name.
	ErrNotFound = errors.New("not in the registry")
	// ErrTagTaken: the tag exists and names another digest, or its number was
	// used before. Nothing was changed (invariant 11).
	ErrTagTaken = errors.New("tag already taken")
	// ErrTagRetired: the number of the tag was used, and its tag was deleted since:
	// it names nothing and never will again. It wraps ErrTagTaken. Only a registry
	// that keeps tags immutable knows; others give the number out again.
	ErrTagRetired = fmt.Errorf("tag was used and deleted: %w", ErrTagTaken)
	// ErrUnauthorized: no credentials, or wrong ones.
	ErrUnauthorized = errors.New("not logged in, or wrong credentials")
	// ErrUntrusted: the registry's certificate is not the one that was pinned, or
	// nobody vouches for it. No login was sent.
	ErrUntrusted = errors.New("certificate not trusted")
	// ErrForbidden: the credentials are right but their access role does not
	// allow this.
	ErrForbidden = errors.New("not allowed by the access role")
	// ErrUnreachable: no usable answer for now: no route, refused, reset, no
	// byte moved for the stall timeout, status 429 or 5xx. What was asked for
	// did not happen, or may be asked for again without harm.
	ErrUnreachable = errors.New("registry out of reach")
	// ErrStalled: no byte moved for the stall timeout, and the transfer was given
	// up. It comes with ErrUnreachable.
	ErrStalled = errors.New("transfer stalled")
	// ErrUnknownOutcome: a tag was sent, the answer was lost, and reading again
	// did not settle it. It wraps dr.ErrOutcomeUnknown.
	ErrUnknownOutcome = fmt.Errorf("tag may or may not have been written: %w", dr.ErrOutcomeUnknown)
	// ErrTooLarge: larger than a bound of this package or of the registry.
	ErrTooLarge = errors.New("too large")
	// ErrDigestMismatch: what the registry holds or sent is not what its name
	// promises: other bytes, or fewer, or more. It wraps dr.ErrTampered.
	ErrDigestMismatch = fmt.Errorf("content does not fit its digest or size: %w", dr.ErrTampered)
	// ErrUnsupported: this registry does not offer the operation.
	ErrUnsupported = errors.New("not supported by this registry")
	// ErrNoSpace: the registry has no room left, or a quota is used up.
	ErrNoSpace = errors.New("no space left in the registry")
	// ErrListed: a tag names or lists the manifest that was to be deleted, or a
	// manifest the blob. Nothing was changed (invariant 2). Only stores with
	// Capabilities.CheckedDelete look.
	ErrListed = errors.New("still named by a tag or manifest")
	// ErrIncomplete: a manifest names a blob or manifest that the name lacks;
	// it was not stored (invariant 1).
	ErrIncomplete = errors.New("manifest names something that is not stored")
	// ErrRefused: the registry refused for another reason, which the message
	// gives. The same request will be refused again.
	ErrRefused = errors.New("refused by the registry")
)

// Blobs stores and reads immutable byte strings by digest. Implementations are
// safe for concurrent use.
type Blobs interface {
	// PutBlob stores the size bytes that open yields under digest d, and returns
	// the number of payload bytes sent, 0 where the store already had them.
	//
	// It is idempotent. The blob is visible only when it is whole and its digest
	// was checked by the store. open may be called several times, each time from
	// the beginning; the reader is closed. Errors of open and of its reader come
	// back wrapped and are not tried again. A blob that the store holds with
	// another size is ErrDigestMismatch. Durable on return as far as the
	// registry keeps its word; Lifeboat's own does.
	PutBlob(ctx context.Context, d digest.Digest, size int64, open func() (io.ReadCloser, error)) (sent int64, err error)

	// HasBlob reports whether d is stored in this name.
	HasBlob(ctx context.Context, d digest.Digest) (bool, error)

	// GetBlob returns exactly length bytes of d from off on; length < 0 means up
	// to the end, which is size. The reader fails with ErrDigestMismatch or
	// io.ErrUnexpectedEOF rather than end early; it never yields more. Nothing is
	// verified against d: callers authenticate. The caller closes the reader;
	// ctx must live as long as it.
	GetBlob(ctx context.Context, d digest.Digest, size, off, length int64) (io.ReadCloser, error)
}

// Manifest is a manifest or index as stored, byte for byte.
type Manifest struct {
	// MediaType is the OCI media type that the store gave.
	MediaType string
	// Digest is the SHA-256 digest of Body; it was computed, not believed.
	Digest digest.Digest
	// Body is at most MaxManifest bytes.
	Body []byte
}

// Manifests stores and reads manifests and their tags. Implementations are
// safe for concurrent use.
type Manifests interface {
	// PutManifest stores body and lets tag name it. A tag is never moved
	// (invariant 11): if it names another digest the error is ErrTagTaken, if it
	// names this one already the call succeeds. ErrUnknownOutcome means that
	// calling again with the same arguments is right. ErrIncomplete where body
	// names what is not stored; ErrTooLarge above MaxManifest.
	//
	// Where Capabilities.ImmutableTags is false two writers that race for one
	// tag may both be told that they won for a moment (docs/adr/0001): who must
	// be sure reads again after a delay.
	PutManifest(ctx context.Context, tag, mediaType string, body []byte) (digest.Digest, error)

	// GetManifest reads the manifest that ref, a tag or a digest, names. The
	// body is bounded and its digest verified.
	GetManifest(ctx context.Context, ref string) (Manifest, error)

	// ResolveTag returns what tag names, or ErrNotFound.
	ResolveTag(ctx context.Context, tag string) (digest.Digest, error)

	// Tags returns all tags that begin with prefix, sorted by byte order; none
	// where the name does not exist yet.
	Tags(ctx context.Context, prefix string) ([]string, error)

	// DeleteTag removes a tag and leaves its manifest. ErrUnsupported where the
	// registry cannot do that.
	DeleteTag(ctx context.Context, tag string) error

	// DeleteManifest removes the manifest d. Where Capabilities.CheckedDelete is
	// set it is ErrListed while a tag of Lifeboat's grammar names d, or any tag an
	// index that lists it, and nothing is changed; elsewhere tags go with it, and
	// callers make sure that no tag lists it (invariant 2). ErrUnsupported where
	// the registry cannot do that.
	DeleteManifest(ctx context.Context, d digest.Digest) error
}

// Capabilities is what a store is known to offer beyond the contract.
type Capabilities struct {
	// ImmutableTags: the store itself refuses, atomically, to let a tag of
	// Lifeboat's grammar name another digest.
	ImmutableTags bool
	// CheckedDelete: the store itself refuses, atomically, to delete a manifest
	// that a tag names or that the index under a tag lists, and takes no index
	// that lists what it does not have (docs/adr/0001).
	CheckedDelete bool
	// RetiredTags: the store remembers what a deleted tag of Lifeboat's grammar
	// named, and lets it name nothing else again (ErrTagRetired).
	RetiredTags bool
}

// Store is everything that a repository needs.
type Store interface {
	Blobs
	Manifests
	// Capabilities asks the store what it offers. Credentials are checked by the
	// same request.
	Capabilities(ctx context.Context) (Capabilities, error)
}

// Meter counts bytes on the wire, TLS and headers included, in both
// directions. The zero value is ready; it is safe for concurrent use.
type Meter struct {
	sent, received atomic.Int64
}

// AddSent adds n bytes that left this host.
func (m *Meter) AddSent(n int64) { m.sent.Add(n) }

// AddReceived adds n bytes that came in.
func (m *Meter) AddReceived(n int64) { m.received.Add(n) }

// Sent returns the bytes that left this host so far.
func (m *Meter) Sent() int64 { return m.sent.Load() }

// Received returns the bytes that came in so far.
func (m *Meter) Received() int64 { return m.received.Load() }

// Retryable reports whether the same call may succeed later without anybody
// doing anything: the registry was out of reach, an answer was cut off, or the
// outcome of a tag is unknown.
func Retryable(err error) bool {
	return errors.Is(err, ErrUnreachable) || errors.Is(err, ErrUnknownOutcome) ||
		errors.Is(err, io.ErrUnexpectedEOF)
}

// SpanOf checks the arguments of GetBlob and returns the number of bytes that
// it must yield.
func SpanOf(size, off, length int64) (int64, error) {
	if size < 0 || off < 0 || off > size {
		return 0, fmt.Errorf("read %d bytes from %d of a blob of %d: outside of it: %w", length, off, size, ErrDigestMismatch)
	}
	if length < 0 {
		return size - off, nil
	}
	if length > size-off {
		return 0, fmt.Errorf("read %d bytes from %d of a blob of %d: outside of it: %w", length, off, size, ErrDigestMismatch)
	}
	return length, nil
}
