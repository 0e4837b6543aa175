package sgx

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"

	"github.com/youmark/pkcs8"
)

// The only kind of key that the hardware accepts (SDM 3D, SIGSTRUCT).
const (
	keyBits        = 3072
	keyBytes       = keyBits / 8
	publicExponent = 3
)

// Signer signs the bytes that a SIGSTRUCT's signature covers.
type Signer interface {
	// Sign returns the PKCS#1 v1.5 signature of the message's SHA-256, big endian.
	Sign(ctx context.Context, message []byte) ([]byte, error)
	// Public is the key whose hash becomes MRSIGNER.
	Public(ctx context.Context) (*rsa.PublicKey, error)
	// Close forgets the key.
	Close() error
}

// CheckPublicKey reports why the hardware would not accept the key.
func CheckPublicKey(k *rsa.PublicKey) error {
	if n := k.N.BitLen(); n != keyBits {
		return fmt.Errorf("key is RSA-%d: SGX demands RSA-%d", n, keyBits)
	}
	if k.E != publicExponent {
		return fmt.Errorf("key has the public exponent %d: SGX demands %d", k.E, publicExponent)
	}
	return nil
}

// Key is a private key in memory. It is a Signer.
type Key struct{ private *rsa.PrivateKey }

// Public returns the public half.
func (k *Key) Public(context.Context) (*rsa.PublicKey, error) { return &k.private.PublicKey, nil }

// Sign signs the message's SHA-256.
func (k *Key) Sign(_ context.Context, message []byte) ([]byte, error) {
	digest := sha256.Sum256(message)
	return rsa.SignPKCS1v15(nil, k.private, crypto.SHA256, digest[:])
}

// Close overwrites the numbers of the key, which cannot be used afterwards. What the standard library keeps of
// them for itself is out of reach. There is no error.
func (k *Key) Close() error {
	p := k.private
	numbers := append([]*big.Int{p.D, p.Precomputed.Dp, p.Precomputed.Dq, p.Precomputed.Qinv}, p.Primes...)
	for _, n := range numbers {
		if n != nil {
			clear(n.Bits())
		}
	}
	k.private = &rsa.PrivateKey{PublicKey: p.PublicKey}
	return nil
}

// Errors of reading keys.
var (
	// ErrNoKey says that a PEM text holds no private key.
	ErrNoKey = errors.New("no PEM block of a private key (PKCS#1 or PKCS#8)")
	// ErrLineEnds says that a PEM text came through something that writes line ends as two characters.
	ErrLineEnds = errors.New(`the key has "\n" where its lines must end`)
	// ErrPassphrase says that a key is encrypted, and the passphrase is missing or wrong.
	ErrPassphrase = errors.New("passphrase")
)

// ParseKey reads an RSA private key from PEM: PKCS#1 or PKCS#8, each encrypted or not. Passphrase is asked
// where one is needed; nil: there is none. The error of a key that SGX cannot use says what the key is.
func ParseKey(text []byte, passphrase func() ([]byte, error)) (*Key, error) {
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			if bytes.Contains(text, []byte("-----BEGIN")) && bytes.Contains(text, []byte(`\n`)) {
				return nil, ErrLineEnds
			}
			return nil, ErrNoKey
		}
		defer clear(block.Bytes)
		switch block.Type {
		case "RSA PRIVATE KEY":
			der := block.Bytes
			if block.Headers["DEK-Info"] != "" {
				var err error
				if der, err = decrypt(passphrase, func(secret []byte) ([]byte, error) {
					//nolint:staticcheck // the format is weak and in use: openssl made it for decades
					return x509.DecryptPEMBlock(block, secret)
				}); err != nil {
					return nil, err
				}
				defer clear(der)
			}
			k, err := x509.ParsePKCS1PrivateKey(der)
			if err != nil {
				return nil, errors.New("key is not a valid PKCS#1 private key") // the cause may quote the key
			}
			return newKey(k)
		case "PRIVATE KEY":
			return parsePKCS8(block.Bytes)
		case "EC PRIVATE KEY":
			return nil,
				fmt.Errorf("key is an elliptic-curve key: SGX demands RSA-%d with exponent %d", keyBits, publicExponent)
		case "ENCRYPTED PRIVATE KEY":
			der, err := decrypt(passphrase, func(secret []byte) ([]byte, error) {
				k, _, err := pkcs8.ParsePrivateKey(block.Bytes, secret)
				if err != nil {
					return nil, err
				}
				if r, ok := k.(*rsa.PrivateKey); ok {
					defer (&Key{r}).Close()
				}
				return x509.MarshalPKCS8PrivateKey(k)
			})
			if err != nil {
				return nil, err
			}
			defer clear(der)
			return parsePKCS8(der)
		case "PUBLIC KEY", "RSA PUBLIC KEY":
			return nil, errors.New("key is a public key: signing needs the private key")
		}
	}
}

