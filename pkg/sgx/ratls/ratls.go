// Package ratls reads and makes certificates of RA-TLS, by which a TLS server or client shows with a quote in which
// enclave its key is: the interoperable form of the Confidential Computing Consortium, whose evidence is in the
// extension tcg-dice-TaggedEvidence (TCG, "DICE Attestation Architecture", 1.1; Interoperable RA-TLS, draft of the
// Attestation SIG), and Gramine's older one.
package ratls

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/fxamacker/cbor/v2"
)

// ErrCertificate says that a certificate does not show in which enclave its key is.
var ErrCertificate = errors.New("the certificate does not show in which enclave its key is")

// Forms of evidence in a certificate.
const (
	FormDICE   = "dice"
	FormLegacy = "legacy"
)

// Evidence is what a certificate has about its key. Nothing of the quote is verified.
type Evidence struct {
	Form string
	// Quote is as the enclave got it.
	Quote []byte
	// Data is the report data that the quote must have, all 64 bytes: it names the certificate's key.
	Data [64]byte
	// Nonce is of whoever asked for the certificate; nil if it has none.
	Nonce []byte
}

// Object identifiers of the extensions. Gramine writes the older one with a tag and a length inside, so that it is
// another number.
var (
	oidDICE    = asn1.ObjectIdentifier{2, 23, 133, 5, 4, 9}
	oidLegacy  = asn1.ObjectIdentifier{1, 2, 840, 113741, 1337, 6}
	oidGramine = asn1.ObjectIdentifier{0, 6, 9, 42, 840, 113741, 1337, 6}
)

// tagEvidence is the CBOR tag of a quote with claims (Interoperable RA-TLS, "TEE evidence").
const tagEvidence = 60000

// Bounds in bytes.
const (
	maxQuote  = 64 << 10
	maxClaims = 4 << 10
	maxNonce  = 64
)

// hash is a digest with its algorithm (IANA, "Named Information Hash Algorithm Registry").
type hash struct {
	_         struct{} `cbor:",toarray"`
	Algorithm uint64
	Value     []byte
}

// Numbers of digests.
const (
	algorithmSHA256 = 1
	algorithmSHA384 = 7
	algorithmSHA512 = 8
)

// claims are what the report data is a digest of.
type claims struct {
	KeyHash []byte `cbor:"pubkey-hash"` // a hash, as a byte string
	Nonce   []byte `cbor:"nonce,omitempty"`
}

// strict refuses what two readers can understand in two ways.
var strict = func() cbor.DecMode {
	m, err := cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden, MaxNestedLevels: 8,
		MaxArrayElements: 64, MaxMapPairs: 64,
	}.DecMode()
	if err != nil {
		panic(err) // the options are constants
	}
	return m
}()

func bad(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrCertificate, fmt.Errorf(format, args...))
}

// Parse finds the evidence in a certificate, and checks that it names the certificate's key. If there is evidence of
// the newer form, the older one is not looked at.
func Parse(c *x509.Certificate) (*Evidence, error) {
	var dice, legacy [][]byte
	for _, e := range c.Extensions {
		switch {
		case e.Id.Equal(oidDICE):
			dice = append(dice, e.Value)
		case e.Id.Equal(oidLegacy), e.Id.Equal(oidGramine):
			legacy = append(legacy, e.Value)
		}
	}
	switch {
	case len(dice) > 1 || len(dice) == 0 && len(legacy) > 1:
		return nil, bad("it has more than one quote")
	case len(dice) == 1:
		return parseDICE(dice[0], c.RawSubjectPublicKeyInfo)
	case len(legacy) == 0:
		return nil, bad("it has no quote")
	case len(legacy[0]) > maxQuote:
		return nil, bad("its quote has more than %d bytes", maxQuote)
	}
	e := &Evidence{Form: FormLegacy, Quote: legacy[0]}
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	copy(e.Data[:], sum[:])
	return e, nil
}

