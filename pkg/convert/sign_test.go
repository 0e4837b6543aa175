package convert_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// unsigned converts without a signature.
func unsigned(t *testing.T, o convert.Options, to string) {
	t.Helper()
	p, err := convert.Prepare(context.Background(), o)
	require.NoError(t, err)
	defer p.Close()
	_, err = convert.Finish(context.Background(), p, nil, nil, parse(t, to))
	require.NoError(t, err)
}

func enclave(t *testing.T, ref string) *convert.Enclave {
	t.Helper()
	img, err := image.Open(context.Background(), parse(t, ref), image.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { img.Close() })
	e, err := convert.OpenEnclave(context.Background(), img)
	require.NoError(t, err)
	return e
}

func store(t *testing.T, e *convert.Enclave, key *sgx.Key, to string, o convert.StoreOptions) (*image.Output, error) {
	t.Helper()
	public, signature, err := e.Sign(context.Background(), key)
	require.NoError(t, err)
	return e.Store(context.Background(), public, signature, parse(t, to), o)
}

// Signed later, or again by another key, an image is the one that signing at once gives. Of the layers, only the one
// on top is read.
func TestSigningLater(t *testing.T) {
	reg := fixture.NewRegistry(t)
	from := reg.Push(t, "src:1", sample(t))
	o := options(t, from)
	o.Evidence = &convert.Evidence{}
	want, err := run(context.Background(), t, o, reg.Host+"/dst:want")
	require.NoError(t, err)

	unsigned(t, o, reg.Host+"/dst:1")
	e := enclave(t, reg.Host+"/dst:1")
	assert.False(t, e.Signed)
	assert.Equal(t, want.MREnclave, e.SigStruct.MREnclave)
	before := len(reg.Requests())
	out, err := store(t, enclave(t, reg.Host+"/dst:1"), signer(t), reg.Host+"/dst:1", convert.StoreOptions{Evidence: o.Evidence})
	require.NoError(t, err)
	assert.Equal(t, want.Output.Digest, out.Digest)
	assert.Equal(t, want.Output.Digest, reg.Digest(t, "dst:1"))
	img, err := image.Open(context.Background(), parse(t, reg.Host+"/dst:1"), image.Options{})
	require.NoError(t, err)
	for _, r := range reg.Requests()[before:] {
		for _, l := range img.Layers[:len(img.Layers)-1] {
			assert.False(t, strings.HasPrefix(r, http.MethodGet) && strings.Contains(r, l.Digest), r)
		}
	}

	other, err := sgx.GenerateKey(rand.Reader)
	require.NoError(t, err)
	e = enclave(t, reg.Host+"/dst:1")
	assert.True(t, e.Signed)
	out, err = store(t, e, other, reg.Host+"/dst:2", convert.StoreOptions{Evidence: o.Evidence})
	require.NoError(t, err)
	assert.NotEqual(t, want.Output.Digest, out.Digest)
	again, err := store(t, enclave(t, reg.Host+"/dst:2"), signer(t), reg.Host+"/dst:3", convert.StoreOptions{})
	require.NoError(t, err)
	assert.Equal(t, want.Output.Digest, again.Digest)

	// What was attached to the image is attached to the new one, about the new signer.
	img, err = image.Open(context.Background(), parse(t, reg.Host+"/dst:2"), image.Options{})
	require.NoError(t, err)
	artifacts, err := img.Referrers(context.Background(), attest.Kinds...)
	require.NoError(t, err)
	public, err := other.Public(context.Background())
	require.NoError(t, err)
	said := 0
	for _, f := range attest.Read(context.Background(), artifacts, nil) {
		if f.Statement == nil || f.Statement.PredicateType != attest.IdentityType {
			continue
		}
		said++
		var identity attest.Identity
		require.NoError(t, json.Unmarshal(f.Statement.Predicate, &identity))
		assert.Equal(t, sgx.MRSigner(public), identity.MRSigner)
		assert.Equal(t, from, identity.Source.Name)
		assert.Contains(t, string(identity.Findings), "simulated")
	}
	assert.Equal(t, 1, said)
}

