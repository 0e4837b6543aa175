// Command cconvert-agent-sim is cconvert-agent for images without an enclave: its quotes are of the image's SIGSTRUCT,
// by a platform that everybody knows. It is a program of its own, so that the other one can make no such quote.
package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/cconvert/cconvert/internal/agent"
	"github.com/cconvert/cconvert/pkg/libos/gramine/sim/keeper"
	"github.com/cconvert/cconvert/pkg/sgx"
	"github.com/cconvert/cconvert/pkg/sgx/quote/simulated"
)

const sigStruct = "/cconvert/app/entrypoint.sig"

func init() { runtime.LockOSThread() }

func main() {
	s := agent.System{Quote: quote, SetKey: setKey}
	if decrypts() {
		s.List, s.Ciphertexts = agent.ListPath, agent.CiphertextsDir
	}
	if k := keeper.Inherited(); k != nil { // the loader's, which compares and decrypts files
		s.SetKey = k.SetKey
		s.Exec = func(path string, args, env []string) error {
			if err := k.Close(); err != nil {
				return err
			}
			return agent.Exec(path, args, env)
		}
	}
	agent.Become("cconvert-agent-sim", s)
}

// decrypts reports whether there is something that decrypts files, as there is under Gramine without SGX.
func decrypts() bool {
	_, err := os.Stat(filepath.Join(agent.AttestationDir, "keys"))
	return !errors.Is(err, fs.ErrNotExist)
}

// setKey sets a key if there is something that takes it. Without an enclave, nothing else encrypts the program's files.
func setKey(name string, key []byte) error {
	if !decrypts() {
		return nil
	}
	return agent.SetKey(agent.AttestationDir, name, key)
}

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
