package agent

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"syscall"
)

// Places in a converted image, and in an enclave.
const (
	ConfigPath     = "/cconvert/app/agent.json"
	attestationDir = "/dev/attestation"
)

// failed is the exit code of an agent that does not start the program.
const failed = 125

// Become does what an agent does, and ends the process if a step failed. A nil quote leaves quotes to Gramine. The
// calling goroutine must have been locked to the process's first thread since init: Gramine delivers signals to no
// other one after it was replaced.
func Become(name string, quote func(data [64]byte) ([]byte, error)) {
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(-1) // it lives for a moment, and needs little
	s := System{
		Config: ConfigPath, Attestation: attestationDir, Quote: quote, Args: os.Args, Env: os.Environ(),
		Exec: syscall.Exec,
	}
	fmt.Fprintf(os.Stderr, "%s: %v\n", name, s.Run(context.Background()))
	os.Exit(failed)
}
