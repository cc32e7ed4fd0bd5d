// Package storetest is the conformance suite of store.Store. Every
// implementation and every decorator runs it, the real ones and the fakes, so
// that fakes stay honest. It checks the promises of the contract's comments and
// nothing of how they are kept.
package storetest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"lifeboat/internal/store"
)

// Run runs the suite. open returns an empty store; it is called once for each
// test, and cleans up by t.Cleanup.
func Run(t *testing.T, open func(t *testing.T) store.Store) {
	for _, c := range []struct {
		name string
		test func(*testing.T, store.Store)
	}{
		{"blob round trip", testBlobRoundTrip},
		{"blob is idempotent", testBlobIdempotent},
		{"empty blob", testBlobEmpty},
		{"ranges", testRanges},
		{"ranges outside of the blob", testRangesOutside},
		{"blob that is not there", testBlobMissing},
		{"blob with another digest", testBlobWrongDigest},
		{"source too short, too long, failing", testBlobBadSource},
		{"blobs at the same time", testBlobsConcurrent},
		{"cancelled", testCancelled},
		{"manifest round trip", testManifestRoundTrip},
		{"manifest that is not there", testManifestMissing},
		{"manifest names a missing blob", testManifestIncomplete},
		{"index names a missing manifest", testIndexIncomplete},
		{"index", testIndex},
		{"manifest above the bound", testManifestTooLarge},
		{"manifest near the bound", testManifestLarge},
		{"tag never moves", testTagNeverMoves},
		{"tags race", testTagRace},
		{"tag listing", testTags},
		{"delete", testDelete},
		{"delete what is needed", testDeleteNeeded},
		{"capabilities", testCapabilities},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, open(t)) })
	}
}

// Bytes returns a source for PutBlob.
func Bytes(b []byte) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
}

// Random returns n random bytes.
func Random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}

// PutBytes stores b and returns its descriptor.
func PutBytes(t testing.TB, s store.Blobs, mediaType string, b []byte) ocispec.Descriptor {
	t.Helper()
	d := digest.FromBytes(b)
	if _, err := s.PutBlob(t.Context(), d, int64(len(b)), Bytes(b)); err != nil {
		t.Fatalf("put blob: %v", err)
	}
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(b))}
}

// ManifestOf returns an image manifest with the empty config over layers, made
// unique by note. It stores the config.
func ManifestOf(t testing.TB, s store.Blobs, note string, layers ...ocispec.Descriptor) []byte {
	t.Helper()
	config := PutBytes(t, s, ocispec.MediaTypeEmptyJSON, []byte("{}"))
	if layers == nil {
		layers = []ocispec.Descriptor{config}
	}
	return marshal(t, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		ArtifactType: "application/vnd.lifeboat.test.v1", Config: config, Layers: layers,
		Annotations: map[string]string{"note": note},
	})
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func get(ctx context.Context, s store.Blobs, d digest.Digest, size, off, length int64) ([]byte, error) {
	r, err := s.GetBlob(ctx, d, size, off, length)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(r)
	return b, errors.Join(err, r.Close())
}

func wantErr(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: error %v, want one that is %q", what, err, want)
	}
}

func testBlobRoundTrip(t *testing.T, s store.Store) {
	for _, n := range []int{1, 100, 64 << 10, 3<<20 + 17} {
		b := Random(n)
		d := digest.FromBytes(b)
		sent, err := s.PutBlob(t.Context(), d, int64(n), Bytes(b))
		if err != nil || sent != int64(n) {
			t.Fatalf("put %d bytes: sent %d, %v", n, sent, err)
		}
		got, err := get(t.Context(), s, d, int64(n), 0, -1)
		if err != nil || !bytes.Equal(got, b) {
			t.Fatalf("get %d bytes: got %d, %v", n, len(got), err)
		}
		if ok, err := s.HasBlob(t.Context(), d); !ok || err != nil {
			t.Fatalf("has: %v, %v", ok, err)
		}
	}
}

