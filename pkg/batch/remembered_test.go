package batch_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/image"
)

// An image that is remembered without a key's statements is not what a run with that key wants.
func TestRememberedWithoutStatements(t *testing.T) {
	ctx, b := context.Background(), newBench(t)
	b.push(1)
	_, key, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	by, err := attest.ParsePrivateKey(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	require.NoError(t, err)
	j := b.job(0)
	j.NoEvidence = false
	for _, evidence := range []*convert.Evidence{{}, {Key: by, Required: true}} {
		b.worker.Own.Evidence = evidence
		out, err := b.worker.Convert(ctx, j)
		require.NoError(t, err)
		ref, err := image.ParseReference(out.Ref, true)
		require.NoError(t, err)
		img, err := image.Open(ctx, ref, image.Options{})
		require.NoError(t, err)
		artifacts, err := img.Referrers(ctx, attest.InTotoMediaType)
		require.NoError(t, err)
		require.NoError(t, img.Close())
		verified := 0
		for _, f := range attest.Read(ctx, artifacts, &by.PublicKey) {
			if f.Verified {
				verified++
			}
		}
		assert.Equal(t, evidence.Key != nil, verified > 0)
	}
}
