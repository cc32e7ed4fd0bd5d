package repo_test

import (
	"context"
	"encoding/binary"
	"io"
	"sync/atomic"
	"testing"

	"lifeboat/internal/repo"
	"lifeboat/internal/repo/repotest"
	"lifeboat/internal/store"

	"github.com/opencontainers/go-digest"
)

// sink takes packs and forgets them, so that a benchmark measures the writer
// and not the memory of the store.
type sink struct{ store.Store }

func (sink) PutBlob(_ context.Context, _ digest.Digest, size int64, open func() (io.ReadCloser, error)) (int64, error) {
	r, err := open()
	if err != nil {
		return 0, err
	}
	_, err = io.Copy(io.Discard, r)
	if cerr := r.Close(); err == nil {
		err = cerr
	}
	return size, err
}

func BenchmarkPut(b *testing.B) {
	for name, bc := range map[string]struct {
		size int
		make func(uint64, int) []byte
	}{
		"noise-1MiB": {1 << 20, noise}, "noise-16KiB": {16 << 10, noise}, "noise-1KiB": {1 << 10, noise},
		"code-1MiB": {1 << 20, code}, "code-16KiB": {16 << 10, code},
	} {
		b.Run(name, func(b *testing.B) {
			bed := repotest.NewBed(b)
			r := bed.HostOn("main", sink{bed.Store})
			w, err := r.NewWriter(b.Context(), repo.WriterOptions{System: "shop"})
			if err != nil {
				b.Fatal(err)
			}
			defer w.Close()
			var n atomic.Uint64
			template := bc.make(1, bc.size)
			b.SetBytes(int64(bc.size))
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				data := append([]byte(nil), template...)
				for pb.Next() {
					binary.LittleEndian.PutUint64(data, n.Add(1)) // a unit that was never there
					if _, err := w.Put(b.Context(), data); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

// code has about the entropy of program text.
func code(seed uint64, n int) []byte {
	words := []string{"func ", "return ", "if err != nil {\n", "}\n", "<div class=", "SELECT ", "static const ", "value", "= ", ", ", "0x1f", "\t"}
	var out []byte
	for i, r := 0, noise(seed, n); len(out) < n; i++ {
		out = append(out, words[int(r[i%n])%len(words)]...)
		out = append(out, 'a'+r[(i*7)%n]%26)
	}
	return out[:n]
}

func BenchmarkPutKnown(b *testing.B) {
	r := repotest.New(b)
	var units [][]byte
	for i := range 20000 {
		units = append(units, noise(uint64(i), 1000))
	}
	s, _, err := snapshot(b.Context(), r, repo.WriterOptions{System: "shop"}, "main", units)
	if err != nil {
		b.Fatal(err)
	}
	w, err := r.NewWriter(b.Context(), repo.WriterOptions{System: "shop", Parent: s})
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close()
	i := 0
	b.SetBytes(1000)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := w.Put(b.Context(), units[i%len(units)]); err != nil {
			b.Fatal(err)
		}
		i++
	}
}

func BenchmarkFetch(b *testing.B) {
	for name, bc := range map[string]struct {
		size, n int
		make    func(uint64, int) []byte
	}{"noise-1MiB": {1 << 20, 96, noise}, "noise-16KiB": {16 << 10, 4096, noise}, "code-16KiB": {16 << 10, 4096, code}} {
		b.Run(name, func(b *testing.B) {
			r := repotest.New(b)
			var units [][]byte
			for i := range bc.n {
				u := bc.make(1, bc.size)
				binary.LittleEndian.PutUint64(u, uint64(i))
				units = append(units, u)
			}
			s, _, err := snapshot(b.Context(), r, repo.WriterOptions{System: "shop"}, "main", units)
			if err != nil {
				b.Fatal(err)
			}
			rd, err := r.NewReader(b.Context(), s)
			if err != nil {
				b.Fatal(err)
			}
			defer rd.Close()
			root, err := rd.Root(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(bc.size * bc.n))
			b.ReportAllocs()
			for b.Loop() {
				if err := rd.Fetch(b.Context(), listOf(root), func(int, []byte) error { return nil }); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
