package repo_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"lifeboat/internal/catalog"
	"lifeboat/internal/repo"
	"lifeboat/internal/repo/readlog"
	"lifeboat/internal/repo/repotest"
)

// maskedWard is a repository in which one thing lost can hide another: s.shop.1 lies
// in a manifest of two packs of content and in one with the list and the description
// (apart), or in one manifest with all (together); s.shop.2 is newer and shares
// nothing with it, so that check does not look into s.shop.1.
func maskedWard(t *testing.T, apart bool) *ward {
	t.Helper()
	w := &ward{t: t, bed: repotest.NewBed(t), snaps: map[string]*repo.Snapshot{}, files: map[string][]file{}}
	main := w.bed.Host("main")
	var files []file
	for i := range uint64(10) {
		files = append(files, file{fmt.Sprintf("f%02d", i), [][]byte{noise(100+i, 1<<20)}})
	}
	if apart {
		s := apartSnapshot(t, main, files)
		w.snaps[s.Tag], w.files[s.Tag] = s, files
	} else {
		s := treeSnapshot(t, main, "shop", nil, files...)
		w.snaps[s.Tag], w.files[s.Tag] = s, files
	}
	last := []file{{"other", [][]byte{noise(7, 3000)}}}
	s := treeSnapshot(t, main, "shop", nil, last...)
	w.snaps[s.Tag], w.files[s.Tag] = s, last
	w.copy = w.bed.Store.Clone()
	return w
}

