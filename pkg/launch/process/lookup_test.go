package process

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
)

// Scripts in great number name the same interpreter, which is looked for in the directories of PATH once; and of those,
// only the ones that have the name are gone through.
func TestNamesAreLookedUpOnce(t *testing.T) {
	tree := fixture.Tree(t, nil, nil, fixture.File("deep/a/x", "x"), fixture.Program("bin/sh", fixture.ELF("")))
	s := &Process{WorkDir: "/", Env: []EnvVar{{Name: "PATH", Value: strings.Repeat("/deep/a:", 255) + "/bin"}}}
	for _, name := range []string{"sh", "zz"} {
		n, spelled, err := s.LookUp(tree, name)
		again, spelledAgain, errAgain := s.LookUp(tree, name)
		assert.Equal(t, spelled, spelledAgain)
		assert.True(t, n == again)
		if name == "sh" {
			require.NoError(t, err)
			require.NoError(t, errAgain)
			continue
		}
		require.Error(t, err)
		assert.True(t, any(err) == any(errAgain), "an error made anew would be another one")
	}
	assert.Len(t, s.found, 2)
	tried, err := s.inPath(tree, "sh")
	require.NoError(t, err)
	assert.Equal(t, []string{"/bin/sh"}, tried)
	tried, err = s.inPath(tree, "zz")
	require.NoError(t, err)
	assert.Empty(t, tried)
}
