package quote

import (
	"bytes"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// vectors are public quotes, which are beside the checkout where it is tested.
const vectors = "../../../../shared/vectors/quotes/"

func read(t testing.TB, name string) []byte {
	t.Helper()
	if _, err := os.Stat(vectors); err != nil && os.Getenv("CI") == "" {
		t.Skip("the public quotes are not here")
	}
	b, err := os.ReadFile(filepath.Join(vectors, name))
	require.NoError(t, err)
	return b
}

func parsed(t testing.TB, name string) *Quote {
	t.Helper()
	q, err := Parse(read(t, name))
	require.NoError(t, err)
	return q
}

func at(unix int64) Options { return Options{At: time.Unix(unix, 0)} }

// phala has one quote with all that belongs to it in a document, and its time.
func phala(t testing.TB) (*Quote, *Collateral, Options) {
	t.Helper()
	q := parsed(t, "good/phala-sgx_quote")
	c, err := ReadCollateral(vectors + "good/phala-sgx_quote_collateral.json")
	require.NoError(t, err)
	end, err := time.Parse(time.RFC3339, "2025-07-19T10:01:17Z")
	require.NoError(t, err)
	return q, c, Options{At: end}
}

// automata has another one as Intel's service answers.
func automata(t testing.TB) *Collateral {
	t.Helper()
	_, other, _ := phala(t)
	c := &Collateral{
		TCBInfoChain: other.TCBInfoChain, QEIdentityChain: other.TCBInfoChain,
		PCKCRL:  read(t, "good/automata/0825-platform_crl.der"),
		RootCRL: read(t, "good/automata/solana-intel_root_ca_crl.der"),
	}
	var err error
	c.TCBInfo, c.TCBInfoSignature, err = ParseSigned(read(t, "good/automata/0825-sgx_tcbinfov3_00606a000000.json"),
		"tcbInfo")
	require.NoError(t, err)
	c.QEIdentity, c.QEIdentitySignature, err = ParseSigned(read(t, "good/automata/0825-sgx_qeidentity_v4.json"),
		"enclaveIdentity")
	require.NoError(t, err)
	return c
}

// Genuine quotes with Intel's signatures.
func TestGenuine(t *testing.T) {
	q := parsed(t, "good/automata/quotev3.bin")
	r, err := q.Verify(automata(t), at(1755236700))
	require.NoError(t, err)
	assert.Equal(t, SWHardeningNeeded, r.Status)
	assert.Equal(t, UpToDate, r.QEStatus)
	assert.Equal(t, []string{"INTEL-SA-00615"}, r.Advisories)
	assert.Equal(t, 17, r.Evaluation)
	assert.Equal(t, "00606a000000", hex.EncodeToString(r.Platform.FMSPC[:]))
	assert.Equal(t, namePlatform, r.CA)
	require.NoError(t, r.Check(Policy{AnyEnclave: true}))

	q, c, o := phala(t)
	r, err = q.Verify(c, o)
	require.NoError(t, err)
	assert.Equal(t, ConfigurationAndSWHardening, r.Status)
	assert.Equal(t, []string{"INTEL-SA-00289", "INTEL-SA-00615"}, r.Advisories)
	assert.Equal(t, nameProcessor, r.CA)
	assert.Equal(t, CheckStatus, checkOf(r.Check(Policy{AnyEnclave: true})))
	require.NoError(t, r.Check(Policy{AnyEnclave: true, Status: []Status{ConfigurationAndSWHardening}}))
	assert.Equal(t, CheckStatus, checkOf(r.Check(Policy{
		AnyEnclave: true, Status: []Status{ConfigurationAndSWHardening}, MinTCBDate: r.TCBDate.Add(time.Second),
	})))

	// A machine becomes older by what Intel publishes.
	q = parsed(t, "good/oasis-quote_v3_ecdsa_p256_pck_chain.bin")
	r, err = q.Verify(automata(t), at(1755236700))
	require.NoError(t, err)
	assert.Equal(t, OutOfDate, r.Status)
	assert.Len(t, r.Advisories, 8)
	assert.Equal(t, CheckStatus, checkOf(r.Check(Policy{AnyEnclave: true})))
}

// The same quote with what Intel said three years before, of which there is no revocation list.
func TestGenuineOlder(t *testing.T) {
	q := parsed(t, "good/oasis-quote_v3_ecdsa_p256_pck_chain.bin")
	info, signature, err := ParseSigned(read(t, "good/oasis-tcb_info_v3_fmspc_00606A000000.json"), "tcbInfo")
	require.NoError(t, err)
	qe, qeSignature, err := ParseSigned(read(t, "good/oasis-qe_identity_v2.json"), "enclaveIdentity")
	require.NoError(t, err)
	chain := read(t, "good/oasis-tcb_info_v3_fmspc_00606A000000_certs.pem")
	c := &Collateral{
		TCBInfo: info, TCBInfoSignature: signature, TCBInfoChain: chain, QEIdentity: qe,
		QEIdentitySignature: qeSignature, QEIdentityChain: chain,
	}
	_, err = q.Verify(c, at(1671497404))
	assert.Equal(t, CheckCRL, checkOf(err), "all that comes before is right")
	for unix, want := range map[int64]string{1671194735: CheckTCBInfo, 1673786737: CheckQEIdentity} {
		_, err = q.Verify(c, at(unix))
		assert.Equal(t, want, checkOf(err))
	}
	pck, _, _, err := q.certificates(at(1671497404))
	require.NoError(t, err)
	platform, err := parsePlatform(pck)
	require.NoError(t, err)
	var parsedInfo tcbInfo
	_, err = at(1671497404).signed(info, signature, chain, &parsedInfo)
	require.NoError(t, err)
	l, err := parsedInfo.levelOf(platform)
	require.NoError(t, err)
	assert.Equal(t, SWHardeningNeeded, l.Status)
	assert.Equal(t, []string{"INTEL-SA-00615", "INTEL-SA-00657"}, l.Advisories)
	c.TCBInfoChain = read(t, "good/oasis-tcb_info_v3_fmspc_00606A000000_certs_bad.pem")
	_, err = q.Verify(c, at(1671497404))
	assert.Equal(t, CheckTCBInfo, checkOf(err))
	assert.ErrorContains(t, err, "not [\"Intel SGX TCB Signing\"]")
}

func checkOf(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Check
	}
	return ""
}

