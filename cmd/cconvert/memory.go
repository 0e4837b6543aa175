package main

import (
	"runtime"
	"runtime/debug"
)

// firstCollection is how much memory the program takes before the collector runs for the first time.
const firstCollection = 96 << 20

// collectLater puts off the collector, which for a program that is over in a tenth of a second does nothing
// but cost a part of it. Afterwards it works as always.
func collectLater() {
	percent := debug.SetGCPercent(-1)
	hugePages(make([]byte, firstCollection))
	go func() {
		runtime.GC() // what was made above is free now, for whatever comes next
		limit := debug.SetMemoryLimit(-1)
		debug.SetMemoryLimit(min(limit, firstCollection))
		runtime.AddCleanup(new([16]byte), func(int) {
			debug.SetGCPercent(percent)
			debug.SetMemoryLimit(limit)
		}, 0)
	}()
}
