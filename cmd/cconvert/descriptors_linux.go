package main

import (
	"math"

	"golang.org/x/sys/unix"
)

// keepDescriptors has no child of this program inherit what whoever started it has left open: programs that inflate,
// plug-ins that sign, the loader of a foreign image. It fails on kernels before 5.11 only.
func keepDescriptors() {
	_ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
}
