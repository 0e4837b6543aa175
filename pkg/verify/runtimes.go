package verify

import (
	"bytes"
	"fmt"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/pelletier/go-toml/v2"
)

// KnownRuntime is a runtime that somebody has looked at.
type KnownRuntime struct {
	// Name says to people what it is.
	Name string `toml:"name"`
	// Layer is the digest of its layer in converted images.
	Layer string `toml:"layer"`
}

// ReadRuntimes reads a TOML file of known runtimes: an array of tables "runtime", each with a name and the digest of a
// layer. The error is ErrPolicy.
func ReadRuntimes(file string) ([]KnownRuntime, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var known struct {
		Runtimes []KnownRuntime `toml:"runtime"`
	}
	d := toml.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&known); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", file, ErrPolicy, err)
	}
	if len(known.Runtimes) == 0 {
		return nil, fmt.Errorf("%s: %w: it has no runtime", file, ErrPolicy)
	}
	for _, k := range known.Runtimes {
		if _, err := v1.NewHash(k.Layer); err != nil || k.Name == "" {
			return nil, fmt.Errorf("%s: %w: a known runtime has a name, and the digest of its layer as \"sha256:…\"",
				file, ErrPolicy)
		}
	}
	return known.Runtimes, nil
}
