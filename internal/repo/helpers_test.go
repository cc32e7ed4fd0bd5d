package repo_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"lifeboat/internal/dr"
	"lifeboat/internal/repo"
)

// noise is incompressible, the same for each seed.
func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	_, _ = rand.NewChaCha8(key).Read(b)
	return b
}

func text(seed uint64, n int) []byte {
	line := fmt.Appendf(nil, "%d the quick brown fox jumps over the lazy dog %d\n", seed, seed*7919)
	return bytes.Repeat(line, n/len(line)+1)[:n]
}

// content makes a mix of units: small and large, compressible and not.
func content(seed uint64, n int) [][]byte {
	rnd := rand.New(rand.NewPCG(seed, 1))
	var out [][]byte
	for i := range n {
		size := 1 + rnd.IntN(3000)
		switch rnd.IntN(20) {
		case 0:
			size = 600<<10 + rnd.IntN(1<<20)
		case 1, 2:
			size = 32 << 10
		}
		if rnd.IntN(2) == 0 {
			out = append(out, noise(seed*1000003+uint64(i), size))
		} else {
			out = append(out, text(seed*1000003+uint64(i), size))
		}
	}
	return out
}

// rootOf is what the tests keep in place of catalogs: the units of a snapshot in
// the order of the content, carried by the root record as a project file.
func rootOf(refs []dr.UnitRef, site dr.Site) *dr.Root {
	return &dr.Root{
		Site: site, Kind: dr.KindCurrent, Consistency: dr.ConsistentCrash, Created: time.Now(),
		Files: []dr.ProjectFile{{Role: "other", Path: "/srv/list", Content: refs}},
	}
}

// treeRootOf is a root record of one volume with a real catalog.
func treeRootOf(table []dr.UnitRef, site dr.Site) *dr.Root {
	root := rootOf(nil, site)
	root.Files, root.Trees = nil, []dr.Tree{{Key: "volume:data", Kind: dr.TreeVolume, Catalog: table, Entries: int64(len(table))}}
	return root
}

// listOf returns the units that rootOf was given. Kept repositories of earlier
// writers have them in the place of a catalog.
func listOf(root *dr.Root) []dr.UnitRef {
	if len(root.Files) > 0 {
		return root.Files[0].Content
	}
	return root.Trees[0].Catalog
}

func putAll(ctx context.Context, w *repo.Writer, units [][]byte) ([]dr.UnitRef, error) {
	var refs []dr.UnitRef
	for _, u := range units {
		ref, err := w.Put(ctx, u)
		if err != nil {
			return nil, err
		}
		refs = append(refs, ref)
	}
	return refs, nil
}

// snapshot takes a snapshot of units.
func snapshot(ctx context.Context, r *repo.Repo, o repo.WriterOptions, site dr.Site, units [][]byte) (*repo.Snapshot, repo.Stats, error) {
	w, err := r.NewWriter(ctx, o)
	if err != nil {
		return nil, repo.Stats{}, err
	}
	defer w.Close()
	refs, err := putAll(ctx, w, units)
	if err != nil {
		return nil, w.Stats(), err
	}
	s, err := w.Commit(ctx, rootOf(refs, site), repo.CommitInfo{FreezeMicros: 1500})
	return s, w.Stats(), err
}

func mustSnapshot(t testing.TB, r *repo.Repo, system dr.System, parent *repo.Snapshot, units [][]byte) *repo.Snapshot {
	t.Helper()
	s, _, err := snapshot(t.Context(), r, repo.WriterOptions{System: system, Parent: parent}, "main", units)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// readAll reads a snapshot back, by Fetch.
func readAll(ctx context.Context, r *repo.Repo, s *repo.Snapshot) ([][]byte, error) {
	rd, err := r.NewReader(ctx, s)
	if err != nil {
		return nil, err
	}
	defer rd.Close()
	root, err := rd.Root(ctx)
	if err != nil {
		return nil, err
	}
	out := make([][]byte, len(listOf(root)))
	err = rd.Fetch(ctx, listOf(root), func(i int, data []byte) error {
		out[i] = bytes.Clone(data)
		return nil
	})
	return out, err
}

// mustHold fails unless the snapshot holds exactly these units.
func mustHold(t testing.TB, r *repo.Repo, s *repo.Snapshot, units [][]byte) {
	t.Helper()
	got, err := readAll(t.Context(), r, s)
	if err != nil {
		t.Fatalf("read %s: %v", s.Tag, err)
	}
	if len(got) != len(units) {
		t.Fatalf("%s holds %d units, want %d", s.Tag, len(got), len(units))
	}
	for i := range got {
		if !bytes.Equal(got[i], units[i]) {
			t.Fatalf("%s: unit %d is not what was put", s.Tag, i)
		}
	}
}

// layersOf returns the digests of the layers of a manifest.
func layersOf(t testing.TB, body []byte) []digest.Digest {
	t.Helper()
	var m ocispec.Manifest
	if err := json.Unmarshal(body, &m); err != nil {
		t.Fatal(err)
	}
	var out []digest.Digest
	for _, l := range m.Layers {
		out = append(out, l.Digest)
	}
	return out
}

// spoilFiles alters every cache file below dir.
func spoilFiles(t testing.TB, dir string, spoil func([]byte) []byte) {
	t.Helper()
	n := 0
	err := filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		n++
		// A new file: the old one may still be mapped.
		if err := os.Remove(name); err != nil {
			return err
		}
		return os.WriteFile(name, spoil(b), 0o600)
	})
	if err != nil || n == 0 {
		t.Fatalf("%d cache files, %v", n, err)
	}
}

// openerOf is what a store takes a blob from.
func openerOf(b []byte) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
}

// listedIn returns what an image index lists.
func listedIn(t testing.TB, body []byte) []digest.Digest {
	t.Helper()
	var x ocispec.Index
	if err := json.Unmarshal(body, &x); err != nil {
		t.Fatal(err)
	}
	var out []digest.Digest
	for _, d := range x.Manifests {
		out = append(out, d.Digest)
	}
	return out
}

// opener is what a store takes a blob from.
type opener = func() (io.ReadCloser, error)

// blobSize is the size of layer i of a manifest.
func blobSize(t testing.TB, body []byte, i int) int {
	t.Helper()
	var m ocispec.Manifest
	if err := json.Unmarshal(body, &m); err != nil {
		t.Fatal(err)
	}
	return int(m.Layers[i].Size)
}
