package repo_test

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lifeboat/internal/catalog"
	"lifeboat/internal/repo"
	"lifeboat/internal/repo/repotest"
)

// TestStruckFiles: a damaged pack is told by the files that have content in it.
func TestStruckFiles(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	r := b.Host("main")
	old, other := content(71, 2), content(72, 1)
	first := mustSnapshot(t, r, "shop", nil, old)
	w, err := r.NewWriter(t.Context(), repo.WriterOptions{System: "shop", Parent: first})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	ref := func(u []byte) catalog.Ref {
		got, err := w.Put(t.Context(), u)
		if err != nil {
			t.Fatal(err)
		}
		return catalog.Ref{ID: got.ID, Len: int64(got.Len)}
	}
	cat := catalog.NewBuilder(w, r.CutKey(), r.UnitID)
	file := func(path string, units ...[]byte) catalog.Entry {
		e := catalog.Entry{Path: path, Type: catalog.File, Mode: 0o644}
		for _, u := range units {
			e.Refs = append(e.Refs, ref(u))
			e.Size += int64(len(u))
		}
		return e
	}
	for _, e := range []catalog.Entry{
		{Type: catalog.Directory, Mode: 0o755}, file("a", old[0]), file("b", other[0]), file("c", other[0], old[1]), file("d", old[0], old[1]),
	} {
		if err := cat.Add(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	sum, err := cat.Close(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s, err := w.Commit(t.Context(), rootOf(sum.Table, "main"), repo.CommitInfo{})
	if err != nil {
		t.Fatal(err)
	}
	struck := func(l string) (repo.Hit, int) {
		t.Helper()
		problems, err := b.Host("reader").Verify(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range problems {
			if p.Snapshot == s.ID && p.Blob == l {
				h, err := b.Host("reader").Struck(t.Context(), p, 2)
				if err != nil {
					t.Fatal(err)
				}
				return h, len(problems)
			}
		}
		t.Fatalf("no problem of %s in %v", l, problems)
		return repo.Hit{}, 0
	}
	l := manifestOf(t, b.Store, first.Needs[0].String()).Layers[1]
	raw := bytes.Clone(blobBytes(t, b.Store, l.Digest, l.Size))
	b.Store.Corrupt(l.Digest, bytes.Repeat([]byte{7}, len(raw)))
	h, _ := struck(l.Digest.String())
	if diff := cmp.Diff(repo.Hit{Files: []string{"volume:data /a", "volume:data /c"}, Further: 1}, h); diff != "" {
		t.Error(diff)
	}
	b.Store.Corrupt(l.Digest, raw)
	// The pack with catalog and root record.
	for _, need := range s.Needs {
		if need == first.Needs[0] {
			continue
		}
		l := manifestOf(t, b.Store, need.String()).Layers[1]
		b.Store.Corrupt(l.Digest, noise(3, int(l.Size)))
		h, _ := struck(l.Digest.String())
		if diff := cmp.Diff(repo.Hit{Objects: []string{"the description"}}, h); diff != "" {
			t.Error(diff)
		}
	}
	// What is no pack is told by its problem alone.
	if h, err := r.Struck(t.Context(), repo.Problem{Tag: "key.1", Blob: "sha256:x"}, 2); err != nil || len(h.Files)+len(h.Objects) != 0 {
		t.Errorf("%+v, %v", h, err)
	}
}
