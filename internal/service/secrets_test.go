package service

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A file can have the old and the new secret, and what is none is no secret.
func TestSecrets(t *testing.T) {
	file := filepath.Join(t.TempDir(), "secret")
	read := func(text string) (Secrets, error) {
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		return ReadSecrets(file)
	}
	s, err := read("old secret of a service\n\n  new secret of a service\r\n")
	require.NoError(t, err)
	assert.True(t, s.has("old secret of a service"))
	assert.True(t, s.has("new secret of a service"))
	for _, other := range []string{"", "old", "old secret of a service\n\n  new secret of a service", "\n"} {
		assert.False(t, s.has(other), other)
	}
	for _, bad := range []string{"", "\n\n", "short", "long enough to be a secret\nshort\n"} {
		_, err := read(bad)
		assert.ErrorIs(t, err, errSecret, bad)
	}
	_, err = ReadSecrets(file + "-none")
	assert.ErrorIs(t, err, os.ErrNotExist)
}
