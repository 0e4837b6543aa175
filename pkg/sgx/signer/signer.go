// Package signer reaches the keys that sign enclaves, wherever they are: in a file, in a variable, in a hardware
// module, or behind a program of the user's own.
package signer

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/cconvert/cconvert/internal/secret"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// Options say how keys are reached.
type Options struct {
	// Passphrase is asked for an encrypted key, or for the PIN of a token, by what it opens; nil: there is none.
	Passphrase func(of string) ([]byte, error)
	// Timeout is how long a plug-in or a token may take; 0: DefaultTimeout.
	Timeout time.Duration
	// Exposed is told of a key file that others than its owner can read; nil: nobody is.
	Exposed func(file string)
}

var (
	// ErrName says that a key's name cannot be one.
	ErrName = secret.ErrName
	// ErrNoPKCS11 says that this program was built without PKCS#11, whose modules are libraries in C.
	ErrNoPKCS11 = errors.New("this build of cconvert is static and cannot load PKCS#11 modules")
)

// Open reaches a key by its name: a PEM file, env:VARIABLE, exec:COMMAND or a PKCS#11 URI (RFC 7512). The result
// must be closed.
func Open(ctx context.Context, name string, o Options) (sgx.Signer, error) {
	if isKey(name) {
		return nil, fmt.Errorf("%w: this is a key itself, which is not repeated here. Put it in a file, or in a "+
			"variable and say env:VARIABLE", ErrName)
	}
	scheme, rest, _ := strings.Cut(name, ":")
	var s sgx.Signer
	var err error
	switch scheme {
	case "env":
		s, err = fromEnv(rest, o)
	case "exec":
		s, err = newPlugin(rest, o)
	case "pkcs11":
		s, err = openToken(ctx, name, o)
	default:
		s, err = ReadFile(name, o)
	}
	if err != nil {
		return nil, err // not a nil *sgx.Key in the interface
	}
	return s, nil
}

const maxName = 4 << 10

// isKey reports whether a name is a key that was given in the place of one: in PEM, or in base64.
func isKey(name string) bool {
	return len(name) > maxName || strings.Contains(name, "-----BEGIN") || strings.ContainsAny(name, "\r\n") ||
		keyLike.MatchString(name)
}

// keyLike is PEM in base64.
var keyLike = regexp.MustCompile(`LS0tLS1CRUdJT|^(env:)?[A-Za-z0-9+/=]{200,}$`)

// parse reads a key from PEM, asking for a passphrase by the name of where it is.
func parse(text []byte, of string, o Options) (*sgx.Key, error) {
	var ask func() ([]byte, error)
	if o.Passphrase != nil {
		ask = func() ([]byte, error) { return o.Passphrase(of) }
	}
	k, err := sgx.ParseKey(text, ask)
	if err != nil {
		return nil, fmt.Errorf("reading the signing key %s: %w", of, err)
	}
	return k, nil
}

// fromEnv reads a key from a variable, which holds PEM, or PEM in base64: some systems keep secrets of one line
// only. The variable is taken away, so that no program inherits it.
func fromEnv(variable string, o Options) (*sgx.Key, error) {
	text, err := secret.Variable(variable)
	if err != nil {
		return nil, fmt.Errorf("reading the signing key: %w", err)
	}
	defer clear(text)
	if !strings.Contains(string(text), "-----BEGIN") {
		if plain, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(string(text)), "")); err == nil {
			defer clear(plain)
			text = plain
		}
	}
	return parse(text, "env:"+variable, o)
}
