package keyserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"filippo.io/age"

	"github.com/cconvert/cconvert/internal/secret"
)

// Store keeps secrets by name.
type Store interface {
	// Get returns a secret, which the caller clears. The error is ErrNoSecret if there is none.
	Get(ctx context.Context, name string) ([]byte, error)
	// Put keeps a secret, in the place of what was there.
	Put(ctx context.Context, name string, value []byte) error
}

// Errors of stores.
var (
	ErrNoSecret  = errors.New("there is no such secret")
	ErrName      = errors.New("not the name of a secret")
	ErrStoreKey  = errors.New("not an age identity")
	ErrEncrypted = errors.New("the secret cannot be decrypted with this key")
)

// MaxSecret is how many bytes a secret can have.
const MaxSecret = 1 << 20

// Directory is a Store of files, each encrypted in the format age (age-encryption.org/v1).
type Directory struct {
	dir string
	key *age.X25519Identity
}

const (
	encryptedExtension = ".age"
	keyTimeout         = 2 * time.Minute // for a program that tells a key: somebody may have to touch a token
)

// OpenDirectory opens a directory of secrets. Key is where the age identity is that can read them: a file, env:VARIABLE
// or exec:COMMAND. Exposed is told of a file that others can read.
func OpenDirectory(ctx context.Context, dir, key string, exposed func(file string)) (*Directory, error) {
	text, open, err := secret.Read(ctx, key, keyTimeout)
	if err != nil {
		return nil, fmt.Errorf("reading the key of the store: %w", err)
	}
	defer clear(text)
	if open {
		exposed(key)
	}
	identities, err := age.ParseIdentities(bytes.NewReader(text))
	if err != nil || len(identities) != 1 {
		return nil, fmt.Errorf("reading the key of the store: %w: AGE-SECRET-KEY-1… expected", ErrStoreKey)
	}
	id, ok := identities[0].(*age.X25519Identity)
	if !ok {
		return nil, fmt.Errorf("reading the key of the store: %w of the kind X25519", ErrStoreKey)
	}
	return &Directory{dir, id}, nil
}

// CreateKey makes the key of a store in a file that only its owner can read, and that is not there yet.
func CreateKey(file string) error {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return err
	}
	err = secret.CreateFile(file, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "# public key: %s\n%s\n", id.Recipient(), id)
		return err
	})
	if err != nil {
		return fmt.Errorf("writing the key of the store: %w", err)
	}
	return nil
}

// checkSecret reports a secret that no store keeps, or what is not the name of one.
func checkSecret(name string, value []byte) error {
	if !secretName.MatchString(strings.TrimPrefix(name, "_")) {
		return fmt.Errorf("%q: %w: letters, digits, -, . and _ expected", name, ErrName)
	}
	if len(value) > MaxSecret {
		return fmt.Errorf("%s: a secret has at most %d bytes", name, MaxSecret)
	}
	return nil
}

func (d *Directory) path(name string) string { return filepath.Join(d.dir, name+encryptedExtension) }

// Get is of Store.
func (d *Directory) Get(_ context.Context, name string) ([]byte, error) {
	if err := checkSecret(name, nil); err != nil {
		return nil, err
	}
	f, err := os.Open(d.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", name, ErrNoSecret)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r, err := age.Decrypt(f, d.key)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", name, ErrEncrypted, err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	// One that does not grow, and leaves no copies. What is encrypted is longer.
	buffer := make([]byte, min(info.Size(), maxStored)+1)
	n, err := io.ReadFull(r, buffer)
	switch {
	case err == nil:
		err = fmt.Errorf("it has more than %d bytes", MaxSecret)
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		if value, ok := bytes.CutPrefix(buffer[:n], header(name)); ok {
			return value, nil
		}
		err = errors.New("it is another secret, or not one of a store")
	}
	clear(buffer)
	return nil, fmt.Errorf("%s: %w: %w", name, ErrEncrypted, err)
}

// header is what is encrypted before a secret, so that nobody who can write the files puts one in the place of another.
func header(name string) []byte { return []byte("cconvert secret 1 " + name + "\n") }

const maxStored = MaxSecret + 128

// Put is of Store.
func (d *Directory) Put(_ context.Context, name string, value []byte) error {
	if err := checkSecret(name, value); err != nil {
		return err
	}
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(d.dir, ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // unless it was renamed
	w, err := age.Encrypt(f, d.key.Recipient())
	if err == nil {
		if _, err = w.Write(header(name)); err == nil {
			_, err = w.Write(value)
		}
		if closeErr := w.Close(); err == nil {
			err = closeErr
		}
	}
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(f.Name(), d.path(name))
	}
	if err != nil {
		return fmt.Errorf("keeping %s: %w", name, err)
	}
	return nil
}
