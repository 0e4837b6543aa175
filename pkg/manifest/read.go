package manifest

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
)

const (
	// MaxBytes is the size of a manifest up to which it is read: a million files, and room for long paths.
	MaxBytes = 256 << 20
	// maxDepth is how deeply tables may be nested; Gramine's are by four.
	maxDepth = 16
)

// sections are the tables at the top, in which Gramine knows keys.
var sections = []string{"loader", "libos", "fs", "sgx", "sys"}

// Parse reads a manifest that anybody may have written.
func Parse(text []byte) (*Manifest, error) {
	if len(text) > MaxBytes {
		return nil, fmt.Errorf("the manifest has %d bytes, more than %d", len(text), MaxBytes)
	}
	var m Manifest
	if err := inTime(func() error { return toml.Unmarshal(text, &m.Table) }); err != nil {
		return nil, fmt.Errorf("reading the manifest: %w", err)
	}
	for name, v := range m.Table {
		t, ok := v.(Table)
		for _, section := range sections {
			if ok && strings.EqualFold(name, section) {
				if err := exactKeys(name, section, t); err != nil {
					return nil, err
				}
			}
		}
		if deeper(v, maxDepth) {
			return nil, fmt.Errorf("the manifest nests tables more than %d deep", maxDepth)
		}
	}
	return &m, nil
}

// maxParse is how long a manifest may take: the library needs a time that grows with the square of the keys in a table.
const maxParse = time.Minute

var errSlow = errors.New("it takes longer than any manifest should")

// inTime waits no longer for something that cannot be interrupted.
func inTime(do func() error) error {
	done := make(chan error, 1)
	go func() { done <- do() }()
	select {
	case err := <-done:
		return err
	case <-time.After(maxParse):
		return errSlow
	}
}

// exactKeys refuses keys that some readers take for Gramine's, whose case matters, and Gramine does not.
func exactKeys(name, section string, t Table) error {
	if name != section {
		return fmt.Errorf("the manifest has the key %q: Gramine's is %q", name, section)
	}
	for k := range t {
		if lower := strings.ToLower(k); k != lower {
			return fmt.Errorf("the manifest has the key %s.%q: Gramine's are in lower case", section, k)
		}
	}
	return nil
}

// deeper says whether tables and arrays are nested more than so deep.
func deeper(v any, depth int) bool {
	if depth == 0 {
		return true
	}
	switch v := v.(type) {
	case Table:
		for _, sub := range v {
			if deeper(sub, depth-1) {
				return true
			}
		}
	case []any:
		for _, sub := range v {
			if deeper(sub, depth-1) {
				return true
			}
		}
	}
	return false
}