// What cannot be verified, and what was changed, by one bit each.
func TestBadQuotes(t *testing.T) {
	_, c, o := phala(t)
	for name, want := range map[string]string{
		"flip-report-mrenclave": CheckSignature, "flip-report-data": CheckSignature, "flip-debug-bit": CheckSignature,
		"flip-isv-signature": CheckSignature, "flip-attestation-key": CheckKey, "flip-qe-report": CheckQEReport,
		"flip-qe-signature": CheckQEReport, "version-5": CheckFormat, "keytype-3": CheckFormat,
		"truncated": CheckFormat, "truncated-700": CheckFormat,
	} {
		q, err := Parse(read(t, "bad/"+name+".quote"))
		if err == nil {
			_, err = q.Verify(c, o)
		}
		assert.Equal(t, want, checkOf(err), name)
	}
	padded := read(t, "bad/zero-padded-8192.quote")
	q, err := Parse(padded)
	require.NoError(t, err)
	_, err = q.Verify(c, o)
	require.NoError(t, err, "buffers are padded with zeros")
	_, err = Parse(append(bytes.Clone(padded), 1))
	assert.Equal(t, CheckFormat, checkOf(err))
	q = parsed(t, "good/oasis-quote_v3_ecdsa_p256_eppid.bin")
	_, err = q.Verify(c, o)
	assert.Equal(t, CheckChain, checkOf(err))
	assert.ErrorContains(t, err, "by the type 3")
	_, err = parsed(t, "good/intel/quote.dat").Verify(c, o)
	assert.Equal(t, CheckChain, checkOf(err))
	good := read(t, "good/phala-sgx_quote")
	for name, offset := range map[string]int{"vendor": 12, "auth data": 436 + 64 + 64 + 384 + 64 + 2} {
		changed := bytes.Clone(good)
		changed[offset] ^= 1
		q, err := Parse(changed)
		if err == nil {
			_, err = q.Verify(c, o)
		}
		assert.Contains(t, []string{CheckFormat, CheckKey}, checkOf(err), name)
	}
}

