//go:build linux && amd64

package startcheck

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The notifications of seccomp (seccomp_unotify(2), struct seccomp_notif and its relatives).
type (
	notification struct {
		ID    uint64
		PID   uint32
		Flags uint32
		Nr    int32
		Arch  uint32
		IP    uint64
		Args  [6]uint64
	}
	response struct {
		ID    uint64
		Val   int64
		Error int32
		Flags uint32
	}
	addFD struct {
		ID         uint64
		Flags      uint32
		SrcFD      uint32
		NewFD      uint32
		NewFDFlags uint32
	}
)

const (
	notifyIDValid = 0x40082102 // SECCOMP_IOCTL_NOTIF_ID_VALID
	notifyAddFD   = 0x40182103 // SECCOMP_IOCTL_NOTIF_ADDFD
)

const socketFD = 3 // of the child

// limits of the loader (getrlimit(2)). It needs little: the enclave's pages are in the watcher's file.
var limits = map[int]uint64{
	unix.RLIMIT_DATA: maxMemory, unix.RLIMIT_NPROC: 64, unix.RLIMIT_NOFILE: 256, unix.RLIMIT_FSIZE: 1 << 20,
	unix.RLIMIT_CORE: 0,
	unix.RLIMIT_CPU:  600, unix.RLIMIT_MEMLOCK: 0, unix.RLIMIT_MSGQUEUE: 0,
}

// maxMemory is how much a loader may take, in bytes.
const maxMemory = 1 << 30

// execute gives up every capability, has this thread's calls reported, and replaces the process by the loader.
func (s setup) execute() error {
	runtime.LockOSThread()
	for c := range uintptr(unix.CAP_LAST_CAP + 1) {
		_ = unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0) // there may be fewer
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	if _, err := unix.KeyctlInt(unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0); err != nil &&
		!errors.Is(err, unix.ENOSYS) {
		return fmt.Errorf("leaving the keys of the session: %w", err)
	}
	for what, most := range limits {
		if err := unix.Setrlimit(what, &unix.Rlimit{Cur: most, Max: most}); err != nil {
			return fmt.Errorf("setting limits: %w", err)
		}
	}
	// Whatever whoever started this program has left open is nothing for the loader.
	if err := unix.CloseRange(socketFD, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("closing what is open: %w", err)
	}
	rules := filter()
	program := unix.SockFprog{Len: uint16(len(rules)), Filter: &rules[0]}
	listener, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return fmt.Errorf("watching system calls: %w", errno)
	}
	if err := unix.Sendmsg(socketFD, []byte{0}, unix.UnixRights(int(listener)), nil, 0); err != nil {
		return err
	}
	unix.CloseOnExec(int(listener))
	return fmt.Errorf("starting %s: %w", s.Argv[0], unix.Exec(s.Argv[0], s.Argv, s.Env))
}

// errNotStarted says that the child ended before it became the loader.
var errNotStarted = errors.New("the loader was not started")

// watch answers the loader's calls until EINIT or its end. The loader is killed before the call that it waits in
// could return.
func watch(ctx context.Context, socket *os.File, pid int, kill func()) (*Result, error) {
	listener, err := receiveFD(ctx, socket)
	if err != nil {
		return nil, err
	}
	defer unix.Close(listener)
	defer kill()
	device, err := unix.MemfdCreate("sgx_enclave", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(device)
	d := &driver{result: &Result{}, resize: func(size uint64) error { return unix.Ftruncate(device, int64(size)) }}
	watching, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	go weigh(watching, pid, device, func(err error) { stop(err); kill() })
	for {
		if err := readable(ctx, listener); err != nil {
			if cause := context.Cause(watching); errors.Is(cause, errMemory) {
				return nil, cause
			}
			if errors.Is(err, errEnded) {
				return d.result, nil
			}
			return nil, err
		}
		var n notification
		if err := ioctl(listener, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&n)); err != nil {
			if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINTR) {
				continue // the caller is gone
			}
			return nil, fmt.Errorf("watching the loader: %w", err)
		}
		done, err := answerCall(ctx, listener, device, d, n)
		if err != nil || done {
			return d.result, err
		}
	}
}

// errMemory says that the loader was ended because of what it takes.
var errMemory = errors.New("the loader takes more memory than building an enclave needs")

// weigh ends a loader that takes too much memory where no limit of the kernel's counts: in mappings that are shared,
// and in the file that stands for the device.
func weigh(ctx context.Context, pid, device int, end func(error)) {
	for t := time.NewTicker(20 * time.Millisecond); ctx.Err() == nil; {
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		status := statusOf(pid)
		var file unix.Stat_t
		if unix.Fstat(device, &file) == nil && file.Blocks*512 > maxMemory || taken(status) > maxMemory {
			end(fmt.Errorf("%w: it has more than %d MiB", errMemory, maxMemory>>20))
			return
		}
	}
}

