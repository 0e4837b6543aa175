package verify_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	server "github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/sbom"
	"github.com/cconvert/cconvert/pkg/sgx"
	"github.com/cconvert/cconvert/pkg/verify"
)

func attestKey(t testing.TB, key any) *attest.PrivateKey {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	k, err := attest.ParsePrivateKey(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	require.NoError(t, err)
	return k
}

func keys(t testing.TB) map[string]*attest.PrivateKey {
	t.Helper()
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	return map[string]*attest.PrivateKey{"ECDSA": attestKey(t, curve), "Ed25519": attestKey(t, edwards), "none": nil}
}

func referrers(t testing.TB, img *image.Image) []image.Artifact {
	t.Helper()
	list, err := registry.Referrers(context.Background(), img, attest.Kinds...)
	require.NoError(t, err)
	return list
}

// Evidence is attached, found again by other clients, the same every time, and believed only from the key.
func TestEvidence(t *testing.T) {
	for _, api := range []bool{true, false} {
		for kind, key := range keys(t) {
			reg := fixture.NewRegistry(t, server.WithReferrersSupport(api))
			o := enclaved(t, reg.Push(t, "src:1", sample(t)))
			o.Evidence = &convert.Evidence{Key: key, Version: "test"}
			for range 2 { // the second time nothing is added
				run(t, o, signer(t), reg.Host+"/dst:1")
			}
			img := open(t, reg.Host+"/dst:1")
			artifacts := referrers(t, img)
			require.Len(t, artifacts, 5, "%s, API %v", kind, api)
			d, err := name.NewDigest(reg.Host + "/dst@" + img.Digest)
			require.NoError(t, err)
			index, err := remote.Referrers(d)
			require.NoError(t, err)
			m, err := index.IndexManifest()
			require.NoError(t, err)
			assert.Len(t, m.Manifests, 5)

			var public *attest.PublicKey
			if key != nil {
				public = &key.PublicKey
			}
			found := attest.Read(context.Background(), artifacts, public)
			r, err := verify.Verify(context.Background(), img, nil, verify.Expectations{AllowDebug: true,
				AnyRuntime: true, Attested: public, AnySigner: key == nil}, found, inspect.Options{})
			require.NoError(t, err)
			assert.True(t, r.Trusted, "%v", r.Checks)

			other := keys(t)["ECDSA"].PublicKey
			r, err = verify.Verify(context.Background(), img, nil,
				verify.Expectations{AllowDebug: true, AnyRuntime: true, Attested: &other},
				attest.Read(context.Background(), artifacts, &other), inspect.Options{})
			require.NoError(t, err)
			assert.Equal(t, []string{verify.CheckAttestedBy}, r.FailedChecks())
		}
	}
}

// There are no reference values of what no CPU will ever report, and what is stated says so.
func TestEvidenceOfASimulation(t *testing.T) {
	reg := fixture.NewRegistry(t)
	o := options(t, reg.Push(t, "src:1", sample(t)))
	o.Evidence = &convert.Evidence{}
	run(t, o, signer(t), reg.Host+"/dst:1")
	artifacts := referrers(t, open(t, reg.Host+"/dst:1"))
	require.Len(t, artifacts, 4)
	for _, f := range attest.Read(context.Background(), artifacts, nil) {
		require.NotNil(t, f.Statement)
		if f.Statement.PredicateType == attest.IdentityType {
			assert.Contains(t, string(f.Statement.Predicate), `"simulated":true`)
		}
	}
}

// A registry that takes no artifacts gets the image all the same, unless evidence was asked for.
func TestEvidenceRefused(t *testing.T) {
	reg := fixture.NewRegistry(t)
	o := options(t, reg.Push(t, "src:1", sample(t)))
	o.Evidence = &convert.Evidence{}
	reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if r.Method != http.MethodPut || !strings.Contains(r.URL.Path, "/manifests/") {
			return false
		}
		b, err := io.ReadAll(r.Body)
		if err != nil || strings.Contains(string(b), `"subject"`) {
			w.WriteHeader(http.StatusBadRequest)
			return true
		}
		r.Body = io.NopCloser(bytes.NewReader(b))
		return false
	})
	r := run(t, o, signer(t), reg.Host+"/dst:1")
	assert.Equal(t, r.Output.Digest, reg.Digest(t, "dst:1"))
	assert.True(t, slices.ContainsFunc(r.Findings, func(f finding.Finding) bool {
		return f.Code == finding.EvidenceRefused && f.Remedy != ""
	}))

	assert.Empty(t, r.Output.Attached)
	known := []string{finding.Simulated, finding.VolumeSealed, finding.StopSignal, finding.LoaderEnv}

	o.Enclave.ISVSVN = 1
	for name, ask := range map[string]func(*convert.StoreOptions){
		"asked for": func(s *convert.StoreOptions) { s.Evidence = &convert.Evidence{Required: true} },
		"strict": func(s *convert.StoreOptions) {
			s.Gate = convert.Gate{Strict: true, Ignore: known}
		},
	} {
		each := o
		ask(&each.StoreOptions)
		p, err := convert.Prepare(context.Background(), each)
		require.NoError(t, err, name)
		public, signature, err := convert.Sign(context.Background(), p, signer(t))
		require.NoError(t, err)
		_, err = convert.Finish(context.Background(), p, public, signature, parse(t, reg.Host+"/dst:1"),
			each.StoreOptions)
		require.NoError(t, p.Close())
		require.ErrorContains(t, err, "attaching evidence", name)
		assert.Equal(t, r.Output.Digest, reg.Digest(t, "dst:1"), "%s: the tag was not moved", name)
	}
	o.Gate = convert.Gate{Strict: true, Ignore: append(known, finding.EvidenceRefused)}
	r = run(t, o, signer(t), reg.Host+"/dst:1")
	assert.Equal(t, r.Output.Digest, reg.Digest(t, "dst:1"), "it was said that this does not matter")
}

