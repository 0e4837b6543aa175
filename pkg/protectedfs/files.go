package protectedfs

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"

	"github.com/google/renameio/v2"
)

// EncryptFile encrypts a file to another one, which appears only if all went well, and is its owner's alone. Size and
// SHA256 of f are found out.
func EncryptFile(from, to string, f File, key Key) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file: it is read twice", from)
	}
	sum := sha256.New()
	if f.Size, err = io.Copy(sum, in); err != nil {
		return fmt.Errorf("reading %s: %w", from, err)
	}
	sum.Sum(f.SHA256[:0])
	if _, err := in.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return create(to, func(out *os.File) error { return Encrypt(out, in, f, key) })
}

// DecryptFile decrypts a file to another one, which appears only if all was authentic, and is its owner's alone.
func DecryptFile(from, to, path string, key Key) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	r, err := Open(in, info.Size(), path, key)
	if err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	return create(to, func(out *os.File) error {
		if _, err := io.Copy(out, r); err != nil {
			return fmt.Errorf("%s: %w", from, err)
		}
		return nil
	})
}

func create(name string, write func(*os.File) error) error {
	out, err := renameio.NewPendingFile(name, renameio.WithPermissions(0o600))
	if err != nil {
		return err
	}
	defer out.Cleanup() //nolint:errcheck // after the file was put in its place there is nothing to remove
	if err := write(out.File); err != nil {
		return err
	}
	return out.CloseAtomicallyReplace()
}
