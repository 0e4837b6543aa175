package filekey

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/pkg/protectedfs"
)

var ctx = context.Background()

const source = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

// One key is the same wherever it is read from.
func TestOpen(t *testing.T) {
	file := filepath.Join(t.TempDir(), "new", "app.key")
	require.NoError(t, Create(file))
	assert.ErrorIs(t, Create(file), fs.ErrExist)
	info, err := os.Stat(file)
	require.NoError(t, err)
	assert.Equal(t, fs.FileMode(0o600), info.Mode())
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	t.Setenv("PLAIN", string(text))
	t.Setenv("ENCODED", base64.StdEncoding.EncodeToString(text))
	keys := map[protectedfs.Key]bool{}
	for _, name := range []string{file, "env:PLAIN", "env:ENCODED", "exec:cat '" + file + "'"} {
		s, err := Open(ctx, name, func(string) { t.Error("nobody else can read it") })
		require.NoError(t, err, name)
		k, err := s.For(source)
		require.NoError(t, err)
		keys[k] = true
		_, err = s.For("")
		assert.ErrorIs(t, err, ErrSource)
		other, err := s.For(source[:len(source)-1] + "b")
		require.NoError(t, err)
		assert.NotEqual(t, k, other)
		s.Close()
	}
	assert.Len(t, keys, 1)
	assert.Empty(t, os.Getenv("PLAIN"), "no program inherits it")

	require.NoError(t, os.Chmod(file, 0o644))
	told := ""
	_, err = Open(ctx, file, func(f string) { told = f })
	require.NoError(t, err)
	assert.Equal(t, file, told)
}

// What Gramine's own tools write is used as it is.
func TestKeysOfGramine(t *testing.T) {
	raw, err := os.ReadFile("../../../testdata/vectors/gramine-encrypted-files/key.bin")
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "k")
	for _, text := range [][]byte{raw, []byte(hex.EncodeToString(raw)), []byte(hex.EncodeToString(raw) + "\n")} {
		require.NoError(t, os.WriteFile(file, text, 0o600))
		s, err := Open(ctx, file, nil)
		require.NoError(t, err)
		k, err := s.For("")
		require.NoError(t, err)
		assert.Equal(t, raw, k[:])
	}
}

// No message repeats what could be a key.
func TestRefused(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "k")
	key := "e92502ca5670109484d3f749a9bd647b"
	for _, text := range []string{
		"", "x", key + "00", key[:16], "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
		"-----BEGIN CCONVERT FILES KEY-----\nAAAA\n-----END CCONVERT FILES KEY-----\n", strings.Repeat("a", 1<<17),
	} {
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		_, err := Open(ctx, file, nil)
		require.Error(t, err)
		assert.NotContains(t, err.Error(), key)
	}
	for _, name := range []string{
		key, "exec:" + key, "file:" + key, "0x" + key, " " + key, key + "0", key[:31], key[:24], "exec:echo " + key,
		"6SUCylZwEJSE0/dJqb1kew==", "6SUCylZwEJSE0/dJqb1kew", "env:6SUCylZwEJSE0/dJqb1kew", "env:" + key, "env:",
		"env:MISSING", "exec:", "exec:'", "-----BEGIN", filepath.Join(dir, "none"),
	} {
		_, err := Open(ctx, name, nil)
		require.Error(t, err, name)
		assert.NotContains(t, err.Error(), key[:24])
		assert.NotContains(t, err.Error(), "6SUCyl")
	}
	program := filepath.Join(dir, "tell")
	for _, said := range []string{
		key, "6SUCylZwEJSE0/dJqb1kew", "0xe9, 0x25, 0x02, 0xca, 0x56, 0x70, 0x10, 0x94, 0x84, 0xd3, 0xf7, 0x49",
	} {
		require.NoError(t, os.WriteFile(program, []byte("#!/bin/sh\necho '"+said+"' >&2; exit 1"), 0o700))
		_, err := Open(ctx, "exec:"+program, nil)
		require.ErrorContains(t, err, "it says")
		assert.NotContains(t, err.Error(), said)
	}
}
