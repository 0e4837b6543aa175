package main

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/types"
)

// enclave is what "cconvert reference" says of one.
type enclave struct {
	MREnclave string `json:"mr_enclave"`
	MRSigner  string `json:"mr_signer"`
	ISVProdID uint16 `json:"isv_prod_id"`
	ISVSVN    uint16 `json:"isv_svn"`
	Flags     string `json:"attribute_flags"`
}

// kbs is the format of this name.
type kbs struct {
	Attestation string                         `json:"attestation_policy"`
	Resource    string                         `json:"resource_policy"`
	Values      struct{ Type, Payload string } `json:"reference_values"`
}

// claims are those of Trustee's verifier for a quote of an enclave (attestation-service/docs/tcb_claims.md).
func (e enclave) claims() (body, all map[string]any, err error) {
	flags, err := strconv.ParseUint(e.Flags, 0, 64)
	if err != nil {
		return nil, nil, err
	}
	le := func(n uint16) string { return hex.EncodeToString(binary.LittleEndian.AppendUint16(nil, n)) }
	body = map[string]any{
		"mr_enclave": e.MREnclave, "mr_signer": e.MRSigner, "isv_prod_id": le(e.ISVProdID), "isv_svn": le(e.ISVSVN),
		"attributes.flags": hex.EncodeToString(binary.LittleEndian.AppendUint64(nil, flags|1)),
	}
	sgx := map[string]any{"body": body, "tcb_status": "SWHardeningNeeded", "collateral_expiration_status": "0"}
	return body, map[string]any{"sgx": sgx}, nil
}

// policies evaluates what "cconvert reference" wrote into a directory, by enclave and by signer, with claims of the
// enclave and of others.
func policies(dir string) error {
	text, err := os.ReadFile(filepath.Join(dir, "reference.json"))
	if err != nil {
		return err
	}
	var e enclave
	if err := json.Unmarshal(text, &e); err != nil {
		return err
	}
	for _, by := range []string{"enclave", "signer"} {
		text, err := os.ReadFile(filepath.Join(dir, "kbs-"+by+".json"))
		if err != nil {
			return err
		}
		var k kbs
		if err := json.Unmarshal(text, &k); err != nil {
			return err
		}
		payload, err := base64.StdEncoding.DecodeString(k.Values.Payload)
		if err != nil || k.Values.Type != "sample" {
			return fmt.Errorf("the reference values are %+v: %w", k.Values, err)
		}
		var known map[string][]string
		if err := json.Unmarshal(payload, &known); err != nil {
			return err
		}
		if err := k.try(e, by == "signer", known); err != nil {
			return fmt.Errorf("by %s: %w", by, err)
		}
	}
	return nil
}

// try evaluates the policies with claims that must be affirmed, and with others.
func (k kbs) try(e enclave, later bool, known map[string][]string) error {
	changes := map[string]func(body, sgx map[string]any) (affirmed bool){
		"itself":           func(_, _ map[string]any) bool { return true },
		"another":          func(b, _ map[string]any) bool { b["mr_enclave"] = "00"; return later },
		"another signer":   func(b, _ map[string]any) bool { b["mr_signer"] = "00"; return false },
		"another product":  func(b, _ map[string]any) bool { b["isv_prod_id"] = "ffff"; return false },
		"an older version": func(b, _ map[string]any) bool { b["isv_svn"] = "0000"; return false },
		"a later version":  func(b, _ map[string]any) bool { b["isv_svn"] = "0001"; return true },
		"debugging": func(b, _ map[string]any) bool {
			b["attributes.flags"] = "0700000000000000"
			return false
		},
		"out of date": func(_, s map[string]any) bool { s["tcb_status"] = "OutOfDate"; return false },
		"expired":     func(_, s map[string]any) bool { s["collateral_expiration_status"] = "1"; return false },
		"no SGX":      func(_, s map[string]any) bool { clear(s); return false },
	}
	for _, what := range slices.Sorted(maps.Keys(changes)) {
		body, input, err := e.claims()
		if err != nil {
			return err
		}
		sgx := input["sgx"].(map[string]any)
		want := changes[what](body, sgx)
		status, err := k.appraise(input, known)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		allowed, err := evaluate(k.Resource, "data.policy.allow", map[string]any{"submods": map[string]any{
			"cpu0": map[string]any{"ear.status": status, "ear.veraison.annotated-evidence": input},
		}}, nil)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if got := allowed == true; got != want || got != (status == "affirming") {
			return fmt.Errorf("%s: it is %s, and allowed is %v", what, status, allowed)
		}
	}
	none, err := evaluate(k.Resource, "data.policy.allow", map[string]any{"submods": map[string]any{}}, nil)
	if err == nil && none != false {
		err = errors.New("who shows nothing is allowed")
	}
	return err
}

// appraise is the status of an EAR by its trust claims: affirming if none is above 31 (draft-ietf-rats-ar4si, 2.3.2).
func (k kbs) appraise(input any, known map[string][]string) (string, error) {
	got, err := evaluate(k.Attestation, "data.policy.trust_claims", input, known)
	if err != nil {
		return "", err
	}
	claims, ok := got.(map[string]any)
	if !ok || len(claims) != 8 {
		return "", fmt.Errorf("the trust claims are %v", got)
	}
	for _, v := range claims {
		n, err := v.(json.Number).Int64()
		if err != nil {
			return "", err
		}
		if n > 31 {
			return "warning", nil
		}
	}
	return "affirming", nil
}

// evaluate evaluates a policy, with Trustee's own function for reference values.
func evaluate(policy, query string, input any, known map[string][]string) (any, error) {
	results, err := rego.New(rego.Query(query), rego.Module("policy.rego", policy), rego.Input(input),
		rego.Function1(&rego.Function{
			Name: "query_reference_value", Decl: types.NewFunction(types.Args(types.S), types.A),
		}, func(_ rego.BuiltinContext, name *ast.Term) (*ast.Term, error) {
			v, err := ast.InterfaceToValue(known[string(name.Value.(ast.String))])
			return ast.NewTerm(v), err
		})).Eval(context.Background())
	if err != nil {
		return nil, err
	}
	if len(results) != 1 || len(results[0].Expressions) != 1 {
		return nil, fmt.Errorf("%s has no value", query)
	}
	return results[0].Expressions[0].Value, nil
}
