package verify_test

import (
	"context"
	"encoding/json"
	"os"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/sgx"
	"github.com/cconvert/cconvert/pkg/verify"
)

// Enclaves that Intel's tool has signed are found in an image, measured, and told apart from those that were changed.
func TestSDKEnclaves(t *testing.T) {
	var vectors []struct {
		Name      string
		MREnclave sgx.Measurement `json:"mr_enclave"`
		MRSigner  sgx.Measurement `json:"mr_signer"`
	}
	text, err := os.ReadFile("../../testdata/vectors/sgx-sdk/index.json")
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, &vectors))
	var files []fixture.Entry
	for _, v := range vectors {
		b, err := os.ReadFile("../../testdata/vectors/sgx-sdk/" + v.Name + ".signed.so")
		require.NoError(t, err)
		files = append(files, fixture.Program("opt/"+v.Name+".so", string(b)))
	}
	reg := fixture.NewRegistry(t)
	push := func(files ...fixture.Entry) string {
		return reg.Push(t, "sdk:1", fixture.Image(t, v1.Config{Entrypoint: []string{"/opt/app"}}, fixture.Layer(t, files...)))
	}
	img := open(t, push(files...))
	list, err := verify.Enclaves(context.Background(), img, verify.Options{})
	require.NoError(t, err)
	require.Len(t, list, len(vectors))
	found := map[string]verify.EnclaveFile{}
	for _, f := range list {
		found[f.Path] = f
	}
	expect := verify.Expectations{Layout: verify.LayoutSDK}
	for _, v := range vectors {
		f := found["/opt/"+v.Name+".so"]
		assert.Equal(t, v.MREnclave, f.MREnclave, v.Name)
		assert.Equal(t, verify.KindSDK, f.Kind)
		assert.True(t, f.Measured)
		assert.Empty(t, f.Problem())
		assert.Empty(t, f.MetadataError)
		expect.MREnclave, expect.MRSigner = append(expect.MREnclave, v.MREnclave), []sgx.Measurement{v.MRSigner}
	}
	r, err := verify.OwnEnclaves(context.Background(), img, expect, verify.Options{})
	require.NoError(t, err)
	assert.True(t, r.Trusted, "%v", r.Checks)

	// What cannot be checked of such an image is not passed over.
	for what, change := range map[string]func(*verify.Expectations){
		verify.CheckAttestedBy: func(e *verify.Expectations) { e.Attested = &attest.PublicKey{} },
		verify.CheckRuntimeIs:  func(e *verify.Expectations) { e.RuntimeDigest = []string{"sha256:00"} },
	} {
		e := expect
		change(&e)
		r, err := verify.OwnEnclaves(context.Background(), img, e, verify.Options{})
		require.NoError(t, err)
		assert.Equal(t, []string{what}, r.FailedChecks())
		assert.False(t, r.Trusted)
	}

	for what, c := range map[string]struct {
		change func(*verify.Expectations)
		unmet  string
	}{
		"another kind of image is expected": {func(e *verify.Expectations) { e.Layout = "" }, verify.CheckLayout},
		"one is not expected":               {func(e *verify.Expectations) { e.MREnclave = e.MREnclave[:1] }, verify.CheckMREnclave},
		"nothing is expected":               {func(e *verify.Expectations) { e.MREnclave, e.MRSigner = nil, nil }, verify.CheckAnyIdentity},
		"a higher version":                  {func(e *verify.Expectations) { n := uint16(1); e.MinSVN = &n }, verify.CheckSVN},
	} {
		e := expect
		c.change(&e)
		r, err := verify.OwnEnclaves(context.Background(), img, e, verify.Options{})
		require.NoError(t, err)
		assert.True(t, r.Consistent, what)
		assert.Contains(t, r.Unmet(), c.unmet, what)
	}
	body := []byte(files[0].Body)
	body[0x1000] ^= 1
	changed := files[0]
	changed.Body = string(body)
	r, err = verify.OwnEnclaves(context.Background(), open(t, push(changed)), expect, verify.Options{})
	require.NoError(t, err)
	assert.Equal(t, []string{verify.CheckMeasurement}, r.FailedChecks())
	_, err = verify.OwnEnclaves(context.Background(), open(t, push(fixture.Program("opt/app", fixture.ELF("")))), expect, verify.Options{})
	assert.ErrorIs(t, err, verify.ErrNotConverted)
}
