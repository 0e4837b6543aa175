package quote

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/pkg/sgx"
)

// authority is a certificate with its key.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// world is a platform with all that vouches for it, under a root of its own. The fields are what a test changes.
type world struct {
	now                time.Time
	root, ca, pck, tcb authority
	attestation        *ecdsa.PrivateKey
	report, qe         [reportSize]byte
	auth               []byte
	version            uint16
	levels, qeLevels   string // JSON
	fmspc, id, qeID    string
	revoked            []*x509.Certificate
	signReport, signQE *ecdsa.PrivateKey // nil: the right ones
	signInfo           *authority        // nil: the TCB signer
	issued             time.Time
}

const (
	testComponents = 16
	testMRSigner   = "8c4f5775d796503e96137f77c68a829a0056ac8ded70140b081b094490c57bff"
)

func makeKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	return k
}

var serial int64

// issue makes a certificate by an issuer; nil: by itself.
func issue(t testing.TB, name string, ca bool, by *authority, extra ...pkix.Extension) authority {
	t.Helper()
	serial++
	a := authority{key: makeKey(t)}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, NotBefore: time.Unix(1_500_000_000, 0),
		NotAfter: time.Unix(2_500_000_000, 0), IsCA: ca, BasicConstraintsValid: true, ExtraExtensions: extra,
		KeyUsage: x509.KeyUsageDigitalSignature,
	}
	if ca {
		template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	}
	parent, key := template, a.key
	if by != nil {
		parent, key = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &a.key.PublicKey, key)
	require.NoError(t, err)
	a.cert, err = x509.ParseCertificate(der)
	require.NoError(t, err)
	return a
}

// platformExtension says what a platform is, with the same version of each component.
func platformExtension(t testing.TB, svn, pcesvn int) pkix.Extension {
	t.Helper()
	raw := func(v any) asn1.RawValue {
		b, err := asn1.Marshal(v)
		require.NoError(t, err)
		return asn1.RawValue{FullBytes: b}
	}
	below := func(id asn1.ObjectIdentifier, n int) asn1.ObjectIdentifier {
		return append(slices.Clone(id), n)
	}
	tcb := below(oidSGX, partTCB)
	var components []attribute
	for i := range testComponents {
		components = append(components, attribute{below(tcb, i+1), raw(svn)})
	}
	components = append(components, attribute{below(tcb, tcbPCESVN), raw(pcesvn)},
		attribute{below(tcb, 18), raw(make([]byte, 16))})
	value := raw([]attribute{
		{below(oidSGX, 1), raw(make([]byte, 16))}, {tcb, raw(components)},
		{below(oidSGX, partPCEID), raw([]byte{0, 0})},
		{below(oidSGX, partFMSPC), raw([]byte{0, 0x90, 0x6e, 0xa1, 0, 0})}, {below(oidSGX, 5), raw(asn1.Enumerated(0))},
	})
	return pkix.Extension{Id: oidSGX, Value: value.FullBytes}
}

func synthetic(t testing.TB) *world {
	t.Helper()
	w := &world{now: time.Unix(1_790_000_000, 0).UTC(), version: 3, fmspc: "00906EA10000", id: "SGX", qeID: "QE"}
	w.root = issue(t, nameRoot, true, nil)
	w.ca = issue(t, namePlatform, true, &w.root)
	w.pck = issue(t, namePCK, false, &w.ca, platformExtension(t, 5, 10))
	w.tcb = issue(t, nameTCB, false, &w.root)
	w.attestation, w.issued = makeKey(t), w.now.AddDate(0, 0, -10)
	for i := range 32 {
		w.auth = append(w.auth, byte(i))
	}
	le.PutUint64(w.report[48:], flagInit|flagMode64)
	w.report[64], w.report[128], w.report[320] = 1, 2, 3
	le.PutUint64(w.qe[48:], 0x15)
	le.PutUint64(w.qe[56:], 0xe7)
	signer, err := hex.DecodeString(testMRSigner)
	require.NoError(t, err)
	copy(w.qe[128:], signer)
	le.PutUint16(w.qe[256:], 1)
	le.PutUint16(w.qe[258:], 8)
	w.bind()
	w.levels = testLevel(5, 10, UpToDate) + "," + testLevel(3, 9, OutOfDate)
	w.qeLevels = `{"tcb":{"isvsvn":8},"tcbDate":"2026-01-01T00:00:00Z","tcbStatus":"UpToDate"},` +
		`{"tcb":{"isvsvn":6},"tcbDate":"2024-01-01T00:00:00Z","tcbStatus":"OutOfDate","advisoryIDs":["Q"]},` +
		`{"tcb":{"isvsvn":2},"tcbDate":"2020-01-01T00:00:00Z","tcbStatus":"Revoked"}`
	return w
}

