package repo_test

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"lifeboat/internal/casetest"
	"lifeboat/internal/dr"
	"lifeboat/internal/repo"
	"lifeboat/internal/repo/repotest"
	"lifeboat/internal/store"
)

// tally is a store that counts requests, and the bytes of blobs and manifests
// that go either way. A listing of tags counts by its pages of 1000.
type tally struct {
	store.Store
	mu       sync.Mutex
	requests int
	bytes    int64
}

func (c *tally) add(requests, bytes int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.requests, c.bytes = c.requests+requests, c.bytes+int64(bytes)
}

func (c *tally) take() (requests int, bytes int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	requests, bytes = c.requests, c.bytes
	c.requests, c.bytes = 0, 0
	return requests, bytes
}

func (c *tally) PutBlob(ctx context.Context, d digest.Digest, size int64, open func() (io.ReadCloser, error)) (int64, error) {
	n, err := c.Store.PutBlob(ctx, d, size, open)
	c.add(1, int(n))
	return n, err
}

func (c *tally) HasBlob(ctx context.Context, d digest.Digest) (bool, error) {
	c.add(1, 0)
	return c.Store.HasBlob(ctx, d)
}

func (c *tally) GetBlob(ctx context.Context, d digest.Digest, size, off, length int64) (io.ReadCloser, error) {
	if length < 0 {
		c.add(1, int(size-off))
	} else {
		c.add(1, int(length))
	}
	return c.Store.GetBlob(ctx, d, size, off, length)
}

func (c *tally) PutManifest(ctx context.Context, tag, media string, body []byte) (digest.Digest, error) {
	c.add(1, len(body))
	return c.Store.PutManifest(ctx, tag, media, body)
}

func (c *tally) GetManifest(ctx context.Context, ref string) (store.Manifest, error) {
	m, err := c.Store.GetManifest(ctx, ref)
	c.add(1, len(m.Body))
	return m, err
}

func (c *tally) ResolveTag(ctx context.Context, tag string) (digest.Digest, error) {
	c.add(1, 0)
	return c.Store.ResolveTag(ctx, tag)
}

func (c *tally) Tags(ctx context.Context, prefix string) ([]string, error) {
	all, err := c.Store.Tags(ctx, "")
	if err != nil {
		return nil, err
	}
	c.add(1+len(all)/1000, 0)
	return c.Store.Tags(ctx, prefix)
}

// cost is what one thing took.
type cost struct {
	requests int
	bytes    int64
}

// aged takes snapshots of a system that changes a little each time, with a
// compaction every hundred, and returns what the last one cost, and what it then
// costs a host that has nothing to read it all.
func aged(t testing.TB, snapshots int) (took, read cost) {
	b := repotest.NewBed(t)
	c := &tally{Store: b.Store}
	units := content(1, 60)
	var changed [][]byte
	for i := range snapshots {
		r, err := repo.Open(t.Context(), c, b.Options("main")) // as each run of the command
		if err != nil {
			t.Fatal(err)
		}
		changed = append(slices.Clone(units), noise(uint64(1000+i), 5000))
		units[i%len(units)] = noise(uint64(100000+i), 700)
		c.take()
		var parent *repo.Snapshot
		if i > 0 {
			if parent, err = r.Find(t.Context(), "shop", ""); err != nil {
				t.Fatal(err)
			}
		}
		mustSnapshot(t, r, "shop", parent, changed)
		took.requests, took.bytes = c.take()
		if (i+1)%100 == 0 && i+1 < snapshots {
			if _, err := compact(t.Context(), r, repo.CompactOptions{MaxUnused: 0.25}, repo.DefaultGrace); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	r, err := repo.Open(t.Context(), c, b.Options("fresh"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	c.take()
	s, err := r.Find(t.Context(), "shop", "")
	if err != nil {
		t.Fatal(err)
	}
	mustHold(t, r, s, changed)
	read.requests, read.bytes = c.take()
	return took, read
}

// What a snapshot and a restore cost does not grow with the snapshots before,
// in requests and in bytes.
func TestFlat(t *testing.T) {
	t.Parallel()
	ages := []int{3, 60, 220}
	if casetest.All() {
		ages = []int{3, 100, 1000}
	}
	for _, n := range ages {
		took, read := aged(t, n)
		t.Logf("%4d snapshots: the last took %3d requests and %7d bytes, reading it %3d requests and %8d bytes", n, took.requests, took.bytes, read.requests, read.bytes)
		// Bounds are those of a snapshot that lists 32 manifests, whatever came before.
		if took.requests > 180 || took.bytes > 2<<20 || read.requests > 420 || read.bytes > 40<<20 {
			t.Errorf("after %d snapshots: %+v, %+v", n, took, read)
		}
	}
}

func BenchmarkSnapshotAfter(b *testing.B) {
	for _, n := range []int{1, 100, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			bed := repotest.NewBed(b)
			r := bed.Host("main")
			var parent *repo.Snapshot
			units := content(1, 40)
			one := func(i int) {
				units[i%len(units)] = noise(uint64(100000+i), 700)
				parent = mustSnapshot(b, r, dr.System("shop"), parent, units)
			}
			for i := range n {
				one(i)
			}
			b.ResetTimer()
			for i := range b.N {
				one(n + i)
			}
		})
	}
}
