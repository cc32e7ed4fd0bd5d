package capture_test

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"lifeboat/internal/capture"
	"lifeboat/internal/capture/capturetest"
	"lifeboat/internal/dr"
	"lifeboat/internal/repo/repotest"
)

// TestHalfRestored: a snapshot of a volume into which a restore was cut off is taken,
// without the mark, and says so each time.
func TestHalfRestored(t *testing.T) {
	t.Parallel()
	const key = "volume:" + capturetest.Volume
	b := repotest.NewBed(t)
	s := capturetest.New(t, "main")
	s.Fill(t)
	take := func() *capture.Result {
		t.Helper()
		res, err := snapshot(t.Context(), b, "main", s, b.Store, capture.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	whole := take()
	mark := dr.RestoreMark(dr.SnapshotID{1}, "ab")
	s.Write(t, key, mark, "{}")
	at := s.Path(t, key)
	for range 2 { // what has not changed since says it, too
		half := take()
		want := []capture.HalfRestored{{Tree: key, Path: at, Local: at}}
		if !slices.Equal(half.HalfRestored, want) {
			t.Errorf("%+v, want %+v", half.HalfRestored, want)
		}
		for _, tr := range half.Root.Trees {
			if (len(tr.HalfRestored) > 0) != (tr.Key == key) {
				t.Errorf("%s: %q", tr.Key, tr.HalfRestored)
			}
			if tr.Key == key && tr.Entries != entries(whole.Root, key) {
				t.Errorf("%d entries", tr.Entries)
			}
		}
		if !slices.ContainsFunc(half.Root.Coverage, func(c dr.CoverageItem) bool {
			return c.Object == key && c.Captured && c.Partial && strings.Contains(c.Reason, "cut off")
		}) {
			t.Errorf("coverage %+v", half.Root.Coverage)
		}
	}
	s.Write(t, key, "sub/"+mark, "{}")
	if half := take().HalfRestored; len(half) != 2 || half[1].Path != filepath.Join(at, "sub") {
		t.Errorf("%+v", half)
	}
}

func entries(root *dr.Root, key string) int64 {
	return root.Trees[slices.IndexFunc(root.Trees, func(t dr.Tree) bool { return t.Key == key })].Entries
}
