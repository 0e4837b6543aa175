// Command cconvert-agent runs first in an enclave that gets secrets, and becomes the program. Package agent is what it
// does.
package main

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/cconvert/cconvert/internal/agent"
)

// failed is the exit code of an agent that does not start the program.
const failed = 125

// The process is replaced from its first thread: Gramine delivers signals to no other one afterwards.
func init() { runtime.LockOSThread() }

func main() {
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(-1) // it lives for a moment, and needs little
	s := agent.System{
		Config: "/cconvert/app/agent.json", Attestation: "/dev/attestation", Args: os.Args, Env: os.Environ(),
		Exec: syscall.Exec,
	}
	fmt.Fprintln(os.Stderr, "cconvert-agent:", s.Run(context.Background()))
	os.Exit(failed)
}
