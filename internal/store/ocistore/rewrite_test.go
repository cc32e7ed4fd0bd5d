package ocistore_test

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"lifeboat/internal/registry/registrytest"
	"lifeboat/internal/store"
	"lifeboat/internal/store/storetest"
)

// What the registry's disk has damaged is stored anew when asked for, blobs and
// manifests; what is sound, or what does not fit the digest, changes nothing.
func TestOwnRegistryRewrites(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	s := open(t, r.URL("dr"), r.Options())
	content := storetest.Random(100_000)
	l := storetest.PutBytes(t, s, "application/octet-stream", content)
	body := storetest.ManifestOf(t, s, "note", l)
	md, err := s.PutManifest(t.Context(), "m."+digest.FromBytes(body).Encoded()[:32], ocispec.MediaTypeImageManifest, body)
	if err != nil {
		t.Fatal(err)
	}
	file := func(d digest.Digest) string {
		return filepath.Join(r.Data, "store", "docker", "registry", "v2", "blobs", "sha256", d.Encoded()[:2], d.Encoded(), "data")
	}
	read := func() []byte {
		t.Helper()
		src, err := s.GetBlob(t.Context(), l.Digest, l.Size, 0, -1)
		if err != nil {
			return nil
		}
		defer func() { _ = src.Close() }()
		b, err := io.ReadAll(src)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	flipped := bytes.Clone(content)
	flipped[5000] ^= 1
	for name, bad := range map[string][]byte{"flipped": flipped, "cut off": content[:500], "longer": append(bytes.Clone(content), 1)} {
		if err := os.WriteFile(file(l.Digest), bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := s.PutBlob(t.Context(), l.Digest, l.Size, storetest.Bytes(content)); err == nil && bytes.Equal(read(), content) {
			t.Errorf("%s: replaced without being asked to", name)
		}
		if _, err := s.PutBlob(store.Rewriting(t.Context()), l.Digest, l.Size, storetest.Bytes(flipped)); err == nil {
			t.Errorf("%s: other bytes were taken", name)
		}
		if have, err := os.ReadFile(file(l.Digest)); err != nil || !bytes.Equal(have, bad) {
			t.Errorf("%s: what was there is gone before it was replaced: %v", name, err)
		}
		if _, err := s.PutBlob(store.Rewriting(t.Context()), l.Digest, l.Size, storetest.Bytes(content)); err != nil || !bytes.Equal(read(), content) {
			t.Errorf("%s: %v", name, err)
		}
	}
	before, err := os.Stat(file(l.Digest))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.PutBlob(store.Rewriting(t.Context()), l.Digest, l.Size, storetest.Bytes(content)); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(file(l.Digest)); err != nil || !os.SameFile(before, after) {
		t.Errorf("a sound file was replaced, %v", err)
	}
	if err := os.WriteFile(file(md), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.PutManifest(store.Rewriting(t.Context()), "m."+md.Encoded()[:32], ocispec.MediaTypeImageManifest, body); err != nil {
		t.Fatal(err)
	}
	if m, err := s.GetManifest(t.Context(), md.String()); err != nil || !bytes.Equal(m.Body, body) {
		t.Fatalf("%v", err)
	}
}
