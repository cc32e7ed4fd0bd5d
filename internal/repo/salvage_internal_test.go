package repo

import (
	"context"
	"fmt"
	"testing"

	"lifeboat/internal/dr"
	"lifeboat/internal/store"
)

// TestDamagedMeansEverywhere: a unit is damaged only where every place that has it was
// asked; a place that did not answer may have it.
func TestDamagedMeansEverywhere(t *testing.T) {
	t.Parallel()
	gone, tampered, away := fmt.Errorf("a: %w", store.ErrNotFound), fmt.Errorf("b: %w", dr.ErrTampered), fmt.Errorf("c: %w", store.ErrUnreachable)
	for _, tc := range []struct {
		name string
		err  error
		want bool
	}{
		{"nothing", nil, false},
		{"gone", gone, true},
		{"altered", fmt.Errorf("pack: %w", store.ErrDigestMismatch), true},
		{"out of reach", away, false},
		{"two places", fmt.Errorf("unit: %w", &placesError{[]error{gone, tampered}}), true},
		{"one of two out of reach", fmt.Errorf("unit: %w", &placesError{[]error{gone, away}}), false},
		{"cancelled", fmt.Errorf("%w: %w", tampered, context.Canceled), false},
	} {
		if got := Damaged(tc.err); got != tc.want {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
}
