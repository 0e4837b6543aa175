package sgx

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
)

const maxKeyFile = 64 << 10

// ReadKeyFile reads a private key from a PEM file. Exposed says that others than the file's owner can
// read it too.
func ReadKeyFile(file string) (key *Key, exposed bool, err error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, false, fmt.Errorf("reading the signing key: %w", err)
	}
	if info.Size() > maxKeyFile {
		return nil, false, fmt.Errorf("reading the signing key %s: it has %d bytes, which no key has", file, info.Size())
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, false, fmt.Errorf("reading the signing key: %w", err)
	}
	defer clear(text)
	if key, err = ParseKey(text); err != nil {
		return nil, false, fmt.Errorf("reading the signing key %s: %w", file, err)
	}
	return key, info.Mode().Perm()&0o077 != 0, nil
}

// CreateKeyFile makes a new key in a file that only its owner can read. A file that exists is never
// written over: the error is fs.ErrExist.
func CreateKeyFile(file string) error {
	key, err := GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	text, err := key.PEM()
	if err != nil {
		return err
	}
	defer clear(text)
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("writing the signing key: %w", err)
	}
	if _, err = f.Write(text); err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		os.Remove(file)
		return fmt.Errorf("writing the signing key: %w", err)
	}
	return nil
}
