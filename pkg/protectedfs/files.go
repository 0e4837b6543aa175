package protectedfs

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/google/renameio/v2"

	"github.com/cconvert/cconvert/internal/ctxio"
)

// ErrFile says that a file cannot be encrypted or decrypted, or cannot be written over.
var ErrFile = errors.New("not a file for this")

// EncryptFile encrypts a file to another one, which appears only if all went well, and is its owner's alone. Size and
// SHA256 of f are found out. What is read must not change meanwhile: the error is ErrContent.
func EncryptFile(ctx context.Context, from, to string, f File, key Key) error {
	in, _, err := openInput(from, to)
	if err != nil {
		return err
	}
	defer in.Close()
	sum := sha256.New()
	if f.Size, err = io.Copy(sum, ctxio.NewReader(ctx, in)); err != nil {
		return fmt.Errorf("reading %s: %w", from, err)
	}
	sum.Sum(f.SHA256[:0])
	if _, err := in.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return create(to, func(out *os.File) error {
		if err := Encrypt(out, ctxio.NewReader(ctx, in), f, key); err != nil {
			return fmt.Errorf("encrypting %s: %w", from, err)
		}
		return nil
	})
}

// DecryptFile decrypts a file to another one, which appears only if all was authentic, and is its owner's alone.
func DecryptFile(ctx context.Context, from, to, path string, key Key) error {
	in, size, err := openInput(from, to)
	if err != nil {
		return err
	}
	defer in.Close()
	r, err := Open(in, size, path, key)
	if err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	return create(to, func(out *os.File) error {
		if _, err := io.Copy(out, ctxio.NewReader(ctx, r)); err != nil {
			return fmt.Errorf("%s: %w", from, err)
		}
		return nil
	})
}

// openInput opens a regular file from which another one can be made: a new one, or in place of a regular one.
func openInput(from, to string) (in *os.File, size int64, err error) {
	if in, err = os.OpenFile(from, os.O_RDONLY|syscall.O_NONBLOCK, 0); err != nil { // a pipe would wait for its writer
		return nil, 0, err
	}
	defer func() {
		if err != nil {
			in.Close()
		}
	}()
	info, err := in.Stat()
	if err != nil {
		return nil, 0, err
	}
	if !info.Mode().IsRegular() {
		return nil, 0, fmt.Errorf("%w: %s is not a regular one", ErrFile, from)
	}
	switch there, err := os.Lstat(to); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, 0, err
	case !there.Mode().IsRegular():
		return nil, 0, fmt.Errorf("%w: %s is there, and is not a regular one", ErrFile, to)
	case os.SameFile(info, there):
		return nil, 0, fmt.Errorf("%w: %s is what is read", ErrFile, to)
	}
	return in, info.Size(), nil
}

// create writes a file beside its place, and then puts it there.
func create(name string, write func(*os.File) error) error {
	out, err := renameio.NewPendingFile(name, renameio.WithTempDir(filepath.Dir(name)), renameio.WithPermissions(0o600))
	if err != nil {
		return err
	}
	defer out.Cleanup() //nolint:errcheck // after the file was put in its place there is nothing to remove
	if err := write(out.File); err != nil {
		return err
	}
	return out.CloseAtomicallyReplace()
}
