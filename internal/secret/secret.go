// Package secret reads keys: from a file or a pipe, from a variable, or from a program that tells them. It leaves no
// copies in memory, and its errors do not repeat what could be a key.
package secret

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
)

// Max is how many bytes a key can have wherever it is read from.
const Max = 64 << 10

// ErrName says that the name of a place cannot be one.
var ErrName = errors.New("not the name of a key")

// ReadFile reads a file or a pipe. Exposed reports whether others than the file's owner can read it. The text must be
// cleared after use.
func ReadFile(file string) (text []byte, exposed bool, err error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, false, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, false, err
	}
	buffer := make([]byte, Max+1) // one that does not grow, and leaves no copies
	n, err := io.ReadFull(f, buffer)
	switch {
	case err == nil:
		clear(buffer)
		return nil, false, fmt.Errorf("%s: it has more than %d bytes, which no key has", file, Max)
	case !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF):
		clear(buffer)
		return nil, false, err
	}
	return buffer[:n], info.Mode().IsRegular() && info.Mode().Perm()&0o077 != 0, nil
}

// CreateFile writes a key to a new file that only its owner can read. A file that exists is never written over: the
// error is fs.ErrExist.
func CreateFile(file string, write func(io.Writer) error) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err = write(f); err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		os.Remove(file)
	}
	return err
}

// plainVariable is the name of a variable.
var plainVariable = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// Variable reads a variable and takes it away, so that no program inherits it. The error is ErrName if it is not set.
func Variable(name string) ([]byte, error) {
	if !plainVariable.MatchString(name) {
		return nil, fmt.Errorf("%w: what follows env: is not the name of a variable, and is not repeated here", ErrName)
	}
	text := []byte(os.Getenv(name))
	if len(text) == 0 {
		return nil, fmt.Errorf("the variable %q is not set: %w", name, ErrName)
	}
	os.Unsetenv(name)
	return text, nil
}
