//go:build unix

package packages

import "golang.org/x/sys/unix"

// limit bounds this process's address space, and the seconds that it may compute: these do not depend on what else
// the machine is doing. If that fails, the time limit remains.
func limit(bytes, seconds uint64) {
	_ = unix.Setrlimit(unix.RLIMIT_AS, &unix.Rlimit{Cur: bytes, Max: bytes})
	_ = unix.Setrlimit(unix.RLIMIT_CPU, &unix.Rlimit{Cur: seconds, Max: seconds})
}
