// Package nocore is for processes that have secrets in memory.
package nocore

import "syscall"

const setDumpable = 4 // PR_SET_DUMPABLE (prctl(2))

// Set has the kernel write no core of this process, and lets no other process of the same user look into its memory,
// until it becomes another program. Where there is no such call, as in an enclave, the host sees no memory either.
func Set() { _, _, _ = syscall.RawSyscall(syscall.SYS_PRCTL, setDumpable, 0, 0) }