func testBlobIdempotent(t *testing.T, s store.Store) {
	b := Random(1000)
	d := digest.FromBytes(b)
	PutBytes(t, s, "", b)
	opened := 0
	sent, err := s.PutBlob(t.Context(), d, 1000, func() (io.ReadCloser, error) { opened++; return Bytes(b)() })
	if err != nil || sent != 0 || opened != 0 {
		t.Fatalf("second put: sent %d, opened %d times, %v; want nothing read and nothing sent", sent, opened, err)
	}
	_, err = s.PutBlob(t.Context(), d, 999, Bytes(b[:999]))
	wantErr(t, "put with another size", err, store.ErrDigestMismatch)
}

func testBlobEmpty(t *testing.T, s store.Store) {
	d := digest.FromBytes(nil)
	if _, err := s.PutBlob(t.Context(), d, 0, Bytes(nil)); err != nil {
		t.Fatal(err)
	}
	if ok, err := s.HasBlob(t.Context(), d); !ok || err != nil {
		t.Fatalf("has: %v, %v", ok, err)
	}
	got, err := get(t.Context(), s, d, 0, 0, -1)
	if err != nil || len(got) != 0 {
		t.Fatalf("get: %q, %v", got, err)
	}
}

func testRanges(t *testing.T, s store.Store) {
	b := Random(100_000)
	size := int64(len(b))
	d := PutBytes(t, s, "", b).Digest
	for _, c := range []struct{ off, length int64 }{
		{0, 1}, {0, size}, {0, -1}, {0, 0}, {size, 0}, {size, -1}, {1, -1}, {size - 1, 1}, {1234, 5678}, {99_000, 1000}, {50_000, 0},
	} {
		want := b[c.off:]
		if c.length >= 0 {
			want = want[:c.length]
		}
		got, err := get(t.Context(), s, d, size, c.off, c.length)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes from %d: got %d bytes, %v", c.length, c.off, len(got), err)
		}
	}
}

func testRangesOutside(t *testing.T, s store.Store) {
	b := Random(1000)
	d := PutBytes(t, s, "", b).Digest
	for _, c := range []struct{ size, off, length int64 }{
		{1000, 1001, 0}, {1000, -1, 5}, {1000, 999, 2}, {1000, 0, 1001}, {-1, 0, 0},
	} {
		_, err := get(t.Context(), s, d, c.size, c.off, c.length)
		wantErr(t, fmt.Sprintf("%+v", c), err, store.ErrDigestMismatch)
	}
	// A blob that is shorter or longer than its reference says was cut or altered.
	for _, size := range []int64{999, 1001, 5000} {
		_, err := get(t.Context(), s, d, size, 0, -1)
		wantErr(t, fmt.Sprintf("whole blob as %d bytes", size), err, store.ErrDigestMismatch)
		_, err = get(t.Context(), s, d, size, 10, 20)
		wantErr(t, fmt.Sprintf("part of the blob as %d bytes", size), err, store.ErrDigestMismatch)
	}
	_, err := get(t.Context(), s, d, 5000, 2000, 100)
	wantErr(t, "part beyond the end", err, store.ErrDigestMismatch)
}

func testBlobMissing(t *testing.T, s store.Store) {
	d := digest.FromString("never stored")
	if ok, err := s.HasBlob(t.Context(), d); ok || err != nil {
		t.Errorf("has: %v, %v", ok, err)
	}
	_, err := get(t.Context(), s, d, 12, 0, -1)
	wantErr(t, "get", err, store.ErrNotFound)
	_, err = get(t.Context(), s, d, 12, 3, 4)
	wantErr(t, "get a part", err, store.ErrNotFound)
}

