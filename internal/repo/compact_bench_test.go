package repo_test

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"runtime/metrics"
	"strconv"
	"testing"
	"time"

	"lifeboat/internal/catalog"
	"lifeboat/internal/dr"
	"lifeboat/internal/repo"
	"lifeboat/internal/repo/repotest"
	"lifeboat/internal/retain"
)

// snapshotOfFiles takes a snapshot with a real catalog of files numbered from 0,
// leaving out those that skip says.
func snapshotOfFiles(b *testing.B, r *repo.Repo, parent *repo.Snapshot, files int, skip func(int) bool) *repo.Snapshot {
	b.Helper()
	ctx := b.Context()
	w, err := r.NewWriter(ctx, repo.WriterOptions{System: "shop", Parent: parent})
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close()
	cat := catalog.NewBuilder(w, r.CutKey(), r.UnitID)
	add := func(e catalog.Entry) {
		if err := cat.Add(ctx, e); err != nil {
			b.Fatal(err)
		}
	}
	add(catalog.Entry{Type: catalog.Directory, Mode: 0o755})
	data := make([]byte, 100)
	for i := range files {
		if i%1000 == 0 {
			add(catalog.Entry{Path: fmt.Sprintf("%06d", i/1000), Type: catalog.Directory, Mode: 0o755})
		}
		if skip(i) {
			continue
		}
		binary.LittleEndian.PutUint64(data, uint64(i))
		ref, err := w.Put(ctx, data)
		if err != nil {
			b.Fatal(err)
		}
		add(catalog.Entry{
			Path: fmt.Sprintf("%06d/%03d", i/1000, i%1000), Type: catalog.File, Mode: 0o644, Size: int64(len(data)), Refs: []catalog.Ref{{ID: ref.ID, Len: int64(ref.Len)}},
		})
	}
	tree, err := cat.Close(ctx)
	if err != nil {
		b.Fatal(err)
	}
	s, err := w.Commit(ctx, &dr.Root{
		Site: "main", Kind: dr.KindCurrent, Consistency: dr.ConsistentCrash, Created: time.Now(),
		Trees: []dr.Tree{{Key: "volume:data", Kind: dr.TreeVolume, Catalog: tree.Table, Entries: tree.Entries, Bytes: tree.Bytes}},
	}, repo.CommitInfo{})
	if err != nil {
		b.Fatal(err)
	}
	return s
}

// peak watches the heap until it is stopped.
func peak() (stop func() uint64) {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	done, result := make(chan struct{}), make(chan uint64)
	go func() {
		var most uint64
		for {
			metrics.Read(sample)
			most = max(most, sample[0].Value.Uint64())
			select {
			case <-done:
				result <- most
				return
			case <-time.After(2 * time.Millisecond):
			}
		}
	}()
	return func() uint64 { close(done); return <-result }
}

// BenchmarkCompactFiles compacts a repository of which two thirds of the files
// were forgotten: 100,000 of them, or LIFEBOAT_BENCH_FILES. peak-MB is the heap
// beside what the store in memory holds.
func BenchmarkCompactFiles(b *testing.B) {
	files := 100_000
	if s := os.Getenv("LIFEBOAT_BENCH_FILES"); s != "" {
		var err error
		if files, err = strconv.Atoi(s); err != nil {
			b.Fatal(err)
		}
	}
	for range b.N {
		b.StopTimer()
		bed := repotest.NewBed(b)
		r := bed.Host("main")
		first := snapshotOfFiles(b, r, nil, files, func(int) bool { return false })
		snapshotOfFiles(b, r, first, files, func(i int) bool { return i%3 > 0 })
		if _, err := forget(b.Context(), r, retain.Policy{Last: 1}); err != nil {
			b.Fatal(err)
		}
		for name, do := range map[string]func() error{
			"gc": func() error {
				c, err := r.Collect(b.Context(), repo.CollectOptions{Compact: &repo.CompactOptions{MaxUnused: 0.25}})
				if err == nil && c.Compacted.Relocated != 1 {
					b.Fatalf("%+v", c.Compacted)
				}
				return err
			},
			"check": func() error { _, err := r.Check(b.Context()); return err },
		} {
			runtime.GC()
			var before runtime.MemStats
			runtime.ReadMemStats(&before)
			stop := peak()
			b.StartTimer()
			if err := do(); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			b.ReportMetric(float64(stop()-before.HeapAlloc)/(1<<20), name+"-peak-MB")
		}
	}
}
