package tree

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"lifeboat/internal/catalog"
	"lifeboat/internal/dr"
)

// Local is the catalog of what is on disk here and now, in a temporary local
// store. Nothing of it is in a repository.
type Local struct {
	// Reader reads the catalog, until Close.
	Reader *catalog.Reader
	// Tree is what a capture of the same state would have; equal trees have
	// equal hashes.
	Tree dr.Tree
	// Stats and Report are those of the reading.
	Stats  CaptureStats
	Report Report

	store *localStore
}

// Close drops the temporary store.
func (l *Local) Close() error { return l.store.f.Close() }

// LocalCatalog finds out what is in the tree at o.Root: all content is hashed
// with the repository's cut and keys, save for what the statcache knows, and
// put nowhere. Nothing else may write to the tree meanwhile. o.Sink and
// o.Budget are not used. The statcache is brought up to date.
func LocalCatalog(ctx context.Context, o CaptureOptions) (_ *Local, err error) {
	o.Sink = hashSink{o.UnitID}
	c, err := NewCapture(o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	f, err := tempFile(o.StateDir)
	if err != nil {
		return nil, err
	}
	store := &localStore{f: f, unitID: o.UnitID, at: map[dr.UnitID]int64{}}
	c.meta, c.local = store, true
	l, err := localCatalog(ctx, c, store)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return l, nil
}

func localCatalog(ctx context.Context, c *Capture, store *localStore) (*Local, error) {
	if err := c.precopy(ctx, true); err != nil {
		return nil, err
	}
	t, err := c.finish(ctx)
	if err != nil {
		return nil, fmt.Errorf("catalog of tree %s: %w", c.o.Root, err)
	}
	if err := c.CommitCache(); err != nil {
		return nil, err
	}
	r, err := catalog.Open(ctx, store, t.Catalog)
	if err != nil {
		return nil, fmt.Errorf("catalog of tree %s: %w", c.o.Root, err)
	}
	return &Local{Reader: r, Tree: t, Stats: c.Stats(), Report: c.Report(), store: store}, nil
}

// hashSink computes ids and stores nothing.
type hashSink struct{ unitID func([]byte) dr.UnitID }

func (s hashSink) Put(_ context.Context, data []byte) (dr.UnitRef, error) {
	return dr.UnitRef{ID: s.unitID(data), Len: uint32(len(data))}, nil
}

func (s hashSink) HaveAll([]dr.UnitRef) bool { return true }

// localStore keeps catalog pages and content lists in a temporary file. Safe
// for concurrent use.
type localStore struct {
	f      *os.File
	unitID func([]byte) dr.UnitID

	mu  sync.Mutex
	at  map[dr.UnitID]int64
	end int64
}

func (s *localStore) Put(_ context.Context, data []byte) (dr.UnitRef, error) {
	ref := dr.UnitRef{ID: s.unitID(data), Len: uint32(len(data))}
	return ref, s.keep(ref, data)
}

// keep stores data, which is the unit ref.
func (s *localStore) keep(ref dr.UnitRef, data []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.at[ref.ID]; known {
		return nil
	}
	if _, err := s.f.WriteAt(data, s.end); err != nil {
		return fmt.Errorf("local catalog: %w", err)
	}
	s.at[ref.ID] = s.end
	s.end += int64(len(data))
	return nil
}

func (s *localStore) has(ref dr.UnitRef) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.at[ref.ID]
	return ok
}

func (s *localStore) Unit(_ context.Context, ref dr.UnitRef) ([]byte, error) {
	s.mu.Lock()
	off, ok := s.at[ref.ID]
	s.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("local catalog: unit %v: %w", ref.ID, dr.ErrNotFound)
	}
	data := make([]byte, ref.Len)
	if _, err := s.f.ReadAt(data, off); err != nil {
		return nil, fmt.Errorf("local catalog: %w", noEOF(err))
	}
	return data, nil
}
