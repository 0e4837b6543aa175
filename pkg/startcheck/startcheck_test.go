//go:build linux && amd64

package startcheck_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/sys/reexec"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/pkg/sgx"
	"github.com/cconvert/cconvert/pkg/startcheck"
)

func TestMain(m *testing.M) {
	if reexec.Init() {
		return
	}
	os.Exit(m.Run())
}

// standIn makes the calls that a real loader makes: it opens the device, creates an enclave of 1 MiB, adds one
// measured page and fifteen unmeasured ones, and asks for EINIT with the SIGSTRUCT of a file. With an argument it
// does one thing differently.
const standIn = `package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"syscall"
	"unsafe"
)

func main() {
	how := ""
	if len(os.Args) > 1 {
		how = os.Args[1]
	}
	fmt.Println("stand-in", how)
	if _, err := os.ReadFile("/etc/passwd"); err == nil {
		fmt.Println("SEES THE HOST")
	}
	if how == "hang" {
		for {
			syscall.Pause()
		}
	}
	if how == "leave" {
		os.Exit(3)
	}
	if how == "write" {
		for _, file := range []string{
			"/proc/sys/kernel/core_pattern", "/proc/sys/vm/drop_caches", "/sys/kernel/mm/transparent_hugepage/enabled",
			"/sys/power/state", "/sys/kernel/profiling",
		} {
			if f, err := os.OpenFile(file, os.O_WRONLY, 0); err == nil {
				fmt.Println("WRITES", f.Name())
			}
		}
		if groups, err := os.Getgroups(); err != nil || len(groups) > 0 && os.Getuid() == 0 && groups[0] == 0 {
			fmt.Println("GROUPS", groups, err)
		}
		os.Exit(3)
	}
	if how == "probe" {
		probe()
		os.Exit(3)
	}
	for how == "tables" { // of nothing but the page of zeros
		b, err := syscall.Mmap(-1, 0, 1<<30, syscall.PROT_READ, syscall.MAP_ANON|syscall.MAP_PRIVATE)
		if err != nil {
			fmt.Println("mmap:", err)
			os.Exit(3)
		}
		_ = syscall.Madvise(b, 15) // MADV_NOHUGEPAGE
		for i := 0; i < len(b); i += 2 << 20 {
			if b[i] != 0 {
				os.Exit(3)
			}
		}
	}
	if how == "memory" || how == "shared" || how == "file" {
		flags, fd := syscall.MAP_ANON|syscall.MAP_PRIVATE, -1
		if how == "shared" {
			flags = syscall.MAP_ANON | syscall.MAP_SHARED
		}
		for size := 64 << 20; ; {
			if how == "file" {
				if fd < 0 {
					fd, _ = syscall.Open("/dev/sgx_enclave", syscall.O_RDWR, 0)
				}
				if n, err := syscall.Write(fd, make([]byte, size)); err != nil {
					fmt.Println("write:", n, err)
					os.Exit(3)
				}
				continue
			}
			b, err := syscall.Mmap(fd, 0, size, syscall.PROT_READ|syscall.PROT_WRITE, flags)
			if err != nil {
				fmt.Println("mmap:", err)
				os.Exit(3)
			}
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
		}
	}
	fd, err := syscall.Open("/dev/sgx_enclave", syscall.O_RDWR, 0)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	sig, err := os.ReadFile("/app.sig")
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	ioctl := func(number, size uintptr, arg unsafe.Pointer) {
		_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), 3<<30|size<<16|0xa4<<8|number, uintptr(arg))
		if errno != 0 {
			fmt.Println(number, errno)
			os.Exit(1)
		}
	}
	le := binary.LittleEndian
	secs := make([]byte, 4096)
	le.PutUint64(secs, 1<<20)
	le.PutUint32(secs[16:], 4)
	le.PutUint64(secs[48:], 4)
	le.PutUint64(secs[56:], 3)
	if how == "debug" {
		secs[48] |= 2
	}
	if how == "size" {
		le.PutUint64(secs, 3<<20)
	}
	create := []uintptr{uintptr(unsafe.Pointer(&secs[0]))}
	if how != "nothing created" {
		ioctl(0, 8, unsafe.Pointer(&create[0]))
	}
	page := make([]byte, 4096)
	copy(page, "the program")
	if how == "page" {
		page[4095] = 1
	}
	add := func(offset, length, flags, measure uintptr) {
		info := make([]uint64, 8)
		info[0] = uint64(flags)
		data := append(page, make([]byte, int(length)-len(page))...)
		from, about := uintptr(unsafe.Pointer(&data[0])), uintptr(unsafe.Pointer(&info[0]))
		args := []uintptr{from, offset, length, about, measure, 0}
		ioctl(1, 48, unsafe.Pointer(&args[0]))
		if args[5] != length {
			fmt.Println("added", args[5])
			os.Exit(1)
		}
	}
	flags := uintptr(0x205)
	if how == "flags" {
		flags = 0x207
	}
	if how == "outside" {
		add(1<<20, 4096, flags, 1)
	}
	add(0, 4096, flags, 1)
	if how == "twice" {
		add(0, 4096, flags, 1)
	}
	add(4096, 15*4096, 0x207, 0)
	if how == "more" {
		add(16*4096, 4096, 0x207, 0)
	}
	if how == "signature" {
		sig[0x300] ^= 1
	}
	initArg := []uintptr{uintptr(unsafe.Pointer(&sig[0]))}
	ioctl(2, 8, unsafe.Pointer(&initArg[0]))
	fmt.Println("EINIT RETURNED")
}

// probe tries what a loader has no business with, and tells what works.
func probe() {
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && len(to) > 0 && to[0] == '/' && to != "/proc/1/fd" && to != "/dev/null" {
			fmt.Println("HAS OPEN", e.Name(), to)
		}
	}
	for fd := 3; fd < 64; fd++ {
		if _, err := syscall.Openat(fd, "etc/hostname", syscall.O_RDONLY, 0); err == nil {
			fmt.Println("REACHES THE HOST BY", fd)
		}
	}
	for _, c := range []struct {
		name string
		call []uintptr
	}{
		{"unshare", []uintptr{272, 0x10000000}}, {"setns", []uintptr{308, 0, 0}},
		{"clone a process", []uintptr{56, 17}},
		{"clone with namespaces", []uintptr{56, 0x10000000 | 0x10000}}, {"clone3", []uintptr{435, 0, 0}},
		{"fork", []uintptr{57}}, {"vfork", []uintptr{58}},
		{"AF_VSOCK", []uintptr{41, 40, 1, 0}}, {"AF_UNIX", []uintptr{41, 1, 1, 0}},
		{"AF_INET", []uintptr{41, 2, 1, 0}}, {"socketpair", []uintptr{53, 1, 1, 0}},
		{"io_uring", []uintptr{425, 8, 0}}, {"keyctl", []uintptr{250, 0, 0xfffffffd, 0}}, {"add_key", []uintptr{248}},
		{"request_key", []uintptr{249}},
		{"bpf", []uintptr{321, 0}}, {"perf", []uintptr{298, 0}}, {"userfaultfd", []uintptr{323, 0}},
		{"ptrace", []uintptr{101, 0}}, {"mount", []uintptr{165}},
		{"memfd", []uintptr{319}}, {"shmget", []uintptr{29, 0, 4096, 0x3ff}}, {"msgget", []uintptr{68, 0, 0x3ff}},
		{"kill", []uintptr{62, 1, 0}},
		{"process_vm_readv", []uintptr{310, 1}}, {"pidfd_open", []uintptr{434, 1, 0}},
		{"openat2", []uintptr{437, 0, 0, 0, 0}}, {"name_to_handle_at", []uintptr{303}},
	} {
		args := append(c.call, 0, 0, 0, 0, 0, 0)
		_, _, errno := syscall.RawSyscall6(args[0], args[1], args[2], args[3], args[4], args[5], args[6])
		if errno != syscall.ENOSYS {
			fmt.Println("MAY", c.name, errno)
		}
	}
	if _, err := os.ReadDir("/sys/kernel"); err == nil {
		fmt.Println("SEES /sys/kernel")
	}
}
`

