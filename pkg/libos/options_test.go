package libos_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/libos"
)

func TestEnclaveOptions(t *testing.T) {
	assert.NoError(t, libos.EnclaveOptions{}.Check())
	assert.NoError(t, libos.EnclaveOptions{Attestation: "dcap", LogLevel: "debug"}.Check())
	err := libos.EnclaveOptions{Attestation: "epid"}.Check()
	assert.ErrorContains(t, err, "attestation epid: there is none and dcap")
	err = libos.EnclaveOptions{LogLevel: "loud"}.Check()
	assert.ErrorContains(t, err, "runtime-log-level loud: there is none, error")
	assert.Empty(t, libos.EnclaveOptions{ISVSVN: 3}.Findings())
	found := libos.EnclaveOptions{Debug: true}.Findings()
	require.Len(t, found, 1)
	assert.Equal(t, finding.Debug, found[0].Code)
}
