package loader

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/pelletier/go-toml/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/pkg/libos/gramine/enclave"
	"github.com/cconvert/cconvert/pkg/sgx"
)

const vectors = "../../../../../testdata/vectors/"

// signed puts an enclave image, a manifest and their signature into a directory, as in an image.
func signed(t *testing.T, manifest string) (pal, app string) {
	t.Helper()
	dir := t.TempDir()
	pal, app = filepath.Join(dir, "pal"), filepath.Join(dir, "entrypoint")
	image, err := os.ReadFile(vectors + "pal/pal-foursegments.so")
	require.NoError(t, err)
	text, err := os.ReadFile(vectors + "test-signing-key.pem")
	require.NoError(t, err)
	key, err := sgx.ParseKey(text, nil)
	require.NoError(t, err)
	e, err := enclave.New(enclave.Version, image, []byte(manifest))
	require.NoError(t, err)
	m, err := sgx.Measure(context.Background(), e.Layout)
	require.NoError(t, err)
	s := e.SigStruct(m, sgx.Date{})
	sig, err := key.Sign(context.Background(), s.ToBeSigned())
	require.NoError(t, err)
	public, _ := key.Public(context.Background())
	require.NoError(t, s.Attach(public, sig))
	for name, content := range map[string][]byte{
		pal: image, app + ".manifest.sgx": []byte(manifest), app + ".sig": s.Bytes(),
	} {
		require.NoError(t, os.WriteFile(name, content, 0o600))
	}
	return pal, app
}

func isRefused(err error) bool {
	var r *refusedError
	return errors.As(err, &r)
}

// A byte changed anywhere in what was signed is refused.
func TestSignatureIsChecked(t *testing.T) {
	const manifest = "sgx.enclave_size = \"4M\"\nsgx.max_threads = 1\n"
	pal, app := signed(t, manifest)
	read := func() []byte {
		b, err := os.ReadFile(app + ".manifest.sgx")
		require.NoError(t, err)
		return b
	}
	require.NoError(t, checkSignature(pal, app, read()))
	for _, file := range []string{pal, app + ".manifest.sgx", app + ".sig"} {
		b, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, at := range []int{0, len(b) / 2, len(b) - 1} {
			if file == pal && at != 0 {
				at = 0x1000 // in a segment: bytes between segments are not loaded
			}
			c := append([]byte(nil), b...)
			c[at] ^= 1
			require.NoError(t, os.WriteFile(file, c, 0o600))
			assert.True(t, isRefused(checkSignature(pal, app, read())), "%s, byte %d", filepath.Base(file), at)
		}
		require.NoError(t, os.WriteFile(file, b, 0o600))
	}
	require.NoError(t, os.Remove(app+".sig"))
	assert.True(t, isRefused(checkSignature(pal, app, read())))
}

func TestFilesAreChecked(t *testing.T) {
	dir := t.TempDir()
	good, missing := filepath.Join(dir, "good"), filepath.Join(dir, "missing")
	require.NoError(t, os.WriteFile(good, []byte("content"), 0o600))
	sum := sha256.Sum256([]byte("content"))
	digest := hex.EncodeToString(sum[:])
	parse := func(uri, sha string) *program {
		var p program
		require.NoError(t, toml.Unmarshal(fmt.Appendf(nil,
			"loader.entrypoint = { uri = %q, sha256 = %q }\nsgx.trusted_files = [{ uri = %q, sha256 = %q }, { uri = "+
				"%q, sha256 = %q }]\n",
			"file:"+good, digest, uri, sha, "file:"+missing, digest), &p))
		return &p
	}
	readable, err := parse("file:"+good, digest).checkFiles()
	require.NoError(t, err)
	assert.Equal(t, []string{good, good}, readable)
	_, err = parse("file:"+good, hex.EncodeToString(make([]byte, 32))).checkFiles()
	assert.True(t, isRefused(err))
	assert.ErrorContains(t, err, good+" was changed")
	require.NoError(t, os.Remove(good))
	require.NoError(t, syscall.Mkfifo(good, 0o600))
	_, err = parse("file:"+good, digest).checkFiles()
	assert.True(t, isRefused(err), "a pipe in the file's place does not block")
	_, err = parse("dev:x", digest).checkFiles()
	assert.True(t, isRefused(err))
}

func TestEnvironmentIsTheManifests(t *testing.T) {
	t.Setenv("HOST", "h")
	t.Setenv("SECRET", "s")
	var p program
	require.NoError(t, toml.Unmarshal([]byte("loader.env = { A = \"1\", B = { value = \"2\" }, HOST = { passthrough = "+
		"true }, UNSET = { passthrough = true } }\n"), &p))
	assert.Equal(t, []string{"A=1", "B=2", "HOST=h"}, p.environment())
}

// Variables without effect are named, but not those that every container has.
func TestIgnoredVariables(t *testing.T) {
	var p program
	p.Loader.Env = map[string]any{"A": "1", "B": map[string]any{"passthrough": true}}
	t.Setenv("B", "2")
	assert.Equal(t, []string{"A", "TOKEN"}, p.ignored([]string{
		"A=other", "B=2", "TOKEN=x", "PATH=/bin", "HOSTNAME=h", "HOME=/root", "KUBERNETES_SERVICE_HOST=10.0.0.1",
		"REDIS_SERVICE_PORT=6379", "REDIS_PORT_6379_TCP=tcp://10.0.0.2:6379",
	}))
	assert.Empty(t, p.ignored([]string{"A=1", "B=2"}))
}

func TestWritableDirectoriesLeadToEachOther(t *testing.T) {
	dir := t.TempDir()
	tmp, link, secret := filepath.Join(dir, "tmp"), filepath.Join(dir, "link"), filepath.Join(dir, "secret")
	require.NoError(t, os.Mkdir(secret, 0o700))
	var p program
	require.NoError(t, toml.Unmarshal(fmt.Appendf(nil,
		"fs.mounts = [{ type = \"tmpfs\", path = %q }, { type = \"tmpfs\", path = %q }]\n", tmp, link), &p))
	require.NoError(t, os.Symlink("tmp", link))
	dirs, _, err := p.writable()
	require.NoError(t, err)
	assert.Equal(t, []string{tmp, tmp}, dirs, "made, and found through the link")
	require.NoError(t, os.Remove(tmp))
	require.NoError(t, os.Symlink(secret, tmp))
	_, _, err = p.writable()
	assert.True(t, isRefused(err))
}

func TestHostEnvironmentDoesNotOverrule(t *testing.T) {
	t.Setenv("PATH", "/evil")
	var p program
	require.NoError(t,
		toml.Unmarshal([]byte("loader.insecure__use_host_env = true\nloader.env.PATH = \"/usr/bin\"\n"), &p))
	assert.Contains(t, p.environment(), "PATH=/usr/bin")
	assert.NotContains(t, p.environment(), "PATH=/evil")
}

func TestInvoked(t *testing.T) {
	assert.True(t, invoked([]string{Path, Path, "init", "/cconvert/app/entrypoint"}))
	assert.False(t, invoked([]string{"cconvert", "x", "init", "/cconvert/app/entrypoint"}))
	assert.False(t, invoked([]string{Path}))
}
