package capture_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"lifeboat/internal/capture"
	"lifeboat/internal/capture/capturetest"
	"lifeboat/internal/repo"
	"lifeboat/internal/repo/repotest"
)

// packsOf lists the packs of a snapshot.
func packsOf(t *testing.T, b *repotest.Bed, s *repo.Snapshot) (out []ocispec.Descriptor) {
	t.Helper()
	for _, d := range s.Needs {
		m, err := b.Store.GetManifest(t.Context(), d.String())
		if err != nil {
			t.Fatal(err)
		}
		var pm ocispec.Manifest
		if err := json.Unmarshal(m.Body, &pm); err != nil {
			t.Fatal(err)
		}
		out = append(out, pm.Layers[1:]...)
	}
	return out
}

// corrupt flips a byte in the middle of a pack.
func corrupt(t *testing.T, b *repotest.Bed, l ocispec.Descriptor) {
	t.Helper()
	src, err := b.Store.GetBlob(t.Context(), l.Digest, l.Size, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := io.ReadAll(src)
	if err != nil {
		t.Fatal(err)
	}
	raw = bytes.Clone(raw)
	raw[len(raw)/2] ^= 1
	b.Store.Corrupt(l.Digest, raw)
}

// A pack of the newest snapshot is damaged, whichever it is. After verify has found
// it the next snapshot is whole, and sends what was in that pack and no more.
func TestSnapshotAfterDamage(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	s := capturetest.New(t, "main")
	s.Fill(t)
	for i := range 16 {
		p := filepath.Join(s.Path(t, "volume:"+capturetest.Volume), fmt.Sprintf("upload%d", i))
		if err := os.WriteFile(p, noise(uint64(i), 3<<20), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	first, err := snapshot(t.Context(), b, "main", s, b.Store, capture.Options{})
	if err != nil {
		t.Fatal(err)
	}
	packs := packsOf(t, b, first.Snapshot)
	if len(packs) < 5 {
		t.Fatalf("%d packs", len(packs))
	}
	for i, l := range packs {
		bed := b.Fork()
		corrupt(t, bed, l)
		if problems, err := bed.Host("main").Verify(t.Context(), nil); err != nil || len(problems) == 0 {
			t.Fatalf("pack %d: verify found %v, %v", i, problems, err)
		}
		next, err := snapshot(t.Context(), bed, "main", s, bed.Store, capture.Options{})
		if err != nil {
			t.Fatalf("pack %d: %v", i, err)
		}
		if next.BytesSent > l.Size+l.Size/4+64<<10 {
			t.Errorf("pack %d of %d bytes was damaged, %d were sent", i, l.Size, next.BytesSent)
		}
		if d := cmp.Diff(trees(first.Root), trees(next.Root)); d != "" || next.Root.Parent == nil || *next.Root.Parent != first.Snapshot.ID {
			t.Errorf("pack %d: parent %v, %s", i, next.Root.Parent, d)
		}
		problems, err := bed.Host("observer").Verify(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range problems {
			if p.Snapshot == next.Snapshot.ID {
				t.Errorf("pack %d: the new snapshot is not whole: %v", i, p)
			}
		}
		same, err := snapshot(t.Context(), bed, "main", s, bed.Store, capture.Options{})
		if err != nil || same.BytesSent > 32<<10 {
			t.Errorf("pack %d: the one after sent %d bytes, %v", i, same.BytesSent, err)
		}
	}
}
