// Package quote reads and verifies the quotes by which an SGX CPU tells a stranger what runs in an enclave: DCAP quotes
// of versions 3 and 4, signed with ECDSA (Intel, "SGX ECDSA Quote Library Reference", appendix A.4).
//
// [Parse] reads one, [Quote.Verify] checks its signatures up to Intel's root, and how current the platform is by the
// collateral that Intel publishes. [Result.Check] then compares the enclave with what is expected. Nothing is fetched.
package quote

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/cconvert/cconvert/pkg/sgx"
)

// Names of checks, by which an Error says what is wrong.
const (
	CheckFormat     = "format"      // lengths, version, kind of key
	CheckChain      = "chain"       // certificates up to Intel's root
	CheckQEReport   = "qe-report"   // the quoting enclave's report is signed by the platform's key
	CheckKey        = "key"         // the attestation key is the quoting enclave's
	CheckSignature  = "signature"   // the report is signed by the attestation key
	CheckTCBInfo    = "tcb-info"    // what Intel says of platforms of this kind
	CheckQEIdentity = "qe-identity" // what Intel says of the quoting enclave
	CheckCRL        = "crl"         // no certificate is revoked
	CheckPlatform   = "platform"    // how current the platform is
	CheckQE         = "qe"          // the quoting enclave is Intel's, and how current it is
	CheckStatus     = "status"      // the platform's state is an accepted one
	CheckEnclave    = "enclave"     // the enclave is the expected one
)

// Error says which check failed, and why.
type Error struct {
	Check string
	Err   error
}

