//go:build !plainheap

package main

import (
	"runtime"
	"runtime/debug"

	"github.com/cconvert/cconvert/cmd/cconvert/internal/heap"
)

// collectLater puts off the collector until the memory is used that was made ready for the program. Afterwards it works
// as always.
func collectLater() {
	percent, limit := debug.SetGCPercent(-1), debug.SetMemoryLimit(-1)
	debug.SetMemoryLimit(min(limit, heap.Size))
	runtime.AddCleanup(new([16]byte), func(int) {
		debug.SetGCPercent(percent)
		debug.SetMemoryLimit(limit)
	}, 0)
}
