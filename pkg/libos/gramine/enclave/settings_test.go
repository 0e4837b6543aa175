package enclave

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestSizes(t *testing.T) {
	for s, want := range map[string]uint64{"1": 1, "4K": 4096, "0x10": 16, "512M": 512 << 20, "64G": 64 << 30} {
		n, err := ParseSize(s)
		require.NoError(t, err)
		assert.Equal(t, want, n)
	}
	for _, bad := range []string{
		"", "K", "-1", "1T", "1m", "99999999999999999999", "9999999999G", "010M", "08", "0b1", "1_0", "0x",
	} {
		_, err := ParseSize(bad)
		assert.Error(t, err, bad)
	}
	for n, want := range map[uint64]string{0: "0", 1: "1", 1 << 30: "1G", 3 << 20: "3M", 1536: "1536", 2048: "2K"} {
		assert.Equal(t, want, FormatSize(n))
	}
}
