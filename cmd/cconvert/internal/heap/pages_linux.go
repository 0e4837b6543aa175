package heap

import (
	"syscall"
	"unsafe"
)

// hugePages asks for huge pages in memory that was not used yet. It is a wish (madvise(2), MADV_HUGEPAGE).
func hugePages(b []byte) {
	const huge, advice = 2 << 20, 14
	skip := -uintptr(unsafe.Pointer(unsafe.SliceData(b))) % huge
	_ = syscall.Madvise(b[skip:], advice)
}
