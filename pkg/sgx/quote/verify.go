package quote

import (
	"bytes"
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"
)

// Options say how a quote is verified.
type Options struct {
	// At is the time for which it is verified.
	At time.Time
	// Root is in the place of Intel's, for tests; nil: it is Intel's.
	Root *x509.Certificate
	// MinEvaluation is the lowest number of Intel's evaluations that is accepted: a host can hold back newer ones until
	// the older ones expire.
	MinEvaluation int
}

// Result is a quote that is authentic, and what Intel says of its platform.
type Result struct {
	Quote *Quote
	// Status is the platform's, with its quoting enclave's.
	Status     Status
	QEStatus   Status
	Advisories []string
	// TCBDate is that of the platform's level.
	TCBDate time.Time
	// Platform is what its certificate says, and CA who issued that.
	Platform Platform
	CA       string
	// Evaluation is the number of Intel's evaluation, and Expires when the first part of the collateral does.
	Evaluation int
	Expires    time.Time
}

// tcbInfo is what Intel says of platforms of one kind (PCS API, "Get SGX TCB Info", version 3 of the structure).
type tcbInfo struct {
	ID         string          `json:"id"`
	Version    int             `json:"version"`
	IssueDate  time.Time       `json:"issueDate"`
	NextUpdate time.Time       `json:"nextUpdate"`
	FMSPC      string          `json:"fmspc"`
	PCEID      string          `json:"pceId"`
	Type       int             `json:"tcbType"`
	Evaluation int             `json:"tcbEvaluationDataNumber"`
	Levels     []platformLevel `json:"tcbLevels"`
}

// platformLevel is how Intel judges platforms of at least these versions.
type platformLevel struct {
	TCB struct {
		Components []struct {
			SVN int `json:"svn"`
		} `json:"sgxtcbcomponents"`
		PCESVN int `json:"pcesvn"`
	} `json:"tcb"`
	level
}

// compare is positive if another level is of lower versions.
func (l platformLevel) compare(other platformLevel) int {
	for i := range l.TCB.Components {
		if c := cmp.Compare(l.TCB.Components[i].SVN, other.TCB.Components[i].SVN); c != 0 {
			return c
		}
	}
	return cmp.Compare(l.TCB.PCESVN, other.TCB.PCESVN)
}

// level is how Intel judges versions.
type level struct {
	Date       time.Time `json:"tcbDate"`
	Status     Status    `json:"tcbStatus"`
	Advisories []string  `json:"advisoryIDs"`
}

// identity is what Intel says of its quoting enclave (PCS API, "Get Quoting Enclave Identity", version 2).
type identity struct {
	ID             string    `json:"id"`
	Version        int       `json:"version"`
	IssueDate      time.Time `json:"issueDate"`
	NextUpdate     time.Time `json:"nextUpdate"`
	Evaluation     int       `json:"tcbEvaluationDataNumber"`
	MiscSelect     string    `json:"miscselect"`
	MiscMask       string    `json:"miscselectMask"`
	Attributes     string    `json:"attributes"`
	AttributesMask string    `json:"attributesMask"`
	MRSigner       string    `json:"mrsigner"`
	ISVProdID      uint16    `json:"isvprodid"`
	Levels         []qeLevel `json:"tcbLevels"`
}

// qeLevel is how Intel judges quoting enclaves of at least this version.
type qeLevel struct {
	TCB struct {
		ISVSVN uint16 `json:"isvsvn"`
	} `json:"tcb"`
	level
}

// Verify checks that a quote is authentic, and finds what Intel says of its platform. The error is an Error. Whether
// the platform and the enclave are accepted is for Result.Check.
func (q *Quote) Verify(c *Collateral, o Options) (*Result, error) {
	pck, ca, root, err := q.certificates(o)
	if err != nil {
		return nil, &Error{CheckChain, err}
	}
	if err := q.signatures(pck); err != nil {
		return nil, err
	}
	r := &Result{Quote: q, CA: ca.Subject.CommonName}
	if r.Platform, err = parsePlatform(pck); err != nil {
		return nil, &Error{CheckChain, err}
	}
	var info tcbInfo
	tcbSigner, err := o.signed(c.TCBInfo, c.TCBInfoSignature, c.TCBInfoChain, &info)
	if err == nil {
		err = o.checkInfo(&info, r.Platform)
	}
	if err != nil {
		return nil, &Error{CheckTCBInfo, err}
	}
	var qe identity
	qeSigner, err := o.signed(c.QEIdentity, c.QEIdentitySignature, c.QEIdentityChain, &qe)
	if err == nil {
		err = o.checkIdentity(&qe)
	}
	if err != nil {
		return nil, &Error{CheckQEIdentity, err}
	}
	r.Evaluation, r.Expires = min(info.Evaluation, qe.Evaluation), earliest(info.NextUpdate, qe.NextUpdate)
	for _, list := range []struct {
		text    []byte
		issuer  *x509.Certificate
		against []*x509.Certificate
	}{
		{c.RootCRL, root, []*x509.Certificate{ca, tcbSigner, qeSigner}},
		{c.PCKCRL, ca, []*x509.Certificate{pck}},
	} {
		next, err := o.checkCRL(list.text, list.issuer, list.against...)
		if err != nil {
			return nil, &Error{CheckCRL, err}
		}
		r.Expires = earliest(r.Expires, next)
	}
	platform, err := info.levelOf(r.Platform)
	if err != nil {
		return nil, &Error{CheckPlatform, err}
	}
	enclave, err := qe.levelOf(&q.QE, q.qeReport)
	if err != nil {
		return nil, &Error{CheckQE, err}
	}
	r.Status, r.QEStatus, r.TCBDate = converge(platform.Status, enclave.Status), enclave.Status, platform.Date
	r.Advisories = slices.Concat(platform.Advisories, enclave.Advisories)
	slices.Sort(r.Advisories)
	r.Advisories = slices.Compact(r.Advisories)
	return r, nil
}