// statusOf returns the status of a process that tells of its memory: that of the first thread does not once this has
// ended, while others go on. That the process has ended is seen elsewhere.
func statusOf(pid int) []byte {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if bytes.Contains(status, []byte("\nVmRSS:")) {
		return status
	}
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	for _, t := range threads {
		if s, err := os.ReadFile(t); err == nil && bytes.Contains(s, []byte("\nVmRSS:")) {
			return s
		}
	}
	return status
}

// taken is what a process takes, in bytes, by its status (proc_pid_status(5)). Page tables count too: a page of them
// for each two megabytes of addresses, of which little need be used.
func taken(status []byte) (bytes uint64) {
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		if name != "VmRSS" && name != "VmPTE" && name != "VmSwap" {
			continue
		}
		var kilobytes uint64
		if _, err := fmt.Sscan(value, &kilobytes); err == nil {
			bytes += kilobytes << 10
		}
	}
	return bytes
}

// answerCall lets a call go on, or answers it in the driver's place.
func answerCall(ctx context.Context, listener, device int, d *driver, n notification) (done bool, err error) {
	r := response{ID: n.ID, Flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
	mem, err := unix.Open(fmt.Sprintf("/proc/%d/mem", n.PID), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, fmt.Errorf("reading the loader's memory: %w", err)
	}
	defer unix.Close(mem)
	if ioctl(listener, notifyIDValid, unsafe.Pointer(&n.ID)) != nil {
		return false, nil // the caller is gone, and its number may be another's
	}
	switch {
	case n.Nr != unix.SYS_IOCTL:
		at := n.Args[0]
		if n.Nr == unix.SYS_OPENAT {
			at = n.Args[1]
		}
		if isDevice(processMemory(mem).path(at)) {
			a := addFD{ID: n.ID, Flags: unix.SECCOMP_ADDFD_FLAG_SEND, SrcFD: uint32(device), NewFDFlags: unix.O_CLOEXEC}
			if err := ioctl(listener, notifyAddFD, unsafe.Pointer(&a)); err != nil && !errors.Is(err, unix.ENOENT) {
				return false, fmt.Errorf("%w: giving the loader a device: %w", ErrUnsupported, err)
			}
			return false, nil
		}
	case byte(n.Args[1]>>8) == sgxMagic:
		r.Flags = 0
		if done, err = d.request(ctx, processMemory(mem), byte(n.Args[1]), n.Args[2]); err != nil || done {
			return done, err
		}
	}
	if err := ioctl(listener, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&r)); err != nil &&
		!errors.Is(err, unix.ENOENT) {
		return false, fmt.Errorf("watching the loader: %w", err)
	}
	return false, nil
}

// isDevice reports whether a path is that of the SGX device, of Linux or of the driver before it.
func isDevice(p string) bool { return p == "/dev/sgx_enclave" || p == "/dev/sgx/enclave" }

func ioctl(fd int, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

var errEnded = errors.New("the loader has ended")

// readable waits until there is something to read.
func readable(ctx context.Context, fd int) error {
	for {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, int((100 * time.Millisecond).Milliseconds()))
		switch {
		case err != nil && !errors.Is(err, unix.EINTR):
			return err
		case n > 0 && p[0].Revents&unix.POLLIN != 0:
			return nil
		case n > 0:
			return errEnded
		}
	}
}

func receiveFD(ctx context.Context, socket *os.File) (int, error) {
	fd := int(socket.Fd())
	if err := readable(ctx, fd); err != nil {
		if errors.Is(err, errEnded) {
			err = errNotStarted
		}
		return 0, err
	}
	b, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := unix.Recvmsg(fd, b, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil || n == 0 {
		return 0, errNotStarted
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		return 0, errNotStarted
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return 0, errNotStarted
	}
	return fds[0], nil
}

// processMemory is an open /proc/PID/mem.
type processMemory int

func (m processMemory) read(at uint64, to []byte) error {
	for len(to) > 0 {
		n, err := unix.Pread(int(m), to, int64(at))
		if err != nil || n == 0 {
			return fmt.Errorf("reading the loader's memory at %#x: %w", at, errors.Join(err, errDriver))
		}
		to, at = to[n:], at+uint64(n)
	}
	return nil
}

func (m processMemory) write(at uint64, from []byte) error {
	if _, err := unix.Pwrite(int(m), from, int64(at)); err != nil {
		return fmt.Errorf("writing the loader's memory at %#x: %w", at, err)
	}
	return nil
}

// path reads a short string, or the empty string.
func (m processMemory) path(at uint64) string {
	b := make([]byte, 64)
	n, err := unix.Pread(int(m), b, int64(at))
	if err != nil {
		return ""
	}
	p, _, found := bytes.Cut(b[:n], []byte{0})
	if !found {
		return ""
	}
	return string(p)
}
