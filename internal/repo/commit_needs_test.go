package repo_test

import (
	"testing"

	"lifeboat/internal/repo"
	"lifeboat/internal/repo/readlog"
	"lifeboat/internal/repo/repotest"
	"lifeboat/internal/store"
)

// A pack manifest that a run builds on is altered or vanishes while the run is
// open: what this host keeps of it is pushed again before the snapshot becomes
// visible (invariant 1).
func TestCommitHealsThePackManifestsItNames(t *testing.T) {
	t.Parallel()
	for name, hurt := range map[string]func(b *repotest.Bed, m store.Manifest) bool{
		"altered": func(b *repotest.Bed, m store.Manifest) bool {
			return b.Store.CorruptManifest(m.Digest, flipFrom(60)(m.Body))
		},
		"cut short": func(b *repotest.Bed, m store.Manifest) bool {
			return b.Store.CorruptManifest(m.Digest, m.Body[:len(m.Body)/2])
		},
		"gone": func(b *repotest.Bed, m store.Manifest) bool { return b.Store.Vanish(m.Digest) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := repotest.NewBed(t)
			main := b.Host("main")
			units := big(3, 4)
			first := mustSnapshot(t, main, "shop", nil, units)
			w, err := main.NewWriter(t.Context(), repo.WriterOptions{System: "shop", Parent: first})
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			units = append(bytes2(units), noise(9, 1000))
			refs, err := putAll(t.Context(), w, units)
			if err != nil {
				t.Fatal(err)
			}
			m, err := b.Store.GetManifest(t.Context(), first.Needs[0].String())
			if err != nil {
				t.Fatal(err)
			}
			if !hurt(b, m) {
				t.Fatal("no such manifest")
			}
			second, err := w.Commit(t.Context(), rootOf(refs, "main"), repo.CommitInfo{})
			if err != nil {
				t.Fatal(err)
			}
			other := b.Host("other")
			mustHold(t, other, second, units)
			if p := examine(t, other, repo.ExamineOptions{Read: &readlog.Subset{}}).Problems; len(p) > 0 {
				t.Errorf("problems: %v", p)
			}
		})
	}
}