// build compiles the stand-in; static, as it has no files but its own.
func build(t *testing.T) []byte {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "main.go"), []byte(standIn), 0o644))
	cmd := exec.Command("go", "build", "-o", filepath.Join(dir, "loader"), filepath.Join(dir, "main.go"))
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	b, err := os.ReadFile(filepath.Join(dir, "loader"))
	require.NoError(t, err)
	return b
}

// signed is the SIGSTRUCT of the enclave that an honest stand-in builds.
func signed(t *testing.T) []byte {
	t.Helper()
	l := sgx.Layout{Size: 1 << 20, SSAFrameSize: 4, Areas: []sgx.Area{
		{Name: "program", Size: 4096, Flags: 0x205, Data: []byte("the program")},
		{Name: "heap", Offset: 4096, Size: 15 * 4096, Flags: 0x207, Unmeasured: true},
	}}
	m, err := sgx.Measure(context.Background(), l)
	require.NoError(t, err)
	text, err := os.ReadFile("../../testdata/vectors/test-signing-key.pem")
	require.NoError(t, err)
	key, err := sgx.ParseKey(text, nil)
	require.NoError(t, err)
	s := &sgx.SigStruct{
		MREnclave: m, MiscMask: sgx.MiscMaskAll,
		Attributes:     sgx.Attributes{Flags: sgx.FlagMode64, XFRM: sgx.XFRMLegacy},
		AttributesMask: sgx.Attributes{Flags: sgx.FlagsMaskAll, XFRM: 0xfffffffffff9ff1b},
	}
	public, err := key.Public(context.Background())
	require.NoError(t, err)
	signature, err := key.Sign(context.Background(), s.ToBeSigned())
	require.NoError(t, err)
	require.NoError(t, s.Attach(public, signature))
	return s.Bytes()
}