// Each thing that a statement says is compared with the image.
func TestContradictions(t *testing.T) {
	reg := fixture.NewRegistry(t)
	o := options(t, reg.Push(t, "src:1", sample(t)))
	key := keys(t)["Ed25519"]
	o.Evidence = &convert.Evidence{Key: key}
	run(t, o, signer(t), reg.Host+"/dst:1")
	img := open(t, reg.Host+"/dst:1")
	artifacts := referrers(t, img)
	var identity, provenance *attest.Statement
	bills := map[string]*attest.Statement{}
	for _, f := range attest.Read(context.Background(), artifacts, nil) {
		switch {
		case f.Statement == nil:
		case f.Statement.PredicateType == attest.IdentityType:
			identity = f.Statement
		case f.Statement.PredicateType == attest.ProvenanceType:
			provenance = f.Statement
		default:
			bills[f.Statement.PredicateType] = f.Statement
		}
	}
	require.Len(t, bills, 2)
	verified := func(a image.Artifact) verify.Check {
		r, err := verify.Verify(context.Background(), img, nil, verify.Expectations{AllowSimulated: true,
			AnySigner: true}, attest.Read(context.Background(), []image.Artifact{a}, &key.PublicKey), inspect.Options{})
		require.NoError(t, err)
		for _, c := range r.Checks {
			if c.Name == verify.CheckEvidence {
				return c
			}
		}
		return verify.Check{}
	}
	pack := func(s attest.Statement) image.Artifact {
		a, err := s.Pack(context.Background(), key)
		require.NoError(t, err)
		return a
	}
	assert.Equal(t, verify.OK, verified(pack(*identity)).Status)
	assert.Equal(t, verify.OK, verified(pack(*provenance)).Status)
	change := func(s attest.Statement, old, with string) attest.Statement {
		text := strings.Replace(string(s.Predicate), old, with, 1)
		require.NotEqual(t, string(s.Predicate), text, old)
		s.Predicate = json.RawMessage(text)
		return s
	}
	for old, with := range map[string]string{
		`"isv_svn":0`: `"isv_svn":7`, `"debug_enclave":false`: `"debug_enclave":true`,
		`"mr_enclave":"`: `"mr_enclave":"00`, `"max_threads":2`: `"max_threads":3`,
		`"enclave_size":67108864`: `"enclave_size":1`, `"trust":"auto"`: `"trust":"all"`,
		`"format_epoch":`: `"format_epoch":1`, `,"simulated":true`: ``, `"misc_select":"0x0"`: `"misc_select":"0x1"`,
		`"sha256":"`: `"sha256":"00`, `"digest":"sha256:`: `"digest":"sha256:00`,
		`"simulated":true`: `"simulated":true,"hardened":true`, `"kind":"sim"`: `"kind":"sim","certified":true`,
	} {
		assert.Equal(t, verify.Failed, verified(pack(change(*identity, old, with))).Status, old)
	}
	for old, with := range map[string]string{`"sha256":"`: `"sha256":"00`, `"trust":"auto"`: `"trust":"all"`} {
		p := *provenance
		p.Predicate = json.RawMessage(strings.ReplaceAll(string(p.Predicate), old, with))
		assert.Equal(t, verify.Failed, verified(pack(p)).Status, old)
	}
	for _, kind := range []string{sbom.SPDXType, sbom.CycloneDXType} {
		bill := *bills[kind]
		assert.Equal(t, verify.OK, verified(pack(bill)).Status)
		sum := regexp.MustCompile(`/cconvert/app/recipe.json"[^}]*?"(?:content|checksumValue)":"`)
		version := regexp.MustCompile(`("name":"sim"[^}]*?"version(?:Info)?":")`)
		text := string(bill.Predicate)
		at := sum.FindStringIndex(text)
		require.NotNil(t, at, text)
		for what, changed := range map[string]string{
			"another digest":  text[:at[1]] + "00" + text[at[1]+2:],
			"another file":    strings.ReplaceAll(text, "/cconvert/app/recipe.json", "/cconvert/app/other.json"),
			"another version": version.ReplaceAllString(text, "${1}1"),
			"another runtime": strings.ReplaceAll(text, `"name":"sim"`, `"name":"gramine"`),
			"not JSON":        `{"creationInfo":1,"metadata":1}`,
		} {
			require.NotEqual(t, text, changed, what)
			bill.Predicate = json.RawMessage(changed)
			assert.Equal(t, verify.Failed, verified(pack(bill)).Status, "%s: %s", kind, what)
		}
		bill.Predicate = json.RawMessage(strings.ReplaceAll(text, "cconvert\"", "other\""))
		others := verified(pack(bill))
		assert.Equal(t, verify.OK, others.Status, "another program's bill is about what it has seen")
		assert.Contains(t, others.Detail, "; 1 by other programs, or of kinds that are not known, were compared with "+
			"nothing")
		bill = change(*bills[kind], `"sim"`, `"gramine"`)
		bill.PredicateType += "/v2.3"
		assert.Equal(t, verify.Failed, verified(pack(bill)).Status, "a version of the kind")
	}
	for _, s := range []*attest.Statement{provenance, bills[sbom.SPDXType], bills[sbom.CycloneDXType]} {
		changeEverywhere(t, *s, func(changed attest.Statement) bool {
			return verified(pack(changed)).Status == verify.Failed
		})
	}
	for what, statement := range map[string]attest.Statement{
		"another way to build": change(change(*provenance, "/conversion/v1", "/conversion/v2"), `"sha256":"`,
			`"sha256":"00`),
		"a list of tools": {
			Type: provenance.Type, Subject: provenance.Subject, PredicateType: sbom.CycloneDXType, Predicate: []byte(
				`{"bomFormat":"CycloneDX","specVersion":"1.4","metadata":{"tools":[{"name":"cconvert"}]}}`),
		},
		"another sum of the source": change(*identity, `/src:1","digest":{`, `/src:1","digest":{"sha512":"00",`),
	} {
		assert.Equal(t, verify.Failed, verified(pack(statement)).Status, what)
	}
	about := *identity
	about.Subject = []attest.Resource{attest.NewResource("x", "sha256:"+strings.Repeat("0", 64))}
	assert.Contains(t, verified(pack(about)).Problems[0], "about another image")
	grafted, err := verify.Verify(context.Background(), img, nil, verify.Expectations{
		AllowSimulated: true, Attested: &key.PublicKey,
	}, attest.Read(context.Background(), []image.Artifact{pack(about)}, &key.PublicKey), inspect.Options{})
	require.NoError(t, err)
	assert.Equal(t, verify.Failed, status(grafted, verify.CheckAttestedBy), "it is stated of another image")
	about.Type = "else"
	assert.Equal(t, verify.Failed, verified(pack(about)).Status)
	assert.Equal(t, verify.Failed, verified(image.Artifact{Type: attest.InTotoMediaType, Blob: []byte("{")}).Status)

	var said attest.Identity
	require.NoError(t, json.Unmarshal(identity.Predicate, &said))
	enclave := said.Enclave
	enclave.ISVSVN++
	corim, err := enclave.CoRIM("x")
	require.NoError(t, err)
	assert.Equal(t, verify.Failed, verified(attest.PackCoRIM(corim)).Status)
	assert.Equal(t, verify.Failed, verified(attest.PackCoRIM([]byte("no CBOR"))).Status)
}

