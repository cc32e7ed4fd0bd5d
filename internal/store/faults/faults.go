// Package faults decorates a store.Store with planned failures, for tests: a
// call fails before or after its effect, hangs, reads short, reads altered
// bytes, or happens twice. A plan whose faults were not all exercised fails the
// test, so that a test cannot pass because the code took another way.
package faults

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/opencontainers/go-digest"

	"lifeboat/internal/store"
)

// Op names a method of store.Store. The empty Op is any of them.
type Op string

// The methods.
const (
	Any            Op = ""
	PutBlob        Op = "PutBlob"
	HasBlob        Op = "HasBlob"
	GetBlob        Op = "GetBlob"
	PutManifest    Op = "PutManifest"
	GetManifest    Op = "GetManifest"
	ResolveTag     Op = "ResolveTag"
	Tags           Op = "Tags"
	DeleteTag      Op = "DeleteTag"
	DeleteManifest Op = "DeleteManifest"
	Capabilities   Op = "Capabilities"
)

// Kind is what goes wrong.
type Kind int

const (
	// Before: the call fails and has no effect.
	Before Kind = iota
	// After: the call has its effect, and then fails.
	After
	// Hang: the call has no effect and returns when its context is done.
	Hang
	// HangAfter: the call has its effect and returns when its context is done.
	HangAfter
	// Short: a blob that is read ends after At bytes with io.ErrUnexpectedEOF; a
	// blob that is sent fails after At bytes were taken, or all when there are
	// fewer, and is not stored.
	Short
	// Corrupt: byte At of a blob or manifest that is read is altered. The digest
	// in a store.Manifest stays as it was.
	Corrupt
	// Duplicate: the call happens twice; the second answer counts.
	Duplicate
)

// Fault is one planned failure.
type Fault struct {
	// Op says which method, Arg which tag, digest or prefix (empty: any), Call
	// which of the calls that fit, from 1 on; 0 means the first.
	Op   Op
	Arg  string
	Call int
	// Kind says what goes wrong, Err with which error. nil means
	// store.ErrUnreachable, and store.ErrUnknownOutcome for PutManifest after its
	// effect.
	Kind Kind
	Err  error
	// At is the byte that Short and Corrupt speak of.
	At int64
	// Do, if set, runs when the fault strikes, before anything else.
	Do func()
	// Last: the process dies in this call. Every later one fails and has no effect.
	Last bool
}

// Call is one call that was made.
type Call struct {
	Op  Op
	Arg string
}

// TB is the part of testing.TB that the package needs.
type TB interface {
	Helper()
	Cleanup(func())
	Errorf(format string, args ...any)
}

// Store is the decorator. Safe for concurrent use.
type Store struct {
	inner store.Store

	mu    sync.Mutex
	plan  []*planned
	calls []Call
	dead  bool
}

type planned struct {
	Fault
	seen int
	hit  bool
}

var _ store.Store = (*Store)(nil)

// New returns inner with the planned faults. When tb ends, each fault that was
// never exercised is an error.
func New(tb TB, inner store.Store, plan ...Fault) *Store {
	tb.Helper()
	s := &Store{inner: inner}
	for _, f := range plan {
		if f.Call == 0 {
			f.Call = 1
		}
		s.plan = append(s.plan, &planned{Fault: f})
	}
	tb.Cleanup(func() {
		for _, f := range s.Unexercised() {
			tb.Errorf("planned fault was never exercised: %s %s, call %d", f.Op, f.Arg, f.Call)
		}
	})
	return s
}

// Unexercised returns the faults that have not struck yet.
func (s *Store) Unexercised() []Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Fault
	for _, p := range s.plan {
		if !p.hit {
			out = append(out, p.Fault)
		}
	}
	return out
}

// Calls returns all calls so far, in the order in which they began. A test that
// fails each call in turn learns from a first run how many there are.
func (s *Store) Calls() []Call {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Call(nil), s.calls...)
}

// strike notes a call and returns the fault planned for it, if any.
func (s *Store) strike(op Op, arg string) *Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead {
		return &Fault{Kind: Before}
	}
	s.calls = append(s.calls, Call{op, arg})
	var found *planned
	for _, p := range s.plan {
		if (p.Op != Any && p.Op != op) || (p.Arg != "" && p.Arg != arg) {
			continue
		}
		p.seen++
		if !p.hit && p.seen == p.Call && found == nil {
			p.hit, s.dead = true, p.Last
			found = p
		}
	}
	if found == nil {
		return nil
	}
	return &found.Fault
}

func (f *Fault) error(op Op, arg string) error {
	err := f.Err
	if err == nil {
		err = store.ErrUnreachable
		if op == PutManifest && (f.Kind == After || f.Kind == HangAfter) {
			err = store.ErrUnknownOutcome
		}
	}
	return fmt.Errorf("planned fault: %s %s: %w", op, arg, err)
}

// run makes a call under its fault. Kinds that concern bodies are left to the
// caller.
func run[T any](ctx context.Context, s *Store, op Op, arg string, call func(*Fault) (T, error)) (T, *Fault, error) {
	var zero T
	f := s.strike(op, arg)
	if f == nil {
		v, err := call(nil)
		return v, nil, err
	}
	if f.Do != nil {
		f.Do()
	}
	switch f.Kind {
	case Before:
		return zero, f, f.error(op, arg)
	case After:
		if _, err := call(f); err != nil {
			return zero, f, err
		}
		return zero, f, f.error(op, arg)
	case Hang, HangAfter:
		if f.Kind == HangAfter {
			if _, err := call(f); err != nil {
				return zero, f, err
			}
		}
		<-ctx.Done()
		return zero, f, fmt.Errorf("%w: %w", context.Cause(ctx), f.error(op, arg))
	case Duplicate:
		if _, err := call(f); err != nil {
			return zero, f, err
		}
	}
	v, err := call(f)
	return v, f, err
}

