package attest_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// What key services are configured with names the enclave, or its signer alone. The policies in Rego are evaluated in
// the end-to-end tests.
func TestServices(t *testing.T) {
	s := &sgx.SigStruct{
		MREnclave: sgx.Measurement{1}, ISVProdID: 3, ISVSVN: 7,
		Attributes: sgx.Attributes{Flags: sgx.FlagMode64, XFRM: 3},
	}
	e := attest.NewEnclave(s)
	write := func(format, by string) string {
		t.Helper()
		b, err := e.Reference(format, by, "id")
		require.NoError(t, err)
		named := strings.Contains(string(b), e.MREnclave.String()) || strings.Contains(string(b), "cconvert_mr_enclave")
		assert.Equal(t, by == attest.ByEnclave, named, "%s by %s", format, by)
		return string(b)
	}
	for _, by := range attest.Ways {
		assert.Contains(t, write(attest.FormatSecretProv, by), "RA_TLS_MRSIGNER="+e.MRSigner.String()+
			"\nRA_TLS_ISV_PROD_ID=3\nRA_TLS_ISV_SVN=7\n")
		var azure struct {
			Version string
			AnyOf   []struct {
				Authority string
				AllOf     []struct {
					Claim  string
					Equals any
				}
			}
		}
		require.NoError(t, json.Unmarshal([]byte(write(attest.FormatAzureSKR, by)), &azure))
		assert.Equal(t, "1.0.0", azure.Version)
		require.Len(t, azure.AnyOf, 1)
		claims := map[string]any{}
		for _, c := range azure.AnyOf[0].AllOf {
			claims[c.Claim] = c.Equals
		}
		assert.Equal(t, false, claims["x-ms-sgx-is-debuggable"])
		assert.EqualValues(t, 7, claims["x-ms-sgx-svn"])
		assert.Equal(t, by == attest.ByEnclave, claims["x-ms-sgx-mrenclave"] != nil)
		var kbs map[string]any
		require.NoError(t, json.Unmarshal([]byte(write(attest.FormatKBS, by)), &kbs))
		assert.Len(t, kbs, 3)
	}
	assert.Contains(t, write(attest.FormatSecretProv, attest.BySigner), "RA_TLS_MRENCLAVE=any\n")
}