// changeEverywhere changes a statement of a conversion in one place after the other, and wants each change to be found,
// but for the name of the maker, without which the statement is somebody else's, and the version of the program.
func changeEverywhere(t *testing.T, s attest.Statement, found func(attest.Statement) bool) {
	t.Helper()
	var document any
	require.NoError(t, json.Unmarshal(s.Predicate, &document))
	free := []string{".buildDefinition.buildType", ".runDetails.builder.version.cconvert"}
	maker := regexp.MustCompile(
		`^\.(metadata(\.tools.*)?|creationInfo(\.creators.*)?|buildDefinition|runDetails(\.builder(\.version)?)?)$`)
	places := 0
	eachPlace("", document, func(at string, set func(any), was any) {
		if slices.Contains(free, at) || maker.MatchString(at) {
			return
		}
		var other any = "another"
		if list, ok := was.([]any); ok {
			other = append(slices.Clone(list), "another")
		}
		set(other)
		changed, err := json.Marshal(document)
		require.NoError(t, err)
		set(was)
		statement := s
		statement.Predicate = changed
		assert.True(t, found(statement), "%s: %s is changed", s.PredicateType, at)
		places++
	})
	assert.Greater(t, places, 10)
}

// eachPlace calls a function for every value in JSON, with its path and what replaces it.
func eachPlace(at string, v any, f func(at string, set func(any), was any)) {
	switch v := v.(type) {
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(v)) {
			was := v[key]
			f(at+"."+key, func(x any) { v[key] = x }, was)
			eachPlace(at+"."+key, was, f)
		}
	case []any:
		for i, was := range v {
			f(fmt.Sprintf("%s[%d]", at, i), func(x any) { v[i] = x }, was)
			eachPlace(fmt.Sprintf("%s[%d]", at, i), was, f)
		}
	}
}