// point is the attestation key, x‖y.
func (w *world) point() []byte {
	b, err := w.attestation.PublicKey.Bytes()
	if err != nil {
		panic(err) // it is a point of P-256
	}
	return b[1:]
}

// bind has the quoting enclave's report name its key.
func (w *world) bind() {
	sum := sha256.Sum256(slices.Concat(w.point(), w.auth))
	copy(w.qe[320:], sum[:])
}

func testLevel(svn, pcesvn int, s Status) string {
	one := fmt.Sprintf(`{"svn":%d}`, svn)
	return fmt.Sprintf(`{"tcb":{"sgxtcbcomponents":[%s],"pcesvn":%d},"tcbDate":"2026-01-01T00:00:00Z","tcbStatus":%q,`+
		`"advisoryIDs":["P%d"]}`, strings.TrimSuffix(strings.Repeat(one+",", testComponents), ","), pcesvn, s, svn)
}

func pair(x, y *big.Int) []byte {
	b := make([]byte, pairSize)
	x.FillBytes(b[:pairSize/2])
	y.FillBytes(b[pairSize/2:])
	return b
}

func sign(t testing.TB, key *ecdsa.PrivateKey, message []byte) []byte {
	t.Helper()
	sum := sha256.Sum256(message)
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	require.NoError(t, err)
	return pair(r, s)
}

func pemOf(list ...authority) (text []byte) {
	for _, a := range list {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})...)
	}
	return text
}

func (w *world) quote(t testing.TB) []byte {
	t.Helper()
	header := make([]byte, headerSize)
	le.PutUint16(header, w.version)
	le.PutUint16(header[2:], keyECDSAP256)
	vendor, err := hex.DecodeString(intelQE)
	require.NoError(t, err)
	copy(header[reservedVendor:], vendor)
	signed := slices.Concat(header, w.report[:])
	chain := append(pemOf(w.pck, w.ca, w.root), 0)
	by, qeBy := w.attestation, w.pck.key
	if w.signReport != nil {
		by = w.signReport
	}
	if w.signQE != nil {
		qeBy = w.signQE
	}
	sized := func(kind uint16, b []byte) []byte {
		out := binary.LittleEndian.AppendUint16(nil, kind)
		return append(binary.LittleEndian.AppendUint32(out, uint32(len(b))), b...)
	}
	qe := slices.Concat(w.qe[:], sign(t, qeBy, w.qe[:]), binary.LittleEndian.AppendUint16(nil, uint16(len(w.auth))),
		w.auth, sized(typeChain, chain))
	if w.version == 4 {
		qe = sized(typeQEReport, qe)
	}
	data := slices.Concat(sign(t, by, signed), w.point(), qe)
	return slices.Concat(signed, binary.LittleEndian.AppendUint32(nil, uint32(len(data))), data)
}

func (w *world) crl(t testing.TB, by authority) []byte {
	t.Helper()
	list := &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: w.issued, NextUpdate: w.issued.AddDate(0, 1, 0),
	}
	for _, c := range w.revoked {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: w.issued})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, by.cert, by.key)
	require.NoError(t, err)
	return der
}

func (w *world) collateral(t testing.TB) *Collateral {
	t.Helper()
	times := fmt.Sprintf(`"issueDate":%q,"nextUpdate":%q,"tcbEvaluationDataNumber":17`, w.issued.Format(time.RFC3339),
		w.issued.AddDate(0, 1, 0).Format(time.RFC3339))
	info := fmt.Sprintf(`{"id":%q,"version":3,%s,"fmspc":%q,"pceId":"0000","tcbType":0,"tcbLevels":[%s]}`, w.id, times,
		w.fmspc, w.levels)
	qe := fmt.Sprintf(`{"id":%q,"version":2,%s,"miscselect":"00000000","miscselectMask":"FFFFFFFF","attributes":`+
		`"11000000000000000000000000000000","attributesMask":"FBFFFFFFFFFFFFFF0000000000000000","mrsigner":%q,`+
		`"isvprodid":1,"tcbLevels":[%s]}`, w.qeID, times, strings.ToUpper(testMRSigner), w.qeLevels)
	return w.with(t, []byte(info), []byte(qe))
}

