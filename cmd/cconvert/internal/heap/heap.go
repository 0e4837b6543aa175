// Package heap makes room for what a program needs that is over in a tenth of a second: a fifth of that time would go
// into the faults of small pages, and into collecting what is not yet garbage.
//
// BenchmarkHeap shows what it is worth beside debug.SetGCPercent, the time that it takes included.
package heap

import "runtime"

// Size is how much memory is made ready, in bytes.
const Size = 96 << 20

// Prepare makes the memory ready.
func Prepare() {
	runtime.MemProfileRate = 0 // nobody reads the profile
	hugePages(make([]byte, Size))
	runtime.GC() // what was made above is free now, for whatever comes next
}
