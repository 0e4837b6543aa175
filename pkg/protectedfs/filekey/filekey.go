// Package filekey reads the keys to which files are encrypted, and derives from the key of an owner those of images.
package filekey

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/cconvert/cconvert/internal/secret"
	"github.com/cconvert/cconvert/pkg/protectedfs"
)

// Errors of keys.
var (
	// ErrName says that the name of a key cannot be one.
	ErrName = secret.ErrName
	// ErrKey says that what was read is not a key to encrypted files.
	ErrKey = errors.New("not a key to encrypted files: 16 bytes, or what cconvert keygen --files has made")
	// ErrSource says that a key of an owner was used without the digest of an image.
	ErrSource = errors.New("the key is an owner's, which has another for each image: say which by its digest")
)

const (
	pemType    = "CCONVERT FILES KEY"
	masterSize = 32
	timeout    = 2 * time.Minute // for a program that tells a key: somebody may have to touch a token
)

// Secret is a key that was read: that of an owner, or one that is used as it is. It must be closed.
type Secret struct {
	master []byte // nil for one that is used as it is
	wrap   protectedfs.Key
}

// Create makes a key of an owner in a file that only its owner can read. A file that exists is never written over: the
// error is fs.ErrExist.
func Create(file string) error {
	master := make([]byte, masterSize)
	defer clear(master)
	rand.Read(master)
	text := pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: master})
	defer clear(text)
	err := secret.CreateFile(file, func(w io.Writer) error {
		_, err := w.Write(text)
		return err
	})
	if err != nil {
		return fmt.Errorf("writing the key: %w", err)
	}
	return nil
}

// keyLike is a key, or most of one, in the place of a name: PEM, or 16 bytes in hexadecimal or base64.
var keyLike = regexp.MustCompile(`-----BEGIN|[\r\n]|(^|[^0-9A-Za-z_/.-])(0x)?[0-9a-fA-F]{24,}([^0-9A-Za-z_/.-]|$)|` +
	`^\s*((env|exec|file):)?\s*([A-Za-z0-9+/_-]{22}(==)?|[A-Za-z0-9+/=]{60,})\s*$`)

// Open reads a key: from a file or a pipe, from a variable (env:VARIABLE), which is taken away, or from what a program
// writes to its standard output (exec:COMMAND). A key is PEM, also in base64, or 16 bytes, also in hexadecimal. Exposed
// is told of a file that others than its owner can read; nil: nobody is.
func Open(ctx context.Context, name string, exposed func(file string)) (*Secret, error) {
	if isKey(name) {
		return nil, fmt.Errorf("%w: this is a key itself, which is not repeated here. Put it in a file, or in a "+
			"variable and say env:VARIABLE", ErrName)
	}
	scheme, _, _ := strings.Cut(name, ":")
	text, open, err := secret.Read(ctx, name, timeout)
	if err != nil {
		return nil, fmt.Errorf("reading the key to encrypted files: %w", err)
	}
	if open && exposed != nil {
		exposed(name)
	}
	defer clear(text)
	s, err := parse(text)
	if err != nil {
		return nil, fmt.Errorf("reading the key to encrypted files from %s: %w", scheme, err)
	}
	return s, nil
}

// isKey reports whether a name is a key itself, unless it names a file or variable that there is.
func isKey(name string) bool {
	if variable, ok := strings.CutPrefix(name, "env:"); ok {
		if _, ok := os.LookupEnv(variable); ok {
			return false
		}
	}
	_, err := os.Lstat(name)
	return err != nil && keyLike.MatchString(name)
}

// printed reports whether these are characters: 16 of them are a part of a key in hexadecimal, or a word. Of random
// keys one in ten millions is so.
func printed(text []byte) bool {
	for _, c := range text {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return true
}

func parse(text []byte) (*Secret, error) {
	if len(text) == len(protectedfs.Key{}) && !printed(text) {
		return &Secret{wrap: protectedfs.Key(text)}, nil
	}
	compact := strings.Join(strings.Fields(string(text)), "")
	if b, err := hex.DecodeString(compact); err == nil && len(b) == len(protectedfs.Key{}) {
		defer clear(b)
		return &Secret{wrap: protectedfs.Key(b)}, nil
	}
	if !strings.Contains(string(text), "-----BEGIN") {
		plain, err := base64.StdEncoding.DecodeString(compact)
		if err != nil {
			return nil, ErrKey
		}
		defer clear(plain)
		text = plain
	}
	block, rest := pem.Decode(text)
	if block == nil || block.Type != pemType || len(block.Bytes) != masterSize ||
		len(strings.TrimSpace(string(rest))) > 0 {
		return nil, ErrKey
	}
	return &Secret{master: block.Bytes}, nil
}

var digestPattern = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// For returns the key for the files of an image, by the digest of the image that it is made of ("sha256:…"). A key that
// is used as it is does not depend on it. The error is ErrSource if a digest is needed.
func (s *Secret) For(source string) (protectedfs.Key, error) {
	if s.master == nil {
		return s.wrap, nil
	}
	if !digestPattern.MatchString(source) {
		return protectedfs.Key{}, ErrSource
	}
	mac := hmac.New(sha256.New, s.master)
	mac.Write([]byte("cconvert files of an image, version 1\x00" + source))
	sum := mac.Sum(nil)
	defer clear(sum)
	return protectedfs.Key(sum[:len(protectedfs.Key{})]), nil
}

// Owners reports whether the key is an owner's, which has another for each image.
func (s *Secret) Owners() bool { return s.master != nil }

// Close forgets the key.
func (s *Secret) Close() {
	clear(s.master)
	s.wrap = protectedfs.Key{}
}
