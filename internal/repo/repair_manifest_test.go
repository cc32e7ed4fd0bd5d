package repo_test

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"lifeboat/internal/dr"
	"lifeboat/internal/repo"
	"lifeboat/internal/repo/readlog"
)

// A pack manifest that has its digest and cannot be understood (of another kind,
// without packs, with a layer out of bounds) is no copy of anything, in this
// registry as in a copy of it: it is told, and what snapshots need of it is found
// where else it lies.
func TestRepairOfAnUndecodableManifest(t *testing.T) {
	t.Parallel()
	sound := newWard(t)
	for name, spoil := range map[string]func(*ocispec.Manifest){
		"of another kind": func(m *ocispec.Manifest) { m.ArtifactType = "application/vnd.example.other" },
		"without packs":   func(m *ocispec.Manifest) { m.Layers = m.Layers[:1] },
		"a pack too large": func(m *ocispec.Manifest) {
			m.Layers[1].Size = 1 << 40
		},
		"packs before the index": func(m *ocispec.Manifest) { m.Layers[0], m.Layers[1] = m.Layers[1], m.Layers[0] },
	} {
		for _, copied := range []bool{true, false} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				w := sound.fork(t)
				d := w.undecodable("s.shop.1", spoil)
				o := repo.RepairOptions{Read: true}
				if copied {
					w.copy = w.bed.Store.Clone()
					o.From = []repo.RepairSource{{Name: "copy", Exact: w.copy}}
				}
				x := examine(t, w.bed.Host("checker"), repo.ExamineOptions{})
				if text := problemText(x.Problems); !bytes.Contains([]byte(text), []byte(d)) {
					t.Errorf("check does not name %s:\n%s", d, text)
				}
				before := tagsOf(t, w.bed.Store)
				o.DryRun = true
				if dry := w.repair("healer", o); len(dry.Steps) == 0 || len(tagsOf(t, w.bed.Store)) != len(before) {
					t.Errorf("the dry run plans %+v", dry.Steps)
				}
				o.DryRun = false
				res := w.repair("healer", o)
				for _, s := range res.Steps {
					if s.Err != nil || s.Blob == d || s.Tag == "m."+d.Encoded()[:32] {
						t.Errorf("step %+v", s)
					}
				}
				ps := examine(t, w.bed.Host("witness"), repo.ExamineOptions{Read: &readlog.Subset{}}).Problems
				if len(ps) > 0 || !res.Healed() {
					t.Errorf("after repair (%+v): %v", res.Steps, ps)
				}
				w.whole()
			})
		}
	}
}

// undecodable lets another host say that a snapshot lies in a pack manifest that
// is spoiled and stored as it should be, and returns its digest.
func (w *ward) undecodable(tag string, spoil func(*ocispec.Manifest)) digest.Digest {
	w.t.Helper()
	s := w.snaps[tag]
	m := manifestOf(w.t, w.bed.Store, s.Needs[0].String())
	spoil(&m)
	body, err := json.Marshal(m)
	if err != nil {
		w.t.Fatal(err)
	}
	d := digest.FromBytes(body)
	name := "m." + d.Encoded()[:32]
	if _, err := w.bed.Store.PutManifest(w.t.Context(), name, ocispec.MediaTypeImageManifest, body); err != nil {
		w.t.Fatal(err)
	}
	bad := w.bed.Host("second")
	found, err := bad.Find(w.t.Context(), dr.System("shop"), s.ID.String())
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := bad.RelocateTo(w.t.Context(), found, name); err != nil {
		w.t.Fatal(err)
	}
	return d
}
