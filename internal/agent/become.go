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

	"github.com/cconvert/cconvert/pkg/release"
)

// Places in a converted image, and in an enclave.
const (
	ConfigPath     = "/cconvert/app/agent.json"
	attestationDir = "/dev/attestation"
)

// failed is the exit code of an agent that does not start the program.
const failed = 125

// memory is from where on the agent collects garbage, in bytes: what it gets is bounded, what it copies of that is not.
const memory = 64 << 20

// Become does what an agent does, and ends the process if a step failed. The system's files and process are filled in.
// The calling goroutine must have been locked to the process's first thread since init: Gramine delivers signals to no
// other one after it was replaced.
func Become(name string, s System) {
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(-1) // it lives for a moment, and needs little
	debug.SetMemoryLimit(memory)
	defer func() {
		if r := recover(); r != nil { // whose text could have a secret in it
			fmt.Fprintf(os.Stderr, "%s: a fault of the agent's own\n", name)
			os.Exit(failed)
		}
	}()
	s.Config, s.Attestation, s.Args, s.Env, s.Exec = ConfigPath, attestationDir, os.Args, os.Environ(), syscall.Exec
	err := s.Run(context.Background())
	if errors.Is(err, fs.ErrNotExist) && !exists(ConfigPath) {
		err = fmt.Errorf("this is %s: converted images start it", release.ConfigMarker)
	}
	fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
	os.Exit(failed)
}

func exists(file string) bool {
	_, err := os.Lstat(file)
	return err == nil
}
