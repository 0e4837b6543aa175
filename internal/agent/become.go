package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"runtime/debug"
	"syscall"
	"unsafe"

	"github.com/cconvert/cconvert/internal/nocore"
	"github.com/cconvert/cconvert/pkg/release"
)

// Places in a converted image, and in an enclave.
const (
	ConfigPath     = "/cconvert/app/agent.json"
	ListPath       = "/cconvert/app/encrypted.json"
	CiphertextsDir = "/cconvert/ciphertexts"
	AttestationDir = "/dev/attestation"
)

// failed is the exit code of an agent that does not start the program.
const failed = 125

// memory is from where on the agent collects garbage, in bytes: what it gets is bounded, what it copies of that is not.
const memory = 64 << 20

// Become does what an agent does, and ends the process if a step failed. What the system lacks is filled in. The
// calling goroutine must have been locked to the process's first thread since init: Gramine delivers signals to no
// other one after it was replaced.
func Become(name string, s System) {
	nocore.Set()
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(-1) // it lives for a moment, and needs little
	debug.SetMemoryLimit(memory)
	s.Config, s.Attestation, s.Args, s.Env = ConfigPath, AttestationDir, os.Args, os.Environ()
	if s.Exec == nil {
		s.Exec = Exec
	}
	fmt.Fprintf(os.Stderr, "%s: %v\n", name, s.attempt())
	os.Exit(failed)
}

// stack describes an alternate signal stack (sigaltstack(2)).
type stack struct {
	_     uintptr
	flags int32
	_     uintptr
}

const disable = 2 // SS_DISABLE

// Exec is syscall.Exec of the calling thread. Gramine v1.9 keeps the thread's alternate signal stack, which Linux does
// not: programs that have handlers run there, such as Python, would have them run in memory that was Go's.
func Exec(path string, args, env []string) error {
	none := uintptr(unsafe.Pointer(&stack{flags: disable}))
	if _, _, err := syscall.RawSyscall(syscall.SYS_SIGALTSTACK, none, 0, 0); err != 0 {
		return err
	}
	return syscall.Exec(path, args, env)
}

// attempt is Run, of which a panic is an error: its text could have a secret in it.
func (s *System) attempt() (err error) {
	defer func() {
		if recover() != nil {
			err = errors.New("the agent has crashed")
		}
	}()
	err = s.Run(context.Background())
	if _, none := os.Lstat(ConfigPath); errors.Is(none, fs.ErrNotExist) {
		return fmt.Errorf("this is %s: converted images start it", release.ConfigMarker)
	}
	return err
}
