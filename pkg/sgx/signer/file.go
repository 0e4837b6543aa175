package signer

import (
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/cconvert/cconvert/pkg/sgx"
)

const maxKeyFile = 64 << 10

// ReadFile reads a private key from a PEM file.
func ReadFile(file string, o Options) (*sgx.Key, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("reading the signing key: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("reading the signing key: %w", err)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return nil, fmt.Errorf("reading the signing key: %w", err)
	}
	defer clear(text)
	if len(text) > maxKeyFile {
		return nil, fmt.Errorf("reading the signing key %s: it has more than %d bytes, which no key has", file, maxKeyFile)
	}
	key, err := parse(text, file, o)
	if err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o077 != 0 && o.Exposed != nil {
		o.Exposed(file)
	}
	return key, err
}

// CreateFile makes a new key in a file that only its owner can read, encrypted if there is a passphrase. A file
// that exists is never written over: the error is fs.ErrExist.
func CreateFile(file string, passphrase []byte) (*sgx.Key, error) {
	key, err := sgx.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	text, err := key.PEM(passphrase)
	if err != nil {
		return nil, err
	}
	defer clear(text)
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("writing the signing key: %w", err)
	}
	if _, err = f.Write(text); err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		os.Remove(file)
		return nil, fmt.Errorf("writing the signing key: %w", err)
	}
	return key, nil
}
