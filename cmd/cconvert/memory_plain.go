//go:build plainheap

package main

import (
	"runtime"
	"runtime/debug"
)

// prepareMemory is what debug.SetGCPercent alone can do, for BenchmarkHeap to compare with.
func prepareMemory() {
	percent, limit := debug.SetGCPercent(-1), debug.SetMemoryLimit(-1)
	debug.SetMemoryLimit(min(limit, 96<<20))
	runtime.AddCleanup(new([16]byte), func(int) {
		debug.SetGCPercent(percent)
		debug.SetMemoryLimit(limit)
	}, 0)
}