func testBlobWrongDigest(t *testing.T, s store.Store) {
	b := Random(5000)
	d := digest.FromString("something else")
	_, err := s.PutBlob(t.Context(), d, 5000, Bytes(b))
	wantErr(t, "put under a wrong digest", err, store.ErrDigestMismatch)
	for _, d := range []digest.Digest{d, digest.FromBytes(b)} {
		if ok, err := s.HasBlob(t.Context(), d); ok || err != nil {
			t.Errorf("has after refusal: %v, %v", ok, err)
		}
	}
	for _, d := range []digest.Digest{"", "sha256:abc", "../../x", "sha256:" + digest.Digest(bytes.Repeat([]byte("z"), 64))} {
		if _, err := s.PutBlob(t.Context(), d, 5000, Bytes(b)); err == nil {
			t.Errorf("put under %q: no error", d)
		}
	}
}

var errSource = errors.New("disk on fire")

type failing struct{ n int }

func (f *failing) Read(p []byte) (int, error) {
	if f.n == 0 {
		return 0, errSource
	}
	n := min(f.n, len(p))
	f.n -= n
	return n, nil
}

func testBlobBadSource(t *testing.T, s store.Store) {
	b := Random(200_000)
	d := digest.FromBytes(b)
	for _, c := range []struct {
		name string
		open func() (io.ReadCloser, error)
		want error
	}{
		{"too short", Bytes(b[:100_000]), nil},
		{"too long", Bytes(append(slices.Clone(b), 1)), nil},
		{"fails to open", func() (io.ReadCloser, error) { return nil, errSource }, errSource},
		{"fails to read", func() (io.ReadCloser, error) { return io.NopCloser(&failing{70_000}), nil }, errSource},
	} {
		opened := 0
		_, err := s.PutBlob(t.Context(), d, int64(len(b)), func() (io.ReadCloser, error) { opened++; return c.open() })
		if err == nil || (c.want != nil && !errors.Is(err, c.want)) {
			t.Errorf("%s: error %v", c.name, err)
		}
		if store.Retryable(err) {
			t.Errorf("%s: %v is not the network's fault", c.name, err)
		}
		if opened != 1 {
			t.Errorf("%s: opened %d times", c.name, opened)
		}
		if ok, err := s.HasBlob(t.Context(), d); ok || err != nil {
			t.Errorf("%s: has: %v, %v", c.name, ok, err)
		}
	}
	PutBytes(t, s, "", b)
}

func testBlobsConcurrent(t *testing.T, s store.Store) {
	const n = 24
	same := Random(100_000)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			b := same
			if i%2 == 0 {
				b = Random(50_000)
			}
			d := digest.FromBytes(b)
			if _, err := s.PutBlob(t.Context(), d, int64(len(b)), Bytes(b)); err != nil {
				t.Errorf("put: %v", err)
				return
			}
			if got, err := get(t.Context(), s, d, int64(len(b)), 7, 40_000); err != nil || !bytes.Equal(got, b[7:40_007]) {
				t.Errorf("get: %v", err)
			}
		})
	}
	wg.Wait()
}

func testCancelled(t *testing.T, s store.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	b := Random(100)
	_, err := s.PutBlob(ctx, digest.FromBytes(b), 100, Bytes(b))
	wantErr(t, "put blob", err, context.Canceled)
	_, err = s.ResolveTag(ctx, "s.shop.1")
	wantErr(t, "resolve", err, context.Canceled)
	_, err = s.Tags(ctx, "")
	wantErr(t, "tags", err, context.Canceled)
	_, err = s.PutManifest(ctx, "s.shop.1", ocispec.MediaTypeImageManifest, []byte("{}"))
	wantErr(t, "put manifest", err, context.Canceled)
}

