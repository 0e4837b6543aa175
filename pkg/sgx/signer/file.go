package signer

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"

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
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("writing the signing key: %w", err)
	}
	key, err := writeKey(f, passphrase)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		os.Remove(file)
		if key != nil {
			key.Close()
		}
		return nil, fmt.Errorf("writing the signing key: %w", err)
	}
	return key, nil
}

func writeKey(f *os.File, passphrase []byte) (*sgx.Key, error) {
	key, err := sgx.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	text, err := key.PEM(passphrase)
	if err != nil {
		return key, err
	}
	defer clear(text)
	if _, err := f.Write(text); err != nil {
		return key, err
	}
	return key, f.Sync()
}
