package gramine

import (
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Gramine's keys are in lower case: of others nothing is measured.
func TestSpellingOfKeys(t *testing.T) {
	pal, err := os.ReadFile("../../../testdata/vectors/pal/pal-twosegments.so")
	require.NoError(t, err)
	for _, text := range []string{
		"[sgx]\nenclave_size = \"256M\"\nDebug = true\n", "[SGX]\nenclave_size = \"1G\"\nmax_threads = 64\n",
		"[sgx]\nEnclave_Size = \"1G\"\n",
	} {
		_, err := NewEnclave(pal, []byte(text))
		assert.Error(t, err, text)
	}
}
