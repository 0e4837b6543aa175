package keyserver

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"

	"github.com/cconvert/cconvert/pkg/sgx/ratls"
)

// Names, in the store, of what the server keeps for itself.
const (
	ownAuthority = "_authority"
	ownIdentity  = "_server"
)

// Lives of certificates. Enclaves take their time from the host: what their certificates are worth, the quote in them
// says.
const (
	authorityLife = 10 * 365 * 24 * time.Hour
	serverLife    = 10 * 365 * 24 * time.Hour
	enclaveLife   = 90 * 24 * time.Hour
	early         = time.Hour // clocks differ
)

// authority signs certificates for keys that were attested.
type authority struct {
	certificate *x509.Certificate
	key         crypto.Signer
}

// pair reads a certificate and its key, in PEM, from the store; the first time they are made.
func pair(ctx context.Context, s Store, name string, template *x509.Certificate) (tls.Certificate, error) {
	text, err := s.Get(ctx, name)
	if errors.Is(err, ErrNoSecret) {
		if text, err = selfSigned(template); err == nil {
			err = s.Put(ctx, name, text)
		}
	}
	if err != nil {
		return tls.Certificate{}, err
	}
	defer clear(text)
	c, err := tls.X509KeyPair(text, text)
	if err != nil {
		return c, fmt.Errorf("%s: %w", name, err)
	}
	return c, nil
}

func selfSigned(template *x509.Certificate) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	defer clear(private)
	return slices.Concat(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})), nil
}

func serial() *big.Int {
	var b [16]byte
	_, _ = rand.Read(b[:]) // it does not fail
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b[:])
}

// Identity is the server's own certificate, which it makes the first time. Enclaves know it by its pin.
func Identity(ctx context.Context, s Store, now time.Time) (tls.Certificate, error) {
	return pair(ctx, s, ownIdentity, &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "cconvert release"}, NotBefore: now.Add(-early),
		NotAfter: now.Add(serverLife), BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
}

// Authority is the certificate of the authority for enclaves' certificates, in PEM, which is made the first time.
func Authority(ctx context.Context, s Store, now time.Time) ([]byte, error) {
	a, err := openAuthority(ctx, s, now)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.certificate.Raw}), nil
}

func openAuthority(ctx context.Context, s Store, now time.Time) (*authority, error) {
	c, err := pair(ctx, s, ownAuthority, &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "cconvert release: enclaves"},
		NotBefore: now.Add(-early), NotAfter: now.Add(authorityLife), IsCA: true, MaxPathLenZero: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	})
	if err != nil {
		return nil, err
	}
	key, ok := c.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%s: its key cannot sign", ownAuthority)
	}
	return &authority{c.Leaf, key}, nil
}

// issue makes a certificate for an attested key, with the evidence by which it was, and the names that a policy grants.
func (a *authority) issue(of *x509.Certificate, names []string, now time.Time) (string, error) {
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "enclave"}, DNSNames: names, NotBefore: now.Add(-early),
		NotAfter: now.Add(enclaveLife), BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, e := range of.Extensions {
		if ratls.IsEvidence(e.Id) {
			template.ExtraExtensions = append(template.ExtraExtensions, pkix.Extension{Id: e.Id, Value: e.Value})
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, of.PublicKey, a.key)
	if err != nil {
		return "", err
	}
	return string(slices.Concat(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.certificate.Raw}))), nil
}
