// Package simulated makes quotes as an SGX platform does, and what Intel would publish of it, under a root of its own:
// for tests, and for what runs without hardware. Nothing that it signs is worth anything.
package simulated

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
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
	"time"

	"github.com/cconvert/cconvert/pkg/sgx/quote"
)

// Authority is a certificate with its key.
type Authority struct {
	Certificate *x509.Certificate
	Key         *ecdsa.PrivateKey
}

// Platform is a made-up machine with all that vouches for it. Whoever tests what can be wrong with a machine changes
// its fields.
type Platform struct {
	Root, CA, PCK, TCB Authority
	Attestation        *ecdsa.PrivateKey
	// Report and QE are report bodies (SDM 3D, "REPORT"): of the enclave, and of the quoting enclave, whose report
	// data Bind sets.
	Report, QE [reportSize]byte
	Auth       []byte
	Version    uint16
	// Levels and QELevels are the elements of tcbLevels, as JSON.
	Levels, QELevels string
	FMSPC, ID, QEID  string
	Revoked          []*x509.Certificate
	// SignReport, SignQE and SignInfo sign in the place of Attestation, PCK and TCB; nil: these do.
	SignReport, SignQE *ecdsa.PrivateKey
	SignInfo           *Authority
	// Issued is when what is published was; it is current for Lifetime.
	Issued   time.Time
	Lifetime time.Duration
}

// Sizes in bytes, and numbers of a quote (Intel, "SGX ECDSA Quote Library Reference", appendix A.4).
const (
	headerSize   = 48
	reportSize   = 384
	half         = 32 // of a signature, or a key
	components   = 16
	keyECDSAP256 = 2
	typeChain    = 5
	typeQEReport = 6
	vendor       = "939a7233f79c4ca9940a0db3957f0607"
	qeSigner     = "8c4f5775d796503e96137f77c68a829a0056ac8ded70140b081b094490c57bff"
)

// Offsets in a report body.
const (
	offsetMiscSelect = 16
	offsetAttributes = 48
	offsetXFRM       = 56
	offsetMREnclave  = 64
	offsetMRSigner   = 128
	offsetProdID     = 256
	offsetSVN        = 258
	offsetData       = 320
)

// oidSGX is the extension of a PCK certificate that says what the platform is.
var oidSGX = asn1.ObjectIdentifier{1, 2, 840, 113741, 1, 13, 1}

var le = binary.LittleEndian

// New makes a platform, all of whose keys and certificates follow from the seed: two of one seed are the same. What
// Intel would say of it is issued at a time, and current for a month.
func New(seed string, issued time.Time) (*Platform, error) {
	p := &Platform{
		Version: 3, FMSPC: "00906EA10000", ID: "SGX", QEID: "QE", Issued: issued.UTC(), Lifetime: 30 * 24 * time.Hour,
		Levels: Level(5, 10, quote.UpToDate) + "," + Level(3, 9, quote.OutOfDate),
		QELevels: `{"tcb":{"isvsvn":8},"tcbDate":"2026-01-01T00:00:00Z","tcbStatus":"UpToDate"},` +
			`{"tcb":{"isvsvn":6},"tcbDate":"2024-01-01T00:00:00Z","tcbStatus":"OutOfDate","advisoryIDs":["Q"]},` +
			`{"tcb":{"isvsvn":2},"tcbDate":"2020-01-01T00:00:00Z","tcbStatus":"Revoked"}`,
	}
	extension, err := Extension(5, 10)
	if err != nil {
		return nil, err
	}
	for _, c := range []struct {
		to    *Authority
		name  string
		ca    bool
		by    *Authority
		extra []pkix.Extension
	}{
		{&p.Root, "Intel SGX Root CA", true, nil, nil},
		{&p.CA, "Intel SGX PCK Platform CA", true, &p.Root, nil},
		{&p.PCK, "Intel SGX PCK Certificate", false, &p.CA, []pkix.Extension{extension}},
		{&p.TCB, "Intel SGX TCB Signing", false, &p.Root, nil},
	} {
		if *c.to, err = Issue(seed, c.name, c.ca, c.by, c.extra...); err != nil {
			return nil, err
		}
	}
	if p.Attestation, err = Key(seed, "attestation key"); err != nil {
		return nil, err
	}
	for i := range half {
		p.Auth = append(p.Auth, byte(i))
	}
	signer, err := hex.DecodeString(qeSigner)
	if err != nil {
		return nil, err
	}
	le.PutUint64(p.Report[offsetAttributes:], 0x5) // INIT, MODE64BIT
	le.PutUint64(p.QE[offsetAttributes:], 0x15)    // and PROVISIONKEY
	le.PutUint64(p.QE[offsetXFRM:], 0xe7)
	copy(p.QE[offsetMRSigner:], signer)
	le.PutUint16(p.QE[offsetProdID:], 1)
	le.PutUint16(p.QE[offsetSVN:], 8)
	return p, p.Bind()
}

