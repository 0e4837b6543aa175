package enclave

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// constants are the geometry under the names that Gramine gives its numbers.
func (g Geometry) constants() map[string]uint64 {
	c := map[string]uint64{
		"SSA_FRAME_NUM": g.ssaFrames, "SSA_FRAME_SIZE": g.ssaFrameSize, "SGX_GPR_SIZE": g.gprSize,
		"ENCLAVE_STACK_SIZE": g.stackSize, "ENCLAVE_SIG_STACK_SIZE": g.sigStackSize, "MMAP_MIN_ADDR": g.heapMin,
		"DEFAULT_ENCLAVE_BASE": 0, "STACK_PROTECTOR_CANARY_DEFAULT": g.canary, "SGX_XFRM_MASK_CONST": g.xfrmMask,
		"SGX_COMMON_SELF": uint64(g.tls.self), "SGX_COMMON_STACK_PROTECTOR_CANARY": uint64(g.tls.canary),
		"SGX_ENCLAVE_SIZE": uint64(g.tls.enclaveSize), "SGX_TCS_OFFSET": uint64(g.tls.tcs),
		"SGX_INITIAL_STACK_ADDR": uint64(g.tls.stack), "SGX_SIG_STACK_LOW": uint64(g.tls.sigStackLow),
		"SGX_SIG_STACK_HIGH": uint64(g.tls.sigStackHigh), "SGX_SSA": uint64(g.tls.ssa), "SGX_GPR": uint64(g.tls.gpr),
		"SGX_MANIFEST_SIZE": uint64(g.tls.manifestSize), "SGX_HEAP_MIN": uint64(g.tls.heapMin),
		"SGX_HEAP_MAX": uint64(g.tls.heapMax),
	}
	for _, f := range g.features {
		c["SGX_XFRM_"+strings.ToUpper(f.name)] = f.xfrm
	}
	return c
}

// Compare checks lines NAME = 0x… of _graminelibos_offsets.py against the geometry.
func (g Geometry) Compare(text string) error {
	known := g.constants()
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(line, "=")
		name = strings.TrimSpace(name)
		want, isKnown := known[name]
		if !ok || !isKnown {
			continue
		}
		delete(known, name)
		if got, err := strconv.ParseUint(strings.TrimSpace(value), 0, 64); err != nil || got != want {
			return fmt.Errorf("this version of Gramine lays out enclaves differently: %s is %s, not %#x", name,
				strings.TrimSpace(value), want)
		}
	}
	if len(known) > 0 {
		return fmt.Errorf("this version of Gramine lays out enclaves differently: %s is not among its constants",
			slices.Sorted(maps.Keys(known))[0])
	}
	return nil
}
