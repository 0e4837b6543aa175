package verify

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/cconvert/cconvert/pkg/sgx"
	"github.com/cconvert/cconvert/pkg/startcheck"
)

// A loader can build an enclave of its own, with a SIGSTRUCT that suits it.
func TestForeignEnclave(t *testing.T) {
	m, sig := sgx.Measurement{1}, []byte("signature")
	assert.Empty(t, foreign(&startcheck.Result{MREnclave: m, SigStruct: sig}, m, sig))
	assert.NotEmpty(t, foreign(&startcheck.Result{MREnclave: sgx.Measurement{2}, SigStruct: sig}, m, sig))
	assert.NotEmpty(t, foreign(&startcheck.Result{MREnclave: m, SigStruct: []byte("other")}, m, sig))
}
