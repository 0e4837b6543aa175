package engines

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

// However many files are in a directory, what is above it is looked for once.
func TestAncestorsAreRemembered(t *testing.T) {
	deep := strings.Repeat("/d", 200)
	a := newAncestors(map[string]bool{"/d/d": true})
	for i := range 1000 {
		p := fmt.Sprint(deep, "/", i)
		assert.Equal(t, "/d/d", above(p[:6], a.set))
		assert.NotEmpty(t, a.of(p))
	}
	assert.Len(t, a.known, 199, "a directory each, down to the one that is in the set")
	assert.Empty(t, a.of("/other/file"))
}
