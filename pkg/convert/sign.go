package convert

import (
	"context"
	"crypto/rsa"
	"errors"
	"fmt"

	"github.com/cconvert/cconvert/pkg/sgx"
)

// ErrTestKey says that the key is one that everybody has.
var ErrTestKey = errors.New("this key is public")

// Sign has a signer sign what Prepare or OpenEnclave returned. A public test key is refused with ErrTestKey, unless
// there is nothing to protect: the enclave is one for debugging, or simulated.
func Sign(ctx context.Context, p *Prepared, s sgx.Signer) (*rsa.PublicKey, []byte, error) {
	signature, err := s.Sign(ctx, p.ToBeSigned())
	if err != nil {
		return nil, nil, fmt.Errorf("signing: %w", err)
	}
	key, err := s.Public(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the signing key: %w", err)
	}
	return key, signature, p.acceptable(key)
}

// acceptable reports why a key must not sign the enclave.
func (p *Prepared) acceptable(key *rsa.PublicKey) error {
	if whose, ok := sgx.TestKey(key); ok && !p.SigStruct.Debug() && !p.Simulated {
		return fmt.Errorf("%w: the repository %s publishes its private half, so everybody can sign enclaves in its "+
			"name", ErrTestKey, whose)
	}
	return sgx.CheckPublicKey(key)
}