// decrypt asks for the passphrase and uses it.
func decrypt(passphrase func() ([]byte, error), use func([]byte) ([]byte, error)) ([]byte, error) {
	if passphrase == nil {
		return nil, fmt.Errorf("key is encrypted, and there is no %w", ErrPassphrase)
	}
	secret, err := passphrase()
	defer clear(secret)
	if err != nil {
		return nil, err
	}
	der, err := use(secret)
	if err != nil { // the cause may quote the key
		return nil, fmt.Errorf("key does not open with this %w, or is encrypted in a way that is not known: PBES2 and "+
			"openssl's older format are", ErrPassphrase)
	}
	return der, nil
}

func parsePKCS8(der []byte) (*Key, error) {
	k, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, errors.New("key is not a valid PKCS#8 private key")
	}
	r, ok := k.(*rsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("key is of the type %T: SGX demands RSA-%d with exponent %d", k, keyBits, publicExponent)
	}
	return newKey(r)
}

// ParsePublicKey reads the public half of a key from PEM, which may hold the private one as well: PKIX, PKCS#1
// or PKCS#8.
func ParsePublicKey(text []byte) (*rsa.PublicKey, error) {
	var key any
	var err error
	switch block, _ := pem.Decode(text); {
	case block == nil:
		return nil, errors.New("no PEM block of a key")
	case block.Type == "PUBLIC KEY":
		key, err = x509.ParsePKIXPublicKey(block.Bytes)
	case block.Type == "RSA PUBLIC KEY":
		key, err = x509.ParsePKCS1PublicKey(block.Bytes)
	default:
		k, err := ParseKey(text, nil)
		if err != nil {
			return nil, err
		}
		k.Close()
		return &k.private.PublicKey, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the public key: %w", err)
	}
	public, ok := key.(*rsa.PublicKey)
	if !ok {
		return nil,
			fmt.Errorf("key is of the type %T: SGX demands RSA-%d with exponent %d", key, keyBits, publicExponent)
	}
	return public, CheckPublicKey(public)
}

func newKey(k *rsa.PrivateKey) (*Key, error) {
	if err := CheckPublicKey(&k.PublicKey); err != nil {
		(&Key{k}).Close()
		return nil, err
	}
	return &Key{k}, nil
}

// GenerateKey makes a new RSA-3072 key with public exponent 3. The standard library generates keys
// with exponent 65537 only.
func GenerateKey(random io.Reader) (*Key, error) {
	e, one := big.NewInt(publicExponent), big.NewInt(1)
	for {
		p, err := primeFor(random, e)
		if err != nil {
			return nil, fmt.Errorf("generating a key: %w", err)
		}
		q, err := primeFor(random, e)
		if err != nil {
			return nil, fmt.Errorf("generating a key: %w", err)
		}
		n := new(big.Int).Mul(p, q)
		if p.Cmp(q) == 0 || n.BitLen() != keyBits {
			clear(p.Bits())
			clear(q.Bits())
			continue
		}
		phi := new(big.Int).Mul(new(big.Int).Sub(p, one), new(big.Int).Sub(q, one))
		k := &rsa.PrivateKey{
			PublicKey: rsa.PublicKey{N: n, E: publicExponent},
			D:         new(big.Int).ModInverse(e, phi),
			Primes:    []*big.Int{p, q},
		}
		clear(phi.Bits())
		k.Precompute()
		if err := k.Validate(); err != nil {
			return nil, fmt.Errorf("generating a key: %w", err)
		}
		return &Key{k}, nil
	}
}

// primeFor finds a prime p of half the key's size such that e has an inverse modulo p-1.
func primeFor(random io.Reader, e *big.Int) (*big.Int, error) {
	for {
		p, err := rand.Prime(random, keyBits/2)
		if err != nil {
			return nil, err
		}
		if new(big.Int).Mod(p, e).Int64() == 2 { // p-1 not divisible by 3
			return p, nil
		}
	}
}

// PEM is the key as PKCS#8 PEM: encrypted (PBES2: scrypt and AES-256-CBC, as openssl makes and reads it), if there is a
// passphrase.
func (k *Key) PEM(passphrase []byte) ([]byte, error) {
	kind, options := "PRIVATE KEY", (*pkcs8.Opts)(nil)
	if len(passphrase) > 0 {
		kind, options = "ENCRYPTED PRIVATE KEY", &pkcs8.Opts{
			Cipher:  pkcs8.AES256CBC,
			KDFOpts: pkcs8.ScryptOpts{SaltSize: 16, CostParameter: 1 << 14, BlockSize: 8, ParallelizationParameter: 1},
		}
	}
	der, err := pkcs8.MarshalPrivateKey(k.private, passphrase, options)
	if err != nil {
		return nil, err
	}
	defer clear(der)
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), nil
}
