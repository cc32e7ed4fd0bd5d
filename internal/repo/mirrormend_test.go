package repo_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"lifeboat/internal/repo"
	"lifeboat/internal/store/memstore"
)

// TestMirrorMends: whatever is damaged or gone at the mirror is found by the next
// run and stored there again; where all is well, nothing is.
func TestMirrorMends(t *testing.T) {
	t.Parallel()
	tagsOf := func(t *testing.T, st *memstore.Store) []string {
		t.Helper()
		tags, err := st.Tags(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		return tags
	}
	first := func(tags []string, prefix string) string {
		return tags[slices.IndexFunc(tags, func(s string) bool { return strings.HasPrefix(s, prefix) })]
	}
	for name, harm := range map[string]func(*testing.T, *memstore.Store){
		"key record":       func(t *testing.T, dst *memstore.Store) { spoilTag(t, dst, "key.1") },
		"newer key record": func(t *testing.T, dst *memstore.Store) { spoilTag(t, dst, "key.2") },
		"host record":      func(t *testing.T, dst *memstore.Store) { spoilTag(t, dst, "host.2") },
		"epoch":            func(t *testing.T, dst *memstore.Store) { spoilTag(t, dst, "e.shop.1") },
		"snapshot":         func(t *testing.T, dst *memstore.Store) { spoilTag(t, dst, "s.shop.2") },
		"pack manifest":    func(t *testing.T, dst *memstore.Store) { spoilTag(t, dst, first(tagsOf(t, dst), "m.")) },
		"tag of a pack manifest": func(t *testing.T, dst *memstore.Store) {
			vanishTag(t, dst, first(tagsOf(t, dst), "m."))
		},
		"manifest of a record": func(t *testing.T, dst *memstore.Store) { vanish(t, dst, "e.shop.1") },
		"only key manifests":   func(t *testing.T, dst *memstore.Store) { vanish(t, dst, "key.1"); vanish(t, dst, "key.2") },
		"a pack":               func(t *testing.T, dst *memstore.Store) { dst.Drop(blobsOf(t, dst, tagsOf(t, dst))[1]) },
		"all packs and indexes": func(t *testing.T, dst *memstore.Store) {
			for _, d := range blobsOf(t, dst, tagsOf(t, dst)) {
				dst.Drop(d)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, dst := newMirrored(t), memstore.New()
			main := m.Host("main")
			mustMirror(t, main, dst)
			if again := mustMirror(t, main, dst); again.Records != 0 || again.Packs != 0 || again.Bytes != 0 {
				t.Errorf("a whole mirror was sent %+v", again)
			}
			harm(t, dst)
			rehearsed, err := m.Host("main").MirrorTo(t.Context(), dst, repo.MirrorOptions{DryRun: true})
			if err != nil || len(rehearsed.Problems) != 0 {
				t.Errorf("dry run: %v, %v", rehearsed, err)
			}
			if name != "tag of a pack manifest" && rehearsed.Records == 0 && rehearsed.Packs == 0 && !slices.ContainsFunc(rehearsed.Rows, func(r repo.MirrorRow) bool { return r.State == repo.MirrorDue }) {
				t.Error("a dry run finds nothing due")
			}
			res := mustMirror(t, m.Host("main"), dst)
			for tag, state := range mirrorStates(res) {
				if state != repo.MirrorThere && state != repo.MirrorCopied {
					t.Errorf("%s is %s", tag, state)
				}
			}
			m.mustHoldAll(t, "main", dst)
			if last := mustMirror(t, m.Host("main"), dst); last.Records != 0 || last.Packs != 0 || last.Bytes != 0 {
				t.Errorf("what was mended is sent again: %+v", last)
			}
		})
	}
}

// blobsOf are the packs and indexes of all pack manifests in a store.
func blobsOf(t *testing.T, st *memstore.Store, tags []string) (out []digest.Digest) {
	t.Helper()
	for _, tag := range tags {
		if !strings.HasPrefix(tag, "m.") {
			continue
		}
		for _, l := range manifestOf(t, st, tag).Layers {
			out = append(out, l.Digest)
		}
	}
	return out
}

// vanish takes away what a tag names, and leaves the tag.
func vanish(t *testing.T, st *memstore.Store, tag string) {
	t.Helper()
	d, err := st.ResolveTag(t.Context(), tag)
	if err != nil || !st.Vanish(d) {
		t.Fatalf("%s: %v", tag, err)
	}
}
