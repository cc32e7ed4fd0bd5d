package repo_test

import (
	"testing"

	"lifeboat/internal/repo"
	"lifeboat/internal/store"
	"lifeboat/internal/store/memstore"
)

// TestMirrorOfRelocated: snapshots whose units were moved, by compaction or repair,
// before the first copy, between two copies, and after their packs are gone here,
// are whole in the mirror, and where they lie there is told once only.
func TestMirrorOfRelocated(t *testing.T) {
	t.Parallel()
	m := newMirrored(t)
	main, old := m.Host("main"), memstore.New()
	mustMirror(t, main, old)

	kept := relocate(t, main, m.find(t, "shop", "#1")) // its older tag stays
	moved := relocate(t, main, m.find(t, "shop", "#2"))
	dropOlder(t, main, moved, 1)
	twice := relocate(t, main, relocate(t, main, m.find(t, "mail", "#1")))
	dropOlder(t, main, twice, 2)
	before := tagsOf(t, old)
	late := memstore.New()
	for name, dst := range map[string]store.Store{"as it was before": old, "new": late} {
		res := mustMirror(t, main, dst)
		for _, s := range []*repo.Snapshot{kept, moved, twice} {
			if mirrorStates(res)[s.Tag] != repo.MirrorCopied {
				t.Errorf("%s: %s is %s", name, s.Tag, mirrorStates(res)[s.Tag])
			}
			if d, err := dst.ResolveTag(t.Context(), s.Place); err != nil || d != s.Digest {
				t.Errorf("%s: %s names %s, %v", name, s.Place, d, err)
			}
		}
		m.mustHoldAll(t, "reader "+name, dst)
		if again := mustMirror(t, main, dst); again.Packs != 0 || again.Records != 0 {
			t.Errorf("%s: sent again: %+v", name, again)
		}
	}
	for tag, d := range before {
		if now := tagsOf(t, old)[tag]; now != d {
			t.Errorf("%s was %s and is %s", tag, d, now)
		}
	}
	if got := tagNames(t, late, "s."); got != "s.shop.3" {
		t.Errorf("a mirror that knew none of them has %s", got)
	}

	// What they lay in before is collected here; the mirrors do not need it either.
	for range 2 {
		if _, err := m.Host("main").Collect(t.Context(), repo.CollectOptions{Grace: -1}); err != nil {
			t.Fatal(err)
		}
	}
	m.Store.Collect()
	last := memstore.New()
	mustMirror(t, m.Host("main"), last)
	for name, dst := range map[string]store.Store{"old": old, "late": late, "last": last} {
		m.mustHoldAll(t, "collected "+name, dst)
		if problems, err := m.HostOn("verifier "+name, dst).Verify(t.Context(), nil); err != nil || len(problems) != 0 {
			t.Errorf("%s: %v, %v", name, problems, err)
		}
	}
}