// Collateral that was changed, is another's, or is missing.
func TestBadCollateral(t *testing.T) {
	other := automata(t)
	for what, c := range map[string]struct {
		change func(*Collateral, *Options)
		want   string
	}{
		"a byte of the TCB info": {func(c *Collateral, _ *Options) {
			c.TCBInfo = bytes.Replace(c.TCBInfo, []byte("SWHardening"), []byte("SWHardEning"), 1)
		}, CheckTCBInfo},
		"a space": {func(c *Collateral, _ *Options) { c.TCBInfo = append(bytes.Clone(c.TCBInfo), ' ') }, CheckTCBInfo},
		"a byte of the identity": {func(c *Collateral, _ *Options) {
			c.QEIdentity = bytes.Replace(c.QEIdentity, []byte("UpToDate"), []byte("upToDate"), 1)
		}, CheckQEIdentity},
		"another platform's": {func(c *Collateral, _ *Options) {
			c.TCBInfo, c.TCBInfoSignature = other.TCBInfo, other.TCBInfoSignature
		}, CheckTCBInfo},
		"the one for the other": {func(c *Collateral, _ *Options) {
			c.TCBInfo, c.TCBInfoSignature = c.QEIdentity, c.QEIdentitySignature
		}, CheckTCBInfo},
		"expired":                  {func(_ *Collateral, o *Options) { o.At = o.At.AddDate(0, 2, 0) }, CheckTCBInfo},
		"not yet":                  {func(_ *Collateral, o *Options) { o.At = o.At.AddDate(0, -2, 0) }, CheckTCBInfo},
		"an old evaluation":        {func(_ *Collateral, o *Options) { o.MinEvaluation = 18 }, CheckTCBInfo},
		"no list":                  {func(c *Collateral, _ *Options) { c.PCKCRL = nil }, CheckCRL},
		"no list of the root":      {func(c *Collateral, _ *Options) { c.RootCRL = nil }, CheckCRL},
		"the root's list twice":    {func(c *Collateral, _ *Options) { c.PCKCRL = c.RootCRL }, CheckCRL},
		"another authority's list": {func(c *Collateral, _ *Options) { c.PCKCRL = other.PCKCRL }, CheckCRL},
		"no signature":             {func(c *Collateral, _ *Options) { c.TCBInfoSignature = nil }, CheckTCBInfo},
		"no signer":                {func(c *Collateral, _ *Options) { c.QEIdentityChain = nil }, CheckQEIdentity},
	} {
		q, good, o := phala(t)
		c.change(good, &o)
		_, err := q.Verify(good, o)
		assert.Equal(t, c.want, checkOf(err), "%s: %v", what, err)
	}
}

func TestReadCollateral(t *testing.T) {
	q, c, o := phala(t)
	dir := t.TempDir()
	write := func(name string, b []byte) { require.NoError(t, os.WriteFile(filepath.Join(dir, name), b, 0o644)) }
	signed := func(name string, value, signature []byte) []byte {
		return slices.Concat([]byte(`{"`+name+`":`), value, []byte(`,"signature":"`+hex.EncodeToString(signature)+`"}`))
	}
	_, err := ReadCollateral(dir)
	require.ErrorIs(t, err, os.ErrNotExist)
	write(fileTCBInfo, signed("tcbInfo", c.TCBInfo, c.TCBInfoSignature))
	write(fileQEIdentity, signed("enclaveIdentity", c.QEIdentity, c.QEIdentitySignature))
	write(fileTCBInfoChain, c.TCBInfoChain)
	write(fileQEIdentityChain, c.QEIdentityChain)
	write(filePCKCRL, []byte(hex.EncodeToString(c.PCKCRL)+"\n"))
	write(fileRootCRL, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: c.RootCRL}))
	again, err := ReadCollateral(dir)
	require.NoError(t, err)
	assert.Equal(t, c, again)
	_, err = q.Verify(again, o)
	require.NoError(t, err)
	for _, bad := range []string{"", "{}", "[]", `{"tcbInfo":{},"signature":"x"}`, `{"signature":""}`} {
		write(fileTCBInfo, []byte(bad))
		_, err := ReadCollateral(dir)
		require.ErrorIs(t, err, ErrCollateral, bad)
		if bad != "{}" && bad != `{"signature":""}` && bad != `{"tcbInfo":{},"signature":"x"}` {
			_, err = ReadCollateral(filepath.Join(dir, fileTCBInfo))
			require.ErrorIs(t, err, ErrCollateral, bad)
		}
	}
	_, err = ReadCollateral(filepath.Join(dir, "none"))
	require.Error(t, err)
}

func TestConverge(t *testing.T) {
	for _, c := range [][3]Status{
		{UpToDate, UpToDate, UpToDate}, {SWHardeningNeeded, UpToDate, SWHardeningNeeded},
		{UpToDate, OutOfDate, OutOfDate}, {SWHardeningNeeded, OutOfDate, OutOfDate},
		{ConfigurationNeeded, OutOfDate, OutOfDateConfigurationNeeded},
		{ConfigurationAndSWHardening, OutOfDate, OutOfDateConfigurationNeeded},
		{OutOfDate, OutOfDate, OutOfDate}, {OutOfDateConfigurationNeeded, OutOfDate, OutOfDateConfigurationNeeded},
		{UpToDate, Revoked, Revoked}, {Revoked, UpToDate, Revoked}, {OutOfDate, Revoked, Revoked},
	} {
		assert.Equal(t, c[2], converge(c[0], c[1]), c)
	}
	var s Status
	assert.Error(t, s.UnmarshalText([]byte("Fine")))
}
