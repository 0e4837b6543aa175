package enclave

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/pkg/sgx"
)

const vectors = "../../../../testdata/vectors"

func read(t *testing.T, elem ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(elem...))
	require.NoError(t, err)
	return b
}

func TestVectors(t *testing.T) {
	var cases []struct {
		Name, PAL, Manifest, SigStruct, Date string
		MREnclave                            sgx.Measurement `json:"mr_enclave"`
		MRSigner                             sgx.Measurement `json:"mr_signer"`
	}
	require.NoError(t, json.Unmarshal(read(t, vectors, "cases/index.json"), &cases))
	require.Len(t, cases, 9)
	key, err := sgx.ParseKey(read(t, vectors, "test-signing-key.pem"), nil)
	require.NoError(t, err)
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			ctx := context.Background()
			date, err := sgx.ParseDate(c.Date)
			require.NoError(t, err)
			e, err := New(Version, read(t, vectors, "pal", c.PAL), read(t, vectors, "cases", c.Manifest))
			require.NoError(t, err)
			m, err := sgx.Measure(ctx, e.Layout)
			require.NoError(t, err)
			assert.Equal(t, c.MREnclave, m)

			s := e.SigStruct(m, date)
			sig, err := key.Sign(ctx, s.ToBeSigned())
			require.NoError(t, err)
			pub, _ := key.Public(ctx)
			require.NoError(t, s.Attach(pub, sig))
			assert.Equal(t, c.MRSigner, s.MRSigner())
			assert.Equal(t, read(t, vectors, "cases", c.SigStruct), s.Bytes())

			back, err := sgx.ParseSigStruct(s.Bytes())
			require.NoError(t, err)
			assert.Equal(t, s.Bytes(), back.Bytes())
			assert.NoError(t, back.CheckEnclave(m, s.Attributes, s.MiscSelect))
		})
	}
}

func TestEnclaveSize(t *testing.T) {
	pal := read(t, vectors, "pal/pal-foursegments.so")
	for _, c := range []struct{ manifest, want string }{
		{"sgx.enclave_size = \"1M\"", "enclave size 1M is too small: at least 2M is needed"},
		{"sgx.enclave_size = \"3M\"", "enclave size 3M is not a power of two: the nearest are 2M and 4M"},
		{"sgx.enclave_size = \"0\"", "not a power of two"},
		{"sgx.enclave_size = \"many\"", "is not a size"},
		{"sgx.enclave_size = \"99999999999G\"", "is not a size"},
		{"sgx.max_threads = 0", "not between 1 and"},
		{"sgx.isvsvn = 65536", "not between 0 and 65535"},
		{"sgx.cpu_features.mpx = \"unspecified\"", "not allowed"},
	} {
		_, err := New(Version, pal, []byte(c.manifest))
		assert.ErrorContains(t, err, c.want, c.manifest)
	}
	_, err := New(Version, pal, []byte(`sgx.enclave_size = "1M"`))
	var small *TooSmallError
	require.True(t, errors.As(err, &small))
	_, err = New(Version, pal, []byte(`sgx.enclave_size = "0x200000"`))
	assert.NoError(t, err, "the size that the error names is enough")
}

func TestDamagedEnclaveImage(t *testing.T) {
	pal := read(t, vectors, "pal/pal-foursegments.so")
	for n := 0; n < len(pal); n += 97 {
		_, _ = New(Version, pal[:n], nil) // must not panic
	}
	for i := range 200 {
		b := append([]byte(nil), pal...)
		b[i] ^= 0xff
		_, _ = New(Version, b, nil)
	}
}
