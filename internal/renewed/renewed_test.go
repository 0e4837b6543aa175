package renewed

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A certificate that was renewed is used without a restart, and one that cannot be read leaves the old one in use.
func TestRenewed(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	write := func(serial int64, at time.Time) {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		require.NoError(t, err)
		template := &x509.Certificate{SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour)}
		der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
		require.NoError(t, err)
		secret, err := x509.MarshalPKCS8PrivateKey(k)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
		require.NoError(t,
			os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600))
		require.NoError(t, os.Chtimes(cert, at, at))
	}
	p := Certificate(cert, key)
	_, err := p.Get()
	require.Error(t, err)
	serial := func() int64 {
		t.Helper()
		c, err := p.Get()
		require.NoError(t, err)
		return c.Leaf.SerialNumber.Int64()
	}
	begin := time.Now().Add(-time.Hour)
	write(1, begin)
	assert.EqualValues(t, 1, serial())
	write(2, begin.Add(time.Minute))
	assert.EqualValues(t, 1, serial(), "the files are not looked at for each connection")
	p.checked = time.Time{}
	assert.EqualValues(t, 2, serial())
	require.NoError(t, os.WriteFile(cert, []byte("half"), 0o600))
	p.checked = time.Time{}
	assert.EqualValues(t, 2, serial())
	write(3, begin.Add(2*time.Minute))
	p.checked = time.Time{}
	assert.EqualValues(t, 3, serial())
}
