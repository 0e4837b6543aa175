package service

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"os"
	"strings"

	"github.com/cconvert/cconvert/internal/renewed"
)

// Secrets returns the secrets of which a request must carry one.
type Secrets func() []string

// OneSecret is a secret that does not change.
func OneSecret(secret string) Secrets { return func() []string { return []string{secret} } }

// Bounds on secrets.
const (
	minSecret  = 16 // bytes
	maxSecrets = 16
)

// errSecret says that a file has no secrets.
var errSecret = fmt.Errorf("a secret has %d bytes at least, and there are %d at most, each on a line", minSecret,
	maxSecrets)

// ReadSecrets reads secrets from a file, one on a line. It is read again when it changes: with the old and the new
// secret in it, clients can be changed one after the other.
func ReadSecrets(file string) (Secrets, error) {
	f := renewed.New(func() ([]string, error) {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		var list []string
		for line := range strings.Lines(string(text)) {
			if line = strings.TrimSpace(line); line == "" {
				continue
			}
			if list = append(list, line); len(line) < minSecret || len(list) > maxSecrets {
				return nil, fmt.Errorf("%s: %w", file, errSecret)
			}
		}
		if len(list) == 0 {
			return nil, fmt.Errorf("%s: %w", file, errSecret)
		}
		return list, nil
	}, file)
	if _, err := f.Get(); err != nil {
		return nil, err
	}
	return func() []string {
		list, _ := f.Get() // what was read once stays
		return list
	}, nil
}

// has reports whether a text is one of the secrets, in a time that does not tell which.
func (s Secrets) has(given string) bool {
	a, found := sha256.Sum256([]byte(given)), 0
	for _, secret := range s() {
		b := sha256.Sum256([]byte(secret))
		found |= subtle.ConstantTimeCompare(a[:], b[:])
	}
	return found == 1
}