// A statement that was changed is not believed, though its envelope has the key's name.
func TestChangedStatementIsNotVerified(t *testing.T) {
	key := keys(t)["ECDSA"]
	s, err := attest.NewStatement(attest.NewResource("x", "sha256:00"), attest.IdentityType,
		map[string]int{"isv_svn": 1})
	require.NoError(t, err)
	a, err := s.Pack(context.Background(), key)
	require.NoError(t, err)
	read := func(blob []byte) attest.Found {
		return attest.Read(context.Background(), []image.Artifact{{Type: attest.InTotoMediaType, Blob: blob}},
			&key.PublicKey)[0]
	}
	assert.True(t, read(a.Blob).Verified)
	var e map[string]any
	require.NoError(t, json.Unmarshal(a.Blob, &e))
	s.Predicate = json.RawMessage(`{"isv_svn":2}`)
	unsigned, err := s.Pack(context.Background(), nil)
	require.NoError(t, err)
	var other map[string]any
	require.NoError(t, json.Unmarshal(unsigned.Blob, &other))
	e["payload"] = other["payload"]
	b, err := json.Marshal(e)
	require.NoError(t, err)
	assert.False(t, read(b).Verified)
	assert.True(t, read(b).Signed)
	assert.False(t, read(unsigned.Blob).Signed)
}

