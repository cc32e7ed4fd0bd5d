package main

import "testing"

func TestHeapGrowth(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		live uint64
		want int
	}{
		{0, 10_000}, {1 << 20, 3100}, {16 << 20, 100}, {28 << 20, gcPercent}, {heapFloor, gcPercent}, {1 << 40, gcPercent},
	} {
		if got := growth(tt.live); got != tt.want {
			t.Errorf("%d bytes: %d %%, want %d %%", tt.live, got, tt.want)
		}
	}
}
