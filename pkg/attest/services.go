package attest

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"strconv"
	"text/template"

	"github.com/cconvert/cconvert/pkg/sgx"
)

// kbs writes what a Key Broker Service of Trustee is configured with, as JSON: "attestation_policy" and
// "resource_policy" are policies in Rego, and "reference_values" is a message to its Reference Value Provider Service,
// in the format "sample". Names of claims are those of attestation-service/docs/tcb_claims.md of Trustee.
//
// What Trustee has by default releases every resource to any genuine enclave.
func (e Enclave) kbs(by string) ([]byte, error) {
	le := func(n uint16) string { return hex.EncodeToString(binary.LittleEndian.AppendUint16(nil, n)) }
	flags, err := strconv.ParseUint(e.Flags, 0, 64)
	if err != nil {
		return nil, err
	}
	values := map[string][]string{
		"cconvert_mr_signer": {e.MRSigner.String()}, "cconvert_isv_prod_id": {le(e.ISVProdID)},
		// The first byte of the flags, with the bit that EINIT sets: no debugging, no keys for provisioning.
		"cconvert_attributes": {hex.EncodeToString([]byte{byte(flags | sgx.FlagInit)})},
	}
	if by == ByEnclave {
		values["cconvert_mr_enclave"] = []string{e.MREnclave.String()}
	}
	var policy bytes.Buffer
	if err := kbsAttestation.Execute(&policy, struct {
		Enclave
		This bool
	}{e, by == ByEnclave}); err != nil {
		return nil, err
	}
	payload, err := json.Marshal(values)
	if err != nil {
		return nil, err
	}
	return indented(map[string]any{
		"attestation_policy": policy.String(), "resource_policy": kbsResource,
		"reference_values": map[string]string{
			"version": "0.1.0", "type": "sample", "payload": base64.StdEncoding.EncodeToString(payload),
		},
	})
}

// indented is JSON to be read by people as well.
func indented(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	err := e.Encode(v)
	return b.Bytes(), err
}

// kbsAttestation appraises the claims of an SGX quote. The numbers are those of AR4SI (draft-ietf-rats-ar4si, 2.3):
// 2 and 3 affirm; 33, 36 and 97 are for what is not known.
var kbsAttestation = template.Must(template.New("kbs").Parse(`package policy

import rego.v1

default executables := 33

default hardware := 97

default configuration := 36

trust_claims := {
	"executables": executables,
	"hardware": hardware,
	"configuration": configuration,
	"file-system": 0,
	"instance-identity": 0,
	"runtime-opaque": 0,
	"storage-opaque": 0,
	"sourced-data": 0,
}

# The security version number, whose two bytes are little endian.
digit(i) := indexof("0123456789abcdef", substring(input.sgx.body.isv_svn, i, 1))

isv_svn := ((digit(0) * 16) + digit(1)) + (256 * ((digit(2) * 16) + digit(3)))

executables := 3 if {
{{- if .This}}
	input.sgx.body.mr_enclave in query_reference_value("cconvert_mr_enclave")
{{- end}}
	input.sgx.body.mr_signer in query_reference_value("cconvert_mr_signer")
	input.sgx.body.isv_prod_id in query_reference_value("cconvert_isv_prod_id")
	isv_svn >= {{.ISVSVN}}
}

hardware := 2 if {
	input.sgx.tcb_status in {"UpToDate", "SWHardeningNeeded"}
	input.sgx.collateral_expiration_status == "0"
}

configuration := 2 if {
	substring(input.sgx.body["attributes.flags"], 0, 2) in query_reference_value("cconvert_attributes")
}
`))

// kbsResource releases resources to enclaves that the policy above affirms in all, and to nobody else.
const kbsResource = `package policy

import rego.v1

default allow := false

allow if {
	count(input.submods) > 0
	every submod in input.submods {
		submod["ear.status"] == "affirming"
		submod["ear.veraison.annotated-evidence"].sgx
	}
}
`

// azureSKR writes a release policy of Azure Key Vault and Managed HSM ("Azure Key Vault secure key release policy
// grammar", version 1.0.0), which compares for equality only: the SVN is this one. INSTANCE is to be replaced by the
// attestation service that the vault is to believe.
func (e Enclave) azureSKR(by string) ([]byte, error) {
	type claim struct {
		Claim  string `json:"claim"`
		Equals any    `json:"equals"`
	}
	all := []claim{
		{"x-ms-sgx-is-debuggable", false}, {"x-ms-sgx-mrsigner", e.MRSigner.String()},
		{"x-ms-sgx-product-id", e.ISVProdID}, {"x-ms-sgx-svn", e.ISVSVN},
	}
	if by == ByEnclave {
		all = append(all, claim{"x-ms-sgx-mrenclave", e.MREnclave.String()})
	}
	return indented(map[string]any{
		"version": "1.0.0",
		"anyOf":   []any{map[string]any{"authority": "https://INSTANCE.attest.azure.net", "allOf": all}},
	})
}

// secretProv are the variables of Gramine's RA-TLS verification ("ra_tls_verify_*"), for a shell or a container.
var secretProv = template.Must(template.New("secret-prov").Parse(
	`RA_TLS_MRENCLAVE={{if .This}}{{.MREnclave}}{{else}}any{{end}}
RA_TLS_MRSIGNER={{.MRSigner}}
RA_TLS_ISV_PROD_ID={{.ISVProdID}}
RA_TLS_ISV_SVN={{.ISVSVN}}
RA_TLS_ALLOW_SW_HARDENING_NEEDED=1
`))