// Key makes a key of P-256 that follows from a seed and a name.
func Key(seed, name string) (*ecdsa.PrivateKey, error) {
	sum := sha256.Sum256([]byte(seed + "\x00" + name))
	sum[0] = 0 // below the order of the group
	return ecdsa.ParseRawPrivateKey(elliptic.P256(), sum[:])
}

// Issue makes a certificate by an issuer, or by itself if that is nil.
func Issue(seed, name string, ca bool, by *Authority, extra ...pkix.Extension) (a Authority, err error) {
	if a.Key, err = Key(seed, name); err != nil {
		return a, err
	}
	serial := sha256.Sum256([]byte(seed + "\x00serial\x00" + name))
	template := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial[:8]), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Unix(1_500_000_000, 0), NotAfter: time.Unix(2_500_000_000, 0), IsCA: ca,
		BasicConstraintsValid: true, ExtraExtensions: extra, KeyUsage: x509.KeyUsageDigitalSignature,
	}
	if ca {
		template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	}
	parent, key := template, a.Key
	if by != nil {
		parent, key = by.Certificate, by.Key
	}
	// Without a source of randomness, signatures are deterministic (RFC 6979).
	der, err := x509.CreateCertificate(nil, template, parent, &a.Key.PublicKey, key)
	if err != nil {
		return a, fmt.Errorf("making the certificate %q: %w", name, err)
	}
	a.Certificate, err = x509.ParseCertificate(der)
	return a, err
}

// Extension says what a platform is: the same version of each component, and that of its provisioning enclave.
func Extension(svn, pcesvn int) (e pkix.Extension, err error) {
	type attribute struct {
		ID    asn1.ObjectIdentifier
		Value asn1.RawValue
	}
	raw := func(v any) asn1.RawValue {
		b, marshalErr := asn1.Marshal(v)
		if marshalErr != nil && err == nil {
			err = marshalErr
		}
		return asn1.RawValue{FullBytes: b}
	}
	below := func(id asn1.ObjectIdentifier, n int) asn1.ObjectIdentifier { return append(slices.Clone(id), n) }
	tcb := below(oidSGX, 2)
	var list []attribute
	for i := range components {
		list = append(list, attribute{below(tcb, i+1), raw(svn)})
	}
	list = append(list, attribute{below(tcb, components+1), raw(pcesvn)},
		attribute{below(tcb, components+2), raw(make([]byte, 16))})
	value := raw([]attribute{
		{below(oidSGX, 1), raw(make([]byte, 16))}, {tcb, raw(list)}, {below(oidSGX, 3), raw([]byte{0, 0})},
		{below(oidSGX, 4), raw([]byte{0, 0x90, 0x6e, 0xa1, 0, 0})}, {below(oidSGX, 5), raw(asn1.Enumerated(0))},
	})
	return pkix.Extension{Id: oidSGX, Value: value.FullBytes}, err
}

// Level is an element of tcbLevels: platforms with at least these versions.
func Level(svn, pcesvn int, s quote.Status) string {
	list := strings.TrimSuffix(strings.Repeat(fmt.Sprintf(`{"svn":%d},`, svn), components), ",")
	return fmt.Sprintf(`{"tcb":{"sgxtcbcomponents":[%s],"pcesvn":%d},"tcbDate":"2026-01-01T00:00:00Z","tcbStatus":%q,`+
		`"advisoryIDs":["P%d"]}`, list, pcesvn, s, svn)
}

// Set has the platform report an enclave.
func (p *Platform) Set(r *quote.Report) {
	le.PutUint32(p.Report[offsetMiscSelect:], r.MiscSelect)
	le.PutUint64(p.Report[offsetAttributes:], r.Attributes.Flags)
	le.PutUint64(p.Report[offsetXFRM:], r.Attributes.XFRM)
	copy(p.Report[offsetMREnclave:], r.MREnclave[:])
	copy(p.Report[offsetMRSigner:], r.MRSigner[:])
	le.PutUint16(p.Report[offsetProdID:], r.ISVProdID)
	le.PutUint16(p.Report[offsetSVN:], r.ISVSVN)
	copy(p.Report[offsetData:], r.Data[:])
}

// point is the attestation key, x‖y.
func (p *Platform) point() ([]byte, error) {
	b, err := p.Attestation.PublicKey.Bytes()
	if err != nil {
		return nil, err
	}
	return b[1:], nil
}

