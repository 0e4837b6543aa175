// Command cconvert-agent-sim is cconvert-agent for images without an enclave: its quotes are of the image's SIGSTRUCT,
// by a platform that everybody knows. It is a program of its own, so that the other one can make no such quote.
package main

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/cconvert/cconvert/internal/agent"
	"github.com/cconvert/cconvert/pkg/sgx"
	"github.com/cconvert/cconvert/pkg/sgx/quote/simulated"
)

// failed is the exit code of an agent that does not start the program.
const failed = 125

const dir = "/cconvert/app/"

// The process is replaced from its first thread: Gramine delivers signals to no other one afterwards.
func init() { runtime.LockOSThread() }

func main() {
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(-1) // it lives for a moment, and needs little
	s := agent.System{
		Config: dir + "agent.json", Attestation: "/dev/attestation", Quote: quote, Args: os.Args, Env: os.Environ(),
		Exec: syscall.Exec,
	}
	fmt.Fprintln(os.Stderr, "cconvert-agent-sim:", s.Run(context.Background()))
	os.Exit(failed)
}

// quote makes a quote of the enclave that the image would have.
func quote(data [64]byte) ([]byte, error) {
	text, err := os.ReadFile(dir + "entrypoint.sig")
	if err != nil {
		return nil, err
	}
	s, err := sgx.ParseSigStruct(text)
	if err != nil {
		return nil, err
	}
	return simulated.Of(s, data, time.Now().Add(-time.Hour))
}
