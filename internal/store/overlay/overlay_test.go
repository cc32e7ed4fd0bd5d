package overlay_test

import (
	"bytes"
	"io"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"lifeboat/internal/store"
	"lifeboat/internal/store/memstore"
	"lifeboat/internal/store/overlay"
	"lifeboat/internal/store/storetest"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) store.Store { return overlay.New(memstore.New(), t.TempDir()) })
}

// Whatever is done through it, the store below stays as it was.
func TestNothingChangesBelow(t *testing.T) {
	t.Parallel()
	inner := memstore.New()
	storetest.Run(t, func(t *testing.T) store.Store { return overlay.New(inner, t.TempDir()) })
	t.Cleanup(func() {
		if inner.Size() != 0 {
			t.Errorf("%d bytes below", inner.Size())
		}
	})
}

// manifestOf stores a manifest of one blob under a tag.
func manifestOf(t *testing.T, s store.Store, tag string, content []byte) (blob, manifest digest.Digest) {
	t.Helper()
	d := storetest.PutBytes(t, s, "x", content)
	body := []byte(`{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageManifest + `","config":{"digest":"` + d.Digest.String() + `"},"layers":[]}`)
	m, err := s.PutManifest(t.Context(), tag, ocispec.MediaTypeImageManifest, body)
	if err != nil {
		t.Fatal(err)
	}
	return d.Digest, m
}

// What is damaged below is whole above once it was written again or lent, and
// damaged below still.
func TestDamageIsCovered(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	inner, other := memstore.New(), memstore.New()
	content := storetest.Random(1000)
	blob, m := manifestOf(t, inner, "s.shop.1", content)
	manifestOf(t, other, "s.shop.1", content)
	sound, err := inner.GetManifest(ctx, "s.shop.1")
	if err != nil {
		t.Fatal(err)
	}
	inner.Corrupt(blob, storetest.Random(1000))
	inner.CorruptManifest(m, []byte("{}"))
	s := overlay.New(inner, t.TempDir())
	if _, err := s.GetManifest(ctx, "s.shop.1"); err == nil {
		t.Error("the damage is not seen")
	}
	if ok, err := s.Lend(ctx, blob, 1000, other); !ok || err != nil {
		t.Fatal(ok, err)
	}
	r, err := s.GetBlob(ctx, blob, 1000, 10, 20)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, content[10:30]) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if _, err := s.PutManifest(store.Rewriting(ctx), "s.shop.1", sound.MediaType, sound.Body); err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{"s.shop.1", m.String()} {
		got, err := s.GetManifest(ctx, ref)
		if diff := cmp.Diff(sound, got); diff != "" || err != nil {
			t.Error(diff, err)
		}
		if _, err := inner.GetManifest(ctx, ref); err == nil {
			t.Errorf("%s was mended below", ref)
		}
	}
}

// A tag that was taken away is gone above and there below.
func TestTagsTakenAway(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	inner := memstore.New()
	_, m := manifestOf(t, inner, "s.shop.1", storetest.Random(10))
	s := overlay.New(inner, t.TempDir())
	if err := s.DeleteTag(ctx, "s.shop.1"); err != nil {
		t.Fatal(err)
	}
	manifestOf(t, s, "s.shop.2", storetest.Random(10))
	above, err := s.Tags(ctx, "s.")
	below, berr := inner.Tags(ctx, "s.")
	if diff := cmp.Diff([]string{"s.shop.2"}, above) + cmp.Diff([]string{"s.shop.1"}, below); diff != "" || err != nil || berr != nil {
		t.Error(diff, err, berr)
	}
	if err := s.DeleteManifest(ctx, m); err != nil {
		t.Error(err)
	}
	if _, err := s.GetManifest(ctx, m.String()); err == nil {
		t.Error("it is there still")
	}
}
