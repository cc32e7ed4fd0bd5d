// Package layertest has an in-memory store of units for tests of what is built
// on package layer. It is no part of the product.
package layertest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"

	"lifeboat/internal/dr"
)

// Store keeps units in memory. It is a layer.Sink and a layer.Source and safe
// for concurrent use.
type Store struct {
	mu    sync.Mutex
	units map[dr.UnitID][]byte
	// Puts counts the calls of Put, Bytes what was new in them.
	Puts  int
	Bytes int64
	// FailPut, if set, decides about the n-th Put (from 1).
	FailPut func(n int) error
}

// New returns an empty store.
func New() *Store { return &Store{units: map[dr.UnitID][]byte{}} }

// Put stores a copy of data.
func (s *Store) Put(ctx context.Context, data []byte) (dr.UnitRef, error) {
	if len(data) == 0 || len(data) > dr.MaxUnit {
		return dr.UnitRef{}, fmt.Errorf("unit of %d bytes", len(data))
	}
	if err := ctx.Err(); err != nil {
		return dr.UnitRef{}, err
	}
	ref := dr.UnitRef{ID: sha256.Sum256(data), Len: uint32(len(data))}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Puts++
	if s.FailPut != nil {
		if err := s.FailPut(s.Puts); err != nil {
			return dr.UnitRef{}, err
		}
	}
	if _, ok := s.units[ref.ID]; !ok {
		s.units[ref.ID] = bytes.Clone(data)
		s.Bytes += int64(len(data))
	}
	return ref, nil
}

// ErrGone is what Unit returns for a unit that the store does not have.
var ErrGone = errors.New("no such unit")

// Unit gives a unit.
func (s *Store) Unit(ctx context.Context, ref dr.UnitRef) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	data, ok := s.units[ref.ID]
	if !ok {
		return nil, fmt.Errorf("unit %s: %w", ref.ID, ErrGone)
	}
	return data, nil
}

// Has reports whether the store has the unit.
func (s *Store) Has(ref dr.UnitRef) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.units[ref.ID]
	return ok
}

// Drop removes a unit; Damage changes its content; both for failure tests.
func (s *Store) Drop(ref dr.UnitRef) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.units, ref.ID)
}

// Damage gives the unit other content of any length.
func (s *Store) Damage(ref dr.UnitRef, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.units[ref.ID] = data
}

// Refs lists all units in no order.
func (s *Store) Refs() []dr.UnitRef {
	s.mu.Lock()
	defer s.mu.Unlock()
	var refs []dr.UnitRef
	for id, data := range s.units {
		refs = append(refs, dr.UnitRef{ID: id, Len: uint32(len(data))})
	}
	return refs
}

// Fetching is a Store that is a layer.Fetcher as well: it delivers backwards
// and from several goroutines.
type Fetching struct{ *Store }

// Fetch delivers the units in reverse order.
func (f Fetching) Fetch(ctx context.Context, refs []dr.UnitRef, fn func(int, []byte) error) error {
	errs := make(chan error, len(refs))
	for i := len(refs) - 1; i >= 0; i-- {
		go func() {
			data, err := f.Unit(ctx, refs[i])
			if err == nil {
				err = fn(i, data)
			}
			errs <- err
		}()
	}
	var first error
	for range refs {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
	}
	return first
}
