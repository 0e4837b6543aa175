package attest

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"text/template"

	"github.com/fxamacker/cbor/v2"
	"github.com/pelletier/go-toml/v2"
	"github.com/veraison/corim/comid"
	"github.com/veraison/corim/corim"
	"github.com/veraison/swid"

	"github.com/cconvert/cconvert/pkg/sgx"
)

// Formats of reference values.
const (
	FormatJSON  = "json"
	FormatTOML  = "toml"
	FormatCoRIM = "corim"
	FormatMAA   = "maa"
	FormatRego  = "rego"
	// FormatKBS is for Trustee: its policies for the attestation service and for resources, and reference values.
	FormatKBS = "kbs"
	// FormatAzureSKR is a release policy of Azure's key vaults ("secure key release").
	FormatAzureSKR = "azure-skr"
	// FormatSecretProv are the variables of a server with Gramine's libsecret_prov_verify.
	FormatSecretProv = "secret-prov"
)

// Formats are those that Reference knows.
var Formats = []string{
	FormatJSON, FormatTOML, FormatCoRIM, FormatMAA, FormatRego, FormatKBS, FormatAzureSKR, FormatSecretProv,
}

// Ways to recognise an enclave.
const (
	ByEnclave = "enclave" // this one only: by MRENCLAVE
	// and later ones: by MRSIGNER, product and SVN. The SVN is measured, so another one means another MRENCLAVE
	BySigner = "signer"
)

// Ways are those that Policy knows.
var Ways = []string{ByEnclave, BySigner}

// ErrDebug says that an enclave can be read by a debugger, so that nobody should rely on it.
var ErrDebug = errors.New("a debug enclave keeps no secrets")

// Reference writes the values that a relying party compares a quote with, or a policy that does it in one of the Ways.
// The id is a name for them, such as the image's. Policies that let debug enclaves pass are ErrDebug.
func (e Enclave) Reference(format, by, id string) ([]byte, error) {
	if e.DebugEnclave && format != FormatJSON && format != FormatTOML {
		return nil, ErrDebug
	}
	switch format {
	case FormatJSON:
		b, err := json.MarshalIndent(e, "", "  ")
		return append(b, '\n'), err
	case FormatTOML:
		return e.toml()
	case FormatCoRIM:
		return e.coRIM(id, by)
	case FormatMAA:
		return e.render(maaPolicy, by)
	case FormatRego:
		return e.render(regoPolicy, by)
	case FormatKBS:
		return e.kbs(by)
	case FormatAzureSKR:
		return e.azureSKR(by)
	case FormatSecretProv:
		return e.render(secretProv, by)
	}
	return nil, fmt.Errorf("there is no format %q: there is %q", format, Formats)
}

// toml writes the fields under the same names, and in the same order, as JSON does.
func (e Enclave) toml() ([]byte, error) {
	b, err := json.Marshal(e)
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var fields map[string]any
	if err := d.Decode(&fields); err != nil {
		return nil, err
	}
	for k, v := range fields {
		if n, ok := v.(json.Number); ok {
			if fields[k], err = n.Int64(); err != nil {
				return nil, err
			}
		}
	}
	return toml.Marshal(fields)
}

func (e Enclave) render(t *template.Template, by string) ([]byte, error) {
	var b bytes.Buffer
	err := t.Execute(&b, struct {
		Enclave
		This bool // and no other
	}{e, by == ByEnclave})
	return b.Bytes(), err
}

// maaPolicy is an attestation policy of Microsoft Azure Attestation, version 1.0, for SGX: the claims are those
// of its documentation ("Claim sets", x-ms-sgx-*).
var maaPolicy = template.Must(template.New("maa").Parse(`version= 1.0;
authorizationrules
{
	[ type=="x-ms-sgx-is-debuggable", value==false ]
{{- if .This}}
	&& [ type=="x-ms-sgx-mrenclave", value=="{{.MREnclave}}" ]
{{- end}}
	&& [ type=="x-ms-sgx-mrsigner", value=="{{.MRSigner}}" ]
	&& [ type=="x-ms-sgx-product-id", value=={{.ISVProdID}} ]
	&& [ type=="x-ms-sgx-svn", value>={{.ISVSVN}} ]
	=> permit();
};
issuancerules
{
	c:[type=="x-ms-sgx-mrenclave"] => issue(type="mrenclave", value=c.value);
	c:[type=="x-ms-sgx-mrsigner"] => issue(type="mrsigner", value=c.value);
};
`))

// regoPolicy is for verifiers with the Open Policy Agent, over a parsed quote under the names that this program
// uses everywhere.
var regoPolicy = template.Must(template.New("rego").Parse(`package sgx

import rego.v1

default allow := false

allow if {
{{- if .This}}
	input.mr_enclave == "{{.MREnclave}}"
{{- end}}
	input.mr_signer == "{{.MRSigner}}"
	input.isv_prod_id == {{.ISVProdID}}
	input.isv_svn >= {{.ISVSVN}}
	input.debug_enclave == false
}
`))

