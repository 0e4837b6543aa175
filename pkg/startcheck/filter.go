//go:build linux && amd64

package startcheck

import (
	"slices"

	"golang.org/x/sys/unix"
)

// In struct seccomp_data (seccomp(2)).
const (
	offNr   = 0
	offArch = 4
	offArg0 = 16 // its lower half
	offArg3 = offArg0 + 3*8
)

// watched are the calls that could reach the SGX device: they are reported to the watcher.
var watched = []uint32{unix.SYS_OPEN, unix.SYS_OPENAT, unix.SYS_IOCTL}

// allowed are the calls that a loader makes until EINIT, and those that languages' runtimes make of themselves. Nothing
// here reaches out of the process: there are no sockets, no other processes, no namespaces, no keys, no io_uring. By
// sendmsg the rules' own descriptor is handed over, before the loader is started, which has no socket to send to.
var allowed = []uint32{
	unix.SYS_ACCESS, unix.SYS_ARCH_PRCTL, unix.SYS_BRK, unix.SYS_CLOCK_GETTIME, unix.SYS_CLOCK_NANOSLEEP,
	unix.SYS_CLOSE,
	unix.SYS_DUP, unix.SYS_DUP2, unix.SYS_DUP3, unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_PWAIT,
	unix.SYS_EVENTFD2,
	unix.SYS_EXECVE, unix.SYS_EXIT, unix.SYS_EXIT_GROUP, unix.SYS_FACCESSAT, unix.SYS_FACCESSAT2, unix.SYS_FCNTL,
	unix.SYS_FSTAT,
	unix.SYS_FUTEX, unix.SYS_GETCWD, unix.SYS_GETDENTS64, unix.SYS_GETEGID, unix.SYS_GETEUID, unix.SYS_GETGID,
	unix.SYS_GETGROUPS,
	unix.SYS_GETPID, unix.SYS_GETPPID, unix.SYS_GETRANDOM, unix.SYS_GETRLIMIT, unix.SYS_GETTID, unix.SYS_GETTIMEOFDAY,
	unix.SYS_GETUID,
	unix.SYS_LSEEK, unix.SYS_LSTAT, unix.SYS_MADVISE, unix.SYS_MINCORE, unix.SYS_MPROTECT, unix.SYS_MREMAP,
	unix.SYS_MUNMAP, unix.SYS_NANOSLEEP, unix.SYS_NEWFSTATAT, unix.SYS_PAUSE, unix.SYS_PIPE2, unix.SYS_POLL,
	unix.SYS_PPOLL,
	unix.SYS_PREAD64, unix.SYS_PRLIMIT64, unix.SYS_READ, unix.SYS_READLINK, unix.SYS_READLINKAT, unix.SYS_READV,
	unix.SYS_RESTART_SYSCALL,
	unix.SYS_RSEQ, unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SCHED_GETAFFINITY,
	unix.SYS_SCHED_YIELD, unix.SYS_SENDMSG, unix.SYS_SET_ROBUST_LIST, unix.SYS_SET_TID_ADDRESS, unix.SYS_SIGALTSTACK,
	unix.SYS_STAT, unix.SYS_STATX,
	unix.SYS_SYSINFO, unix.SYS_TGKILL, unix.SYS_TIME, unix.SYS_UNAME, unix.SYS_WRITE, unix.SYS_WRITEV,
}

// namespaces are the flags of clone(2) that make new ones.
const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
	unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET

// filter is the program that the kernel runs for each call. What is not known does not exist: ENOSYS, as of an old
// kernel, is what programs are prepared for. Calls of other ABIs end the process.
func filter() []unix.SockFilter {
	ret := func(v uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: v} }
	load := func(off uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: off}
	}
	unless := func(op uint16, k uint32, skip uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | op | unix.BPF_K, K: k, Jf: skip}
	}
	when := func(nr uint32, then ...unix.SockFilter) []unix.SockFilter {
		return append([]unix.SockFilter{unless(unix.BPF_JEQ, nr, uint8(len(then)))}, then...)
	}
	const x32 = 0x40000000
	missing := ret(unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS))
	f := [][]unix.SockFilter{
		{
			load(offArch), {Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.AUDIT_ARCH_X86_64, Jt: 1},
			ret(unix.SECCOMP_RET_KILL_PROCESS),
		},
		{load(offNr), unless(unix.BPF_JGE, x32, 1), ret(unix.SECCOMP_RET_KILL_PROCESS)},
	}
	for _, nr := range watched {
		f = append(f, when(nr, ret(unix.SECCOMP_RET_USER_NOTIF)))
	}
	for _, nr := range allowed {
		f = append(f, when(nr, ret(unix.SECCOMP_RET_ALLOW)))
	}
	return slices.Concat(append(f,
		when(unix.SYS_CLONE, // threads, and nothing else
			load(offArg0),
			unless(unix.BPF_JSET, namespaces, 1), missing,
			unless(unix.BPF_JSET, unix.CLONE_THREAD, 1), ret(unix.SECCOMP_RET_ALLOW),
			missing),
		when(unix.SYS_MMAP, // memory that is shared stays when the process lets go of it, and is counted nowhere then
			load(offArg3),
			unless(unix.BPF_JSET, unix.MAP_ANONYMOUS, 2),
			unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: unix.MAP_TYPE},
			unless(unix.BPF_JEQ, unix.MAP_PRIVATE, 1), ret(unix.SECCOMP_RET_ALLOW),
			ret(unix.SECCOMP_RET_ERRNO|uint32(unix.ENOMEM))),
		[]unix.SockFilter{missing})...)
}