// Bind has the quoting enclave's report name its key.
func (p *Platform) Bind() error {
	key, err := p.point()
	if err != nil {
		return err
	}
	sum := sha256.Sum256(slices.Concat(key, p.Auth))
	copy(p.QE[offsetData:], sum[:])
	return nil
}

// sign returns a signature r‖s.
func sign(key *ecdsa.PrivateKey, message []byte) ([]byte, error) {
	sum := sha256.Sum256(message)
	der, err := key.Sign(nil, sum[:], crypto.SHA256)
	if err != nil {
		return nil, err
	}
	var s struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &s); err != nil {
		return nil, err
	}
	b := make([]byte, 2*half)
	s.R.FillBytes(b[:half])
	s.S.FillBytes(b[half:])
	return b, nil
}

func pemOf(list ...Authority) (text []byte) {
	for _, a := range list {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Certificate.Raw})...)
	}
	return text
}

// Quote makes a quote of the enclave in Report.
func (p *Platform) Quote() ([]byte, error) {
	header := make([]byte, headerSize)
	le.PutUint16(header, p.Version)
	le.PutUint16(header[2:], keyECDSAP256)
	if _, err := hex.Decode(header[12:], []byte(vendor)); err != nil {
		return nil, err
	}
	signed := slices.Concat(header, p.Report[:])
	by, qeBy := p.Attestation, p.PCK.Key
	if p.SignReport != nil {
		by = p.SignReport
	}
	if p.SignQE != nil {
		qeBy = p.SignQE
	}
	key, err := p.point()
	if err != nil {
		return nil, err
	}
	signature, err := sign(by, signed)
	if err != nil {
		return nil, err
	}
	qeSignature, err := sign(qeBy, p.QE[:])
	if err != nil {
		return nil, err
	}
	sized := func(kind uint16, b []byte) []byte {
		return append(le.AppendUint32(le.AppendUint16(nil, kind), uint32(len(b))), b...)
	}
	qe := slices.Concat(p.QE[:], qeSignature, le.AppendUint16(nil, uint16(len(p.Auth))), p.Auth,
		sized(typeChain, append(pemOf(p.PCK, p.CA, p.Root), 0)))
	if p.Version == 4 {
		qe = sized(typeQEReport, qe)
	}
	data := slices.Concat(signature, key, qe)
	return slices.Concat(signed, le.AppendUint32(nil, uint32(len(data))), data), nil
}

func (p *Platform) crl(by Authority) ([]byte, error) {
	list := &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: p.Issued, NextUpdate: p.Issued.Add(p.Lifetime),
	}
	for _, c := range p.Revoked {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: p.Issued})
	}
	return x509.CreateRevocationList(nil, list, by.Certificate, by.Key)
}

// Collateral is what Intel would publish of the platform.
func (p *Platform) Collateral() (*quote.Collateral, error) {
	times := fmt.Sprintf(`"issueDate":%q,"nextUpdate":%q,"tcbEvaluationDataNumber":17`, p.Issued.Format(time.RFC3339),
		p.Issued.Add(p.Lifetime).Format(time.RFC3339))
	info := fmt.Sprintf(`{"id":%q,"version":3,%s,"fmspc":%q,"pceId":"0000","tcbType":0,"tcbLevels":[%s]}`, p.ID, times,
		p.FMSPC, p.Levels)
	qe := fmt.Sprintf(`{"id":%q,"version":2,%s,"miscselect":"00000000","miscselectMask":"FFFFFFFF","attributes":`+
		`"11000000000000000000000000000000","attributesMask":"FBFFFFFFFFFFFFFF0000000000000000","mrsigner":%q,`+
		`"isvprodid":1,"tcbLevels":[%s]}`, p.QEID, times, strings.ToUpper(qeSigner), p.QELevels)
	return p.Sign([]byte(info), []byte(qe))
}

// Sign makes collateral of other values of tcbInfo and enclaveIdentity.
func (p *Platform) Sign(info, qe []byte) (*quote.Collateral, error) {
	by := p.TCB
	if p.SignInfo != nil {
		by = *p.SignInfo
	}
	c := &quote.Collateral{
		TCBInfo: info, TCBInfoChain: pemOf(by, p.Root), QEIdentity: qe, QEIdentityChain: pemOf(p.TCB, p.Root),
	}
	var err error
	if c.TCBInfoSignature, err = sign(by.Key, info); err != nil {
		return nil, err
	}
	if c.QEIdentitySignature, err = sign(p.TCB.Key, qe); err != nil {
		return nil, err
	}
	if c.PCKCRL, err = p.crl(p.CA); err != nil {
		return nil, err
	}
	c.RootCRL, err = p.crl(p.Root)
	return c, err
}