// Authorities of platforms' certificates, as Intel's service names them.
const (
	Processor  = "processor"
	PlatformCA = "platform"
)

// Platform returns what the certificate in a quote says of its platform, and which authority it is by: with what
// collateral the quote can be verified. Nothing of it is verified. The error is an Error.
func (q *Quote) Platform() (p Platform, authority string, err error) {
	chain, err := q.parseChain()
	if err == nil && len(chain) < 2 {
		err = errors.New("the chain has no authority")
	}
	if err == nil {
		p, err = parsePlatform(chain[0])
	}
	if err != nil {
		return p, "", &Error{CheckChain, err}
	}
	if chain[1].Subject.CommonName == nameProcessor {
		return p, Processor, nil
	}
	return p, PlatformCA, nil
}

// Authentic verifies what needs no collateral: the chain up to the root, and the signatures. The error is an Error.
func (q *Quote) Authentic(o Options) error {
	pck, _, _, err := q.certificates(o)
	if err != nil {
		return &Error{CheckChain, err}
	}
	return q.signatures(pck)
}

// parseChain reads the certificates of the platform's key.
func (q *Quote) parseChain() ([]*x509.Certificate, error) {
	if q.Certification != typeChain {
		return nil, fmt.Errorf("the quote has no certificates, and names its platform's key by the type %d",
			q.Certification)
	}
	return parseChain(q.chain)
}

// certificates are those of the platform's key, of its authority, and the root.
func (q *Quote) certificates(o Options) (pck, ca, root *x509.Certificate, err error) {
	chain, err := q.parseChain()
	if err != nil {
		return nil, nil, nil, err
	}
	err = o.checkChain(chain, []string{namePCK}, []string{nameProcessor, namePlatform}, []string{nameRoot})
	if err != nil {
		return nil, nil, nil, err
	}
	return chain[0], chain[1], chain[2], nil
}

// signatures checks who vouches for whom: the platform's key for the quoting enclave, that for its attestation key, and
// this for the report.
func (q *Quote) signatures(pck *x509.Certificate) error {
	key, ok := pck.PublicKey.(*ecdsa.PublicKey)
	if !ok || !verifies(key, q.qeReport, q.qeSignature) {
		return failed(CheckQEReport, "the quoting enclave's report is not signed by the platform's key")
	}
	want := sha256.Sum256(slices.Concat(q.key, q.qeAuth))
	if !bytes.Equal(q.QE.Data[:], append(want[:], make([]byte, len(q.QE.Data)-len(want))...)) {
		return failed(CheckKey, "the key that signs the quote is not the quoting enclave's")
	}
	attestation, err := publicKey(q.key)
	if err != nil {
		return &Error{CheckKey, err}
	}
	if !verifies(attestation, q.signed, q.signature) {
		return failed(CheckSignature, "the report is not signed by the quoting enclave's key")
	}
	return nil
}

// publicKey reads a point of P-256, x‖y.
func publicKey(b []byte) (*ecdsa.PublicKey, error) {
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append([]byte{4}, b...))
	if err != nil {
		return nil, errors.New("the key that signs the quote is no point of P-256")
	}
	return key, nil
}

// verifies reports whether a signature r‖s of 64 bytes is one over a message.
func verifies(key *ecdsa.PublicKey, message, signature []byte) bool {
	if len(signature) != pairSize || key.Curve != elliptic.P256() {
		return false
	}
	sum := sha256.Sum256(message)
	r, s := new(big.Int).SetBytes(signature[:pairSize/2]), new(big.Int).SetBytes(signature[pairSize/2:])
	return ecdsa.Verify(key, sum[:], r, s)
}

