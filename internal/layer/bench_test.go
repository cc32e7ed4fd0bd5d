package layer_test

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/internal/dr"
	"lifeboat/internal/layer"
	"lifeboat/internal/layer/layertest"
)

// perCPU reports the speed per second of processor time, all threads together:
// on a busy machine the time by the clock says little. The returned function
// ends the measurement; n is the number of bytes of one turn.
func perCPU(b *testing.B, n int) func() {
	used := func() time.Duration {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	start := used()
	return func() {
		b.ReportMetric(float64(n)*float64(b.N)/1e6/(used()-start).Seconds(), "MB/cpu-s")
	}
}

// benchLayer is 128 MiB as a system's layer has it: many small files, some big
// ones, half of it text and half incompressible.
func benchLayer(b *testing.B) []byte {
	b.Helper()
	words, random := text(8<<20), noise(1, 8<<20)
	var out bytes.Buffer
	tw := tar.NewWriter(&out)
	rng := rand.New(rand.NewPCG(5, 6))
	for i := 0; out.Len() < 128<<20; i++ {
		size := rng.IntN(40 << 10)
		if i%50 == 0 {
			size = rng.IntN(4 << 20)
		}
		from := words
		if i%2 == 0 {
			from = random
		}
		at := rng.IntN(len(from) - size)
		h := &tar.Header{Name: fmt.Sprintf("usr/lib/%d/file%d", i%97, i), Size: int64(size), Mode: 0o644, ModTime: time.Unix(1e9, 5), Format: tar.FormatPAX}
		if err := tw.WriteHeader(h); err != nil {
			b.Fatal(err)
		}
		if _, err := tw.Write(from[at : at+size]); err != nil {
			b.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		b.Fatal(err)
	}
	return out.Bytes()
}

func BenchmarkCapture(b *testing.B) {
	plain := benchLayer(b)
	img := newImage("amd64", plain)
	manifest, blobs := manifestOf(img, gzipped(plain, 6))
	for _, bench := range []struct {
		name    string
		archive []byte
		id      layer.Digest
		recipes bool
	}{
		{"uncompressed", tarball(legacy(img)...), layer.DigestOf(img.config), false},
		{"gzip with recipe", layout(blobs, descriptor(typeManifest, manifest)), layer.DigestOf(manifest), true},
		{"gzip as stored", layout(blobs, descriptor(typeManifest, manifest)), layer.DigestOf(manifest), false},
	} {
		b.Run(bench.name, func(b *testing.B) {
			b.SetBytes(int64(len(plain)))
			b.ReportAllocs()
			defer perCPU(b, len(plain))()
			for b.Loop() {
				c, err := layer.Capture(b.Context(), bytes.NewReader(bench.archive), layer.CaptureOptions{
					Want: []layer.Digest{bench.id}, Sink: layertest.New(), Cutter: cutter, Recipes: bench.recipes,
				})
				if err != nil || c[0].Err != nil {
					b.Fatal(err, c)
				}
			}
		})
	}
}

func BenchmarkWrite(b *testing.B) {
	plain := benchLayer(b)
	img := newImage("amd64", plain)
	manifest, blobs := manifestOf(img, gzipped(plain, 6))
	for _, recipes := range []bool{true, false} {
		st := layertest.New()
		c, err := layer.Capture(b.Context(), bytes.NewReader(layout(blobs, descriptor(typeManifest, manifest))), layer.CaptureOptions{
			Want: []layer.Digest{layer.DigestOf(manifest)}, Sink: st, Cutter: cutter, Recipes: recipes,
		})
		if err != nil || c[0].Err != nil {
			b.Fatal(err, c)
		}
		l := &c[0].Record.Layers[0]
		name := map[bool]string{true: "from split form", false: "from stored form"}[recipes]
		b.Run("layer "+name, func(b *testing.B) {
			b.SetBytes(int64(len(plain)))
			defer perCPU(b, len(plain))()
			for b.Loop() {
				if err := layer.WriteLayer(b.Context(), st, l, io.Discard); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("blob "+name, func(b *testing.B) {
			b.SetBytes(int64(len(plain)))
			defer perCPU(b, len(plain))()
			for b.Loop() {
				if err := layer.WriteBlob(b.Context(), st, l, io.Discard); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// discardSink forgets what it gets and so shows the memory of the capture alone.
type discardSink struct{ units int }

func (d *discardSink) Put(_ context.Context, data []byte) (dr.UnitRef, error) {
	d.units++
	ref := dr.UnitRef{Len: uint32(len(data))}
	binary.BigEndian.PutUint64(ref.ID[:], rand.Uint64())
	return ref, nil
}

// BenchmarkManyFiles reports the peak of the heap for a layer of 200,000 files.
func BenchmarkManyFiles(b *testing.B) {
	const files = 200_000
	for b.Loop() {
		pr, pw := io.Pipe()
		go func() {
			buf := bufio.NewWriterSize(pw, 1<<20)
			tw := tar.NewWriter(buf)
			// The archive of an image without a configuration: only the layer matters.
			if err := tw.WriteHeader(&tar.Header{Name: "layer.tar", Size: files * 1024}); err != nil {
				pw.CloseWithError(err)
				return
			}
			inner := tar.NewWriter(tw)
			for i := range files {
				if err := inner.WriteHeader(&tar.Header{Name: fmt.Sprintf("f%d", i), Size: 8}); err != nil {
					pw.CloseWithError(err)
					return
				}
				_ = binary.Write(inner, binary.BigEndian, uint64(i))
			}
			_ = inner.Flush()
			_ = tw.Flush()
			if err := tw.WriteHeader(&tar.Header{Name: "manifest.json", Size: 2}); err != nil {
				pw.CloseWithError(err)
				return
			}
			_, _ = tw.Write([]byte("[]"))
			_ = tw.Close()
			pw.CloseWithError(buf.Flush())
		}()
		stop, peak := make(chan struct{}), make(chan uint64)
		go func() {
			var most uint64
			for {
				select {
				case <-stop:
					peak <- most
					return
				case <-time.After(10 * time.Millisecond):
					var m runtime.MemStats
					runtime.ReadMemStats(&m)
					most = max(most, m.HeapInuse)
				}
			}
		}()
		sink := new(discardSink)
		_, err := layer.Capture(b.Context(), pr, layer.CaptureOptions{Want: []layer.Digest{layer.DigestOf(nil)}, Sink: sink, Cutter: cutter})
		close(stop)
		b.ReportMetric(float64(<-peak)/(1<<20), "MiB-heap")
		b.ReportMetric(float64(sink.units), "units")
		if err != nil {
			b.Fatal(err)
		}
	}
}
