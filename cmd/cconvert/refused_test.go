package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/image"
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
	img, err := image.Open(context.Background(), ref, image.Options{})
	require.NoError(t, err)
	artifacts, err := img.Referrers(context.Background(), attest.Kinds...)
	require.NoError(t, err)
	assert.Empty(t, artifacts)
}

// "An image in which another check failed is not started" (docs/verification.md): least of all one whose loader is not
// the expected one, whose code would run.
func TestStartsALoaderThatWasRefused(t *testing.T) {
	dir, prefix := t.TempDir(), t.TempDir()
	pal, err := os.ReadFile("../../testdata/vectors/pal/pal-twosegments.so")
	require.NoError(t, err)
	for name, content := range map[string]string{
		"sgx/loader": fixture.ELF(""), "sgx/libpal.so": string(pal), "direct/libpal.so": fixture.ELF(""),
		"libsysdb.so": "x",
	} {
		file := filepath.Join(prefix, "lib/gramine", name)
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
		require.NoError(t, os.WriteFile(file, []byte(content), 0o755))
	}
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