// with signs collateral.
func (w *world) with(t testing.TB, info, qe []byte) *Collateral {
	t.Helper()
	by := w.tcb
	if w.signInfo != nil {
		by = *w.signInfo
	}
	chain := pemOf(w.tcb, w.root)
	return &Collateral{
		TCBInfo: info, TCBInfoSignature: sign(t, by.key, info), TCBInfoChain: pemOf(by, w.root), QEIdentity: qe,
		QEIdentitySignature: sign(t, w.tcb.key, qe), QEIdentityChain: chain, PCKCRL: w.crl(t, w.ca),
		RootCRL: w.crl(t, w.root),
	}
}

// All that can be wrong with a quote that is properly signed, and the check that finds it.
func TestSynthetic(t *testing.T) {
	flags := func(more uint64) func(*world) {
		return func(w *world) { le.PutUint64(w.report[48:], le.Uint64(w.report[48:])|more) }
	}
	for what, c := range map[string]struct {
		change func(*world)
		status Status
		check  string // that fails
	}{
		"good":                   {func(*world) {}, UpToDate, ""},
		"version 4":              {func(w *world) { w.version = 4 }, UpToDate, ""},
		"no auth data":           {func(w *world) { w.auth = nil; w.bind() }, UpToDate, ""},
		"a debug enclave":        {flags(2), UpToDate, CheckEnclave},
		"a key for provisioning": {flags(flagProvisionKey), UpToDate, CheckEnclave},
		"a key for launching":    {flags(flagEInitToken), UpToDate, CheckEnclave},
		"no initialised enclave": {
			func(w *world) { le.PutUint64(w.report[48:], flagMode64) }, UpToDate, CheckEnclave,
		},
		"a 32-bit enclave":          {func(w *world) { le.PutUint64(w.report[48:], flagInit) }, UpToDate, CheckEnclave},
		"a debug quoting enclave":   {func(w *world) { le.PutUint64(w.qe[48:], 0x17) }, "", CheckQE},
		"another MISCSELECT":        {func(w *world) { w.qe[16] = 1 }, "", CheckQE},
		"another quoting signer":    {func(w *world) { w.qe[128] ^= 1 }, "", CheckQE},
		"another quoting product":   {func(w *world) { w.qe[256] = 2 }, "", CheckQE},
		"an older quoting enclave":  {func(w *world) { w.qe[258] = 7 }, OutOfDate, CheckStatus},
		"a revoked quoting enclave": {func(w *world) { w.qe[258] = 3 }, Revoked, CheckStatus},
		"an ancient one":            {func(w *world) { w.qe[258] = 1 }, "", CheckQE},
		"that of another technique": {func(w *world) { w.qeID = "TD_QE" }, "", CheckQEIdentity},
		"TCB info of another":       {func(w *world) { w.id = "TDX" }, "", CheckTCBInfo},
		"another kind of platform":  {func(w *world) { w.fmspc = "00906EA10001" }, "", CheckTCBInfo},
		"a level that is out of date": {
			func(w *world) { w.levels = testLevel(5, 10, OutOfDate) }, OutOfDate, CheckStatus,
		},
		"one PCESVN too low": {
			func(w *world) { w.levels = testLevel(5, 11, UpToDate) + "," + testLevel(5, 10, ConfigurationNeeded) },
			ConfigurationNeeded, CheckStatus,
		},
		"levels in another order": {
			func(w *world) { w.levels = testLevel(3, 9, OutOfDate) + "," + testLevel(5, 10, UpToDate) }, UpToDate, "",
		},
		"a revoked level":   {func(w *world) { w.levels = testLevel(5, 10, Revoked) }, Revoked, CheckStatus},
		"no level":          {func(w *world) { w.levels = testLevel(6, 1, UpToDate) }, "", CheckPlatform},
		"no levels at all":  {func(w *world) { w.levels = "" }, "", CheckPlatform},
		"an unknown status": {func(w *world) { w.levels = testLevel(5, 10, "Fine") }, "", CheckTCBInfo},
		"a component less": {
			func(w *world) { w.levels = strings.Replace(w.levels, `{"svn":5},`, "", 1) }, "", CheckTCBInfo,
		},
		"the platform is revoked": {
			func(w *world) { w.revoked = []*x509.Certificate{w.pck.cert} }, "", CheckCRL,
		},
		"its authority is revoked": {
			func(w *world) { w.revoked = []*x509.Certificate{w.ca.cert} }, "", CheckCRL,
		},
		"the signer is revoked": {
			func(w *world) { w.revoked = []*x509.Certificate{w.tcb.cert} }, "", CheckCRL,
		},
		"two months later":                     {func(w *world) { w.now = w.now.AddDate(0, 2, 0) }, "", CheckTCBInfo},
		"TCB info of the platform's authority": {func(w *world) { w.signInfo = &w.ca }, "", CheckTCBInfo},
		"a report signed by another":           {func(w *world) { w.signReport = makeKey(t) }, "", CheckSignature},
		"a QE report signed by another":        {func(w *world) { w.signQE = makeKey(t) }, "", CheckQEReport},
		"a key of another quoting enclave":     {func(w *world) { w.qe[320] ^= 1 }, "", CheckKey},
		"more behind the key's digest":         {func(w *world) { w.qe[383] = 1 }, "", CheckKey},
		"another root": {
			func(w *world) { w.root = issue(t, nameRoot, true, nil) }, "", CheckChain,
		},
		"a platform of no authority": {func(w *world) {
			other := issue(t, "Somebody", true, &w.root)
			w.ca, w.pck = other, issue(t, namePCK, false, &other, platformExtension(t, 5, 10))
		}, "", CheckChain},
		"a platform that is none": {func(w *world) { w.pck = issue(t, namePCK, false, &w.ca) }, "", CheckChain},
	} {
		w := synthetic(t)
		root := w.root.cert
		c.change(w)
		q, err := Parse(w.quote(t))
		require.NoError(t, err, what)
		r, err := q.Verify(w.collateral(t), Options{At: w.now, Root: root})
		if c.status == "" {
			assert.Equal(t, c.check, checkOf(err), "%s: %v", what, err)
			continue
		}
		if !assert.NoError(t, err, what) {
			continue
		}
		assert.Equal(t, c.status, r.Status, what)
		assert.Equal(t, c.check, checkOf(r.Check(Policy{AnyEnclave: true})), what)
	}
}

