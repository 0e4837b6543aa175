package libos

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/renameio/v2"
)

// LockFile is the usual name of a lock file.
const LockFile = "cconvert.lock"

// ErrLock says that a lock file is not one.
var ErrLock = errors.New("not a lock file of version 1")

// Lock pins a runtime, so that measurements stay the same.
type Lock struct {
	Version int         `json:"version"`
	Runtime LockRuntime `json:"runtime"`
}

// LockRuntime identifies a runtime.
type LockRuntime struct {
	Source string `json:"source"`
	// Digest of the image that the source names; empty if it is files.
	Digest string `json:"digest,omitempty"`
	// Layer is the digest of the runtime's layer.
	Layer string `json:"layer"`
}

// ReadLock reads a lock file, or nil.
func ReadLock(file string) (*Lock, error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var l Lock
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields() // a key that is misspelt would pin nothing
	if err := d.Decode(&l); err != nil || l.Version != 1 {
		return nil, fmt.Errorf("%s is %w", file, ErrLock)
	}
	_, layerErr := v1.NewHash(l.Runtime.Layer)
	_, digestErr := v1.NewHash(l.Runtime.Digest)
	if l.Runtime.Source == "" || layerErr != nil || l.Runtime.Digest != "" && digestErr != nil {
		return nil, fmt.Errorf("%s is %w: it has no source, or no digest of a layer", file, ErrLock)
	}
	return &l, nil
}

// WriteLock pins the runtime of a bundle.
func WriteLock(file string, b *Bundle) error {
	text, err := json.MarshalIndent(Lock{1, LockRuntime{b.Source, b.SourceDigest, b.Layer.Digest}}, "", "  ")
	if err != nil {
		return err
	}
	return renameio.WriteFile(file, append(text, '\n'), 0o644)
}

// Pin keeps the options to the lock. It returns false, and leaves them, if they name another source
// than the lock does.
func (l *Lock) Pin(o *LoadOptions) bool {
	if o.Source == "" {
		o.Source = l.Runtime.Source
	}
	if o.Source != l.Runtime.Source {
		return false
	}
	// The layer too: beside the image, the libraries and this program's version decide on it.
	o.Digest, o.Layer = l.Runtime.Digest, l.Runtime.Layer
	return true
}
