package repo_test

import (
	"context"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"

	"lifeboat/internal/catalog"
	"lifeboat/internal/repo"
	"lifeboat/internal/repo/readlog"
	"lifeboat/internal/repo/repotest"
	"lifeboat/internal/store"
)

// Another repository, with keys of its own, that holds the same content heals what
// is lost, by content; the catalog must be there still.
func TestRepairFromOtherRepository(t *testing.T) {
	t.Parallel()
	w := &ward{t: t, bed: repotest.NewBed(t), snaps: map[string]*repo.Snapshot{}, files: map[string][]file{}}
	files := []file{{"a", [][]byte{noise(1, 600<<10)}}, {"b", [][]byte{noise(2, 700<<10)}}, {"c", [][]byte{text(3, 9000)}}}
	main := w.bed.Host("main")
	wr, err := main.NewWriter(t.Context(), repo.WriterOptions{System: "shop"})
	if err != nil {
		t.Fatal(err)
	}
	defer wr.Close()
	cat := catalog.NewBuilder(wr, main.CutKey(), main.UnitID)
	entries := []catalog.Entry{{Type: catalog.Directory, Mode: 0o755}}
	for _, f := range files {
		ref, err := wr.Put(t.Context(), f.units[0])
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, catalog.Entry{Path: f.path, Type: catalog.File, Mode: 0o644, Size: int64(ref.Len), Refs: []catalog.Ref{{ID: ref.ID, Len: int64(ref.Len)}}})
	}
	if err := wr.Flush(t.Context()); err != nil { // content and catalog lie apart
		t.Fatal(err)
	}
	for _, e := range entries {
		if err := cat.Add(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	sum, err := cat.Close(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s, err := wr.Commit(t.Context(), treeRootOf(sum.Table, "main"), repo.CommitInfo{})
	if err != nil {
		t.Fatal(err)
	}
	w.snaps[s.Tag], w.files[s.Tag] = s, files
	rd, err := main.NewReader(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	rd.Close()
	// The manifest with content is the one whose loss takes files.
	var hit []string
	for _, need := range s.Needs {
		l := manifestOf(t, w.bed.Store, need.String()).Layers[1]
		raw := slices.Clone(blobBytes(t, w.bed.Store, l.Digest, l.Size))
		w.bed.Store.Drop(l.Digest)
		if hit = losses(t, examine(t, w.bed.Host("looks"), repo.ExamineOptions{})); len(hit) == len(files) {
			break
		}
		if _, err := w.bed.Store.PutBlob(t.Context(), l.Digest, l.Size, openerOf(raw)); err != nil {
			t.Fatal(err)
		}
	}
	if len(hit) != len(files) {
		t.Fatalf("%v", hit)
	}
	other := repotest.NewBed(t)
	treeSnapshot(t, other.Host("elsewhere"), "copy", nil, files[0], files[2])
	res := w.repair("main", repo.RepairOptions{From: []repo.RepairSource{{Name: "other", Other: other.Host("reader")}}})
	if left := losses(t, res.After); !slices.Equal(left, []string{"s.shop.1 volume:data /b"}) {
		t.Fatalf("%v\n%+v", left, res.Steps)
	}
	// In part: it says so until the rest is found, by a later run.
	if x := examine(t, w.bed.Host("fresh"), repo.ExamineOptions{Read: &readlog.Subset{}}); len(x.Problems) == 0 || len(losses(t, x)) != 1 {
		t.Fatalf("%v", x.Problems)
	}
	treeSnapshot(t, other.Host("elsewhere"), "copy", nil, files[1])
	res = w.repair("main", repo.RepairOptions{From: []repo.RepairSource{{Name: "other", Other: other.Host("reader")}}})
	if !res.Healed() || len(w.holds(w.bed.Host("third"), s.Tag)) != 0 {
		t.Fatalf("%v\n%+v", res.After.Problems, res.Steps)
	}
	if ps := examine(t, w.bed.Host("fourth"), repo.ExamineOptions{Read: &readlog.Subset{}}).Problems; len(ps) != 0 {
		t.Fatalf("%v", ps)
	}
}

// spent is a registry that gives one tag to nobody any more.
type spent struct {
	store.Store
	tag string
}

func (s spent) PutManifest(ctx context.Context, tag, mediaType string, body []byte) (digest.Digest, error) {
	if tag == s.tag {
		return "", store.ErrTagTaken
	}
	return s.Store.PutManifest(ctx, tag, mediaType, body)
}

// Where a number cannot be had again the snapshot's record goes on under a
// relocation, and the step says so.
func TestRepairTellsRelocation(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	main := b.Host("main")
	units := content(3, 20)
	s := mustSnapshot(t, main, "shop", nil, units)
	mustSnapshot(t, main, "shop", s, units)
	whole := b.Store.Clone()
	b.Store.MoveTag(s.Tag, s.Needs[0])
	res, err := b.HostOn("main", spent{b.Store, s.Tag}).Repair(t.Context(), repo.RepairOptions{From: []repo.RepairSource{{Name: "mirror", Exact: whole}}})
	if err != nil {
		t.Fatal(err)
	}
	told := false
	for _, step := range res.Steps {
		if step.Tag == s.Tag {
			told = step.Action == repo.RepairRelocated && step.As == "r.shop.1.1" && step.Err == nil
		}
	}
	if !told || !res.Healed() {
		t.Fatalf("%+v, left: %v", res.Steps, res.After.Problems)
	}
}
