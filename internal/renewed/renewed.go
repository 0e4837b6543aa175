// Package renewed reads what is in files that somebody renews while a server runs: a certificate, or a secret.
package renewed

import (
	"crypto/tls"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
)

// File is what one or several files have.
type File[T any] struct {
	files []string
	read  func() (T, error)

	mu      sync.Mutex
	value   T
	of      []time.Time // when the files were changed that were read; nil: none were
	checked time.Time
}

// lookAgain is how long a value is used before its files are looked at again.
const lookAgain = 10 * time.Second

// New returns what a function reads from files.
func New[T any](read func() (T, error), files ...string) *File[T] {
	return &File[T]{files: files, read: read}
}

// Certificate returns the certificate and the key in two files.
func Certificate(cert, key string) *File[*tls.Certificate] {
	return New(func() (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair(cert, key)
		return &pair, err
	}, cert, key)
}

// Get returns what the files have. If they cannot be read any more, or do not belong together while they are being
// replaced, it is what they had before. An error means that they could never be read.
func (f *File[T]) Get() (T, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.of != nil && time.Since(f.checked) < lookAgain {
		return f.value, nil
	}
	f.checked = time.Now()
	var of []time.Time
	for _, file := range f.files {
		of = append(of, changed(file))
	}
	if f.of != nil && slices.Equal(of, f.of) {
		return f.value, nil
	}
	value, err := f.read()
	if err != nil && f.of != nil {
		logrus.Warnf("%s is not read again: %v", f.files[0], err)
		return f.value, nil
	}
	if err == nil {
		f.value, f.of = value, of
	}
	return f.value, err
}

// changed is when a file was; the zero time if it is not there.
func changed(file string) time.Time {
	info, err := os.Stat(file)
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}
