package limit_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"

	"github.com/opencontainers/go-digest"

	"lifeboat/internal/dr"
	"lifeboat/internal/store"
	"lifeboat/internal/store/limit"
	"lifeboat/internal/store/memstore"
	"lifeboat/internal/store/storetest"
)

func wrap(t *testing.T, inner store.Store, o limit.Options) store.Store {
	t.Helper()
	s, err := limit.New(inner, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestConformance(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) store.Store {
		return wrap(t, memstore.New(), limit.Options{Concurrency: 2, BytesPerSecond: 1 << 30})
	})
}

func TestMistakes(t *testing.T) {
	t.Parallel()
	for _, o := range []limit.Options{{Concurrency: -1}, {BytesPerSecond: -1}} {
		if _, err := limit.New(memstore.New(), o); !errors.Is(err, dr.ErrUsage) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

// TestConcurrency: a reader that is open takes its place until it is closed; who
// waits can be cancelled.
func TestConcurrency(t *testing.T) {
	t.Parallel()
	m := memstore.New()
	d := storetest.PutBytes(t, m, "", []byte("x")).Digest
	s := wrap(t, m, limit.Options{Concurrency: 1})
	r, err := s.GetBlob(t.Context(), d, 1, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	waiting := make(chan error)
	go func() { _, err := s.HasBlob(ctx, d); waiting <- err }()
	cancel()
	if err := <-waiting; !errors.Is(err, context.Canceled) {
		t.Errorf("a second call at the same time: %v", err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	_ = r.Close() // a second Close must not free a second place
	if _, err := s.HasBlob(t.Context(), d); err != nil {
		t.Errorf("after Close: %v", err)
	}
	if _, err := s.GetBlob(t.Context(), digest.FromString("no"), 1, 0, -1); !errors.Is(err, store.ErrNotFound) {
		t.Fatal(err)
	}
	if _, err := s.HasBlob(t.Context(), d); err != nil {
		t.Errorf("after a GetBlob that failed: %v", err)
	}
}

// TestRate: at one byte a second the first burst passes, and the rest waits
// until the context ends.
func TestRate(t *testing.T) {
	t.Parallel()
	m := memstore.New()
	blob := storetest.Random(300 << 10)
	d := storetest.PutBytes(t, m, "", blob).Digest
	s := wrap(t, m, limit.Options{BytesPerSecond: 1})
	ctx, cancel := context.WithCancel(t.Context())
	r, err := s.GetBlob(ctx, d, int64(len(blob)), 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	first := make([]byte, 128<<10)
	if _, err := io.ReadFull(r, first); err != nil || !bytes.Equal(first, blob[:128<<10]) {
		t.Fatalf("burst: %v", err)
	}
	cancel()
	if _, err := io.ReadAll(r); !errors.Is(err, context.Canceled) {
		t.Errorf("beyond the burst: %v", err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}
