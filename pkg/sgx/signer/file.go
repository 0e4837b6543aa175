package signer

import (
	"crypto/rand"
	"errors"
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
	buffer := make([]byte, maxKeyFile+1) // one that does not grow, and leaves no copies
	defer clear(buffer)
	n, err := io.ReadFull(f, buffer)
	switch {
	case err == nil:
		return nil,
			fmt.Errorf("reading the signing key %s: it has more than %d bytes, which no key has", file, maxKeyFile)
	case !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF):
		return nil, fmt.Errorf("reading the signing key: %w", err)
	}
	text := buffer[:n]
	key, err := parse(text, file, o)
	if err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o077 != 0 && o.Exposed != nil {
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
