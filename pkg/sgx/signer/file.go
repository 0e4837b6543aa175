package signer

import (
	"crypto/rand"
	"fmt"
	"io"

	"github.com/cconvert/cconvert/internal/secret"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// ReadFile reads a private key from a PEM file.
func ReadFile(file string, o Options) (*sgx.Key, error) {
	text, exposed, err := secret.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading the signing key: %w", err)
	}
	defer clear(text)
	key, err := parse(text, file, o)
	if err == nil && exposed && o.Exposed != nil {
		o.Exposed(file)
	}
	return key, err
}

// CreateFile makes a new key in a file that only its owner can read, encrypted if there is a passphrase. A file
// that exists is never written over: the error is fs.ErrExist.
func CreateFile(file string, passphrase []byte) (*sgx.Key, error) {
	var key *sgx.Key
	err := secret.CreateFile(file, func(w io.Writer) (err error) {
		if key, err = sgx.GenerateKey(rand.Reader); err != nil {
			return err
		}
		text, err := key.PEM(passphrase)
		if err != nil {
			return err
		}
		defer clear(text)
		_, err = w.Write(text)
		return err
	})
	if err != nil {
		if key != nil {
			key.Close()
		}
		return nil, fmt.Errorf("writing the signing key: %w", err)
	}
	return key, nil
}