func testManifestRoundTrip(t *testing.T, s store.Store) {
	layer := PutBytes(t, s, "application/vnd.lifeboat.pack.v1", Random(1000))
	body := ManifestOf(t, s, "one", layer)
	d, err := s.PutManifest(t.Context(), "s.shop.1", ocispec.MediaTypeImageManifest, body)
	if err != nil || d != digest.FromBytes(body) {
		t.Fatalf("put: %s, %v", d, err)
	}
	want := store.Manifest{MediaType: ocispec.MediaTypeImageManifest, Digest: d, Body: body}
	for _, ref := range []string{"s.shop.1", d.String()} {
		got, err := s.GetManifest(t.Context(), ref)
		if err != nil {
			t.Fatalf("get %s: %v", ref, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("get %s:\n%s", ref, diff)
		}
	}
	if got, err := s.ResolveTag(t.Context(), "s.shop.1"); got != d || err != nil {
		t.Errorf("resolve: %s, %v", got, err)
	}
}

func testManifestMissing(t *testing.T, s store.Store) {
	for _, ref := range []string{"s.shop.1", digest.FromString("nothing").String()} {
		_, err := s.GetManifest(t.Context(), ref)
		wantErr(t, "get "+ref, err, store.ErrNotFound)
	}
	_, err := s.ResolveTag(t.Context(), "s.shop.1")
	wantErr(t, "resolve", err, store.ErrNotFound)
	for _, ref := range []string{"", "a/b", "../x", "a b", "x?y"} {
		if _, err := s.GetManifest(t.Context(), ref); err == nil {
			t.Errorf("get %q: no error", ref)
		}
	}
}

func testManifestIncomplete(t *testing.T, s store.Store) {
	b := Random(10)
	missing := ocispec.Descriptor{MediaType: "application/vnd.lifeboat.pack.v1", Digest: digest.FromBytes(b), Size: 10}
	body := ManifestOf(t, s, "gap", missing)
	_, err := s.PutManifest(t.Context(), "s.shop.1", ocispec.MediaTypeImageManifest, body)
	wantErr(t, "put", err, store.ErrIncomplete)
	_, err = s.ResolveTag(t.Context(), "s.shop.1")
	wantErr(t, "resolve", err, store.ErrNotFound)
	PutBytes(t, s, "", b)
	if _, err := s.PutManifest(t.Context(), "s.shop.1", ocispec.MediaTypeImageManifest, body); err != nil {
		t.Errorf("put after the blob came: %v", err)
	}
}

func indexOf(t *testing.T, children ...store.Manifest) []byte {
	t.Helper()
	x := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, ArtifactType: "application/vnd.lifeboat.snapshot.v1", Manifests: []ocispec.Descriptor{}}
	for _, c := range children {
		x.Manifests = append(x.Manifests, ocispec.Descriptor{MediaType: c.MediaType, Digest: c.Digest, Size: int64(len(c.Body))})
	}
	return marshal(t, x)
}

func packTag(d digest.Digest) string { return "m." + d.Encoded()[:32] }

func testIndexIncomplete(t *testing.T, s store.Store) {
	child := ManifestOf(t, s, "child")
	m := store.Manifest{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(child), Body: child}
	body := indexOf(t, m)
	_, err := s.PutManifest(t.Context(), "s.shop.1", ocispec.MediaTypeImageIndex, body)
	wantErr(t, "put", err, store.ErrIncomplete)
	_, err = s.ResolveTag(t.Context(), "s.shop.1")
	wantErr(t, "resolve", err, store.ErrNotFound)
}

func testIndex(t *testing.T, s store.Store) {
	var children []store.Manifest
	for i := range 3 {
		body := ManifestOf(t, s, fmt.Sprint(i))
		d := digest.FromBytes(body)
		if _, err := s.PutManifest(t.Context(), packTag(d), ocispec.MediaTypeImageManifest, body); err != nil {
			t.Fatal(err)
		}
		children = append(children, store.Manifest{MediaType: ocispec.MediaTypeImageManifest, Digest: d, Body: body})
	}
	body := indexOf(t, children...)
	if _, err := s.PutManifest(t.Context(), "s.shop.1", ocispec.MediaTypeImageIndex, body); err != nil {
		t.Fatal(err)
	}
	got, err := s.GetManifest(t.Context(), "s.shop.1")
	if err != nil || got.MediaType != ocispec.MediaTypeImageIndex || !bytes.Equal(got.Body, body) {
		t.Fatalf("get: %+v, %v", got, err)
	}
}

