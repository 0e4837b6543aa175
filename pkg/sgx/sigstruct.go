package sgx

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"
)

// SigStructSize is the size of a SIGSTRUCT in bytes.
const SigStructSize = 1808

// Offsets in a SIGSTRUCT (SDM 3D, SIGSTRUCT).
const (
	offHeader     = 0x000
	offVendor     = 0x010
	offDate       = 0x014
	offHeader2    = 0x018
	offSWDefined  = 0x028
	offModulus    = 0x080
	offExponent   = 0x200
	offSignature  = 0x204
	offMiscSelect = 0x384
	offMiscMask   = 0x388
	offFamilyID   = 0x390
	offAttributes = 0x3a0
	offAttrMask   = 0x3b0
	offMREnclave  = 0x3c0
	offExtProdID  = 0x3f0
	offISVProdID  = 0x400
	offISVSVN     = 0x402
	offReserved4  = 0x404
	offQ1         = 0x410
	offQ2         = 0x590
)

var (
	header  = []byte{6, 0, 0, 0, 0xe1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0}
	header2 = []byte{1, 1, 0, 0, 0x60, 0, 0, 0, 0x60, 0, 0, 0, 1, 0, 0, 0}
)

// Attribute flags (SDM 3D, ATTRIBUTES).
const (
	FlagInit     uint64 = 0x1 // set by EINIT
	FlagDebug    uint64 = 0x2
	FlagMode64   uint64 = 0x4
	FlagKSS      uint64 = 0x80 // key separation and sharing: family and extended product
	MiscExInfo   uint32 = 0x1  // MISCSELECT: page faults are reported inside the enclave
	XFRMLegacy   uint64 = 0x3  // x87 and SSE state, always required
	FlagsMaskAll uint64 = ^uint64(0)
	MiscMaskAll  uint32 = ^uint32(0)
)

// Attributes are the enclave's ATTRIBUTES: flags, and the extended CPU state it may use.
type Attributes struct {
	Flags uint64
	XFRM  uint64
}

// Date is the build date that a SIGSTRUCT carries. The zero Date is valid; reproducible builds use it.
type Date struct{ Year, Month, Day int }

// ParseDate reads YYYY-MM-DD; 0000-00-00 is the zero Date.
func ParseDate(s string) (Date, error) {
	if s == (Date{}).String() {
		return Date{}, nil
	}
	t, err := time.Parse(time.DateOnly, s)
	if err != nil {
		return Date{}, fmt.Errorf("date %q is not of the form YYYY-MM-DD", s)
	}
	return Date{t.Year(), int(t.Month()), t.Day()}, nil
}

// String is the form YYYY-MM-DD.
func (d Date) String() string { return fmt.Sprintf("%04d-%02d-%02d", d.Year, d.Month, d.Day) }

func bcd(n int) byte { return byte(n/10%10<<4 | n%10) }

func unBCD(b byte) int { return int(b>>4)*10 + int(b&15) }

// SigStruct is an enclave's signature structure. The fields up to ISVSVN are chosen by the signer and
// covered by the signature; [SigStruct.Attach] adds the rest.
type SigStruct struct {
	Vendor         uint32
	Date           Date
	SWDefined      uint32
	MiscSelect     uint32
	MiscMask       uint32
	Attributes     Attributes
	AttributesMask Attributes
	MREnclave      Measurement
	ISVProdID      uint16
	ISVSVN         uint16
	// FamilyID and ExtProdID are the signer's own, of enclaves with FlagKSS alone.
	FamilyID, ExtProdID [16]byte

	key       *rsa.PublicKey
	signature []byte // big endian, as RSA implementations give it
}

// Debug reports whether the enclave may be read by a debugger, and so keeps no secrets.
func (s *SigStruct) Debug() bool { return s.Attributes.Flags&FlagDebug != 0 }

// MayDebug reports whether the CPU would start the enclave as one that a debugger may read: whether DEBUG is set, or
// not among the attributes that the signature decides on (SDM 3D, EINIT). The quote of such an enclave tells how it
// runs.
func (s *SigStruct) MayDebug() bool { return s.Debug() || s.AttributesMask.Flags&FlagDebug == 0 }

// MRSigner is the identity of the key that signed; zero before Attach.
func (s *SigStruct) MRSigner() Measurement {
	if s.key == nil {
		return Measurement{}
	}
	return MRSigner(s.key)
}

// Signature returns the key and the signature, in RSA's usual big-endian form; nil before Attach.
func (s *SigStruct) Signature() (*rsa.PublicKey, []byte) { return s.key, s.signature }

// MRSigner is the SHA-256 of the key's modulus, little endian, as SIGSTRUCT stores it.
func MRSigner(key *rsa.PublicKey) Measurement { return sha256.Sum256(littleEndian(key.N)) }

