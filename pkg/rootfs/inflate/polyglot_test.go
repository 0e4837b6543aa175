package inflate

import (
	"bufio"
	"bytes"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A compressed file is no tar file because its first bytes add up to less than nothing: a field without digits is no
// checksum. One of some four thousand layers is like that.
func TestPlainOfNoChecksum(t *testing.T) {
	head := bytes.Repeat([]byte{0}, tarBlock)
	copy(head, "\x1f\x8b\x08\x00")
	copy(head[148:156], "\xffffffff")
	sum := 8 * int(' ')
	for _, b := range append(bytes.Clone(head[:148]), head[156:]...) {
		sum += int(int8(b))
	}
	for i := 200; sum > -1; i++ {
		take := min(sum+1, 128)
		head[i] = byte(-take)
		sum -= take
	}
	require.Equal(t, -1, sum)
	assert.NoError(t, CheckPolyglot(bufio.NewReader(bytes.NewReader(head))))
}
