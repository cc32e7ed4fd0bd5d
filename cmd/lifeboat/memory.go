package main

import (
	"fmt"
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
	// collecting more often and giving memory back, as long as it can. What is
	// mapped outside of the heap (bytes secured while frozen) is within it.
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
	m := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	var watch func(*sentinel)
	watch = func(*sentinel) {
		metrics.Read(m)
		live, runtimes := m[0].Value.Uint64(), m[1].Value.Uint64()-m[2].Value.Uint64()
		debug.SetGCPercent(growth(live))
		debug.SetMemoryLimit(memoryLimit(live, outside(anonymous(), runtimes)))
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

// memoryLimit is the memory, in bytes, that the runtime is to stay within with a
// heap of live bytes and so many outside of it: with less than a quarter to spare,
// collecting would be all that is done.
func memoryLimit(live, outside uint64) int64 {
	left := memoryTarget - min(outside, memoryTarget)
	return int64(min(max(left, live+live/4), 1<<62))
}

// outside is how many of the resident bytes of no file are not the runtime's, which
// counts some as its own that it has never touched.
func outside(resident, runtimes uint64) uint64 {
	return resident - min(resident, runtimes)
}

// anonymous is how much memory of no file this process has resident, in bytes; 0
// where the kernel does not tell (proc(5), statm).
func anonymous() uint64 {
	raw, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	var size, resident, shared uint64 // pages
	if _, err := fmt.Sscan(string(raw), &size, &resident, &shared); err != nil {
		return 0
	}
	return (resident - min(resident, shared)) * uint64(os.Getpagesize())
}
