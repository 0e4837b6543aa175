package quote

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"time"
)

// intelRoot is the SHA-256 of the certificate "Intel SGX Root CA", in DER.
const intelRoot = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"

// Common names of certificates (Intel, "PCK Certificate Chain and Certificate Revocation List Profile").
const (
	nameRoot      = "Intel SGX Root CA"
	namePCK       = "Intel SGX PCK Certificate"
	nameProcessor = "Intel SGX PCK Processor CA"
	namePlatform  = "Intel SGX PCK Platform CA"
	nameTCB       = "Intel SGX TCB Signing"
)

// ErrRevoked says that a certificate is in a current list of its authority.
var ErrRevoked = errors.New("it is revoked")

const maxChain = 8 // certificates

// parseChain reads certificates in PEM, the leaf first.
func parseChain(text []byte) (chain []*x509.Certificate, err error) {
	for rest := text; len(bytes.TrimSpace(rest)) > 0; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil || block.Type != "CERTIFICATE" || len(chain) == maxChain {
			return nil, errors.New("it is not a chain of certificates in PEM")
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		chain = append(chain, c)
	}
	return chain, nil
}

// checkChain checks a chain of certificates, whose leaf has one of some names, up to the root at a time.
func (o Options) checkChain(chain []*x509.Certificate, names ...[]string) error {
	if len(chain) != len(names) {
		return fmt.Errorf("it has %d certificates, not %d", len(chain), len(names))
	}
	root := chain[len(chain)-1]
	sum := sha256.Sum256(root.Raw)
	if o.Root != nil && !root.Equal(o.Root) || o.Root == nil && hex.EncodeToString(sum[:]) != intelRoot {
		return errors.New("its root is not Intel's")
	}
	for i, c := range chain {
		known := false
		for _, name := range names[i] {
			known = known || c.Subject.CommonName == name
		}
		if !known {
			return fmt.Errorf("certificate %d is %q, not %q", i+1, c.Subject.CommonName, names[i])
		}
		if o.At.Before(c.NotBefore) || o.At.After(c.NotAfter) {
			return fmt.Errorf("the certificate %q is valid from %s to %s", c.Subject.CommonName,
				c.NotBefore.Format(time.RFC3339), c.NotAfter.Format(time.RFC3339))
		}
		if c == root { // which is known byte for byte: that it has signed itself says no more
			break
		}
		issuer := chain[i+1]
		if !issuer.IsCA || !issuer.BasicConstraintsValid {
			return fmt.Errorf("%q is no authority", issuer.Subject.CommonName)
		}
		if err := c.CheckSignatureFrom(issuer); err != nil {
			return fmt.Errorf("the certificate %q: %w", c.Subject.CommonName, err)
		}
	}
	return nil
}

// checkCRL reads a revocation list of an authority, and looks for certificates in it.
func (o Options) checkCRL(text []byte, issuer *x509.Certificate, certificates ...*x509.Certificate) (time.Time, error) {
	list, err := x509.ParseRevocationList(text)
	if err != nil {
		return time.Time{}, fmt.Errorf("the list of %q: %w", issuer.Subject.CommonName, err)
	}
	if err := list.CheckSignatureFrom(issuer); err != nil {
		return time.Time{}, fmt.Errorf("the list of %q: %w", issuer.Subject.CommonName, err)
	}
	if o.At.Before(list.ThisUpdate) || o.At.After(list.NextUpdate) {
		return time.Time{}, fmt.Errorf("the list of %q is of %s to %s", issuer.Subject.CommonName,
			list.ThisUpdate.Format(time.RFC3339), list.NextUpdate.Format(time.RFC3339))
	}
	for _, e := range list.RevokedCertificateEntries {
		for _, c := range certificates {
			if c.SerialNumber.Cmp(e.SerialNumber) == 0 {
				return time.Time{}, fmt.Errorf("%q: %w", c.Subject.CommonName, ErrRevoked)
			}
		}
	}
	return list.NextUpdate, nil
}

// Platform is what the certificate of a platform's key says of it.
type Platform struct {
	FMSPC [6]byte // what kind it is
	PCEID [2]byte
	// Components are the versions of its parts, and PCESVN that of the provisioning enclave.
	Components [16]int
	PCESVN     int
}

// oidSGX is that of the extension with what SGX knows of a platform, and of its parts.
var oidSGX = asn1.ObjectIdentifier{1, 2, 840, 113741, 1, 13, 1}

const (
	partTCB, partPCEID, partFMSPC = 2, 3, 4
	tcbPCESVN                     = 17
)

// attribute is a part of the extension.
type attribute struct {
	ID    asn1.ObjectIdentifier
	Value asn1.RawValue
}

// parsePlatform reads the extension of a PCK certificate.
func parsePlatform(c *x509.Certificate) (p Platform, err error) {
	for _, e := range c.Extensions {
		if e.Id.Equal(oidSGX) {
			return parseExtension(e.Value)
		}
	}
	return p, errors.New("the platform's certificate says nothing of SGX")
}

func parseExtension(b []byte) (p Platform, err error) {
	parts, err := attributes(b, oidSGX)
	if err != nil {
		return p, err
	}
	for id, to := range map[int][]byte{partPCEID: p.PCEID[:], partFMSPC: p.FMSPC[:]} {
		v := parts[id]
		if v.Tag != asn1.TagOctetString || len(v.Bytes) != len(to) {
			return p, fmt.Errorf("part %d of the platform's certificate is missing", id)
		}
		copy(to, v.Bytes)
	}
	tcb, err := attributes(parts[partTCB].FullBytes, append(oidSGX[:len(oidSGX):len(oidSGX)], partTCB))
	if err != nil {
		return p, err
	}
	for i := range tcbPCESVN {
		var n int
		if rest, err := asn1.Unmarshal(tcb[i+1].FullBytes, &n); err != nil || len(rest) > 0 || n < 0 || n > 0xffff {
			return p, fmt.Errorf("component %d of the platform's certificate is missing", i+1)
		}
		if i+1 == tcbPCESVN {
			p.PCESVN = n
		} else {
			p.Components[i] = n
		}
	}
	return p, nil
}

// attributes are those of a sequence, by the last number of their identifiers.
func attributes(b []byte, below asn1.ObjectIdentifier) (map[int]asn1.RawValue, error) {
	var list []attribute
	if rest, err := asn1.Unmarshal(b, &list); err != nil || len(rest) > 0 {
		return nil, errors.New("the extension of the platform's certificate is damaged")
	}
	parts := map[int]asn1.RawValue{}
	for _, a := range list {
		n := len(a.ID) - 1
		if n != len(below) || !a.ID[:n].Equal(below) {
			continue
		}
		if _, twice := parts[a.ID[n]]; twice {
			return nil, errors.New("the extension of the platform's certificate has a part twice")
		}
		parts[a.ID[n]] = a.Value
	}
	return parts, nil
}
