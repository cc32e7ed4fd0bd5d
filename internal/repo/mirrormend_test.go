package repo_test

import (
	"testing"

	"lifeboat/internal/repo"
	"lifeboat/internal/store/memstore"
)

// A snapshot's record that is damaged at the mirror is no conflict: it is stored
// there again.
func TestMirrorMendsRecord(t *testing.T) {
	t.Parallel()
	m, dst := newMirrored(t), memstore.New()
	main := m.Host("main")
	mustMirror(t, main, dst)
	spoilTag(t, dst, "s.shop.2")
	if got := mirrorStates(mustMirror(t, main, dst))["s.shop.2"]; got != repo.MirrorCopied {
		t.Errorf("it is %s", got)
	}
	m.mustHoldAll(t, "main", dst)
}
