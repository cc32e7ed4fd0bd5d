package layer_test

import (
	"archive/tar"
	"bytes"
	stdflate "compress/flate"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"lifeboat/internal/cut"
	"lifeboat/internal/dr"
	"lifeboat/internal/layer"
	"lifeboat/internal/layer/layertest"
)

var cutter = cut.New([32]byte{1, 2, 3})

// amd64 is the platform of the engines in these tests.
var amd64 = layer.Platform{OS: "linux", Arch: "amd64"}

func capture(t *testing.T, st *layertest.Store, archive []byte, want ...layer.Digest) []layer.Captured {
	t.Helper()
	out, err := layer.Capture(t.Context(), bytes.NewReader(archive), layer.CaptureOptions{
		Want: want, Sink: st, Cutter: cutter, Recipes: true, Platform: amd64,
	})
	if err != nil {
		t.Fatalf("capture: %v", err)
	}
	return out
}

func captureOne(t *testing.T, st *layertest.Store, archive []byte, want layer.Digest) *layer.ImageRecord {
	t.Helper()
	c := capture(t, st, archive, want)[0]
	if c.Err != nil {
		t.Fatal(c.Err)
	}
	return c.Record
}

// file is a member of an archive.
type file struct {
	name string
	data []byte
	link string
}

func tarball(files ...file) []byte {
	var out bytes.Buffer
	tw := tar.NewWriter(&out)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Size: int64(len(f.data)), Mode: 0o644}
		if f.link != "" {
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.link
		}
		if err := tw.WriteHeader(h); err != nil {
			panic(err)
		}
		if _, err := tw.Write(f.data); err != nil {
			panic(err)
		}
	}
	if err := tw.Close(); err != nil {
		panic(err)
	}
	return out.Bytes()
}

func toJSON(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return data
}

func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	_, _ = io.ReadFull(rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}), b)
	return b
}

func text(n int) []byte {
	var b bytes.Buffer
	rng := rand.New(rand.NewPCG(7, 7))
	for b.Len() < n {
		fmt.Fprintf(&b, "line %d of a file about %d\n", rng.IntN(10000), rng.IntN(100))
	}
	return b.Bytes()[:n]
}

