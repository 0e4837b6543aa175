//go:build unix

package packages

import "golang.org/x/sys/unix"

// limitMemory bounds this process's address space. Where that fails the time limit remains.
func limitMemory(bytes uint64) {
	_ = unix.Setrlimit(unix.RLIMIT_AS, &unix.Rlimit{Cur: bytes, Max: bytes})
}
