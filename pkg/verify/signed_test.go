package verify_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/image/registry"
	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/launch/process"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/libos/gramine"
	"github.com/cconvert/cconvert/pkg/libos/gramine/enclave"
	"github.com/cconvert/cconvert/pkg/libos/gramine/sim"
	"github.com/cconvert/cconvert/pkg/recipe"
	"github.com/cconvert/cconvert/pkg/sgx"
	"github.com/cconvert/cconvert/pkg/verify"
)

// Options of a conversion replace program, arguments, environment and mounts of the source. Whoever relies on the
// source, or signs for it, decides on that.
func TestChanges(t *testing.T) {
	const text = `[libos]
entrypoint = "/opt/b"
[loader]
argv = ["/opt/b", "--steal"]
[loader.env]
LD_PRELOAD = "/opt/a"
[fs]
mounts = [{ path = "/usr/bin/app", uri = "file:/opt/b" }]
[sys]
allowed_ioctls = [{ request_code = 1 }]
[sgx]
trusted_files = ["file:/opt/b"]
`
	a := newVictim(t, func(o *convert.Options) {
		o.Overlay = text
		for i := range 30 { // which nobody minds
			o.Launch.Env = append(o.Launch.Env, process.EnvVar{Name: fmt.Sprint("APP_", i), Value: "x"})
		}
		o.Launch.Env = append(o.Launch.Env, process.EnvVar{Name: "NODE_TLS_REJECT_UNAUTHORIZED", Value: "0"})
	})
	ctx, source, img := context.Background(), open(t, a.from), open(t, a.reg.Host+"/dst:1")
	said := func(r *verify.Report) string {
		for _, c := range r.Checks {
			if c.Name == verify.CheckChanges {
				b, err := json.Marshal(c.Problems)
				require.NoError(t, err)
				return string(b)
			}
		}
		return ""
	}
	r, err := verify.Verify(ctx, img, source, a.expect, nil, inspect.Options{})
	require.NoError(t, err)
	assert.False(t, r.Trusted)
	assert.Equal(t, []string{verify.CheckChanges}, r.Unmet())
	for _, change := range []string{
		"libos.entrypoint", "--steal", "loader.env.LD_PRELOAD", "NODE_TLS_REJECT_UNAUTHORIZED", "fs.mounts",
		"sys.allowed_ioctls",
	} {
		assert.Contains(t, said(r), change)
	}
	assert.NotContains(t, said(r), "more", "all are told")
	assert.Contains(t, said(r), `{\"path\":\"/usr/bin/app\",\"uri\":\"file:/opt/b\"}`)
	for name, accept := range map[string]func(*verify.Expectations){
		"accepted":  func(e *verify.Expectations) { e.AllowChanges = true },
		"MRENCLAVE": func(e *verify.Expectations) { e.MREnclave = append(e.MREnclave, r.MREnclave) },
	} {
		e := a.expect
		accept(&e)
		r, err := verify.Verify(ctx, img, source, e, nil, inspect.Options{})
		require.NoError(t, err)
		assert.True(t, r.Trusted, "%s: %v", name, r.Unmet())
		assert.Contains(t, said(r), "--steal")
	}
	r, err = verify.Verify(ctx, img, nil, a.expect, nil, inspect.Options{}) // which speaks of no source
	require.NoError(t, err)
	assert.True(t, r.Trusted, "%v", r.Unmet())
	assert.Contains(t, said(r), "--steal")

	any := verify.Expectations{AnyRuntime: true, AllowSimulated: true}
	r, e, err := verify.BeforeSigning(ctx, img, source, any, inspect.Options{})
	require.NoError(t, err)
	assert.Equal(t, []string{verify.CheckChanges}, r.Unmet())
	assert.Nil(t, e)
}

// The code in the enclave comes from the runtime's layer, and whoever signs makes it theirs: somebody vouches for it.
func TestRuntimeBeforeSigning(t *testing.T) {
	a := newVictim(t, nil)
	ctx, img := context.Background(), open(t, a.reg.Host+"/dst:1")
	r, e, err := verify.BeforeSigning(ctx, img, nil, verify.Expectations{AllowSimulated: true}, inspect.Options{})
	require.NoError(t, err)
	assert.True(t, r.Consistent)
	assert.False(t, r.Trusted)
	assert.Nil(t, e)
	assert.Equal(t, []string{verify.CheckRuntimeIs}, r.Unmet())
	digest := r.Recipe.Runtime.Digest
	for want, x := range map[string]verify.Expectations{
		"":                    {AllowSimulated: true, RuntimeDigest: []string{digest}},
		verify.CheckRuntimeIs: {AllowSimulated: true, RuntimeDigest: []string{r.Recipe.Source}},
		verify.CheckSimulated: {RuntimeDigest: []string{digest}},
		verify.CheckMREnclave: {
			AllowSimulated: true, RuntimeDigest: []string{digest}, MREnclave: make([]sgx.Measurement, 1),
		},
	} {
		r, e, err := verify.BeforeSigning(ctx, img, nil, x, inspect.Options{})
		require.NoError(t, err)
		assert.Equal(t, want, strings.Join(r.Unmet(), " "))
		assert.Equal(t, want == "", e != nil)
	}
}

