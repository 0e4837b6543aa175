//go:build !plainheap

package main

import (
	"runtime"
	"runtime/debug"

	"github.com/cconvert/cconvert/cmd/cconvert/internal/heap"
)

// prepareMemory makes memory ready and puts off the collector until it is used. Afterwards it works as always.
func prepareMemory() {
	heap.Prepare()
	percent, limit := debug.SetGCPercent(-1), debug.SetMemoryLimit(-1)
	debug.SetMemoryLimit(min(limit, heap.Size))
	runtime.AddCleanup(new([16]byte), func(int) {
		debug.SetGCPercent(percent)
		debug.SetMemoryLimit(limit)
	}, 0)
}
