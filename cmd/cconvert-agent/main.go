// Command cconvert-agent runs first in an enclave that gets secrets, and becomes the program. Package agent is what it
// does.
package main

import (
	"runtime"

	"github.com/cconvert/cconvert/internal/agent"
)

func init() { runtime.LockOSThread() }

func main() {
	agent.Become("cconvert-agent", agent.System{List: agent.ListPath, Ciphertexts: agent.CiphertextsDir})
}
