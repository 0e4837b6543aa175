package attest_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// A policy by the signer lets later versions pass, whose MRENCLAVE is another one; none lets debug enclaves pass.
func TestPolicies(t *testing.T) {
	s := &sgx.SigStruct{
		MREnclave: sgx.Measurement{1}, ISVProdID: 3, ISVSVN: 7,
		Attributes: sgx.Attributes{Flags: sgx.FlagMode64, XFRM: 3},
	}
	e := attest.NewEnclave(s)
	for _, format := range []string{attest.FormatMAA, attest.FormatRego} {
		this, err := e.Reference(format, attest.ByEnclave, "id")
		require.NoError(t, err)
		assert.Contains(t, string(this), e.MREnclave.String())
		signer, err := e.Reference(format, attest.BySigner, "id")
		require.NoError(t, err)
		assert.NotContains(t, string(signer), e.MREnclave.String())
		for _, text := range []string{string(this), string(signer)} {
			assert.Contains(t, text, e.MRSigner.String())
			assert.Regexp(t, `svn", value>=7|isv_svn >= 7`, text)
			assert.Regexp(t, `product-id", value==3|isv_prod_id == 3`, text)
			assert.Regexp(t, `debuggable", value==false|debug_enclave == false`, text)
		}
	}
	this, err := e.Reference(attest.FormatCoRIM, attest.ByEnclave, "id")
	require.NoError(t, err)
	signer, err := e.Reference(attest.FormatCoRIM, attest.BySigner, "id")
	require.NoError(t, err)
	assert.Contains(t, string(this), string(e.MREnclave[:]))
	assert.NotContains(t, string(signer), string(e.MREnclave[:]))

	s.Attributes.Flags |= sgx.FlagDebug
	for _, format := range attest.Formats {
		_, err := attest.NewEnclave(s).Reference(format, attest.ByEnclave, "id")
		if format == attest.FormatJSON || format == attest.FormatTOML {
			assert.NoError(t, err, format)
		} else {
			assert.ErrorIs(t, err, attest.ErrDebug, format)
		}
	}
}
