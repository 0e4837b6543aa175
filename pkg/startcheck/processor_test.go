package startcheck

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestLacks(t *testing.T) {
	for info, want := range map[string]string{
		"processor\t: 0\nflags\t\t: fpu fsgsbase sse\n\nprocessor\t: 1\nflags\t\t: fpu fsgsbase sse\n": "",
		"processor\t: 0\nflags\t\t: fpu sse nofsgsbase\n":                                              "fsgsbase",
		"processor\t: 0\nflags\t\t: fpu fsgsbase\n\nprocessor\t: 1\nflags\t\t: fpu\n":                  "fsgsbase",
		"processor: 0\nFeatures: fp asimd\n":                                                           "",
		"":                                                                                             "",
	} {
		assert.Equal(t, want, lacks(info), info)
	}
}
