package enclave

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

// offsets writes the geometry as an installation ships it.
func offsets(g Geometry) string {
	var b strings.Builder
	for name, v := range g.constants() {
		fmt.Fprintf(&b, "%s = %#x\n", name, v)
	}
	return "# generated\nSOMETHING_ELSE = 0x1\n" + b.String()
}

func TestOffsetsOfAnInstallation(t *testing.T) {
	g := layouts[Version]
	assert.NoError(t, g.Compare(offsets(g)))
	assert.ErrorContains(t, g.Compare(strings.Replace(offsets(g), "ENCLAVE_STACK_SIZE = 0x40000",
		"ENCLAVE_STACK_SIZE = 0x80000", 1)), "ENCLAVE_STACK_SIZE is 0x80000, not 0x40000")
	assert.ErrorContains(t, g.Compare("SSA_FRAME_NUM = 0x2\n"), "is not among its constants")
}
