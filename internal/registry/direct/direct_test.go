package direct_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	"lifeboat/internal/registry/direct"
)

var noise = func() []byte {
	b := make([]byte, 5<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}()

// Whatever is written in whatever pieces, from whatever offset, with flushes in
// between, the file has it: on a file system that takes direct writes and on one
// that does not.
func TestWriter(t *testing.T) {
	t.Parallel()
	for name, dir := range map[string]string{"disk": t.TempDir(), "memory": memory(t)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var bufs direct.Buffers
			rapid.Check(t, func(t *rapid.T) {
				file, err := os.Create(filepath.Join(dir, "x"))
				if err != nil {
					t.Fatal(err)
				}
				at := rapid.SampledFrom([]int{0, 0, 4096, 1, 5000, 1 << 20}).Draw(t, "at")
				if err := file.Truncate(int64(at)); err != nil {
					t.Fatal(err)
				}
				w := direct.NewWriter(file, int64(at), &bufs)
				want := make([]byte, at)
				for range rapid.IntRange(1, 6).Draw(t, "pieces") {
					n := rapid.OneOf(rapid.IntRange(0, 10_000), rapid.IntRange(0, 3<<20), rapid.SampledFrom([]int{4096, 1 << 20, 2 << 20})).Draw(t, "bytes")
					from := rapid.IntRange(0, len(noise)-n).Draw(t, "from")
					if _, err := w.Write(noise[from : from+n]); err != nil {
						t.Fatal(err)
					}
					want = append(want, noise[from:from+n]...)
					if rapid.Bool().Draw(t, "flush") {
						if err := w.Flush(); err != nil {
							t.Fatal(err)
						}
						if info, err := file.Stat(); err != nil || info.Size() != int64(len(want)) {
							t.Fatalf("flushed: %v, %v; want %d bytes", info, err, len(want))
						}
					}
				}
				if err := errors.Join(w.Flush(), file.Close()); err != nil {
					t.Fatal(err)
				}
				got, err := os.ReadFile(file.Name())
				if err != nil || !bytes.Equal(got, want) {
					t.Fatalf("read back %d bytes, %v; want %d that are the same", len(got), err, len(want))
				}
			})
		})
	}
}

// memory is a directory of a file system that has no disk.
func memory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "direct")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// A disk that is full says so at the write, and what was written before is there.
func TestFull(t *testing.T) {
	t.Parallel()
	var bufs direct.Buffers
	file, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	w := direct.NewWriter(file, 0, &bufs)
	if _, err := w.Write(noise[:2<<20]); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("error %v, want that the disk is full", err)
	}
	w.Release()
	if err := w.Flush(); err != nil {
		t.Errorf("nothing is buffered: %v", err)
	}
}

// BenchmarkWriter compares with the page cache; both end durable.
func BenchmarkWriter(b *testing.B) {
	const size, piece = 256 << 20, 32 << 10
	var bufs direct.Buffers
	for _, kind := range []string{"direct", "cached"} {
		b.Run(kind, func(b *testing.B) {
			b.SetBytes(size)
			for b.Loop() {
				f, err := os.Create(filepath.Join(b.TempDir(), "x"))
				if err != nil {
					b.Fatal(err)
				}
				var w io.Writer = f
				d := direct.NewWriter(f, 0, &bufs)
				if kind == "direct" {
					w = d
				}
				for at := 0; at < size; at += piece {
					if _, err := w.Write(noise[at%(4<<20):][:piece]); err != nil {
						b.Fatal(err)
					}
				}
				if err := errors.Join(d.Flush(), f.Sync(), f.Close(), os.Remove(f.Name())); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