// PutBlob implements store.Blobs.
func (s *Store) PutBlob(ctx context.Context, d digest.Digest, size int64, open func() (io.ReadCloser, error)) (int64, error) {
	n, f, err := run(ctx, s, PutBlob, d.String(), func(f *Fault) (int64, error) {
		if f == nil || f.Kind != Short {
			return s.inner.PutBlob(ctx, d, size, open)
		}
		r, err := open()
		if err != nil {
			return 0, err
		}
		n, err := io.Copy(io.Discard, io.LimitReader(r, f.At))
		if cerr := r.Close(); err == nil {
			err = cerr
		}
		return n, err
	})
	if err == nil && f != nil && f.Kind == Short {
		err = f.error(PutBlob, d.String())
	}
	return n, err
}

// HasBlob implements store.Blobs.
func (s *Store) HasBlob(ctx context.Context, d digest.Digest) (bool, error) {
	ok, _, err := run(ctx, s, HasBlob, d.String(), func(*Fault) (bool, error) { return s.inner.HasBlob(ctx, d) })
	return ok, err
}

// GetBlob implements store.Blobs.
func (s *Store) GetBlob(ctx context.Context, d digest.Digest, size, off, length int64) (io.ReadCloser, error) {
	r, f, err := run(ctx, s, GetBlob, d.String(), func(*Fault) (io.ReadCloser, error) { return s.inner.GetBlob(ctx, d, size, off, length) })
	if err != nil || f == nil {
		return r, err
	}
	switch f.Kind {
	case Short:
		return &short{ReadCloser: r, left: f.At, err: fmt.Errorf("%w: %w", f.error(GetBlob, d.String()), io.ErrUnexpectedEOF)}, nil
	case Corrupt:
		return &corrupt{ReadCloser: r, at: f.At}, nil
	}
	return r, nil
}

type short struct {
	io.ReadCloser
	left int64
	err  error
}

func (r *short) Read(p []byte) (int, error) {
	if r.left <= 0 {
		return 0, r.err
	}
	n, err := r.ReadCloser.Read(p[:min(int64(len(p)), r.left)])
	r.left -= int64(n)
	return n, err
}

type corrupt struct {
	io.ReadCloser
	at int64
}

func (r *corrupt) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if r.at >= 0 && r.at < int64(n) {
		p[r.at] ^= 0x40
	}
	r.at -= int64(n)
	return n, err
}

// PutManifest implements store.Manifests.
func (s *Store) PutManifest(ctx context.Context, tag, mediaType string, body []byte) (digest.Digest, error) {
	d, _, err := run(ctx, s, PutManifest, tag, func(*Fault) (digest.Digest, error) { return s.inner.PutManifest(ctx, tag, mediaType, body) })
	return d, err
}

// GetManifest implements store.Manifests.
func (s *Store) GetManifest(ctx context.Context, ref string) (store.Manifest, error) {
	m, f, err := run(ctx, s, GetManifest, ref, func(*Fault) (store.Manifest, error) { return s.inner.GetManifest(ctx, ref) })
	if err == nil && f != nil && f.Kind == Corrupt && f.At < int64(len(m.Body)) {
		m.Body = bytes.Clone(m.Body)
		m.Body[f.At] ^= 0x40
	}
	return m, err
}

// ResolveTag implements store.Manifests.
func (s *Store) ResolveTag(ctx context.Context, tag string) (digest.Digest, error) {
	d, _, err := run(ctx, s, ResolveTag, tag, func(*Fault) (digest.Digest, error) { return s.inner.ResolveTag(ctx, tag) })
	return d, err
}

// First implements store.Remembering.
func (s *Store) First(ctx context.Context, tag string) (digest.Digest, error) {
	d, _, err := run(ctx, s, ResolveTag, tag, func(*Fault) (digest.Digest, error) { return store.First(ctx, s.inner, tag) })
	return d, err
}

// Tags implements store.Manifests.
func (s *Store) Tags(ctx context.Context, prefix string) ([]string, error) {
	tags, _, err := run(ctx, s, Tags, prefix, func(*Fault) ([]string, error) { return s.inner.Tags(ctx, prefix) })
	return tags, err
}

// DeleteTag implements store.Manifests.
func (s *Store) DeleteTag(ctx context.Context, tag string) error {
	_, _, err := run(ctx, s, DeleteTag, tag, func(*Fault) (struct{}, error) { return struct{}{}, s.inner.DeleteTag(ctx, tag) })
	return err
}

// DeleteManifest implements store.Manifests.
func (s *Store) DeleteManifest(ctx context.Context, d digest.Digest) error {
	_, _, err := run(ctx, s, DeleteManifest, d.String(), func(*Fault) (struct{}, error) { return struct{}{}, s.inner.DeleteManifest(ctx, d) })
	return err
}

// Capabilities implements store.Store.
func (s *Store) Capabilities(ctx context.Context) (store.Capabilities, error) {
	c, _, err := run(ctx, s, Capabilities, "", func(*Fault) (store.Capabilities, error) { return s.inner.Capabilities(ctx) })
	return c, err
}
