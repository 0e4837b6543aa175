package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
	"github.com/cconvert/cconvert/pkg/image/store"
	"github.com/cconvert/cconvert/pkg/libos"
)

// A statement is signed of no enclave that the image does not start: a converted image starts the one on top.
func TestAttestOfConverted(t *testing.T) {
	so, err := os.ReadFile("../../testdata/vectors/sgx-sdk/one-thread.signed.so")
	require.NoError(t, err)
	_, private, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	der, err := x509.MarshalPKCS8PrivateKey(private)
	require.NoError(t, err)
	dir := t.TempDir()
	key := filepath.Join(dir, "attest.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	require.NoError(t, os.WriteFile(key, text, 0o600))
	reg := fixture.NewRegistry(t)
	from := reg.Push(t, "app:1", fixture.Image(t, v1.Config{Entrypoint: []string{"/bin/app"}},
		fixture.Layer(t, fixture.Program("bin/app", fixture.ELF("")), fixture.Program("opt/e.so", string(so)))))
	cconvert := func(args ...string) (string, int) {
		c := exec.Command(program, args...)
		c.Env = append(os.Environ(), "HOME="+dir, "XDG_CACHE_HOME="+dir, "XDG_CONFIG_HOME="+dir)
		out, _ := c.CombinedOutput()
		return string(out), c.ProcessState.ExitCode()
	}
	out, code := cconvert(from, "--runtime", "sim", "--key", "../../testdata/vectors/test-signing-key.pem", "--ignore",
		"contains-enclave", "--attest=false")
	require.Zero(t, code, out)
	out, code = cconvert("attest", from+"-confidential", "--attest-key", key)
	assert.Contains(t, out, "has its evidence from there")
	assert.NotZero(t, code)
	ref, err := image.ParseReference(from+"-confidential", false)
	require.NoError(t, err)
	img, err := store.Open(context.Background(), ref, registry.Options{})
	require.NoError(t, err)
	artifacts, err := registry.Referrers(context.Background(), img, attest.Kinds...)
	require.NoError(t, err)
	assert.Empty(t, artifacts)
}

// "An image in which another check failed is not started" (docs/verification.md): least of all one whose loader is not
// the expected one, whose code would run.
func TestStartsALoaderThatWasRefused(t *testing.T) {
	dir := t.TempDir()
	pal, err := os.ReadFile("../../testdata/vectors/pal/pal-twosegments.so")
	require.NoError(t, err)
	prefix := fixture.Gramine(t, pal)
	reg := fixture.NewRegistry(t)
	from := reg.Push(t, "app:1", fixture.Image(t, v1.Config{Entrypoint: []string{"/bin/app"}},
		fixture.Layer(t, fixture.Program("bin/app", fixture.ELF("")))))
	cconvert := func(args ...string) (string, int) {
		c := exec.Command(program, args...)
		c.Env = append(os.Environ(), "HOME="+dir, "XDG_CACHE_HOME="+dir, "XDG_CONFIG_HOME="+dir)
		out, _ := c.CombinedOutput()
		return string(out), c.ProcessState.ExitCode()
	}
	out, code := cconvert(from, "--runtime", "gramine=dir:"+prefix, "--debug", "--memory", "64M", "--threads", "2",
		"--key", "../../testdata/vectors/test-signing-key.pem")
	require.Zero(t, code, out)
	out, code = cconvert("verify", "--start", from+"-confidential", "--any-signer", "--allow-debug", "--runtime-digest",
		"sha256:0000000000000000000000000000000000000000000000000000000000000000")
	assert.Equal(t, 4, code, out)
	assert.Contains(t, out, "failed   runtime-is")
	assert.Contains(t, out, "skipped  start", "the loader was run")
}

// A lock file names the runtime's layer: a conversion that keeps to it signs no enclave over another one.
func TestLockOfAnotherLayer(t *testing.T) {
	dir := t.TempDir()
	pal, err := os.ReadFile("../../testdata/vectors/pal/pal-twosegments.so")
	require.NoError(t, err)
	reg := fixture.NewRegistry(t)
	var runtimeFiles []fixture.Entry
	for name, content := range fixture.GramineFiles(pal) {
		runtimeFiles = append(runtimeFiles, fixture.Program("usr/lib/gramine/"+name, content))
	}
	gramine := reg.Push(t, "gramine:1", fixture.Image(t, v1.Config{}, fixture.Layer(t, runtimeFiles...)))
	from := reg.Push(t, "app:1", fixture.Image(t, v1.Config{Entrypoint: []string{"/bin/app"}},
		fixture.Layer(t, fixture.Program("bin/app", fixture.ELF("")))))
	cconvert := func(args ...string) (string, int) {
		c := exec.Command(program, args...)
		c.Dir = dir
		c.Env = append(os.Environ(), "HOME="+dir, "XDG_CACHE_HOME="+dir, "XDG_CONFIG_HOME="+dir)
		out, _ := c.CombinedOutput()
		return string(out), c.ProcessState.ExitCode()
	}
	key, err := filepath.Abs("../../testdata/vectors/test-signing-key.pem")
	require.NoError(t, err)
	runtime := "gramine=docker://" + gramine
	out, code := cconvert("runtime", "lock", "--runtime", runtime)
	require.Zero(t, code, out)
	file := filepath.Join(dir, libos.LockFile)
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	var l libos.Lock
	require.NoError(t, json.Unmarshal(text, &l))
	// As if the same image gave another layer by now: by other --runtime-libs, or another version of this program.
	looked := "sha256:" + strings.Repeat("0", 64)
	require.NoError(t, os.WriteFile(file, []byte(strings.ReplaceAll(string(text), l.Runtime.Layer, looked)), 0o644))
	out, code = cconvert(from, "--runtime", runtime, "--debug", "--memory", "64M", "--threads", "2", "--key", key)
	assert.NotZero(t, code, "signed over a runtime's layer that is not the lock's: %s", out)
}

// A signed statement says of an enclave nothing that was not read: no size of 0, no source that nobody knows.
func TestAttestStatesZeroValues(t *testing.T) {
	so, err := os.ReadFile("../../testdata/vectors/sgx-sdk/one-thread.signed.so")
	require.NoError(t, err)
	public, private, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	der, err := x509.MarshalPKCS8PrivateKey(private)
	require.NoError(t, err)
	dir := t.TempDir()
	key := filepath.Join(dir, "attest.pem")
	require.NoError(t, os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
	reg := fixture.NewRegistry(t)
	of := reg.Push(t, "app:1", fixture.Image(t, v1.Config{Entrypoint: []string{"/bin/app"}},
		fixture.Layer(t, fixture.Program("bin/app", fixture.ELF("")), fixture.Program("opt/e.so", string(so)))))
	c := exec.Command(program, "attest", of, "--attest-key", key)
	c.Env = append(os.Environ(), "HOME="+dir, "XDG_CACHE_HOME="+dir, "XDG_CONFIG_HOME="+dir)
	out, err := c.CombinedOutput()
	require.NoError(t, err, string(out))
	ref, err := image.ParseReference(of, false)
	require.NoError(t, err)
	img, err := store.Open(context.Background(), ref, registry.Options{})
	require.NoError(t, err)
	artifacts, err := registry.Referrers(context.Background(), img, attest.Kinds...)
	require.NoError(t, err)
	pub, err := x509.MarshalPKIXPublicKey(public)
	require.NoError(t, err)
	k, err := attest.ParsePublicKey(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pub}))
	require.NoError(t, err)
	for _, found := range attest.Read(context.Background(), artifacts, k) {
		if found.Statement == nil {
			continue
		}
		require.True(t, found.Verified)
		var said map[string]any
		require.NoError(t, json.Unmarshal(found.Statement.Predicate, &said))
		assert.NotEqual(t, 0.0, said["enclave_size"], "an enclave of 0 bytes is stated")
		assert.NotEqual(t, 0.0, said["max_threads"], "an enclave of 0 threads is stated")
		source, _ := json.Marshal(said["source"])
		assert.NotContains(t, string(source), img.Digest[7:], "it is stated that the image was made from itself")
	}
}