func TestExpectations(t *testing.T) {
	reg := fixture.NewRegistry(t)
	from := reg.Push(t, "src:1", sample(t))
	o := options(t, from)
	o.Enclave.ISVProdID, o.Enclave.ISVSVN = 3, 5
	r := run(t, o, signer(t), reg.Host+"/dst:1")
	o.Enclave.Debug = true
	run(t, o, signer(t), reg.Host+"/debug:1")
	number := func(n uint16) *uint16 { return &n }
	signed := []sgx.Measurement{r.MRSigner}
	for what, c := range map[string]struct {
		image  string
		expect verify.Expectations
		failed []string
	}{
		"nothing":    {"dst:1", verify.Expectations{AllowSimulated: true}, []string{verify.CheckAnyIdentity}},
		"any signer": {"dst:1", verify.Expectations{AllowSimulated: true, AnySigner: true}, nil},
		"signer":     {"dst:1", verify.Expectations{AllowSimulated: true, MRSigner: signed}, nil},
		"measurement": {
			"dst:1", verify.Expectations{AllowSimulated: true, MREnclave: []sgx.Measurement{{1}, r.MREnclave}}, nil,
		},
		"other signer": {
			"dst:1", verify.Expectations{AllowSimulated: true, MRSigner: []sgx.Measurement{{1}}},
			[]string{verify.CheckMRSigner},
		},
		"other enclave": {
			"dst:1", verify.Expectations{AllowSimulated: true, MREnclave: []sgx.Measurement{{1}}, MRSigner: signed},
			[]string{verify.CheckMREnclave},
		},
		"SVN": {
			"dst:1", verify.Expectations{AllowSimulated: true, MRSigner: signed, MinSVN: number(5), ProdID: number(3)},
			nil,
		},
		"SVN too low": {
			"dst:1", verify.Expectations{AllowSimulated: true, MRSigner: signed, MinSVN: number(6)},
			[]string{verify.CheckSVN},
		},
		"other product": {
			"dst:1", verify.Expectations{AllowSimulated: true, MRSigner: signed, ProdID: number(0)},
			[]string{verify.CheckProduct},
		},
		"runtime": {
			"dst:1", verify.Expectations{
				AllowSimulated: true, MRSigner: signed, RuntimeDigest: []string{r.Runtime.Digest},
			}, nil,
		},
		"other runtime": {
			"dst:1", verify.Expectations{AllowSimulated: true, MRSigner: signed, RuntimeDigest: []string{"sha256:00"}},
			[]string{verify.CheckRuntimeIs},
		},
		"debug": {
			"debug:1", verify.Expectations{AllowSimulated: true, MRSigner: signed}, []string{verify.CheckDebug},
		},
		"debug is allowed": {
			"debug:1", verify.Expectations{AllowSimulated: true, MRSigner: signed, AllowDebug: true}, nil,
		},
	} {
		report := check(t, reg.Host+"/"+c.image, c.expect, nil)
		assert.Equal(t, c.failed, report.FailedChecks(), what)
		assert.True(t, report.Consistent, what)
		assert.Equal(t, c.failed == nil, report.Trusted, what)
	}
}
