package main

import (
	"testing"

	"golang.org/x/sys/unix"
)

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
	for _, tt := range []struct {
		live, outside uint64
		want          int64
	}{
		{0, 0, memoryTarget},
		{64 << 20, 0, memoryTarget},
		{80 << 20, 0, 100 << 20},
		{1 << 62, 0, 1 << 62},
		{16 << 20, 64 << 20, 32 << 20}, // secured bytes are within the target
		{40 << 20, 64 << 20, 50 << 20},
		{8 << 20, 1 << 40, 10 << 20},
	} {
		if got := memoryLimit(tt.live, tt.outside); got != tt.want {
			t.Errorf("%d bytes, %d outside: %d, want %d", tt.live, tt.outside, got, tt.want)
		}
	}
	if outside(10, 20) != 0 || outside(20, 10) != 10 {
		t.Error("what the runtime has not touched counts")
	}
}

// Memory that is mapped beside the heap is seen, and not once it was given back.
func TestMappedMemoryIsCounted(t *testing.T) {
	before := anonymous()
	const size = 256 << 20
	m, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		t.Fatal(err)
	}
	during := anonymous()
	if err := unix.Munmap(m); err != nil {
		t.Fatal(err)
	}
	after := anonymous()
	if during < before+size/2 || after > during-size/2 {
		t.Errorf("%d bytes before, %d with %d more, %d after", before, during, size, after)
	}
}