func testManifestTooLarge(t *testing.T, s store.Store) {
	body := ManifestOf(t, s, string(bytes.Repeat([]byte("x"), store.MaxManifest)))
	_, err := s.PutManifest(t.Context(), "s.shop.1", ocispec.MediaTypeImageManifest, body)
	wantErr(t, "put", err, store.ErrTooLarge)
	_, err = s.ResolveTag(t.Context(), "s.shop.1")
	wantErr(t, "resolve", err, store.ErrNotFound)
}

func testManifestLarge(t *testing.T, s store.Store) {
	body := ManifestOf(t, s, string(bytes.Repeat([]byte("x"), store.MaxManifest-2000)))
	if _, err := s.PutManifest(t.Context(), "s.shop.1", ocispec.MediaTypeImageManifest, body); err != nil {
		t.Fatal(err)
	}
	got, err := s.GetManifest(t.Context(), "s.shop.1")
	if err != nil || !bytes.Equal(got.Body, body) {
		t.Fatalf("get: %d bytes, %v", len(got.Body), err)
	}
}

func testTagNeverMoves(t *testing.T, s store.Store) {
	one, two := ManifestOf(t, s, "one"), ManifestOf(t, s, "two")
	put := func(body []byte) error {
		_, err := s.PutManifest(t.Context(), "e.shop.1", ocispec.MediaTypeImageManifest, body)
		return err
	}
	if err := put(one); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "another manifest", put(two), store.ErrTagTaken)
	if err := put(one); err != nil {
		t.Errorf("the same manifest again: %v", err)
	}
	if d, err := s.ResolveTag(t.Context(), "e.shop.1"); d != digest.FromBytes(one) || err != nil {
		t.Errorf("resolve: %s, %v", d, err)
	}
}

// testTagRace lets many writers race for one tag. Where the store promises
// immutable tags exactly one wins, and it is the one that is there at the end;
// elsewhere whoever is there at the end must have been told that it won.
func testTagRace(t *testing.T, s store.Store) {
	capable, err := s.Capabilities(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const n = 12
	bodies := make([][]byte, n)
	for i := range bodies {
		bodies[i] = ManifestOf(t, s, fmt.Sprint("racer ", i))
	}
	var mu sync.Mutex
	won := map[digest.Digest]bool{}
	var wg sync.WaitGroup
	for _, body := range bodies {
		wg.Go(func() {
			d, err := s.PutManifest(t.Context(), "e.shop.1", ocispec.MediaTypeImageManifest, body)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				won[d] = true
			case !errors.Is(err, store.ErrTagTaken):
				t.Errorf("put: %v", err)
			}
		})
	}
	wg.Wait()
	d, err := s.ResolveTag(t.Context(), "e.shop.1")
	if err != nil || !won[d] {
		t.Errorf("the tag names %s, which did not win (%v)", d, err)
	}
	if capable.ImmutableTags && len(won) != 1 {
		t.Errorf("%d writers won", len(won))
	}
}

func testTags(t *testing.T, s store.Store) {
	if tags, err := s.Tags(t.Context(), ""); err != nil || len(tags) != 0 {
		t.Fatalf("empty store: %v, %v", tags, err)
	}
	body := ManifestOf(t, s, "same for all")
	var want []string
	for i := 1; i <= 12; i++ {
		want = append(want, fmt.Sprintf("s.shop.%d", i))
	}
	for _, tag := range append([]string{"e.shop.1", "s.shop-b.1", "key.1"}, want...) {
		if _, err := s.PutManifest(t.Context(), tag, ocispec.MediaTypeImageManifest, body); err != nil {
			t.Fatalf("put %s: %v", tag, err)
		}
	}
	slices.Sort(want)
	for prefix, want := range map[string][]string{"s.shop.": want, "e.": {"e.shop.1"}, "x.": nil, "s.shop-b": {"s.shop-b.1"}} {
		got, err := s.Tags(t.Context(), prefix)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("prefix %q:\n%s", prefix, diff)
		}
	}
	all, err := s.Tags(t.Context(), "")
	if err != nil || len(all) != 15 || !slices.IsSorted(all) {
		t.Errorf("all: %v, %v", all, err)
	}
}