func (e *Error) Error() string { return e.Check + ": " + e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

func failed(check, format string, args ...any) error {
	return &Error{check, fmt.Errorf(format, args...)}
}

// ErrQuote says that something is no quote that can be verified here.
var ErrQuote = errors.New("not a quote of an SGX enclave that can be verified")

// Attributes of enclaves (SDM 3D, "ATTRIBUTES").
const (
	flagProvisionKey = 0x10
	flagEInitToken   = 0x20
)

// Report is what the CPU says of an enclave (SDM 3D, "REPORT").
type Report struct {
	CPUSVN     [16]byte
	MiscSelect uint32
	ExtProdID  [16]byte
	Attributes sgx.Attributes
	MREnclave  sgx.Measurement
	MRSigner   sgx.Measurement
	ConfigID   [64]byte
	ISVProdID  uint16
	ISVSVN     uint16
	ConfigSVN  uint16
	FamilyID   [16]byte
	// Data is the enclave's own, such as the digest of a key.
	Data [64]byte
}

// Debug reports whether a debugger can read the enclave.
func (r *Report) Debug() bool { return r.Attributes.Flags&sgx.FlagDebug != 0 }

// Compared are the attributes as EINIT has compared them with those of the SIGSTRUCT, before it sets INIT (SDM 3D,
// "EINIT").
func (r *Report) Compared() sgx.Attributes {
	return sgx.Attributes{Flags: r.Attributes.Flags &^ sgx.FlagInit, XFRM: r.Attributes.XFRM}
}

// Quote is a report with the signatures that vouch for it. Nothing of it is verified.
type Quote struct {
	Version uint16
	Report  Report
	// QE is the report of the quoting enclave, which made the quote.
	QE Report
	// UserData has an identifier of the platform in its first 16 bytes.
	UserData [20]byte
	// Certification is how the platform's key is named (appendix A.4.9); 5 is a chain of certificates.
	Certification uint16

	signed, signature, key        []byte
	qeReport, qeSignature, qeAuth []byte
	chain                         []byte // PEM
}

// Sizes in bytes.
const (
	headerSize = 48
	reportSize = 384
	pairSize   = 64 // of a signature, or a key
	maxQuote   = 64 << 10
	minAuth    = pairSize + pairSize + reportSize + pairSize + 2
)

const (
	keyECDSAP256   = 2
	teeSGX         = 0
	typeQEReport   = 6 // of certification data, in version 4
	typeChain      = 5
	intelQE        = "939a7233f79c4ca9940a0db3957f0607"
	reservedVendor = 12
)

var le = binary.LittleEndian

// Parse reads a quote, behind which may be zeros: buffers are padded.
func Parse(b []byte) (*Quote, error) {
	bad := func(format string, args ...any) error {
		return &Error{CheckFormat, fmt.Errorf("%w: %w", ErrQuote, fmt.Errorf(format, args...))}
	}
	if len(b) > maxQuote {
		return nil, bad("it has more than %d bytes", maxQuote)
	}
	if len(b) < headerSize+reportSize+4 {
		return nil, bad("it has %d bytes", len(b))
	}
	q := &Quote{Version: le.Uint16(b), signed: b[:headerSize+reportSize]}
	switch kind, tee := le.Uint16(b[2:]), le.Uint32(b[4:]); {
	case q.Version != 3 && q.Version != 4:
		return nil, bad("its version is %d", q.Version)
	case kind != keyECDSAP256:
		return nil, bad("its key is of the type %d, not ECDSA with P-256", kind)
	case q.Version == 4 && tee != teeSGX:
		return nil, bad("it is of another kind of machine than SGX, %#x", tee)
	case hex.EncodeToString(b[reservedVendor:28]) != intelQE:
		return nil, bad("its quoting enclave is of another vendor than Intel, %x", b[reservedVendor:28])
	}
	copy(q.UserData[:], b[28:])
	q.Report = parseReport(b[headerSize:])
	rest := b[headerSize+reportSize:]
	n := int64(le.Uint32(rest))
	if n > int64(len(rest)-4) {
		return nil, bad("its signature is said to have %d bytes, and %d are there", n, len(rest)-4)
	}
	if len(bytes.Trim(rest[4+n:], "\x00")) > 0 {
		return nil, bad("something follows it")
	}
	if err := q.parseSignature(rest[4 : 4+n]); err != nil {
		return nil, bad("%w", err)
	}
	return q, nil
}

// parseSignature reads what is behind the report.
func (q *Quote) parseSignature(b []byte) error {
	if len(b) < minAuth {
		return fmt.Errorf("its signature has %d bytes", len(b))
	}
	q.signature, q.key, b = b[:pairSize], b[pairSize:2*pairSize], b[2*pairSize:]
	if q.Version == 4 {
		inside, kind, err := certification(b)
		if err != nil {
			return err
		}
		if kind != typeQEReport || len(inside) < reportSize+pairSize+2 {
			return fmt.Errorf("its certification data is of the type %d, not %d", kind, typeQEReport)
		}
		b = inside
	}
	q.qeReport, q.qeSignature, b = b[:reportSize], b[reportSize:][:pairSize], b[reportSize+pairSize:]
	q.QE = parseReport(q.qeReport)
	n := int(le.Uint16(b))
	if n > len(b)-2 {
		return errors.New("the quoting enclave's data is cut off")
	}
	q.qeAuth, b = b[2:2+n], b[2+n:]
	data, kind, err := certification(b)
	if err != nil {
		return err
	}
	if q.Certification = kind; kind == typeChain {
		q.chain = bytes.TrimRight(data, "\x00")
	}
	return nil
}

// certification reads certification data (appendix A.4.9), behind which nothing may be.
func certification(b []byte) (data []byte, kind uint16, err error) {
	if len(b) < 6 {
		return nil, 0, errors.New("its certification data is cut off")
	}
	kind = le.Uint16(b)
	if n := int64(le.Uint32(b[2:])); n != int64(len(b)-6) {
		return nil, 0, fmt.Errorf("its certification data is said to have %d bytes, and %d are there", n, len(b)-6)
	}
	return b[6:], kind, nil
}

// parseReport reads a report body of 384 bytes.
func parseReport(b []byte) (r Report) {
	copy(r.CPUSVN[:], b)
	r.MiscSelect = le.Uint32(b[16:])
	copy(r.ExtProdID[:], b[32:])
	r.Attributes = sgx.Attributes{Flags: le.Uint64(b[48:]), XFRM: le.Uint64(b[56:])}
	copy(r.MREnclave[:], b[64:])
	copy(r.MRSigner[:], b[128:])
	copy(r.ConfigID[:], b[192:])
	r.ISVProdID, r.ISVSVN, r.ConfigSVN = le.Uint16(b[256:]), le.Uint16(b[258:]), le.Uint16(b[260:])
	copy(r.FamilyID[:], b[304:])
	copy(r.Data[:], b[320:])
	return r
}
