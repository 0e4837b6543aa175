// Package cache keeps blobs on disk between runs. Several processes may use a cache at once.
package cache

import (
	"bytes"
	"crypto/sha256"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
)

// Dir is a cache in a directory, which need not exist. Keys are slash-separated names of our own making,
// never taken from an image.
type Dir string

// Default is the user's cache directory ($XDG_CACHE_HOME/cconvert); false where there is none.
func Default() (Dir, bool) {
	d, err := os.UserCacheDir()
	if err != nil {
		return "", false
	}
	return Dir(filepath.Join(d, "cconvert")), true
}

func (d Dir) path(key string) string { return filepath.Join(string(d), filepath.FromSlash(key)) }

// Get gives the blob of a key. One that was damaged is as good as none.
func (d Dir) Get(key string) ([]byte, bool) {
	b, err := os.ReadFile(d.path(key))
	if err != nil || len(b) < sha256.Size {
		return nil, false
	}
	blob := b[sha256.Size:]
	sum := sha256.Sum256(blob)
	if !bytes.Equal(sum[:], b[:sha256.Size]) {
		return nil, false
	}
	return blob, true
}

// Put keeps a blob. Readers see all of it or nothing.
func (d Dir) Put(key string, blob []byte) error {
	if err := os.MkdirAll(filepath.Dir(d.path(key)), 0o700); err != nil {
		return err
	}
	sum := sha256.Sum256(blob)
	return renameio.WriteFile(d.path(key), append(sum[:], blob...), 0o600)
}
