package repo_test

import (
	"slices"
	"testing"

	"lifeboat/internal/repo"
	"lifeboat/internal/repo/repotest"
	"lifeboat/internal/retain"
)

// A collection tells how far each of its stages is, one after the other, each to
// its end.
func TestCollectProgress(t *testing.T) {
	t.Parallel()
	h := repotest.New(t)
	all := megabytes(1, 24)
	first := mustSnapshot(t, h, "shop", nil, all)
	mustSnapshot(t, h, "shop", first, [][]byte{all[0], all[9], all[18]})
	if _, err := forget(t.Context(), h, retain.Policy{Last: 1}); err != nil {
		t.Fatal(err)
	}
	r := repo.CompactOptions{MaxUnused: 0.25}
	var told []repo.CollectProgress
	c, err := h.ListsAsCatalogs().Collect(t.Context(), repo.CollectOptions{Compact: &r, Progress: func(p repo.CollectProgress) { told = append(told, p) }})
	if err != nil || c.Compacted.Chosen == 0 {
		t.Fatalf("%+v, %v", c.Compacted, err)
	}
	var stages []repo.CollectStage
	for i, p := range told {
		last := i+1 == len(told) || told[i+1].Stage != p.Stage
		first := i == 0 || told[i-1].Stage != p.Stage
		switch {
		case first:
			stages = append(stages, p.Stage)
			if p.Done != 0 || p.Total <= 0 {
				t.Errorf("begins with %+v", p)
			}
		case p.Done < told[i-1].Done || p.Total != told[i-1].Total:
			t.Errorf("%+v after %+v", p, told[i-1])
		}
		if last && p.Done != p.Total {
			t.Errorf("ends with %+v", p)
		}
	}
	if want := []repo.CollectStage{repo.CollectLook, repo.CollectRewrite, repo.CollectRemove}; !slices.Equal(stages, want) {
		t.Errorf("stages %v, want %v", stages, want)
	}
}