// apartSnapshot is treeSnapshot that pushes content before the list of files.
func apartSnapshot(t *testing.T, r *repo.Repo, files []file) *repo.Snapshot {
	t.Helper()
	w, err := r.NewWriter(t.Context(), repo.WriterOptions{System: "shop"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	entries := []catalog.Entry{{Type: catalog.Directory, Mode: 0o755}}
	for _, f := range files {
		ref, err := w.Put(t.Context(), f.units[0])
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, catalog.Entry{Path: f.path, Type: catalog.File, Mode: 0o644, Size: int64(ref.Len), Refs: []catalog.Ref{{ID: ref.ID, Len: int64(ref.Len)}}})
	}
	if err := w.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	cat := catalog.NewBuilder(w, r.CutKey(), r.UnitID)
	for _, e := range entries {
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

// manifests returns those of s.shop.1: that of the content, with the most layers,
// and that of the list, which is the same where all is together.
func (w *ward) manifests() (content, list digest.Digest) {
	w.t.Helper()
	needs := slices.Clone(w.snaps["s.shop.1"].Needs)
	layers := func(d digest.Digest) int { return len(manifestOf(w.t, w.bed.Store, d.String()).Layers) }
	slices.SortFunc(needs, func(a, b digest.Digest) int { return layers(b) - layers(a) })
	if layers(needs[0]) < 3 {
		w.t.Fatalf("%d packs of content", layers(needs[0])-1)
	}
	return needs[0], needs[len(needs)-1]
}

// largestFirst is a manifest with its packs by size: what comes last into a pack (the
// list and the description) is in a small one.
func (w *ward) largestFirst(d digest.Digest) ocispec.Manifest {
	w.t.Helper()
	m := manifestOf(w.t, w.bed.Store, d.String())
	slices.SortStableFunc(m.Layers[1:], func(a, b ocispec.Descriptor) int { return int(b.Size - a.Size) })
	return m
}

// masks is a row: what is done to the manifests of content and list, by what kind
// of damage it is told, and whether somebody without a cache and without an exact
// copy gets all of it back.
type masks struct {
	name   string
	apart  bool
	do     func(w *ward, content, list ocispec.Manifest, c, l digest.Digest) []digest.Digest
	reads  bool // only reading shows all of it
	hidden bool // who keeps nothing cannot know of all of it
	other  bool // this host, and another repository that has the files, mend it
}

func maskedDamages() []masks {
	drop := func(w *ward, layers ...ocispec.Descriptor) (out []digest.Digest) {
		for _, l := range layers {
			w.bed.Store.Drop(l.Digest)
			out = append(out, l.Digest)
		}
		return out
	}
	alter := func(w *ward, d digest.Digest) digest.Digest {
		w.spoilManifest(d.String())
		return d
	}
	type m = ocispec.Manifest
	type ds = []digest.Digest
	return []masks{
		{name: "pack and index of one manifest", other: true, do: func(w *ward, c, _ m, _, _ digest.Digest) ds {
			return drop(w, c.Layers[0], c.Layers[1])
		}},
		{name: "pack of one, index of the other", apart: true, other: true, do: func(w *ward, c, l m, _, _ digest.Digest) ds {
			return drop(w, c.Layers[1], l.Layers[0])
		}},
		{name: "all packs of one, index of the other", apart: true, other: true, do: func(w *ward, c, l m, _, _ digest.Digest) ds {
			return drop(w, append(slices.Clone(c.Layers[1:]), l.Layers[0])...)
		}},
		{name: "pack and index of one, index of the other", apart: true, other: true, do: func(w *ward, c, l m, _, _ digest.Digest) ds {
			return drop(w, c.Layers[0], c.Layers[1], l.Layers[0])
		}},
		{name: "index of one, pack of the other", apart: true, do: func(w *ward, c, l m, _, _ digest.Digest) ds {
			return drop(w, c.Layers[0], l.Layers[1])
		}},
		{name: "index of both", apart: true, other: true, do: func(w *ward, c, l m, _, _ digest.Digest) ds {
			return drop(w, c.Layers[0], l.Layers[0])
		}},
		{name: "everything of both", apart: true, do: func(w *ward, c, l m, _, _ digest.Digest) ds {
			return drop(w, append(slices.Clone(c.Layers), l.Layers...)...)
		}},
		{name: "pack of one, the other altered", apart: true, other: true, do: func(w *ward, c, _ m, _, l digest.Digest) ds {
			return append(drop(w, c.Layers[1]), alter(w, l))
		}},
		{name: "pack of one, the other gone", apart: true, other: true, do: func(w *ward, c, _ m, _, l digest.Digest) ds {
			w.bed.Store.Vanish(l)
			return append(drop(w, c.Layers[1]), l)
		}},
		{name: "one altered with a pack gone, index of the other", apart: true, hidden: true, other: true, do: func(w *ward, c, l m, cd, _ digest.Digest) ds {
			return append(drop(w, c.Layers[2], l.Layers[0]), alter(w, cd))
		}},
		{name: "bit in a pack of one, index of the other", apart: true, reads: true, other: true, do: func(w *ward, c, l m, _, _ digest.Digest) ds {
			w.spoil(c.Layers[1], flipFrom(5000))
			return append(drop(w, l.Layers[0]), c.Layers[1].Digest)
		}},
		{name: "bit in a pack, index of the same", reads: true, other: true, do: func(w *ward, c, _ m, _, _ digest.Digest) ds {
			w.spoil(c.Layers[1], flipFrom(5000))
			return append(drop(w, c.Layers[0]), c.Layers[1].Digest)
		}},
	}
}

// What is damaged does not hide other damage: check names all of it (verify what only
// reading shows), also where the index that would say what is in a pack is gone;
// repair mends all that can be had in one run, says what is left, and its dry run
// says the same; and no relocation that it writes, wherever a run is cut off, passes
// for whole that is not.
func TestDamageHidesNoDamage(t *testing.T) {
	t.Parallel()
	wards := map[bool]*ward{true: maskedWard(t, true), false: maskedWard(t, false)}
	for _, d := range maskedDamages() {
		for _, from := range []string{"nothing", "exact", "other"} {
			for _, host := range []string{"main", "stranger"} {
				t.Run(d.name+"/"+from+"/"+host, func(t *testing.T) {
					t.Parallel()
					w := wards[d.apart].fork(t)
					w.masked(d, from, host)
				})
			}
		}
	}
}

func (w *ward) masked(d masks, from, host string) {
	t := w.t
	t.Helper()
	c, l := w.manifests()
	named := d.do(w, w.largestFirst(c), w.largestFirst(l), c, l)
	o := repo.RepairOptions{Read: d.reads}
	if from == "exact" {
		o.From = []repo.RepairSource{{Name: "mirror", Exact: w.copy}}
	}
	if from == "other" {
		there := repotest.NewBed(t)
		treeSnapshot(t, there.Host("elsewhere"), "copy", nil, w.files["s.shop.1"]...)
		o.From = []repo.RepairSource{{Name: "other", Other: there.Host("reader")}}
	}
	look := repo.ExamineOptions{}
	if d.reads {
		look.Read = &readlog.Subset{}
	}
	text := problemText(examine(t, w.bed.ForkFor(t).Host(host), look).Problems)
	for _, blob := range named {
		if !strings.Contains(text, blob.String()) && (!d.hidden || host == "main") {
			t.Errorf("%s is not named:\n%s", blob, text)
		}
	}
	whole := w.sidesAre(host, o)
	if want := from == "exact" || d.other && from == "other" && host == "main"; want && !whole {
		t.Error("all of it could be had")
	}
	again := w.repair(host, repo.RepairOptions{From: o.From})
	for _, s := range again.Steps {
		if s.Err == nil {
			t.Errorf("the second run does more: %+v", s)
		}
	}
	x := examine(t, w.bed.Host("witness"), repo.ExamineOptions{Read: &readlog.Subset{}})
	if sound := len(x.Problems) == 0; sound != whole || again.Healed() != whole {
		t.Errorf("repair says that all is whole: %v, again: %v\n%s", whole, again.Healed(), problemText(x.Problems))
	}
	w.exactly(losses(t, x))
	// What is lost is not forgotten: an exact copy that turns up later has it.
	w.repair("main", repo.RepairOptions{Read: true, From: []repo.RepairSource{{Name: "mirror", Exact: w.copy}}})
	if ps := examine(t, w.bed.Host("another witness"), repo.ExamineOptions{Read: &readlog.Subset{}}).Problems; len(ps) > 0 {
		t.Errorf("with an exact copy, later: %s", problemText(ps))
	}
	for tag := range w.snaps {
		if bad := w.holds(w.bed.Host("reader"), tag); len(bad) > 0 {
			t.Errorf("%s: %v", tag, bad)
		}
	}
}

// sidesAre is sides that says whether everything was healed.
func (w *ward) sidesAre(host string, o repo.RepairOptions) bool {
	w.t.Helper()
	a := w.fork(w.t)
	watched := o
	watched.Stepped = func(s repo.RepairStep) { // a run may be cut off after each
		if s.Action != repo.RepairRelocated || s.Err != nil || s.Lacks > 0 {
			return
		}
		if bad := w.holds(w.bed.Host("watcher"), s.Tag); len(bad) > 0 {
			w.t.Errorf("%s is said to lack nothing, and lacks %v", s.As, bad)
		}
	}
	res := w.repair(host, watched)
	o.DryRun = true
	if diff := cmp.Diff(told(w.t, res), told(w.t, a.repair(host, o))); diff != "" {
		w.t.Errorf("the real run (-) and the dry run (+):\n%s", diff)
	}
	return res.Healed()
}