// Without the test's root none of these is one of Intel's.
func TestOwnRootIsIntels(t *testing.T) {
	w := synthetic(t)
	q, err := Parse(w.quote(t))
	require.NoError(t, err)
	_, err = q.Verify(w.collateral(t), Options{At: w.now})
	assert.Equal(t, CheckChain, checkOf(err))
	assert.ErrorContains(t, err, "its root is not Intel's")
}

// What the enclave says is compared in all its 64 bytes.
func TestReportData(t *testing.T) {
	w := synthetic(t)
	q, err := Parse(w.quote(t))
	require.NoError(t, err)
	r, err := q.Verify(w.collateral(t), Options{At: w.now, Root: w.root.cert})
	require.NoError(t, err)
	want := [64]byte(w.report[320:384])
	require.NoError(t, r.Check(Policy{AnyEnclave: true, Data: &want}))
	for _, i := range []int{0, 31, 32, 63} {
		other := want
		other[i] ^= 1
		assert.Equal(t, CheckEnclave, checkOf(r.Check(Policy{AnyEnclave: true, Data: &other})))
	}
	own, other, one, two := r.Quote.Report, sgx.Measurement{9}, uint16(1), uint16(2)
	q.Report.ISVProdID, q.Report.ISVSVN = 1, 1
	for _, p := range []Policy{
		{MREnclave: []sgx.Measurement{other}}, {MRSigner: []sgx.Measurement{other}}, {ProdID: &two}, {MinSVN: &two},
	} {
		assert.Equal(t, CheckEnclave, checkOf(r.Check(p)))
	}
	good := Policy{
		MREnclave: []sgx.Measurement{other, own.MREnclave}, MRSigner: []sgx.Measurement{own.MRSigner}, ProdID: &one,
		MinSVN: &one,
	}
	require.NoError(t, r.Check(good))
	assert.ErrorContains(t, r.Check(Policy{ProdID: &one}), "of anybody's enclave")
	le.PutUint64(w.report[48:], flagInit|flagMode64|2)
	q, err = Parse(w.quote(t))
	require.NoError(t, err)
	r, err = q.Verify(w.collateral(t), Options{At: w.now, Root: w.root.cert})
	require.NoError(t, err)
	assert.Error(t, r.Check(Policy{AnyEnclave: true}))
	assert.NoError(t, r.Check(Policy{AnyEnclave: true, AllowDebug: true}))
}

func BenchmarkVerify(b *testing.B) {
	w := synthetic(b)
	raw, c := w.quote(b), w.collateral(b)
	for b.Loop() {
		q, err := Parse(raw)
		require.NoError(b, err)
		_, err = q.Verify(c, Options{At: w.now, Root: w.root.cert})
		require.NoError(b, err)
	}
}
