// Package attest writes and checks what is said of an image and signed by somebody: envelopes, and the keys
// for them. These keys have nothing to do with those that sign enclaves.
package attest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	_ "crypto/sha256" // for the digests that ECDSA signs
	_ "crypto/sha512"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"
)

var (
	// ErrKey says that a file holds no key that can be used here.
	ErrKey = errors.New("not a key for statements")
	// ErrSignature says that an envelope is not signed by the key, or speaks of something else.
	ErrSignature = errors.New("not signed by this key")
)

// PublicKey checks statements.
type PublicKey struct {
	key  crypto.PublicKey
	hash crypto.Hash // 0: the message itself is signed
	id   string
}

// PrivateKey signs statements.
type PrivateKey struct {
	PublicKey
	signer crypto.Signer
}

// ParsePrivateKey reads a private key of ECDSA (P-256, P-384, P-521) or Ed25519 from PEM: PKCS#8 or, for
// ECDSA, SEC 1.
func ParsePrivateKey(text []byte) (*PrivateKey, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%w: it is not PEM", ErrKey)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		if key, err = x509.ParseECPrivateKey(block.Bytes); err != nil {
			return nil, fmt.Errorf("%w: %s cannot be read as PKCS #8 or SEC 1: it must be of ECDSA or Ed25519, and "+
				"not encrypted", ErrKey, block.Type)
		}
	}
	s, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%w: a %T cannot sign", ErrKey, key)
	}
	p, err := newPublicKey(s.Public())
	if err != nil {
		return nil, err
	}
	return &PrivateKey{*p, s}, nil
}

// ParsePublicKey reads a public key of the same kinds from PEM (PKIX).
func ParsePublicKey(text []byte) (*PublicKey, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%w: it is not PEM", ErrKey)
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: %s is no public key", ErrKey, block.Type)
	}
	return newPublicKey(key)
}

func newPublicKey(key crypto.PublicKey) (*PublicKey, error) {
	p := &PublicKey{key: key}
	switch k := key.(type) {
	case ed25519.PublicKey:
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			p.hash = crypto.SHA256
		case elliptic.P384():
			p.hash = crypto.SHA384
		case elliptic.P521():
			p.hash = crypto.SHA512
		default:
			return nil, fmt.Errorf("%w: the curve %s is not used for signatures here", ErrKey, k.Curve.Params().Name)
		}
	default:
		return nil, fmt.Errorf("%w: it must be of ECDSA or Ed25519, not %T", ErrKey, key)
	}
	var err error
	p.id, err = dsse.SHA256KeyID(key)
	return p, err
}

func (k *PublicKey) digest(message []byte) []byte {
	if k.hash == 0 {
		return message
	}
	h := k.hash.New()
	h.Write(message)
	return h.Sum(nil)
}

// KeyID identifies the key: the SHA-256 of its PKIX form.
func (k *PublicKey) KeyID() (string, error) { return k.id, nil }

// Public is the key itself.
func (k *PublicKey) Public() crypto.PublicKey { return k.key }

// Verify checks a signature over a message. It is for package dsse.
func (k *PublicKey) Verify(_ context.Context, message, signature []byte) error {
	ok := false
	switch key := k.key.(type) {
	case ed25519.PublicKey:
		ok = ed25519.Verify(key, message, signature)
	case *ecdsa.PublicKey:
		ok = ecdsa.VerifyASN1(key, k.digest(message), signature)
	}
	if !ok {
		return ErrSignature
	}
	return nil
}

// Sign signs a message, the same every time. It is for package dsse.
func (k *PrivateKey) Sign(_ context.Context, message []byte) ([]byte, error) {
	return k.signer.Sign(nil, k.digest(message), k.hash) // without randomness ECDSA is RFC 6979's
}

// Envelope signs a payload of a type (DSSE 1.0).
func (k *PrivateKey) Envelope(ctx context.Context, payloadType string, payload []byte) ([]byte, error) {
	s, err := dsse.NewEnvelopeSigner(k)
	if err != nil {
		return nil, err
	}
	e, err := s.SignPayload(ctx, payloadType, payload)
	if err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	return json.Marshal(e)
}

// Open returns the payload of an envelope that the key signed. Everything else is ErrSignature.
func (k *PublicKey) Open(ctx context.Context, payloadType string, envelope []byte) ([]byte, error) {
	var e dsse.Envelope
	if err := json.Unmarshal(envelope, &e); err != nil {
		return nil, fmt.Errorf("%w: reading the envelope: %w", ErrSignature, err)
	}
	if e.PayloadType != payloadType {
		return nil, fmt.Errorf("%w: it holds %q, not %q", ErrSignature, e.PayloadType, payloadType)
	}
	v, err := dsse.NewEnvelopeVerifier(k)
	if err != nil {
		return nil, err
	}
	if _, err := v.Verify(ctx, &e); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSignature, err)
	}
	return e.DecodeB64Payload()
}