// A signature for another image, or by another key than it names, completes nothing.
func TestSigningRefuses(t *testing.T) {
	ctx := context.Background()
	reg := fixture.NewRegistry(t)
	from := reg.Push(t, "src:1", sample(t))
	unsigned(t, options(t, from), reg.Host+"/dst:1")
	before := reg.Digest(t, "dst:1")
	o := options(t, from)
	o.Launch.Enclave.ISVProdID = 9
	unsigned(t, o, reg.Host+"/dst:other")
	public, signature, err := enclave(t, reg.Host+"/dst:other").Sign(ctx, signer(t))
	require.NoError(t, err)
	_, err = enclave(t, reg.Host+"/dst:1").Store(ctx, public, signature, parse(t, reg.Host+"/dst:1"), convert.StoreOptions{})
	assert.ErrorContains(t, err, "does not belong to this enclave")
	assert.Equal(t, before, reg.Digest(t, "dst:1"))

	img, err := image.Open(ctx, parse(t, from), image.Options{})
	require.NoError(t, err)
	_, err = convert.OpenEnclave(ctx, img)
	assert.ErrorIs(t, err, convert.ErrNotOurs)
}

// A key that everybody has signs what protects nothing, and nothing else.
func TestTestKey(t *testing.T) {
	reg := fixture.NewRegistry(t)
	unsigned(t, options(t, reg.Push(t, "src:1", sample(t))), reg.Host+"/dst:1")
	e := enclave(t, reg.Host+"/dst:1")
	_, _, err := e.Sign(context.Background(), signer(t))
	require.NoError(t, err, "the simulation protects nothing")
	e.Recipe.Runtime.Kind = "gramine"
	_, _, err = e.Sign(context.Background(), signer(t))
	assert.ErrorIs(t, err, convert.ErrTestKey)
	e.SigStruct.Attributes.Flags |= sgx.FlagDebug
	_, _, err = e.Sign(context.Background(), signer(t))
	assert.NoError(t, err)
}

// A tag does not fall back to a lower security version, whether converted or signed, unless that is wanted.
func TestRollback(t *testing.T) {
	ctx := context.Background()
	reg := fixture.NewRegistry(t)
	from := reg.Push(t, "src:1", sample(t))
	o := options(t, from)
	for _, place := range []string{reg.Host + "/dst:1", "oci:" + t.TempDir() + ":1"} {
		to := parse(t, place)
		convertTo := func(svn uint16, known, allow bool) error {
			o := o
			o.Launch.Enclave.ISVSVN, o.AllowRollback = svn, allow
			if known {
				o.Target = &to
			}
			_, err := run(ctx, t, o, place)
			return err
		}
		require.NoError(t, convertTo(2, true, false))
		require.NoError(t, convertTo(2, true, false))
		require.NoError(t, convertTo(3, false, false))
		for _, known := range []bool{true, false} {
			var rollback *convert.RollbackError
			require.ErrorAs(t, convertTo(2, known, false), &rollback, place)
			assert.EqualValues(t, 3, rollback.Now)
			assert.EqualValues(t, 2, rollback.New)
		}
		o := o
		o.Launch.Enclave.ISVSVN = 1
		unsigned(t, o, reg.Host+"/low:1")
		_, err := store(t, enclave(t, reg.Host+"/low:1"), signer(t), place, convert.StoreOptions{})
		var rollback *convert.RollbackError
		require.ErrorAs(t, err, &rollback, place)
		_, err = store(t, enclave(t, reg.Host+"/low:1"), signer(t), place, convert.StoreOptions{AllowRollback: true})
		require.NoError(t, err)
		require.NoError(t, convertTo(0, true, true))
	}
	// What is no converted image has no version.
	reg.Push(t, "plain:1", sample(t))
	_, err := run(ctx, t, o, reg.Host+"/plain:1")
	assert.NoError(t, err)
}
