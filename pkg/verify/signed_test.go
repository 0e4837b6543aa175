package verify_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/libos/sim"
	"github.com/cconvert/cconvert/pkg/manifest"
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
`
	a := newVictim(t, func(o *convert.Options) {
		over, err := manifest.ParseOverlay("x", []byte(text))
		require.NoError(t, err)
		o.Overlay, o.OverlayText = over, text
		o.Launch.Env = []launch.EnvVar{{Name: "NODE_TLS_REJECT_UNAUTHORIZED", Value: "0"}}
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
	r, err := verify.Verify(ctx, img, source, a.expect, nil, verify.Options{})
	require.NoError(t, err)
	assert.False(t, r.Trusted)
	assert.Equal(t, []string{verify.CheckChanges}, r.Unmet())
	for _, change := range []string{
		"libos.entrypoint", "--steal", "loader.env.LD_PRELOAD", "NODE_TLS_REJECT_UNAUTHORIZED", "fs.mounts",
		"sys.allowed_ioctls",
	} {
		assert.Contains(t, said(r), change)
	}
	for name, accept := range map[string]func(*verify.Expectations){
		"accepted":  func(e *verify.Expectations) { e.AllowChanges = true },
		"MRENCLAVE": func(e *verify.Expectations) { e.MREnclave = append(e.MREnclave, r.MREnclave) },
	} {
		e := a.expect
		accept(&e)
		r, err := verify.Verify(ctx, img, source, e, nil, verify.Options{})
		require.NoError(t, err)
		assert.True(t, r.Trusted, "%s: %v", name, r.Unmet())
		assert.Contains(t, said(r), "--steal")
	}
	r, err = verify.Verify(ctx, img, nil, a.expect, nil, verify.Options{}) // which speaks of no source
	require.NoError(t, err)
	assert.True(t, r.Trusted, "%v", r.Unmet())
	assert.Contains(t, said(r), "--steal")

	any := verify.Expectations{AnyRuntime: true}
	r, err = verify.BeforeSigning(ctx, img, source, any, verify.Options{})
	require.NoError(t, err)
	assert.Equal(t, []string{verify.CheckChanges}, r.Unmet())
}

// The code in the enclave comes from the runtime's layer, and whoever signs makes it theirs: somebody vouches for it.
func TestRuntimeBeforeSigning(t *testing.T) {
	a := newVictim(t, nil)
	ctx, img := context.Background(), open(t, a.reg.Host+"/dst:1")
	r, err := verify.BeforeSigning(ctx, img, nil, verify.Expectations{}, verify.Options{})
	require.NoError(t, err)
	assert.True(t, r.Consistent)
	assert.False(t, r.Trusted)
	assert.Equal(t, []string{verify.CheckRuntimeIs}, r.Unmet())
	for want, e := range map[bool]verify.Expectations{
		true: {RuntimeDigest: []string{r.Recipe.Runtime.Digest}}, false: {RuntimeDigest: []string{r.Recipe.Source}},
	} {
		r, err := verify.BeforeSigning(ctx, img, nil, e, verify.Options{})
		require.NoError(t, err)
		assert.Equal(t, want, r.Trusted)
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
	public, signature, err := e.Sign(ctx, signer(t))
	require.NoError(t, err)
	_, err = e.Store(ctx, public, signature, parse(t, a.reg.Host+"/prod:1"), convert.StoreOptions{
		Evidence: &convert.Evidence{Key: key, Required: true},
	})
	require.NoError(t, err)
	artifacts, err := open(t, a.reg.Host+"/prod:1").Referrers(ctx, attest.Kinds...)
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
	read := func(ref string) *verify.Converted {
		c, err := verify.Read(context.Background(), open(t, ref), verify.Options{})
		require.NoError(t, err)
		return c
	}
	was := read(a.reg.Host + "/dst:1")
	img := mutate.Annotations(original, map[string]string{"run.oci.handler": "wasm"}).(v1.Image)
	tag := parse(t, a.reg.Host+"/other:2").Name
	require.NoError(t, remote.Write(tag, img))
	changes, err := verify.Compare(was, read(a.reg.Host+"/other:2"))
	require.NoError(t, err)
	var said []string
	for _, c := range changes {
		said = append(said, c.String())
	}
	assert.Contains(t, said, `+ image annotation run.oci.handler = "wasm"`)
}
