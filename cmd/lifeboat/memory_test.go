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

func TestMemoryLimit(t *testing.T) {
	t.Parallel()
	for live, want := range map[uint64]int64{0: memoryTarget, 64 << 20: memoryTarget, 80 << 20: 100 << 20, 1 << 63: 1 << 62} {
		if got := memoryLimit(live); got != want {
			t.Errorf("%d bytes: %d, want %d", live, got, want)
		}
	}
}
