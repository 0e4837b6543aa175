package manifest

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/cconvert/cconvert/pkg/reach"
)

// Overlay is a user's manifest, to be merged over the generated one.
type Overlay struct {
	// Trusted are its trusted files; if the digest is missing it is that of the image's file.
	Trusted []TrustedFile
	table   Table
}

// Features returns sgx.cpu_features of the overlay, which may be nil.
func (o *Overlay) Features() map[string]any {
	if o == nil {
		return nil
	}
	sgx, _ := o.table["sgx"].(Table)
	features, _ := sgx["cpu_features"].(Table)
	return features
}

var byOverlay = reach.File{Reason: ReasonOverlay}

// KeyError says what is wrong with a key of a manifest, and where.
type KeyError struct {
	File    string
	Line    int // from 1; 0 where it is not known
	Key     string
	Problem string
}

func (e *KeyError) Error() string {
	where := e.File
	if e.Line > 0 {
		where = fmt.Sprintf("%s:%d", e.File, e.Line)
	}
	return fmt.Sprintf("%s: %s: %s", where, e.Key, e.Problem)
}

// ParseOverlay reads a user's manifest and checks every key and type against what Gramine accepts.
// Required keys may be missing: the generated manifest has them. The file's name is for errors only,
// which are *KeyError, joined.
func ParseOverlay(file string, text []byte) (*Overlay, error) {
	if len(text) > maxOverlay {
		return nil, &KeyError{
			File: file, Key: "syntax", Problem: fmt.Sprintf("it has %d bytes, more than %d", len(text), maxOverlay),
		}
	}
	t, err := decode(file, text)
	if err != nil {
		return nil, err
	}
	if err := check(file, text, t, false); err != nil {
		return nil, err
	}
	o := &Overlay{table: t}
	sgx, _ := t["sgx"].(Table)
	entries, _ := sgx["trusted_files"].([]any)
	for i, v := range entries {
		switch v := v.(type) {
		case string:
			o.Trusted = append(o.Trusted, TrustedFile{URI: v, Why: byOverlay})
		case Table:
			uri, _ := v["uri"].(string)
			sum, _ := v["sha256"].(string)
			sum = strings.ToLower(sum)
			f := TrustedFile{URI: uri, Known: sum != "", Why: byOverlay}
			b, err := hex.DecodeString(sum)
			if copy(f.SHA256[:], b); f.Known && (err != nil || len(b) != sha256.Size) {
				key := fmt.Sprintf("sgx.trusted_files[%d].sha256", i)
				return nil, &KeyError{file, keyLines(text)[key], key, "it must be 64 hexadecimal digits"}
			}
			o.Trusted = append(o.Trusted, f)
		}
	}
	return o, nil
}

// Check checks a whole manifest, as Gramine's gramine-manifest-check does: keys, types and what is
// required.
func Check(file string, text []byte) error {
	t, err := decode(file, text)
	if err != nil {
		return err
	}
	return check(file, text, t, true)
}

// Check checks a manifest that was put together. Lines are not known.
func (m *Manifest) Check() error {
	return check("manifest", nil, m.Table, true)
}

// maxOverlay is how long a user's manifest may be, in bytes.
const maxOverlay = 1 << 20

// maxProblems is how many mistakes are told of one manifest.
const maxProblems = 20

func decode(file string, text []byte) (Table, error) {
	t := Table{}
	if err := boundKeys(text); err != nil {
		return nil, &KeyError{File: file, Key: "syntax", Problem: err.Error()}
	}
	if err := toml.Unmarshal(text, &t); err != nil {
		var at *toml.DecodeError
		if errors.As(err, &at) {
			line, _ := at.Position()
			return nil, &KeyError{File: file, Line: line, Key: "syntax", Problem: at.Error()}
		}
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return t, nil
}

func check(file string, text []byte, t Table, whole bool) error {
	var c checker
	c.whole = whole
	c.check("", schema, t)
	if len(c.problems) == 0 {
		return nil
	}
	lines := keyLines(text)
	var errs []error
	for _, p := range c.problems[:min(len(c.problems), maxProblems)] {
		p.File, p.Line = file, lines[p.Key]
		errs = append(errs, p)
	}
	return errors.Join(errs...)
}
