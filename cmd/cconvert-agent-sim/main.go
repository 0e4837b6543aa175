// Command cconvert-agent-sim is cconvert-agent for images without an enclave: its quotes are of the image's SIGSTRUCT,
// by a platform that everybody knows. It is a program of its own, so that the other one can make no such quote.
package main

import (
	"os"
	"runtime"

	"github.com/cconvert/cconvert/internal/agent"
	"github.com/cconvert/cconvert/pkg/sgx"
	"github.com/cconvert/cconvert/pkg/sgx/quote/simulated"
)

const sigStruct = "/cconvert/app/entrypoint.sig"

func init() { runtime.LockOSThread() }

func main() { agent.Become("cconvert-agent-sim", agent.System{Quote: quote, NoKeys: true}) }

// quote makes a quote of the enclave that the image would have.
func quote(data [64]byte) ([]byte, error) {
	text, err := os.ReadFile(sigStruct)
	if err != nil {
		return nil, err
	}
	s, err := sgx.ParseSigStruct(text)
	if err != nil {
		return nil, err
	}
	return simulated.Of(s, data)
}