func gzipped(data []byte, level int) []byte {
	var out bytes.Buffer
	w, err := goGzip(&out, level)
	if err != nil {
		panic(err)
	}
	if _, err := w.Write(data); err != nil {
		panic(err)
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return out.Bytes()
}

func blob(data []byte) file {
	return file{name: "blobs/sha256/" + layer.DigestOf(data).Hex(), data: data}
}

// image is what the archives in these tests are built from.
type image struct {
	arch   string
	layers [][]byte // uncompressed
	config []byte
}

func newImage(arch string, layers ...[]byte) image {
	ids := []layer.Digest{}
	for _, l := range layers {
		ids = append(ids, layer.DigestOf(l))
	}
	config := toJSON(map[string]any{
		"os": "linux", "architecture": arch,
		"config": map[string]any{"Cmd": []string{"/run"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": ids},
	})
	return image{arch: arch, layers: layers, config: config}
}

// legacy is the archive of an engine up to version 24: later images share
// layers with earlier ones by symbolic links.
func legacy(images ...image) []file {
	var files []file
	var manifest []map[string]any
	seen := map[layer.Digest]string{}
	for i, img := range images {
		var names []string
		for k, l := range img.layers {
			dir := layer.DigestOf(fmt.Append(nil, i, k)).Hex()
			f := file{name: dir + "/layer.tar", data: l}
			if first, ok := seen[layer.DigestOf(l)]; ok {
				f.data, f.link = nil, "../"+first
			} else {
				seen[layer.DigestOf(l)] = f.name
			}
			files = append(files, file{name: dir + "/VERSION", data: []byte("1.0")}, file{name: dir + "/json", data: []byte("{}")}, f)
			names = append(names, f.name)
		}
		config := layer.DigestOf(img.config).Hex() + ".json"
		files = append(files, file{name: config, data: img.config})
		manifest = append(manifest, map[string]any{"Config": config, "RepoTags": []string{"x:1"}, "Layers": names})
	}
	return append(files, file{name: "manifest.json", data: toJSON(manifest)})
}

func descriptor(mediaType string, data []byte) layer.Descriptor {
	return layer.Descriptor{MediaType: mediaType, Digest: layer.DigestOf(data), Size: int64(len(data))}
}

const (
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

// manifestOf gives the manifest of an image whose layers are stored as given,
// and all of its blobs.
func manifestOf(img image, stored ...[]byte) (manifest []byte, files []file) {
	layers := []layer.Descriptor{}
	for _, s := range stored {
		layers = append(layers, descriptor(typeLayer, s))
		files = append(files, blob(s))
	}
	manifest = toJSON(map[string]any{
		"schemaVersion": 2, "mediaType": typeManifest,
		"config": descriptor(typeConfig, img.config), "layers": layers,
	})
	return manifest, append(files, blob(img.config), blob(manifest))
}

// layout is an OCI layout with the given targets.
func layout(files []file, targets ...layer.Descriptor) []byte {
	index := toJSON(map[string]any{"schemaVersion": 2, "manifests": targets})
	return tarball(append(files, file{name: "index.json", data: index}, file{name: "oci-layout", data: []byte(`{"imageLayoutVersion":"1.0.0"}`)})...)
}

var (
	baseLayer = tarball(file{name: "etc/passwd", data: []byte("root")}, file{name: "usr/big", data: text(300 << 10)})
	topLayer  = tarball(file{name: "{odd", data: []byte("x")}, file{name: "usr/.wh.big"})
)

// bytesOf reads a layer back.
func bytesOf(t *testing.T, st layer.Source, l *layer.Layer) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := layer.WriteLayer(t.Context(), st, l, &out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestArchivesOfRealEngines(t *testing.T) {
	t.Parallel()
	// Each holds an imported image and one committed on top of it, in this order.
	for name, ids := range map[string][]layer.Digest{
		"docker-20.10":         {"sha256:6f1e0efef798288ddb3f1f18f85fc987118a234e2b839197e551c39a0610ed2d", "sha256:f97c5ee9c25440611bfc94630efa001ae1fd05b99ca79fc31c5ab780b6380443"},
		"docker-26-containerd": {"sha256:262bdbdf76b03138c3b9649caac8e18e741ecadbc68534f2aff28f8eb0136a7d", "sha256:ab44174a2f7380de2f6443fa345d284498eaee8f64d3afbcfa58d979b630b15e"},
		"docker-28-containerd": {"sha256:f28692b34e61e768c67053f020aac89def42b2805a6c5361c0b13ddab3d7f7e1", "sha256:80aaff5b89f559559208cc4ed13a45ab0728231c45d870f0db955e5cc85d60b8"},
		"docker-28-overlay2":   {"sha256:4ddc0e3f491e39d4d64070d2782f8b00a868e806e533e2b263b85c727c0a7b2a", "sha256:4a97e1f975f11df61b59ef1688179055693f55d706a595c7c16f2a4e9ba8c237"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			packed, err := os.Open(filepath.Join("testdata", name+".tar.gz"))
			if err != nil {
				t.Fatal(err)
			}
			defer packed.Close()
			zr, err := gzip.NewReader(packed)
			if err != nil {
				t.Fatal(err)
			}
			archive, err := io.ReadAll(zr)
			if err != nil {
				t.Fatal(err)
			}
			st := layertest.New()
			for i, c := range capture(t, st, archive, ids...) {
				if c.Err != nil {
					t.Fatal(c.Err)
				}
				rec := c.Record
				if len(rec.Layers) != 1+i {
					t.Errorf("image %d has %d layers", i, len(rec.Layers))
				}
				containerd := strings.HasSuffix(name, "containerd")
				if got := rec.Target != nil; got != containerd {
					t.Errorf("target kept: %t", got)
				}
				for k := range rec.Layers {
					l := &rec.Layers[k]
					bytesOf(t, st, l)
					if !containerd {
						continue
					}
					// These engines compress with Go: no byte may be stored twice.
					if l.Blob.Recipe == nil && l.Blob.Stored == nil {
						t.Errorf("layer %d: neither a recipe nor the stored bytes", k)
					}
					if err := layer.WriteBlob(t.Context(), st, l, io.Discard); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
}

// The members of an archive come in the order of the sender's choice.
func TestAnyOrderOfMembers(t *testing.T) {
	t.Parallel()
	img1, img2 := newImage("amd64", baseLayer, topLayer), newImage("amd64", baseLayer, tarball(), topLayer)
	manifest, blobs := manifestOf(img1, gzipped(baseLayer, 6), topLayer)
	ociIndex := file{name: "index.json", data: toJSON(map[string]any{"manifests": []layer.Descriptor{descriptor(typeManifest, manifest)}})}
	for _, tt := range []struct {
		name  string
		files []file
		want  []layer.Digest
	}{
		{"legacy", legacy(img1, img2), []layer.Digest{layer.DigestOf(img1.config), layer.DigestOf(img2.config)}},
		{"layout", append(blobs, ociIndex), []layer.Digest{layer.DigestOf(manifest)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var first []layer.Captured
			for seed := range uint64(6) {
				rng := rand.New(rand.NewPCG(seed, 1))
				rng.Shuffle(len(tt.files), func(i, k int) { tt.files[i], tt.files[k] = tt.files[k], tt.files[i] })
				st := layertest.New()
				got := capture(t, st, tarball(tt.files...), tt.want...)
				for _, c := range got {
					if c.Err != nil {
						t.Fatalf("seed %d: %v", seed, c.Err)
					}
					for i := range c.Record.Layers {
						bytesOf(t, layertest.Fetching{Store: st}, &c.Record.Layers[i])
					}
				}
				if first == nil {
					first = got
				}
				if diff := cmp.Diff(first, got); diff != "" {
					t.Fatalf("seed %d: another record:\n%s", seed, diff)
				}
			}
		})
	}
}

func TestStoredFormsComeBack(t *testing.T) {
	t.Parallel()
	frame := func() []byte {
		w, err := zstd.NewWriter(nil)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		return w.EncodeAll(baseLayer, nil)
	}
	header := gzipped(baseLayer, 6)
	header = append([]byte{0x1f, 0x8b, 8, 0x1c, 1, 2, 3, 4, 0, 3, 4, 0, 'e', 'x', 't', 'r', 'n', 'a', 'm', 'e', 0, 'c', 0}, header[10:]...)
	// What tells the levels apart lies beyond the sample that is tried.
	late := tarball(file{name: "noise", data: noise(3, 5<<18)}, file{name: "text", data: text(1 << 20)})
	for _, tt := range []struct {
		name   string
		stored []byte
		recipe bool // found
		whole  bool // for all of it
	}{
		{"gzip level 6", gzipped(baseLayer, 6), true, true},
		{"gzip level 1", gzipped(baseLayer, 1), true, true},
		{"gzip level 9", gzipped(baseLayer, 9), true, true},
		{"gzip with names in the header", header, true, true},
		{"gzip of several members", append(gzipped(baseLayer[:1<<17], 6), gzipped(baseLayer[1<<17:], 6)...), true, false},
		{"gzip that changes its level", gzipTwoLevels(late, 3<<19), true, false},
		{"gzip by somebody else", gzipStored(baseLayer), false, false},
		{"zstd", frame(), false, false},
		{"zstd after a skippable frame", append([]byte{0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4}, frame()...), false, false},
		{"not compressed", baseLayer, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			plain := baseLayer
			if strings.Contains(tt.name, "changes") {
				plain = late
			}
			img := newImage("amd64", plain)
			manifest, blobs := manifestOf(img, tt.stored)
			archive := layout(blobs, descriptor(typeManifest, manifest))
			for _, recipes := range []bool{true, false} {
				st := layertest.New()
				got, err := layer.Capture(t.Context(), bytes.NewReader(archive), layer.CaptureOptions{
					Want: []layer.Digest{layer.DigestOf(manifest)}, Sink: st, Cutter: cutter, Recipes: recipes,
				})
				if err != nil || got[0].Err != nil {
					t.Fatal(err, got)
				}
				l := &got[0].Record.Layers[0]
				if has := l.Blob.Recipe != nil; has != (tt.recipe && recipes) {
					t.Errorf("recipes %t: found %t", recipes, has)
				} else if has && (l.Blob.Recipe.Bytes == l.Blob.Size) != tt.whole {
					t.Errorf("recipe for %d of %d bytes", l.Blob.Recipe.Bytes, l.Blob.Size)
				}
				if !bytes.Equal(bytesOf(t, st, l), plain) {
					t.Error("layer differs")
				}
				var out bytes.Buffer
				if err := layer.WriteBlob(t.Context(), st, l, &out); err != nil {
					t.Error(err)
				}
				if !bytes.Equal(out.Bytes(), tt.stored) {
					t.Error("stored form differs")
				}
			}
		})
	}
}

// goGzip writes gzip as an engine does, at a level.
func goGzip(w io.Writer, level int) (io.WriteCloser, error) {
	zw, err := stdflate.NewWriter(nil, level)
	if err != nil {
		return nil, err
	}
	return newMember(w, zw, level), nil
}

func TestSeveralPlatforms(t *testing.T) {
	t.Parallel()
	here, arm := newImage("amd64", baseLayer), newImage("arm64", topLayer)
	m1, b1 := manifestOf(here, gzipped(baseLayer, 6))
	m2, b2 := manifestOf(arm, gzipped(topLayer, 6))
	statement := []byte(`{"_type":"https://in-toto.io/Statement/v0.1"}`)
	attested := image{config: toJSON(map[string]any{"os": "unknown", "architecture": "unknown", "rootfs": map[string]any{"diff_ids": []layer.Digest{layer.DigestOf(statement)}}})}
	m3, b3 := manifestOf(attested, statement)
	d1, d2, d3 := descriptor(typeManifest, m1), descriptor(typeManifest, m2), descriptor(typeManifest, m3)
	d1.Platform, d2.Platform = &layer.Platform{OS: "linux", Arch: "amd64"}, &layer.Platform{OS: "linux", Arch: "arm64"}
	d3.Platform = &layer.Platform{OS: "unknown", Arch: "unknown"}
	index := toJSON(map[string]any{"schemaVersion": 2, "mediaType": typeIndex, "manifests": []layer.Descriptor{d2, d1, d3}})
	target := descriptor(typeIndex, index)
	id := target.Digest

	check := func(t *testing.T, files []file) *layer.ImageRecord {
		st := layertest.New()
		rec := captureOne(t, st, layout(append(files, blob(index)), target), id)
		if rec.ID != id || rec.Manifest != d1.Digest || rec.Arch != "amd64" || rec.Config.Digest != layer.DigestOf(here.config) {
			t.Errorf("record is of %s/%s, manifest %s", rec.OS, rec.Arch, rec.Manifest)
		}
		got, err := layer.ReadObject(t.Context(), st, rec.Object(id))
		if err != nil || !bytes.Equal(got, index) {
			t.Errorf("index: %v", err)
		}
		return rec
	}
	t.Run("the others are not there", func(t *testing.T) {
		rec := check(t, b1)
		if len(rec.Absent) != 2 || rec.Absent[0].Digest != d2.Digest || rec.Absent[1].Digest != d3.Digest {
			t.Errorf("absent: %+v", rec.Absent)
		}
	})
	t.Run("all are there", func(t *testing.T) {
		rec := check(t, append(append(append([]file{}, b1...), b2...), b3...))
		if len(rec.Absent) != 0 || len(rec.Others) != 1 || rec.Others[0].DiffID != layer.DigestOf(topLayer) {
			t.Errorf("absent %+v, others %+v", rec.Absent, rec.Others)
		}
		if rec.Object(layer.DigestOf(statement)) == nil {
			t.Error("the attestation was not kept")
		}
	})
	t.Run("only another platform is there", func(t *testing.T) {
		st := layertest.New()
		rec := captureOne(t, st, layout(append(b2, blob(index)), target), id)
		if rec.Arch != "arm64" || rec.Manifest != d2.Digest {
			t.Errorf("record is of %s", rec.Arch)
		}
	})
	t.Run("none is there", func(t *testing.T) {
		c := capture(t, layertest.New(), layout([]file{blob(index)}, target), id)
		if !errors.Is(c[0].Err, layer.ErrLayerMissing) {
			t.Errorf("got %v", c[0].Err)
		}
	})
}

func TestWhatCannotBeCaptured(t *testing.T) {
	t.Parallel()
	img := newImage("amd64", baseLayer, topLayer)
	id := layer.DigestOf(img.config)
	good := legacy(img)
	manifest, blobs := manifestOf(img, gzipped(baseLayer, 6), gzipped(topLayer, 6))
	target := descriptor(typeManifest, manifest)
	foreignManifest := bytes.Replace(manifest, []byte(typeLayer), []byte("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"), 1)
	truncated := gzipped(baseLayer, 6)
	truncated = truncated[:len(truncated)/2]
	brokenManifest, brokenBlobs := manifestOf(img, truncated, gzipped(topLayer, 6))

	swap := func(files []file, i int, data []byte) []file {
		files = append([]file{}, files...)
		files[i].data = data
		return files
	}
	for _, tt := range []struct {
		name    string
		archive []byte
		want    layer.Digest
		err     error
	}{
		{"another image", tarball(good...), layer.DigestOf(nil), layer.ErrImageMissing},
		{"layer is not the one of the configuration", tarball(swap(good, 2, topLayer)...), id, layer.ErrDigest},
		{"layer is not there", tarball(append(append([]file{}, good[:2]...), good[3:]...)...), id, layer.ErrLayerMissing},
		{"configuration was changed", tarball(swap(good, 6, append(bytes.Clone(img.config), ' '))...), id, layer.ErrImageMissing},
		{"blob is not its digest", layout(swap(blobs, 0, gzipped(baseLayer, 5)), target), target.Digest, layer.ErrDigest},
		{"manifest is not its digest", layout(swap(blobs, 3, append(bytes.Clone(manifest), ' ')), target), target.Digest, layer.ErrDigest},
		{"configuration is not its digest", layout(swap(blobs, 2, append(bytes.Clone(img.config), ' ')), target), target.Digest, layer.ErrDigest},
		{"blob is not there", layout(blobs[1:], target), target.Digest, layer.ErrLayerMissing},
		{"foreign layer", layout(append(blobs[1:3:3], blob(foreignManifest)), descriptor(typeManifest, foreignManifest)), layer.DigestOf(foreignManifest), layer.ErrForeignLayer},
		{"blob does not decompress", layout(brokenBlobs, descriptor(typeManifest, brokenManifest)), layer.DigestOf(brokenManifest), io.ErrUnexpectedEOF},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := capture(t, layertest.New(), tt.archive, tt.want)
			if !errors.Is(c[0].Err, tt.err) || c[0].Record != nil {
				t.Errorf("got %v, want %v", c[0].Err, tt.err)
			}
			if c[0].Err != nil && !strings.Contains(c[0].Err.Error(), string(tt.want)) {
				t.Errorf("the error does not name the image: %v", c[0].Err)
			}
		})
	}
	t.Run("one image of two", func(t *testing.T) {
		t.Parallel()
		c := capture(t, layertest.New(), tarball(good...), layer.DigestOf(nil), id)
		if c[0].Err == nil || c[1].Err != nil {
			t.Errorf("got %v and %v", c[0].Err, c[1].Err)
		}
	})
}

func TestCaptureFailsAsAWhole(t *testing.T) {
	t.Parallel()
	img := newImage("amd64", baseLayer, topLayer)
	archive := tarball(legacy(img)...)
	id := layer.DigestOf(img.config)
	boom := errors.New("boom")
	run := func(ctx context.Context, r io.Reader, st *layertest.Store, want ...layer.Digest) error {
		_, err := layer.Capture(ctx, r, layer.CaptureOptions{Want: want, Sink: st, Cutter: cutter, Recipes: true})
		return err
	}
	t.Run("nothing wanted", func(t *testing.T) {
		if err := run(t.Context(), bytes.NewReader(archive), layertest.New()); !errors.Is(err, dr.ErrUsage) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("no image archive", func(t *testing.T) {
		for _, data := range [][]byte{nil, baseLayer, []byte("Error: no such image, 32 bytes of text and a bit more than one block"), tarball(file{name: "manifest.json", data: []byte("{")})} {
			if err := run(t.Context(), bytes.NewReader(data), layertest.New(), id); err == nil {
				t.Errorf("%.20q: no error", data)
			}
		}
	})
	t.Run("cut off", func(t *testing.T) {
		for _, at := range []int{100, 600, 1 << 16, 1 << 18} {
			err := run(t.Context(), bytes.NewReader(archive[:at]), layertest.New(), id)
			if err == nil || at > 600 && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("at %d: got %v", at, err)
			}
		}
	})
	t.Run("connection lost", func(t *testing.T) {
		r := io.MultiReader(bytes.NewReader(archive[:1<<18]), iotest.ErrReader(boom))
		if err := run(t.Context(), r, layertest.New(), id); !errors.Is(err, boom) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(boom)
		if err := run(ctx, bytes.NewReader(archive), layertest.New(), id); !errors.Is(err, boom) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("any put fails", func(t *testing.T) {
		small := tarball(file{name: "a", data: noise(1, 300<<10)}, file{name: "b", data: noise(2, 100)})
		img := newImage("amd64", small, topLayer)
		archive, id := tarball(legacy(img)...), layer.DigestOf(img.config)
		manifest, blobs := manifestOf(img, gzipped(small, 6), gzipStored(topLayer))
		containerd := layout(blobs, descriptor(typeManifest, manifest))
		for _, a := range []struct {
			data []byte
			id   layer.Digest
		}{{archive, id}, {containerd, layer.DigestOf(manifest)}} {
			for n := 1; ; n++ {
				st := layertest.New()
				st.FailPut = func(i int) error {
					if i == n {
						return boom
					}
					return nil
				}
				err := run(t.Context(), bytes.NewReader(a.data), st, a.id)
				if st.Puts < n {
					break
				}
				if !errors.Is(err, boom) {
					t.Errorf("put %d: got %v", n, err)
				}
			}
		}
	})
}

// What is known is neither read nor stored again.
func TestKnownLayers(t *testing.T) {
	t.Parallel()
	img := newImage("amd64", baseLayer, topLayer)
	manifest, blobs := manifestOf(img, gzipped(baseLayer, 6), topLayer)
	archive := layout(blobs, descriptor(typeManifest, manifest))
	st := layertest.New()
	first := captureOne(t, st, archive, layer.DigestOf(manifest))
	again := layertest.New()
	c, err := layer.Capture(t.Context(), bytes.NewReader(archive), layer.CaptureOptions{
		Want: []layer.Digest{layer.DigestOf(manifest)}, Sink: again, Cutter: cutter, Known: layer.KnownLayers(first),
	})
	if err != nil || c[0].Err != nil {
		t.Fatal(err, c)
	}
	if diff := cmp.Diff(first, c[0].Record); diff != "" {
		t.Errorf("another record:\n%s", diff)
	}
	if again.Bytes > 4096 {
		t.Errorf("%d bytes were stored again", again.Bytes)
	}
}

func TestRecordRoundTrip(t *testing.T) {
	t.Parallel()
	base := tarball(file{name: "a", data: noise(1, 300<<10)}, file{name: "b", data: noise(2, 100)})
	img := newImage("amd64", base, topLayer)
	manifest, blobs := manifestOf(img, gzipped(base, 6), topLayer)
	st := layertest.New()
	rec := captureOne(t, st, layout(blobs, descriptor(typeManifest, manifest)), layer.DigestOf(manifest))
	refs, err := layer.Encode(t.Context(), st, cutter, rec)
	if err != nil {
		t.Fatal(err)
	}
	got, err := layer.Decode(t.Context(), st, refs)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(rec, got); diff != "" {
		t.Errorf("record (-want +got):\n%s", diff)
	}
	if got.Bytes() != int64(len(base)+len(topLayer)) {
		t.Errorf("Bytes() = %d", got.Bytes())
	}

	// Units names what the image needs: with them and nothing else it comes back.
	need := map[dr.UnitRef]bool{}
	if err := layer.Units(t.Context(), st, got, func(r dr.UnitRef) error { need[r] = true; return nil }); err != nil {
		t.Fatal(err)
	}
	for _, ref := range st.Refs() {
		if !need[ref] {
			st.Drop(ref)
		}
	}
	if err := layer.WriteArchive(t.Context(), io.Discard, st, layer.FormTarget, layer.ArchiveImage{Record: got}); err != nil {
		t.Error(err)
	}
	if err := layer.WriteArchive(t.Context(), io.Discard, st, layer.FormConfig, layer.ArchiveImage{Record: got}); err != nil {
		t.Error(err)
	}
	// And each of them is needed: without it something fails.
	for ref := range need {
		data, err := st.Unit(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		st.Drop(ref)
		a := layer.WriteArchive(t.Context(), io.Discard, st, layer.FormTarget, layer.ArchiveImage{Record: got})
		b := layer.WriteArchive(t.Context(), io.Discard, st, layer.FormConfig, layer.ArchiveImage{Record: got})
		if !errors.Is(errors.Join(a, b), layertest.ErrGone) {
			t.Errorf("without %s: %v, %v", ref.ID, a, b)
		}
		// Other content of the same length is noticed by the digest.
		st.Damage(ref, append(bytes.Clone(data[:len(data)-1]), data[len(data)-1]^1))
		a = layer.WriteArchive(t.Context(), io.Discard, st, layer.FormTarget, layer.ArchiveImage{Record: got})
		b = layer.WriteArchive(t.Context(), io.Discard, st, layer.FormConfig, layer.ArchiveImage{Record: got})
		if err := errors.Join(a, b); !errors.Is(err, dr.ErrTampered) && !errors.Is(err, layertest.ErrGone) {
			t.Errorf("damaged %s: %v", ref.ID, err)
		}
		st.Damage(ref, data)
	}
}

// What is written can be captured again and gives the same images.
func TestArchiveRoundTrip(t *testing.T) {
	t.Parallel()
	img1, img2 := newImage("amd64", baseLayer, topLayer), newImage("amd64", baseLayer, tarball(), topLayer)
	for _, tt := range []struct {
		name string
		form layer.Form
	}{{"by configuration", layer.FormConfig}, {"by manifest", layer.FormTarget}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m1, b1 := manifestOf(img1, gzipped(baseLayer, 6), gzipStored(topLayer))
			m2, b2 := manifestOf(img2, gzipped(baseLayer, 6), gzipped(tarball(), 6), topLayer)
			archive, want := layout(append(b1, b2...), descriptor(typeManifest, m1), descriptor(typeManifest, m2)), []layer.Digest{layer.DigestOf(m1), layer.DigestOf(m2)}
			if tt.form == layer.FormConfig {
				archive, want = tarball(legacy(img1, img2)...), []layer.Digest{layer.DigestOf(img1.config), layer.DigestOf(img2.config)}
			}
			st := layertest.New()
			first := capture(t, st, archive, want...)
			images := []layer.ArchiveImage{}
			for _, c := range first {
				if c.Err != nil {
					t.Fatal(c.Err)
				}
				images = append(images, layer.ArchiveImage{Record: c.Record, Tags: []string{"a/b:1", "reg.test:5000/x:2"}})
			}
			var out bytes.Buffer
			if err := layer.WriteArchive(t.Context(), &out, layertest.Fetching{Store: st}, tt.form, images...); err != nil {
				t.Fatal(err)
			}
			again := capture(t, layertest.New(), out.Bytes(), want...)
			if diff := cmp.Diff(first, again); diff != "" {
				t.Errorf("images (-first +again):\n%s", diff)
			}
		})
	}
	t.Run("with a manifest made", func(t *testing.T) {
		st := layertest.New()
		rec := captureOne(t, st, tarball(legacy(img1)...), layer.DigestOf(img1.config))
		h, err := layer.HandoverTo(rec, true)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := layer.WriteArchive(t.Context(), &out, st, h.Form, layer.ArchiveImage{Record: rec}); err != nil {
			t.Fatal(err)
		}
		again := captureOne(t, st, out.Bytes(), h.EngineID)
		if again.Config.Digest != rec.Config.Digest || len(again.Layers) != len(rec.Layers) {
			t.Errorf("got %+v", again)
		}
	})
}

func TestHandover(t *testing.T) {
	t.Parallel()
	config := &layer.ImageRecord{ID: "c", Config: layer.Object{Digest: "c"}}
	target := &layer.ImageRecord{ID: "t", Config: layer.Object{Digest: "c"}, Target: &layer.Descriptor{Digest: "t"}}
	_, made, err := layer.MadeManifest(config)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		rec        *layer.ImageRecord
		containerd bool
		form       layer.Form
		id         layer.Digest
	}{
		{config, false, layer.FormConfig, "c"},
		{config, true, layer.FormTarget, layer.DigestOf(made)},
		{target, true, layer.FormTarget, "t"},
		{target, false, layer.FormConfig, "c"},
	} {
		h, err := layer.HandoverTo(tt.rec, tt.containerd)
		if err != nil || h.Form != tt.form || h.EngineID != tt.id || h.SameID != (tt.id == tt.rec.ID) || (h.Why == "") != h.SameID {
			t.Errorf("target %t, containerd %t: %+v, %v", tt.rec.Target != nil, tt.containerd, h, err)
		}
	}
}
