package signer

import (
	_ "embed" // for the key

	"github.com/cconvert/cconvert/pkg/sgx"
)

//go:embed simulated.pem
var simulated []byte

// Simulated is the key of images without an enclave, for those who have none of their own. Everybody has it: no
// enclave is signed by it, since sgx.TestKey knows it.
func Simulated() (*sgx.Key, error) { return parse(simulated, "the key of simulations", Options{}) }