// parseDICE reads a tagged array of a quote and of claims, whose digest the report data is.
func parseDICE(value, key []byte) (*Evidence, error) {
	var tagged cbor.RawTag
	if err := strict.Unmarshal(value, &tagged); err != nil {
		return nil, bad("reading its evidence: %w", err)
	}
	var parts struct {
		_      struct{} `cbor:",toarray"`
		Quote  []byte
		Claims []byte
	}
	if err := strict.Unmarshal(tagged.Content, &parts); err != nil || tagged.Number != tagEvidence {
		return nil, bad("its evidence is not a quote with claims")
	}
	if len(parts.Quote) > maxQuote || len(parts.Claims) > maxClaims {
		return nil, bad("its evidence has too many bytes")
	}
	var said map[string]cbor.RawMessage
	if err := strict.Unmarshal(parts.Claims, &said); err != nil {
		return nil, bad("reading its claims: %w", err)
	}
	var text []byte
	var sum hash
	if err := strict.Unmarshal(said["pubkey-hash"], &text); err != nil {
		return nil, bad("its claims do not name the key")
	}
	if err := strict.Unmarshal(text, &sum); err != nil || !matches(sum, key) {
		return nil, bad("its claims name another key")
	}
	e := &Evidence{Form: FormDICE, Quote: parts.Quote}
	if nonce, ok := said["nonce"]; ok {
		if err := strict.Unmarshal(nonce, &e.Nonce); err != nil || len(e.Nonce) > maxNonce {
			return nil, bad("its nonce is not one of at most %d bytes", maxNonce)
		}
	}
	digest := sha256.Sum256(parts.Claims)
	copy(e.Data[:], digest[:])
	return e, nil
}

// matches reports whether a digest is that of a key.
func matches(h hash, key []byte) bool {
	switch h.Algorithm {
	case algorithmSHA256:
		sum := sha256.Sum256(key)
		return bytes.Equal(h.Value, sum[:])
	case algorithmSHA384:
		sum := sha512.Sum384(key)
		return bytes.Equal(h.Value, sum[:])
	case algorithmSHA512:
		sum := sha512.Sum512(key)
		return bytes.Equal(h.Value, sum[:])
	}
	return false
}

// Request is a key for which a quote is to be made.
type Request struct {
	// Data is the report data of the quote.
	Data   [64]byte
	claims []byte
	key    crypto.Signer
}

// NewRequest begins a certificate for a key of P-256 or P-384, with a nonce of whoever asks for it, or nil.
func NewRequest(key crypto.Signer, nonce []byte) (*Request, error) {
	if len(nonce) > maxNonce {
		return nil, fmt.Errorf("the nonce has more than %d bytes", maxNonce)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(public)
	text, err := cbor.Marshal(hash{Algorithm: algorithmSHA256, Value: sum[:]})
	if err != nil {
		return nil, err
	}
	r := &Request{key: key}
	if r.claims, err = cbor.Marshal(claims{KeyHash: text, Nonce: nonce}); err != nil {
		return nil, err
	}
	digest := sha256.Sum256(r.claims)
	copy(r.Data[:], digest[:])
	return r, nil
}

// Extension is the one by which a certificate has the quote.
func (r *Request) Extension(quote []byte) (pkix.Extension, error) {
	content, err := cbor.Marshal([][]byte{quote, r.claims})
	if err != nil {
		return pkix.Extension{}, err
	}
	value, err := cbor.Marshal(cbor.RawTag{Number: tagEvidence, Content: content})
	return pkix.Extension{Id: oidDICE, Value: value}, err
}

// Certificate makes a certificate, signed by its own key, in DER. Time in an enclave is the host's, so that it has no
// bounds that would mean anything.
func (r *Request) Certificate(quote []byte) ([]byte, error) {
	e, err := r.Extension(quote)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "RA-TLS"},
		NotBefore:             time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:              time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature, ExtraExtensions: []pkix.Extension{e},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	return x509.CreateCertificate(rand.Reader, template, template, r.key.Public(), r.key)
}

// IsEvidence reports whether an extension of a certificate has a quote of the newer form.
func IsEvidence(id asn1.ObjectIdentifier) bool { return id.Equal(oidDICE) }
