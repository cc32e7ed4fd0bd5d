package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

const (
	// gcPercent is how much the heap may grow between two collections once it is
	// large: most of it is buffers without pointers, so to look at it more often
	// costs little, and keeps the program small beside what it protects.
	gcPercent = 40
	// heapFloor is the heap, in bytes, below which nothing is collected: a small
	// one would be collected hundreds of times a second.
	heapFloor = 32 << 20
	// memoryTarget is what the program tries to stay within, in bytes, by
	// collecting more often and giving memory back, as long as it can.
	memoryTarget = 96 << 20
)

// tuneMemory makes the collector spare small heaps, and keep large ones small,
// unless GOGC or GOMEMLIMIT says otherwise. It looks again after each collection.
func tuneMemory() {
	if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	debug.SetMemoryLimit(memoryTarget)
	debug.SetGCPercent(heapFloor / (4 << 20) * 100) // before the first collection the heap counts as 4 MiB
	type sentinel struct{ _ [16]byte }
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	var watch func(*sentinel)
	watch = func(*sentinel) {
		metrics.Read(live)
		used := live[0].Value.Uint64()
		debug.SetGCPercent(growth(used))
		debug.SetMemoryLimit(memoryLimit(used))
		runtime.SetFinalizer(new(sentinel), watch) // the next collection frees it
	}
	runtime.SetFinalizer(new(sentinel), watch)
}

// growth is by how many percent a heap of live bytes may grow.
func growth(live uint64) int {
	if live == 0 {
		live = 1
	}
	if live < heapFloor {
		return int(max(gcPercent, min((heapFloor-live)*100/live, 10_000)))
	}
	return gcPercent
}

// memoryLimit is the memory, in bytes, to stay within with a heap of live bytes: with
// less than a quarter to spare, collecting would be all that is done.
func memoryLimit(live uint64) int64 {
	return max(memoryTarget, int64(min(live+live/4, 1<<62)))
}
