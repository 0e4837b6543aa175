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
)

// ErrFile says that a file cannot be encrypted or decrypted, or cannot be written over.
var ErrFile = errors.New("not a file for this")

// EncryptFile encrypts a file to another one, which appears only if all went well, and is its owner's alone. Size and
// SHA256 of f are found out. What is read must not change meanwhile: the error is ErrContent.
func EncryptFile(ctx context.Context, from, to string, f File, key Key) error {
	return convertFile(from, to, func(in *os.File, write func(func(*os.File) error) error) error {
		sum := sha256.New()
		var err error
		if f.Size, err = io.Copy(sum, &contextReader{ctx, in}); err != nil {
			return err
		}
		sum.Sum(f.SHA256[:0])
		if _, err := in.Seek(0, io.SeekStart); err != nil {
			return err
		}
		return write(func(out *os.File) error { return Encrypt(out, &contextReader{ctx, in}, f, key) })
	})
}

// DecryptFile decrypts a file to another one, which appears only if all was authentic, and is its owner's alone.
func DecryptFile(ctx context.Context, from, to, path string, key Key) error {
	return convertFile(from, to, func(in *os.File, write func(func(*os.File) error) error) error {
		info, err := in.Stat()
		if err != nil {
			return err
		}
		r, err := Open(in, info.Size(), path, key)
		if err != nil {
			return err
		}
		return write(func(out *os.File) error {
			_, err := io.Copy(out, &contextReader{ctx, r})
			return err
		})
	})
}

// convertFile opens one regular file and has another one written, beside its place and then put there.
func convertFile(from, to string, convert func(in *os.File, write func(func(*os.File) error) error) error) error {
	in, err := os.OpenFile(from, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe would wait for its writer
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%w: %s is not a regular one", ErrFile, from)
	}
	switch there, err := os.Lstat(to); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case !there.Mode().IsRegular():
		return fmt.Errorf("%w: %s is there, and is not a regular one", ErrFile, to)
	case os.SameFile(info, there):
		return fmt.Errorf("%w: %s is what is read", ErrFile, to)
	}
	err = convert(in, func(write func(*os.File) error) error {
		out, err := renameio.NewPendingFile(to, renameio.WithTempDir(filepath.Dir(to)), renameio.WithPermissions(0o600))
		if err != nil {
			return err
		}
		defer out.Cleanup() //nolint:errcheck // after the file was put in its place there is nothing to remove
		if err := write(out.File); err != nil {
			return err
		}
		return out.CloseAtomicallyReplace()
	})
	if err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	return nil
}

type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r *contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
