package modeltest_test

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"pgregory.net/rapid"

	"lifeboat/internal/repo"
)

// mirrored completes the mirror and, where that went to its end, lays down a
// snapshot that is there: of those that were forgotten since, too.
func (w *world) mirrored(rt *rapid.T) {
	err := w.as(rt, rapid.SampledFrom(hosts).Draw(rt, "host"), func(ctx context.Context, r *repo.Repo) error {
		res, err := r.MirrorTo(ctx, w.mirror, repo.MirrorOptions{})
		if res == nil {
			return err
		}
		for _, row := range res.Rows {
			if row.State == repo.MirrorConflict {
				rt.Fatalf("%s: %v", row.Tag, row.Err)
			}
		}
		return err
	})
	if err != nil {
		w.fail(rt, err)
		return
	}
	r := w.observerOf(rt, w.bed, w.mirror)
	defer func() { _ = r.Close() }()
	snaps, problems, err := r.Snapshots(w.t.Context(), "")
	if err != nil || len(problems) > 0 {
		rt.Fatalf("mirror: problems %v, %v", problems, err)
	}
	if len(snaps) == 0 {
		return
	}
	s := snaps[rapid.IntRange(0, len(snaps)-1).Draw(rt, "snapshot")]
	c := w.known[s.Created.UnixNano()]
	if c == nil {
		rt.Fatalf("mirror: nobody took %s", s.Tag)
	}
	key := rapid.SampledFrom(treeKeys).Draw(rt, "tree")
	dir := filepath.Join(w.newDir(rt), "tree")
	defer func() { _ = os.RemoveAll(filepath.Dir(dir)) }()
	if err := w.lay(w.t.Context(), r, &s, key, dir, nil, w.stateDir(hosts[0])); err != nil {
		rt.Fatalf("restore %s from the mirror: %v", s.Tag, err)
	}
	w.same(rt, s.Tag+" "+key+" of the mirror", c.trees[key], dir)
}

// damage spoils blobs and pack manifests, has a host repair them from an exact
// copy, often with a fault on the way, and then once more: nothing is amiss then.
func (w *world) damage(rt *rapid.T) {
	exact := w.bed.Store.Clone()
	for range rapid.IntRange(1, 3).Draw(rt, "injuries") {
		w.injure(rt)
	}
	host := rapid.SampledFrom(hosts).Draw(rt, "host")
	o := repo.RepairOptions{Read: true, From: []repo.RepairSource{{Name: "copy", Exact: exact}}, Now: w.now}
	rewritten := false
	repair := func(ctx context.Context, r *repo.Repo) error {
		res, err := r.Repair(ctx, o)
		rewritten = rewritten || res != nil && slices.ContainsFunc(res.Steps, func(s repo.RepairStep) bool { return s.Action == repo.RepairRewritten })
		return err
	}
	w.fail(rt, w.as(rt, host, repair))
	r, err := repo.Open(w.t.Context(), w.bed.Store, w.bed.Options(host))
	if err == nil {
		err = repair(w.t.Context(), r)
		_ = r.Close()
	}
	if err != nil {
		rt.Fatalf("repair again: %v", err)
	}
	if rewritten {
		// Snapshots have their units elsewhere now; a pack that stays damaged may be one
		// that an open run builds on, which verify would find in its snapshot.
		for _, u := range w.runs {
			u.close()
		}
		w.runs = nil
	}
	eye := w.observer(rt)
	defer func() { _ = eye.Close() }()
	w.visible(rt, eye)
	if problems, err := eye.Verify(w.t.Context(), nil); err != nil || len(problems) > 0 {
		rt.Fatalf("after the repair: %v, %v", problems, err)
	}
}

// injure spoils one pack, index or pack manifest that a snapshot needs.
func (w *world) injure(rt *rapid.T) {
	st := w.bed.Store
	// What only runs that were cut off or are still open have stored is looked after
	// by nobody: a registry that loses that as well breaks its word to them.
	eye := w.observer(rt)
	defer func() { _ = eye.Close() }()
	snaps, _, err := eye.Snapshots(w.t.Context(), "")
	if err != nil {
		rt.Fatal(err)
	}
	var needs []string
	for i := range snaps {
		for _, d := range snaps[i].Needs {
			needs = append(needs, d.String())
		}
	}
	if len(needs) == 0 {
		return
	}
	slices.Sort(needs)
	needs = slices.Compact(needs)
	need := needs[rapid.IntRange(0, len(needs)-1).Draw(rt, "manifest")]
	m, err := st.GetManifest(w.t.Context(), need)
	if err != nil {
		return // spoiled already
	}
	var body ocispec.Manifest
	if err := json.Unmarshal(m.Body, &body); err != nil {
		rt.Fatal(err)
	}
	at := rapid.IntRange(0, 1<<20).Draw(rt, "at")
	switch what := rapid.SampledFrom([]string{"blob lost", "blob altered", "manifest lost", "manifest altered"}).Draw(rt, "what"); what {
	case "manifest lost":
		st.Vanish(m.Digest)
	case "manifest altered":
		st.CorruptManifest(m.Digest, flipped(m.Body, at))
	default:
		l := body.Layers[at%len(body.Layers)]
		if strings.HasSuffix(what, "lost") || l.Size == 0 {
			st.Drop(l.Digest)
			return
		}
		if l.MediaType != body.Layers[0].MediaType { // of packs
			w.alter(rt, l, at)
		}
	}
}

// alter flips a bit of a blob, unless it is gone already.
func (w *world) alter(rt *rapid.T, l ocispec.Descriptor, at int) {
	rc, err := w.bed.Store.GetBlob(w.t.Context(), l.Digest, l.Size, 0, -1)
	if err != nil {
		return
	}
	defer func() { _ = rc.Close() }()
	b, err := io.ReadAll(rc)
	if err != nil {
		rt.Fatal(err)
	}
	if digest.FromBytes(b) == l.Digest {
		w.bed.Store.Corrupt(l.Digest, flipped(b, at))
	}
}

func flipped(b []byte, at int) []byte {
	b = slices.Clone(b)
	b[at%len(b)] ^= 4
	return b
}