func TestRun(t *testing.T) {
	loader, sig := build(t), signed(t)
	start := func(how string) (*startcheck.Result, error) {
		c := startcheck.Command{
			Files: map[string]startcheck.File{
				"/cconvert/loader": {Content: loader, Executable: true}, "/app.sig": {Content: sig},
			},
			Argv: []string{"/cconvert/loader"}, Timeout: 20 * time.Second,
		}
		if how != "" {
			c.Argv = append(c.Argv, how)
		}
		if how == "hang" {
			c.Timeout = time.Second
		}
		return startcheck.Run(context.Background(), c)
	}
	r, err := start("")
	require.NoError(t, err)
	assert.True(t, r.Accepted(), "%+v", r)
	assert.Equal(t, r.Signed, r.MREnclave)
	assert.Equal(t, sig, r.SigStruct)
	assert.EqualValues(t, 16, r.Pages)
	assert.EqualValues(t, 1, r.MeasuredPages)
	assert.EqualValues(t, 1<<20, r.Size)
	assert.Equal(t, "stand-in", strings.TrimSpace(r.Output), "it saw nothing of this machine, and EINIT never returned")

	for how, says := range map[string]string{
		"page": "MRENCLAVE", "flags": "MRENCLAVE", "more": "MRENCLAVE", "debug": "flags", "signature": "signature",
	} {
		r, err := start(how)
		require.NoError(t, err, how)
		assert.True(t, r.Reached, how)
		assert.False(t, r.Accepted(), how)
		assert.Contains(t, r.Refused[len(r.Refused)-1]+r.Refused[0], says, how)
	}
	r, err = start("leave")
	require.NoError(t, err)
	assert.False(t, r.Reached)
	assert.Contains(t, r.Output, "stand-in leave")
	r, err = start("write")
	require.NoError(t, err)
	assert.Equal(t, "stand-in write", strings.TrimSpace(r.Output),
		"the kernel's files cannot be written, whoever starts the loader")
	open, err := syscall.Open("/", syscall.O_RDONLY, 0) // not closed on exec, as of a careless shell
	require.NoError(t, err)
	r, err = start("probe")
	require.NoError(t, err)
	assert.Equal(t, "stand-in probe", strings.TrimSpace(r.Output), "it may do nothing else than build an enclave")
	require.NoError(t, syscall.Close(open))
	r, err = start("memory")
	require.NoError(t, err)
	assert.Contains(t, r.Output, "cannot allocate memory")
	r, err = start("file")
	require.NoError(t, err)
	assert.Contains(t, r.Output, "file too large")
	r, err = start("shared") // it would stay when the loader lets go of it
	require.NoError(t, err)
	assert.Contains(t, r.Output, "mmap: cannot allocate memory")
	for how, says := range map[string]string{
		"tables": "more memory than", "hang": "did not ask for EINIT within 1s", "size": "0x300000",
		"outside": "pages at 0x100000", "twice": "pages at 0x0 are there already",
		"nothing created": "added to no enclave",
	} {
		_, err := start(how)
		assert.ErrorContains(t, err, says, how)
	}
	_, err = startcheck.Run(context.Background(),
		startcheck.Command{Files: map[string]startcheck.File{"/a/../b": {}}, Argv: []string{"/a"}})
	assert.ErrorContains(t, err, "not a clean path")
	r, err = startcheck.Run(context.Background(), startcheck.Command{Argv: []string{"/none"}})
	require.NoError(t, err)
	assert.False(t, r.Reached)
	assert.Contains(t, r.Output, "starting /none: no such file")

	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(200*time.Millisecond, cancel)
	begin := time.Now()
	_, err = startcheck.Run(ctx, startcheck.Command{
		Files: map[string]startcheck.File{"/l": {Content: loader, Executable: true}}, Argv: []string{"/l", "hang"},
	})
	assert.ErrorIs(t, err, context.Canceled)
	assert.Less(t, time.Since(begin), 20*time.Second)
}
