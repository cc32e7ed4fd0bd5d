package repo_test

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"lifeboat/internal/catalog"
	"lifeboat/internal/dr"
	"lifeboat/internal/repo"
	"lifeboat/internal/repo/readlog"
	"lifeboat/internal/repo/repotest"
	"lifeboat/internal/store/faults"
)

// examine is Examine without error.
func examine(t testing.TB, r *repo.Repo, o repo.ExamineOptions) *repo.Examination {
	t.Helper()
	x, err := r.Examine(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// file is a file of treeSnapshot: its path, and the units of its content.
type file struct {
	path  string
	units [][]byte
}

// treeSnapshot takes a snapshot of one volume with real catalogs.
func treeSnapshot(t testing.TB, r *repo.Repo, system dr.System, parent *repo.Snapshot, files ...file) *repo.Snapshot {
	t.Helper()
	w, err := r.NewWriter(t.Context(), repo.WriterOptions{System: system, Parent: parent})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	cat := catalog.NewBuilder(w, r.CutKey(), r.UnitID)
	if err := cat.Add(t.Context(), catalog.Entry{Type: catalog.Directory, Mode: 0o755}); err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		e := catalog.Entry{Path: f.path, Type: catalog.File, Mode: 0o644}
		for _, u := range f.units {
			ref, err := w.Put(t.Context(), u)
			if err != nil {
				t.Fatal(err)
			}
			e.Refs = append(e.Refs, catalog.Ref{ID: ref.ID, Len: int64(ref.Len)})
			e.Size += int64(ref.Len)
		}
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
	return s
}

// A run that is cut off at nine tenths is not begun anew: the next one reads what
// is left.
func TestVerifyGoesOn(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	main := b.Host("main")
	var snaps []*repo.Snapshot
	for i := range uint64(10) {
		snaps = append(snaps, mustSnapshot(t, main, dr.System("s"+string(rune('a'+i))), nil, content(100+i, 20)))
	}
	now := time.Date(2026, 5, 1, 3, 0, 0, 0, time.UTC)
	all := &readlog.Subset{}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	total := 0
	var asked atomic.Int32
	begins := func() time.Time { // and reads a second later
		if asked.Add(1) == 1 {
			return now
		}
		return now.Add(time.Second)
	}
	_, err := b.Host("checker").Examine(ctx, repo.ExamineOptions{Read: all, Now: begins, Progress: func(p repo.VerifyProgress) {
		if total = p.PacksTotal; p.Packs == p.PacksTotal*9/10 {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	var last repo.VerifyProgress
	x := examine(t, b.Host("checker"), repo.ExamineOptions{Read: all, Now: func() time.Time { return now.Add(time.Hour) }, Progress: func(p repo.VerifyProgress) { last = p }})
	if total != 20 || last.PacksTotal > 2 || len(x.Problems) != 0 {
		t.Fatalf("%d of %d were read again, %v", last.PacksTotal, total, x.Problems)
	}
	if got := x.Reading.All; got.Never.Packs != 0 || got.Overdue.Packs != 0 || got.Total.Packs != 20 || !got.Oldest.Equal(now.Add(time.Second)) || !x.Reading.Resumed.Equal(now) {
		t.Fatalf("%+v", x.Reading)
	}
	if x = examine(t, b.Host("checker"), repo.ExamineOptions{Read: all, Now: func() time.Time { return now.Add(2 * time.Hour) }}); x.Reading.Read.Packs != 20 || !x.Reading.Resumed.IsZero() {
		t.Fatalf("a run after one that ended reads all: %+v", x.Reading)
	}
	// A part of what is due is read by each run; nothing is overdue.
	for day := range 12 {
		at := now.Add(time.Duration(day+1) * 24 * time.Hour)
		x := examine(t, b.Host("checker"), repo.ExamineOptions{Read: &readlog.Subset{Within: 5 * 24 * time.Hour}, Now: func() time.Time { return at }})
		if x.Reading.All.Overdue.Packs != 0 || day > 0 && x.Reading.Read.Packs == 0 || x.Reading.Read.Packs > 16 {
			t.Fatalf("day %d: %+v", day, x.Reading.All)
		}
	}
	// After a month without runs all is overdue, and said so by system.
	x = examine(t, b.Host("checker"), repo.ExamineOptions{
		Read: &readlog.Subset{Within: 5 * 24 * time.Hour}, Now: func() time.Time { return now.Add(720 * time.Hour) },
		Only: func(s *repo.Snapshot) bool { return s.ID == snaps[3].ID },
	})
	if len(x.Reading.Systems) != 1 || x.Reading.Systems[0].System != "sd" || x.Reading.Read.Packs != 2 || x.Reading.All.Overdue.Packs != 0 {
		t.Fatalf("%+v", x.Reading)
	}
}

// A run goes on with what one that was cut off has read, not with what was read
// just before that: it may have been damaged in between.
func TestVerifyGoesOnWithItsOwn(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	s := mustSnapshot(t, b.Host("main"), "shop", nil, content(7, 5))
	now := time.Date(2026, 5, 1, 3, 0, 0, 300e6, time.UTC)
	o := repo.ExamineOptions{Read: &readlog.Subset{}, Now: func() time.Time { return now }}
	if x := examine(t, b.Host("checker"), o); len(x.Problems) != 0 {
		t.Fatal(x.Problems)
	}
	pack := manifestOf(t, b.Store, s.Needs[0].String()).Layers[1]
	b.Store.Corrupt(pack.Digest, flipFrom(60)(bytes.Clone(blobBytes(t, b.Store, pack.Digest, pack.Size))))
	now = now.Add(200 * time.Millisecond)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cut := faults.New(t, b.Store, faults.Fault{Op: faults.GetBlob, Arg: pack.Digest.String(), Kind: faults.Hang, Do: cancel})
	r, err := repo.Open(t.Context(), cut, b.Options("checker"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	if _, err := r.Examine(ctx, o); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	x := examine(t, b.Host("checker"), o)
	if x.Reading.Resumed.IsZero() || !slices.ContainsFunc(x.Problems, func(p repo.Problem) bool { return p.Blob == pack.Digest.String() }) {
		t.Fatalf("a damaged pack was passed over: %+v, %v", x.Reading, x.Problems)
	}
}

// What a sample finds damaged is told by each run from then on, also by check,
// until it was read and found sound; so snapshots do not rely upon it.
func TestDamageFoundBySampleStays(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	main := b.Host("main")
	s := treeSnapshot(t, main, "shop", nil, file{"a", [][]byte{noise(1, 700<<10)}}, file{"b", [][]byte{noise(2, 700<<10)}})
	l := manifestOf(t, b.Store, s.Needs[0].String()).Layers[1]
	raw := slices.Clone(blobBytes(t, b.Store, l.Digest, l.Size))
	b.Store.Corrupt(l.Digest, flip(2000)(raw, nil))
	if ps := examine(t, main, repo.ExamineOptions{}).Problems; len(ps) != 0 {
		t.Fatalf("check cannot know: %v", ps)
	}
	if ps := examine(t, main, repo.ExamineOptions{Read: &readlog.Subset{K: 1, N: 1}}).Problems; !names(ps, s.ID, l.Digest) {
		t.Fatalf("%v", ps)
	}
	for range 2 {
		main = b.Host("main") // started again
		if ps := examine(t, main, repo.ExamineOptions{}).Problems; !names(ps, s.ID, l.Digest) {
			t.Fatalf("check forgot: %v", ps)
		}
		if ps := examine(t, main, repo.ExamineOptions{Read: &readlog.Subset{Bytes: 1}}).Problems; !names(ps, s.ID, l.Digest) {
			t.Fatalf("the next sample forgot: %v", ps)
		}
		if _, err := main.NewWriter(t.Context(), repo.WriterOptions{System: "shop", Parent: s}); !errors.Is(err, repo.ErrParentDamaged) {
			t.Fatal(err)
		}
	}
	b.Store.Corrupt(l.Digest, raw) // the registry's data came back
	if ps := examine(t, main, repo.ExamineOptions{}).Problems; len(ps) != 0 {
		t.Fatalf("%v", ps)
	}
	w, err := main.NewWriter(t.Context(), repo.WriterOptions{System: "shop", Parent: s})
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
}

// Verify reads the index that is stored, not the one that this host keeps.
func TestVerifyReadsStoredIndex(t *testing.T) {
	t.Parallel()
	b := repotest.NewBed(t)
	main := b.Host("main")
	s := mustSnapshot(t, main, "shop", nil, content(8, 30))
	l := manifestOf(t, b.Store, s.Needs[0].String()).Layers[0]
	b.Store.Corrupt(l.Digest, flip(300)(blobBytes(t, b.Store, l.Digest, l.Size), nil))
	x := examine(t, main, repo.ExamineOptions{Read: &readlog.Subset{}})
	if !names(x.Problems, s.ID, l.Digest) {
		t.Fatalf("%v", x.Problems)
	}
	var lost []repo.Loss
	if err := x.Losses(t.Context(), func(_ *repo.Snapshot, l repo.Loss) error { lost = append(lost, l); return nil }); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]repo.Loss{{Kind: repo.LossDescription, Blobs: []digest.Digest{l.Digest}}}, lost[:1]); diff != "" {
		t.Error(diff)
	}
}
