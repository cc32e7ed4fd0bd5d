package repo_test

import (
	"bytes"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"lifeboat/internal/catalog"
	"lifeboat/internal/repo"
	"lifeboat/internal/repo/readlog"
	"lifeboat/internal/repo/repotest"
)

// A damaged pack is told by the files that have content in it.
func TestLosses(t *testing.T) {
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
	entry := func(path string, units ...[]byte) catalog.Entry {
		e := catalog.Entry{Path: path, Type: catalog.File, Mode: 0o644}
		for _, u := range units {
			e.Refs = append(e.Refs, ref(u))
			e.Size += int64(len(u))
		}
		return e
	}
	for _, e := range []catalog.Entry{
		{Type: catalog.Directory, Mode: 0o755}, entry("a", old[0]), entry("b", other[0]), entry("c", other[0], old[1]), entry("d", old[0], old[1]),
	} {
		if err := cat.Add(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	sum, err := cat.Close(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s, err := w.Commit(t.Context(), treeRootOf(sum.Table, "main"), repo.CommitInfo{})
	if err != nil {
		t.Fatal(err)
	}
	lossesOf := func(l digest.Digest) []repo.Loss {
		t.Helper()
		x, err := b.Host("reader").Examine(t.Context(), repo.ExamineOptions{Read: &readlog.Subset{}})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(x.Problems, func(p repo.Problem) bool { return p.Snapshot == s.ID && p.Blob == l.String() }) {
			t.Fatalf("no problem of %s in %v", l, x.Problems)
		}
		var out []repo.Loss
		err = x.Losses(t.Context(), func(of *repo.Snapshot, loss repo.Loss) error {
			if of.ID == s.ID {
				out = append(out, loss)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	size := func(us ...[]byte) (n int64) {
		for _, u := range us {
			n += int64(len(u))
		}
		return n
	}
	l := manifestOf(t, b.Store, first.Needs[0].String()).Layers[1]
	raw := bytes.Clone(blobBytes(t, b.Store, l.Digest, l.Size))
	b.Store.Corrupt(l.Digest, bytes.Repeat([]byte{7}, len(raw)))
	file := func(path string, lost ...[]byte) repo.Loss {
		return repo.Loss{Kind: repo.LossFile, Object: "volume:data", Path: path, Bytes: size(lost...), Blobs: []digest.Digest{l.Digest}}
	}
	if diff := cmp.Diff([]repo.Loss{file("a", old[0]), file("c", old[1]), file("d", old...)}, lossesOf(l.Digest)); diff != "" {
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
		want := []repo.Loss{{Kind: repo.LossDescription, Blobs: []digest.Digest{l.Digest}}}
		if diff := cmp.Diff(want, lossesOf(l.Digest)); diff != "" {
			t.Error(diff)
		}
	}
}
