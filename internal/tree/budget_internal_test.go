package tree

import (
	"bytes"
	"testing"
)

// TestBudgetDrop: what was stored goes back to the system, and what lies around
// it stays as it is.
func TestBudgetDrop(t *testing.T) {
	t.Parallel()
	b := NewBudget(4 * budgetSegment)
	b.hold()
	defer b.release()
	if err := b.Prepare(1); err != nil {
		t.Fatal(err)
	}
	take := func(n int64) []byte {
		t.Helper()
		parts := b.take(n)
		if len(parts) != 1 {
			t.Fatalf("%d bytes came in %d parts", n, len(parts))
		}
		for i := range parts[0] {
			parts[0][i] = 0xa5
		}
		return parts[0]
	}
	before, part, after := take(1000), take(1<<20+77), take(5000)
	small := take(100)
	for _, p := range [][]byte{part, small, nil} {
		if err := b.drop(p); err != nil {
			t.Fatal(err)
		}
	}
	if n := bytes.Count(part, []byte{0}); n < 1<<20-8192 {
		t.Errorf("%d bytes of %d were given back", n, len(part))
	}
	for _, p := range [][]byte{before, after, small} {
		if bytes.Count(p, []byte{0xa5}) != len(p) {
			t.Error("what lies beside was given back, too")
		}
	}
}