// unsigned renders all that the signer chooses; modulus and signature stay zero.
func (s *SigStruct) unsigned() []byte {
	b := make([]byte, SigStructSize)
	le := binary.LittleEndian
	copy(b[offHeader:], header)
	le.PutUint32(b[offVendor:], s.Vendor)
	copy(b[offDate:], []byte{bcd(s.Date.Day), bcd(s.Date.Month), bcd(s.Date.Year % 100), bcd(s.Date.Year / 100)})
	copy(b[offHeader2:], header2)
	le.PutUint32(b[offSWDefined:], s.SWDefined)
	le.PutUint32(b[offMiscSelect:], s.MiscSelect)
	le.PutUint32(b[offMiscMask:], s.MiscMask)
	le.PutUint64(b[offAttributes:], s.Attributes.Flags)
	le.PutUint64(b[offAttributes+8:], s.Attributes.XFRM)
	le.PutUint64(b[offAttrMask:], s.AttributesMask.Flags)
	le.PutUint64(b[offAttrMask+8:], s.AttributesMask.XFRM)
	copy(b[offMREnclave:], s.MREnclave[:])
	copy(b[offFamilyID:], s.FamilyID[:])
	copy(b[offExtProdID:], s.ExtProdID[:])
	le.PutUint16(b[offISVProdID:], s.ISVProdID)
	le.PutUint16(b[offISVSVN:], s.ISVSVN)
	return b
}

// toBeSigned picks the two parts of a SIGSTRUCT that the signature covers (SDM 3D, SIGSTRUCT).
func toBeSigned(b []byte) []byte {
	return slices.Concat(b[:offModulus], b[offMiscSelect:offReserved4])
}

// ToBeSigned returns the 256 bytes that the signature covers: RSA-3072 with exponent 3, PKCS#1 v1.5,
// SHA-256.
func (s *SigStruct) ToBeSigned() []byte { return toBeSigned(s.unsigned()) }

// ParseUnsigned reads what Bytes gave before Attach.
func ParseUnsigned(b []byte) (*SigStruct, error) {
	if len(b) != SigStructSize {
		return nil, fmt.Errorf("%d bytes are not a SIGSTRUCT", len(b))
	}
	s := parseFields(b)
	if !bytes.Equal(s.Bytes(), b) {
		return nil, errors.New("it is not a SIGSTRUCT without key and signature")
	}
	return s, nil
}

// ParseToBeSigned reads what ToBeSigned gave, so that whoever signs can see what it is. Bytes that no structure
// gives are an error.
func ParseToBeSigned(b []byte) (*SigStruct, error) {
	if len(b) != offModulus+offReserved4-offMiscSelect {
		return nil, fmt.Errorf("%d bytes are not what a SIGSTRUCT's signature covers", len(b))
	}
	whole := make([]byte, SigStructSize)
	copy(whole, b[:offModulus])
	copy(whole[offMiscSelect:], b[offModulus:])
	s := parseFields(whole)
	if !bytes.Equal(s.ToBeSigned(), b) {
		return nil,
			errors.New("these are not the bytes that a SIGSTRUCT's signature covers: they have other headers, " +
				"or reserved bytes are not zero")
	}
	return s, nil
}

// ErrSignature says that a signature is not one of an enclave by a key.
var ErrSignature = errors.New("signature does not belong to this enclave and key")

// Attach completes the structure with a signature over ToBeSigned, in RSA's usual big-endian form,
// after checking it against the key.
func (s *SigStruct) Attach(key *rsa.PublicKey, signature []byte) error {
	if err := CheckPublicKey(key); err != nil {
		return err
	}
	digest := sha256.Sum256(s.ToBeSigned())
	if err := rsa.VerifyPKCS1v15(key, crypto.SHA256, digest[:], signature); err != nil {
		return ErrSignature
	}
	s.key, s.signature = key, bytes.Clone(signature)
	return nil
}

// Bytes is the SIGSTRUCT as the CPU reads it; without Attach, signature and key are zero.
func (s *SigStruct) Bytes() []byte {
	b := s.unsigned()
	if s.key == nil {
		return b
	}
	sig := new(big.Int).SetBytes(s.signature)
	q1, q2 := quotients(sig, s.key.N)
	copy(b[offModulus:], littleEndian(s.key.N))
	binary.LittleEndian.PutUint32(b[offExponent:], publicExponent)
	copy(b[offSignature:], littleEndian(sig))
	copy(b[offQ1:], littleEndian(q1))
	copy(b[offQ2:], littleEndian(q2))
	return b
}

// quotients are the two values that spare the CPU the divisions: Q1 = ⌊S²/N⌋ and
// Q2 = ⌊(S² mod N)·S/N⌋ (SDM 3D, SIGSTRUCT).
func quotients(s, n *big.Int) (q1, q2 *big.Int) {
	q1, r := new(big.Int).QuoRem(new(big.Int).Mul(s, s), n, new(big.Int))
	q2 = new(big.Int).Quo(r.Mul(r, s), n)
	return q1, q2
}

func littleEndian(n *big.Int) []byte {
	b := n.FillBytes(make([]byte, keyBytes))
	slices.Reverse(b)
	return b
}

func fromLittleEndian(b []byte) *big.Int {
	b = bytes.Clone(b)
	slices.Reverse(b)
	return new(big.Int).SetBytes(b)
}

// CheckError lists what makes the CPU refuse a SIGSTRUCT.
type CheckError struct{ Failed []string }

