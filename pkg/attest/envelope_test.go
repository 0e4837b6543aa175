package attest_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/pkg/attest"
)

func pair(t *testing.T, key crypto.Signer) (private, public []byte) {
	t.Helper()
	p, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	q, err := x509.MarshalPKIXPublicKey(key.Public())
	require.NoError(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: p}),
		pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: q})
}

func TestEnvelopes(t *testing.T) {
	ctx := context.Background()
	keys := map[string]crypto.Signer{}
	for name, curve := range map[string]elliptic.Curve{
		"P-256": elliptic.P256(), "P-384": elliptic.P384(), "P-521": elliptic.P521(),
	} {
		k, err := ecdsa.GenerateKey(curve, rand.Reader)
		require.NoError(t, err)
		keys[name] = k
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	keys["Ed25519"] = ed
	_, otherKey, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	_, otherText := pair(t, otherKey)
	other, err := attest.ParsePublicKey(otherText)
	require.NoError(t, err)
	for name, key := range keys {
		t.Run(name, func(t *testing.T) {
			privateText, publicText := pair(t, key)
			private, err := attest.ParsePrivateKey(privateText)
			require.NoError(t, err)
			public, err := attest.ParsePublicKey(publicText)
			require.NoError(t, err)
			e, err := private.Envelope(ctx, "a/type", []byte("payload"))
			require.NoError(t, err)
			got, err := public.Open(ctx, "a/type", e)
			require.NoError(t, err)
			assert.Equal(t, "payload", string(got))

			_, err = public.Open(ctx, "another/type", e)
			require.ErrorIs(t, err, attest.ErrSignature)
			_, err = other.Open(ctx, "a/type", e)
			require.ErrorIs(t, err, attest.ErrSignature)
			changed := bytes.Replace(e, []byte("cGF5bG9hZA"), []byte("cGF5bG9hZQ"), 1)
			assert.NotEqual(t, e, changed)
			_, err = public.Open(ctx, "a/type", changed)
			require.ErrorIs(t, err, attest.ErrSignature)
			var parts map[string]any
			require.NoError(t, json.Unmarshal(e, &parts))
			parts["signatures"] = []any{}
			unsigned, err := json.Marshal(parts)
			require.NoError(t, err)
			_, err = public.Open(ctx, "a/type", unsigned)
			require.ErrorIs(t, err, attest.ErrSignature)
			_, err = public.Open(ctx, "a/type", []byte("{"))
			require.ErrorIs(t, err, attest.ErrSignature)
		})
	}
}

func TestKeysThatAreNone(t *testing.T) {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	private, public := pair(t, k)
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	require.NoError(t, err)
	small, _ := pair(t, p224)
	for _, text := range [][]byte{
		nil, []byte("text"), private, small, public, pem.EncodeToMemory(&pem.Block{Type: "X", Bytes: []byte("x")}),
	} {
		_, err := attest.ParsePrivateKey(text)
		assert.ErrorIs(t, err, attest.ErrKey)
		_, err = attest.ParsePublicKey(text)
		assert.ErrorIs(t, err, attest.ErrKey)
	}
}