// sgxClass is the object identifier of Intel's SGX extensions in certificates of the CPU (Intel SGX PCK
// Certificate and Certificate Revocation List Profile Specification, 1.3.5).
const sgxClass = "1.2.840.113741.1.13.1"

// Keys of the measurements in a CoRIM.
const (
	keyMREnclave = iota
	keyMRSigner
	keyISVProdID
	keyISVSVN
	keyAttributes
	keyMiscSelect
)

// CoRIM is a reference integrity manifest (draft-ietf-rats-corim) with the values as measurements of an SGX
// enclave: MRENCLAVE and MRSIGNER as digests, the SVN as a minimum, the others as bytes, little endian as in a
// quote, with their masks. It has the given name.
func (e Enclave) CoRIM(id string) ([]byte, error) { return e.coRIM(id, ByEnclave) }

func (e Enclave) coRIM(id, by string) ([]byte, error) {
	attributes, mask := make([]byte, 16), make([]byte, 16)
	misc, miscMask := make([]byte, 4), make([]byte, 4)
	for _, f := range []struct {
		text string
		to   []byte
	}{
		{e.Flags, attributes[:8]}, {e.XFRM, attributes[8:]}, {e.FlagsMask, mask[:8]}, {e.XFRMMask, mask[8:]},
		{e.MiscSelect, misc}, {e.MiscSelectMask, miscMask},
	} {
		n, err := strconv.ParseUint(f.text, 0, 8*len(f.to))
		if err != nil {
			return nil, fmt.Errorf("making a CoRIM: %w", err)
		}
		copy(f.to, binary.LittleEndian.AppendUint64(nil, n))
	}
	mask[0] |= byte(sgx.FlagDebug) // even if the signature leaves it to the host: nobody should rely on such an enclave
	product := binary.LittleEndian.AppendUint16(nil, e.ISVProdID)
	values := comid.NewMeasurements()
	for key, set := range []func(*comid.Measurement) *comid.Measurement{
		keyMREnclave: func(m *comid.Measurement) *comid.Measurement {
			return m.AddDigest(swid.Sha256, e.MREnclave[:])
		},
		keyMRSigner:   func(m *comid.Measurement) *comid.Measurement { return m.AddDigest(swid.Sha256, e.MRSigner[:]) },
		keyISVProdID:  func(m *comid.Measurement) *comid.Measurement { return m.SetRawValueBytes(product, nil) },
		keyISVSVN:     func(m *comid.Measurement) *comid.Measurement { return m.SetMinSVN(uint64(e.ISVSVN)) },
		keyAttributes: func(m *comid.Measurement) *comid.Measurement { return m.SetRawValueBytes(attributes, mask) },
		keyMiscSelect: func(m *comid.Measurement) *comid.Measurement { return m.SetRawValueBytes(misc, miscMask) },
	} {
		if key == keyMREnclave && by == BySigner {
			continue
		}
		m, err := comid.NewUintMeasurement(uint64(key))
		if err != nil {
			return nil, fmt.Errorf("making a CoRIM: %w", err)
		}
		values.AddMeasurement(set(m))
	}
	class := comid.NewClassOID(sgxClass)
	if class == nil {
		return nil, fmt.Errorf("making a CoRIM: the class %s is not valid", sgxClass)
	}
	c := comid.NewComid().SetTagIdentity(id, 0).AddReferenceValue(comid.ReferenceValue{
		Environment:  comid.Environment{Class: class.SetVendor("Intel Corporation").SetModel("SGX")},
		Measurements: *values,
	})
	if c == nil {
		return nil, fmt.Errorf("making a CoRIM of %s failed", id)
	}
	if err := c.Valid(); err != nil {
		return nil, fmt.Errorf("making a CoRIM: %w", err)
	}
	u := corim.NewUnsignedCorim().SetID(id).AddComid(*c)
	if u == nil {
		return nil, fmt.Errorf("making a CoRIM of %s failed", id)
	}
	b, err := u.ToCBOR()
	if err != nil {
		return nil, fmt.Errorf("making a CoRIM: %w", err)
	}
	return b, nil
}

// CoRIMID is the name of a CoRIM. The library by which CoRIMs are made does not survive hostile
// ones.
func CoRIMID(b []byte) (string, error) {
	var fields map[int]cbor.RawMessage
	var id string
	err := cbor.Unmarshal(b, &fields)
	if err == nil {
		err = cbor.Unmarshal(fields[0], &id)
	}
	if err != nil {
		return "", fmt.Errorf("reading a CoRIM: %w", err)
	}
	return id, nil
}