func (e *CheckError) Error() string {
	return "SIGSTRUCT is not valid: " + fmt.Sprintf("%q", e.Failed)
}

// parseFields reads what the signer chose.
func parseFields(b []byte) *SigStruct {
	le := binary.LittleEndian
	s := &SigStruct{
		Vendor: le.Uint32(b[offVendor:]),
		Date: Date{
			Year: unBCD(b[offDate+3])*100 + unBCD(b[offDate+2]), Month: unBCD(b[offDate+1]), Day: unBCD(b[offDate]),
		},
		SWDefined:      le.Uint32(b[offSWDefined:]),
		MiscSelect:     le.Uint32(b[offMiscSelect:]),
		MiscMask:       le.Uint32(b[offMiscMask:]),
		Attributes:     Attributes{le.Uint64(b[offAttributes:]), le.Uint64(b[offAttributes+8:])},
		AttributesMask: Attributes{le.Uint64(b[offAttrMask:]), le.Uint64(b[offAttrMask+8:])},
		ISVProdID:      le.Uint16(b[offISVProdID:]),
		ISVSVN:         le.Uint16(b[offISVSVN:]),
	}
	copy(s.MREnclave[:], b[offMREnclave:])
	copy(s.FamilyID[:], b[offFamilyID:])
	copy(s.ExtProdID[:], b[offExtProdID:])
	return s
}

// ParseSigStruct reads a SIGSTRUCT and checks it as EINIT does (SDM 3D, EINIT): headers, reserved
// bytes, exponent, Q1, Q2 and the signature. What fails is in a *CheckError, beside the structure that
// was read; the structure is nil only where the size is wrong.
func ParseSigStruct(b []byte) (*SigStruct, error) {
	if len(b) != SigStructSize {
		return nil, &CheckError{[]string{fmt.Sprintf("size is %d bytes, not %d", len(b), SigStructSize)}}
	}
	s := parseFields(b)
	s.key = &rsa.PublicKey{
		N: fromLittleEndian(b[offModulus:offExponent]), E: int(binary.LittleEndian.Uint32(b[offExponent:])),
	}
	sig := fromLittleEndian(b[offSignature:offMiscSelect])
	s.signature = sig.FillBytes(make([]byte, keyBytes))

	var failed []string
	check := func(name string, ok bool) {
		if !ok {
			failed = append(failed, name)
		}
	}
	check("header", bytes.Equal(b[offHeader:offVendor], header))
	check("header2", bytes.Equal(b[offHeader2:offSWDefined], header2))
	check("vendor", s.Vendor == 0 || s.Vendor == 0x8086)
	// Whatever the fields above do not give back is reserved and must be zero.
	check("reserved bytes", reservedZero(b))
	check("family and extended product without KSS", s.Attributes.Flags&FlagKSS != 0 || s.FamilyID == [16]byte{} &&
		s.ExtProdID == [16]byte{})
	if err := CheckPublicKey(s.key); err != nil {
		check(err.Error(), false)
		return s, &CheckError{failed}
	}
	q1, q2 := quotients(sig, s.key.N)
	check("signature below modulus", sig.Cmp(s.key.N) < 0)
	check("q1", q1.Cmp(fromLittleEndian(b[offQ1:offQ2])) == 0)
	check("q2", q2.Cmp(fromLittleEndian(b[offQ2:])) == 0)
	digest := sha256.Sum256(toBeSigned(b))
	check("signature", rsa.VerifyPKCS1v15(s.key, crypto.SHA256, digest[:], s.signature) == nil)
	if failed != nil {
		return s, &CheckError{failed}
	}
	return s, nil
}

// reserved are the byte ranges of a SIGSTRUCT that must be zero (SDM 3D, SIGSTRUCT). The last one
// before Q1 is not covered by the signature.
var reserved = [][2]int{{0x02c, 0x080}, {0x38c, 0x390}, {0x3e0, 0x3f0}, {0x404, 0x410}}

func reservedZero(b []byte) bool {
	for _, r := range reserved {
		for _, x := range b[r[0]:r[1]] {
			if x != 0 {
				return false
			}
		}
	}
	return true
}

// CheckEnclave reports why the CPU would refuse to start an enclave of the given measurement and
// attributes with this signature (SDM 3D, EINIT).
func (s *SigStruct) CheckEnclave(m Measurement, a Attributes, misc uint32) error {
	switch {
	case s.MREnclave != m:
		return fmt.Errorf("signed MRENCLAVE is %s, the enclave's is %s", s.MREnclave, m)
	case a.Flags&s.AttributesMask.Flags != s.Attributes.Flags&s.AttributesMask.Flags:
		return fmt.Errorf("signed attribute flags are %#x, the enclave's are %#x", s.Attributes.Flags, a.Flags)
	case a.XFRM&s.AttributesMask.XFRM != s.Attributes.XFRM&s.AttributesMask.XFRM:
		return fmt.Errorf("signed XFRM is %#x, the enclave's is %#x", s.Attributes.XFRM, a.XFRM)
	case misc&s.MiscMask != s.MiscSelect&s.MiscMask:
		return errors.New("signed MISCSELECT is not the enclave's")
	}
	return nil
}