// signed reads what Intel has signed, from its very bytes.
func (o Options) signed(text, signature, chain []byte, to any) (signer *x509.Certificate, err error) {
	list, err := parseChain(chain)
	if err != nil {
		return nil, fmt.Errorf("its signer: %w", err)
	}
	if err := o.checkChain(list, []string{nameTCB}, []string{nameRoot}); err != nil {
		return nil, fmt.Errorf("its signer: %w", err)
	}
	key, ok := list[0].PublicKey.(*ecdsa.PublicKey)
	if !ok || !verifies(key, text, signature) {
		return nil, errors.New("it is not signed by Intel")
	}
	if err := json.Unmarshal(text, to); err != nil {
		return nil, fmt.Errorf("reading it: %w", err)
	}
	return list[0], nil
}

func (o Options) checkTimes(issued, next time.Time, evaluation int) error {
	switch {
	case o.At.Before(issued) || o.At.After(next):
		return fmt.Errorf("it is of %s to %s", issued.Format(time.RFC3339), next.Format(time.RFC3339))
	case evaluation < o.MinEvaluation:
		return fmt.Errorf("it is of the evaluation %d, and %d is the lowest that is accepted", evaluation,
			o.MinEvaluation)
	}
	return nil
}

func (o Options) checkInfo(info *tcbInfo, p Platform) error {
	switch {
	case info.ID != "SGX" || info.Version != 3 || info.Type != 0:
		return fmt.Errorf("it is %q of the version %d and the type %d, not \"SGX\", 3 and 0", info.ID, info.Version,
			info.Type)
	case !strings.EqualFold(info.FMSPC, hex.EncodeToString(p.FMSPC[:])):
		return fmt.Errorf("it is about platforms %s, and this one is %x", info.FMSPC, p.FMSPC)
	case !strings.EqualFold(info.PCEID, hex.EncodeToString(p.PCEID[:])):
		return fmt.Errorf("it is about the provisioning enclave %s, and this one is %x", info.PCEID, p.PCEID)
	}
	for _, l := range info.Levels {
		if len(l.TCB.Components) != len(p.Components) {
			return fmt.Errorf("a level has %d components, not %d", len(l.TCB.Components), len(p.Components))
		}
	}
	return o.checkTimes(info.IssueDate, info.NextUpdate, info.Evaluation)
}

func (o Options) checkIdentity(qe *identity) error {
	if qe.ID != "QE" || qe.Version != 2 {
		return fmt.Errorf("it is %q of the version %d, not \"QE\" and 2", qe.ID, qe.Version)
	}
	return o.checkTimes(qe.IssueDate, qe.NextUpdate, qe.Evaluation)
}

// levelOf is the highest level whose versions the platform has all.
func (info *tcbInfo) levelOf(p Platform) (level, error) {
	slices.SortStableFunc(info.Levels, func(a, b platformLevel) int { return b.compare(a) })
	for _, l := range info.Levels {
		has := p.PCESVN >= l.TCB.PCESVN
		for i, c := range l.TCB.Components {
			has = has && p.Components[i] >= c.SVN
		}
		if has {
			return l.level, known(l.Status)
		}
	}
	return level{}, errNoLevel
}

// known refuses a level without a status.
func known(s Status) error {
	if !slices.Contains(Statuses, s) {
		return errors.New("the level has no status")
	}
	return nil
}

// levelOf compares a quoting enclave with Intel's, and finds the level of its version.
func (qe *identity) levelOf(r *Report, raw []byte) (level, error) {
	for _, m := range []struct {
		what       string
		got        []byte
		want, mask string
	}{
		{"MISCSELECT", raw[16:20], qe.MiscSelect, qe.MiscMask},
		{"attributes", raw[48:64], qe.Attributes, qe.AttributesMask},
		{"MRSIGNER", raw[128:160], qe.MRSigner, strings.Repeat("ff", 32)},
	} {
		want, err := hex.DecodeString(m.want)
		mask, maskErr := hex.DecodeString(m.mask)
		if err != nil || maskErr != nil || len(want) != len(m.got) || len(mask) != len(m.got) {
			return level{}, fmt.Errorf("the %s of Intel's quoting enclave cannot be read", m.what)
		}
		for i := range mask {
			if m.got[i]&mask[i] != want[i]&mask[i] {
				return level{}, fmt.Errorf("the quoting enclave has the %s %x, Intel's has %s", m.what, m.got, m.want)
			}
		}
	}
	if r.ISVProdID != qe.ISVProdID {
		return level{}, fmt.Errorf("the quoting enclave is the product %d, Intel's is %d", r.ISVProdID, qe.ISVProdID)
	}
	slices.SortStableFunc(qe.Levels, func(a, b qeLevel) int { return cmp.Compare(b.TCB.ISVSVN, a.TCB.ISVSVN) })
	for _, l := range qe.Levels {
		if r.ISVSVN >= l.TCB.ISVSVN {
			return l.level, known(l.Status)
		}
	}
	return level{}, errors.New("the quoting enclave is older than all levels that Intel lists")
}

func earliest(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