// A statement says nothing of a runtime that nobody has looked at, not even its version.
func TestStatedRuntime(t *testing.T) {
	a := newVictim(t, nil)
	ctx := context.Background()
	e, err := convert.OpenEnclave(ctx, open(t, a.reg.Host+"/dst:1"), []libos.Backend{sim.Backend{}})
	require.NoError(t, err)
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	der, err := x509.MarshalPKCS8PrivateKey(k)
	require.NoError(t, err)
	key, err := attest.ParsePrivateKey(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	require.NoError(t, err)
	public, signature, err := convert.Sign(ctx, e, signer(t))
	require.NoError(t, err)
	_, err = convert.Finish(ctx, e, public, signature, parse(t, a.reg.Host+"/prod:1"), convert.StoreOptions{
		Evidence: &convert.Evidence{Key: key, Required: true},
	})
	require.NoError(t, err)
	artifacts, err := registry.Referrers(ctx, open(t, a.reg.Host+"/prod:1"), attest.Kinds...)
	require.NoError(t, err)
	stated := 0
	for _, f := range attest.Read(ctx, artifacts, &key.PublicKey) {
		if f.Statement == nil || f.Statement.PredicateType != attest.IdentityType {
			continue
		}
		var said attest.Identity
		require.NoError(t, json.Unmarshal(f.Statement.Predicate, &said))
		assert.Equal(t, attest.Runtime{Kind: "sim"}, said.Runtime)
		stated++
	}
	assert.Equal(t, 1, stated)
}

// What engines go by beside the configuration is compared too.
func TestAnnotationsDiffer(t *testing.T) {
	a := newVictim(t, nil)
	original, _ := a.image()
	read := func(ref string) *inspect.Converted {
		c, err := inspect.Read(context.Background(), open(t, ref), inspect.Options{})
		require.NoError(t, err)
		return c
	}
	was := read(a.reg.Host + "/dst:1")
	img := mutate.Annotations(original, map[string]string{"run.oci.handler": "wasm"}).(v1.Image)
	tag := parse(t, a.reg.Host+"/other:2").Name
	require.NoError(t, remote.Write(tag, img))
	changes, err := inspect.Compare(was, read(a.reg.Host+"/other:2"))
	require.NoError(t, err)
	var said []string
	for _, c := range changes {
		said = append(said, c.String())
	}
	assert.Contains(t, said, `+ image annotation run.oci.handler = "wasm"`)
}

// An image of another program that is consistent has a layer of ours on top, with whatever enclave. That is not signed.
func TestForeignImageUnderOurLayer(t *testing.T) {
	reg := fixture.NewRegistry(t)
	var evil sgx.Measurement
	for i := range evil {
		evil[i] = 0xee
	}
	text := `[libos]
entrypoint = "/evil"
[loader]
entrypoint = { uri = "file:/cconvert/gramine/evil.so", sha256 = "` + fmt.Sprintf("%064x", 1) + `" }
argv = ["evil"]
[sgx]
enclave_size = "64M"
max_threads = 4
trusted_files = []
`
	date := sgx.Date{Year: 2026, Month: 2, Day: 28}
	opened, err := gramine.Backend{}.Open(libos.Stored{
		Layout: enclave.Version, Files: map[string][]byte{libos.ManifestPath: []byte(text)},
	})
	require.NoError(t, err)
	s := opened.SigStruct(evil, date)
	made := recipe.Recipe{
		Epoch: recipe.FormatEpoch, Source: "sha256:aa", Date: date.String(), Platform: "linux/amd64",
	}
	made.Runtime.Kind, made.Runtime.Layout = "gramine", enclave.Version
	rb, err := json.Marshal(made)
	require.NoError(t, err)
	var ar bytes.Buffer
	require.NoError(t, libos.Pack(&ar, []libos.File{
		{Path: libos.ManifestPath, Mode: 0o644, Content: []byte(text)},
		{Path: libos.UnsignedPath, Mode: 0o644, Content: s.Bytes()},
		{Path: libos.RecipePath, Mode: 0o644, Content: rb},
	}))
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(ar.Bytes())), nil
	})
	require.NoError(t, err)
	img, err := mutate.AppendLayers(gscImage(t), layer)
	require.NoError(t, err)
	ref := reg.Push(t, "gsc:9", img)
	ctx := context.Background()
	i := open(t, ref)
	_, e, err := verify.BeforeSigning(ctx, i, nil, verify.Expectations{AnyRuntime: true}, inspect.Options{})
	assert.ErrorIs(t, err, convert.ErrNotOurs)
	assert.Nil(t, e)
}