func testDelete(t *testing.T, s store.Store) {
	body := ManifestOf(t, s, "to go")
	d, err := s.PutManifest(t.Context(), "s.shop.1", ocispec.MediaTypeImageManifest, body)
	if err != nil {
		t.Fatal(err)
	}
	wantErrOr := func(what string, err, want error) {
		if !errors.Is(err, want) && !errors.Is(err, store.ErrUnsupported) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}
	wantErrOr("delete a tag that is not there", s.DeleteTag(t.Context(), "s.shop.7"), store.ErrNotFound)
	wantErrOr("delete a manifest that is not there", s.DeleteManifest(t.Context(), digest.FromString("no")), store.ErrNotFound)
	switch err := s.DeleteTag(t.Context(), "s.shop.1"); {
	case errors.Is(err, store.ErrUnsupported):
		if got, err := s.ResolveTag(t.Context(), "s.shop.1"); got != d || err != nil {
			t.Errorf("tag after an unsupported deletion: %s, %v", got, err)
		}
	case err != nil:
		t.Fatalf("delete tag: %v", err)
	default:
		_, err := s.ResolveTag(t.Context(), "s.shop.1")
		wantErr(t, "resolve after deletion", err, store.ErrNotFound)
		if _, err := s.GetManifest(t.Context(), d.String()); err != nil {
			t.Errorf("manifest after its tag went: %v", err)
		}
	}
	if err := s.DeleteManifest(t.Context(), d); err != nil && !errors.Is(err, store.ErrUnsupported) {
		t.Fatalf("delete manifest: %v", err)
	} else if err == nil {
		_, err := s.GetManifest(t.Context(), d.String())
		wantErr(t, "get after deletion", err, store.ErrNotFound)
	}
}

// testDeleteNeeded: a store that says so keeps what a tag names and what the
// index under a tag lists, and lets go of it afterwards.
func testDeleteNeeded(t *testing.T, s store.Store) {
	caps, err := s.Capabilities(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !caps.CheckedDelete {
		return // it deletes whatever it is told to
	}
	child, err := s.PutManifest(t.Context(), "m."+digest.FromBytes(ManifestOf(t, s, "child")).Encoded()[:32], ocispec.MediaTypeImageManifest, ManifestOf(t, s, "child"))
	if err != nil {
		t.Fatal(err)
	}
	index, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageManifest, Digest: child, Size: int64(len(ManifestOf(t, s, "child")))}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, tag := range []string{"s.shop.1", "anything"} {
		if _, err := s.PutManifest(t.Context(), tag, ocispec.MediaTypeImageIndex, index); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(what string) {
		t.Helper()
		wantErr(t, what, s.DeleteManifest(t.Context(), child), store.ErrListed)
		if _, err := s.GetManifest(t.Context(), child.String()); err != nil {
			t.Errorf("%s: it is gone all the same: %v", what, err)
		}
	}
	refused("a tag names it")
	for _, tag := range []string{"m." + child.Encoded()[:32], "s.shop.1", "anything"} {
		if err := s.DeleteTag(t.Context(), tag); err != nil {
			t.Fatal(err)
		}
		if tag != "anything" {
			refused("after the deletion of " + tag)
		}
	}
	if err := s.DeleteManifest(t.Context(), child); err != nil {
		t.Fatalf("nothing needs it any more: %v", err)
	}
	_, err = s.PutManifest(t.Context(), "s.shop.2", ocispec.MediaTypeImageIndex, index)
	wantErr(t, "an index that lists what is gone", err, store.ErrIncomplete)
}

func testCapabilities(t *testing.T, s store.Store) {
	if _, err := s.Capabilities(t.Context()); err != nil {
		t.Fatal(err)
	}
}
