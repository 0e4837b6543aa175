// Package release is the protocol by which an enclave asks the owner's server for secrets ("cconvert/1"), and its
// client. The enclave names places for secrets, which are measured with it; the server decides by the enclave's quote
// whether to fill them, and can fill no others.
package release

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode"
)

// Kinds of places for a secret.
const (
	KindEnv  = "env"  // a variable
	KindFile = "file" // a file, by its absolute path
	KindKey  = "key"  // a key of encrypted files, by the name in the manifest
	KindTLS  = "tls"  // a directory with a key that the enclave makes, and a certificate for it
)

// Slot is a place for a secret, such as env:DB_PASSWORD. Its text is the kind, a colon and the name.
type Slot struct{ Kind, Name string }

// ErrSlot says that something is not a place for a secret.
var ErrSlot = errors.New("not a place for a secret")

// MaxSlots is how many an enclave can have.
const MaxSlots = 256

// Letters and digits of names. Regular expressions would add 240 KB to the agent.
const (
	letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	digits  = "0123456789"
)

// isName reports whether a text begins with one of the first characters, has nothing but the others behind it, and has
// at most limit bytes.
func isName(text, first, others string, limit int) bool {
	return text != "" && len(text) <= limit && strings.IndexByte(first, text[0]) >= 0 &&
		strings.Trim(text[1:], others) == ""
}

const maxPath = 1024

// system are directories in which a secret would take the place of what the system or the runtime goes by.
var system = []string{
	"/bin", "/boot", "/cconvert", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/sbin", "/sys",
	"/usr",
}

// ParseSlot reads a slot.
func ParseSlot(text string) (Slot, error) {
	kind, name, ok := strings.Cut(text, ":")
	s := Slot{kind, name}
	if !ok {
		return s, fmt.Errorf("%q: %w: env:NAME, file:PATH, key:NAME or tls:DIRECTORY expected", text, ErrSlot)
	}
	return s, s.check()
}

func (s Slot) check() error {
	switch s.Kind {
	case KindEnv:
		if !isName(s.Name, letters+"_", letters+digits+"_", 128) {
			return fmt.Errorf("%q: %w: not the name of a variable", s, ErrSlot)
		}
	case KindKey:
		if !isName(s.Name, letters+digits, letters+digits+"_-", 64) {
			return fmt.Errorf("%q: %w: a key's name has letters, digits, - and _", s, ErrSlot)
		}
	case KindFile, KindTLS:
		return s.checkPath()
	default:
		return fmt.Errorf("%q: %w: its kind is env, file, key or tls", s, ErrSlot)
	}
	return nil
}

// checkPath refuses paths that can be read in two ways, and those of the system.
func (s Slot) checkPath() error {
	p := s.Name
	switch {
	case !path.IsAbs(p) || path.Clean(p) != p || len(p) > maxPath:
		return fmt.Errorf("%q: %w: an absolute path without . and .. expected", s, ErrSlot)
	case strings.ContainsFunc(p, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar }):
		return fmt.Errorf("%q: %w: its path cannot be printed", s, ErrSlot)
	case path.Dir(p) == "/" && (s.Kind == KindFile || p == "/"):
		return fmt.Errorf("%q: %w: it would be in no directory of its own, such as /run/secrets", s, ErrSlot)
	}
	if i := slices.IndexFunc(system, func(d string) bool { return strings.HasPrefix(p+"/", d+"/") }); i >= 0 {
		return fmt.Errorf("%q: %w: %s is the system's; choose a directory of its own, such as /run/secrets", s, ErrSlot,
			system[i])
	}
	return nil
}

func (s Slot) String() string { return s.Kind + ":" + s.Name }

// MarshalText is of encoding.TextMarshaler.
func (s Slot) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText is of encoding.TextUnmarshaler.
func (s *Slot) UnmarshalText(b []byte) (err error) {
	*s, err = ParseSlot(string(b))
	return err
}

// Dir is the directory that must be there for the secret; empty for those without a path.
func (s Slot) Dir() string {
	switch s.Kind {
	case KindFile:
		return path.Dir(s.Name)
	case KindTLS:
		return s.Name
	}
	return ""
}

// CheckSlots refuses lists in which two places are one, or one is inside another.
func CheckSlots(list []Slot) error {
	if len(list) > MaxSlots {
		return fmt.Errorf("%w: there are more than %d", ErrSlot, MaxSlots)
	}
	for i, a := range list {
		if err := a.check(); err != nil {
			return err
		}
		for _, b := range list[:i] {
			switch {
			case a.Kind == b.Kind && a.Name == b.Name:
				return fmt.Errorf("%q: %w: it is named twice", a, ErrSlot)
			case a.Dir() == "" || b.Dir() == "":
			case strings.HasPrefix(a.Name+"/", b.Name+"/"), strings.HasPrefix(b.Name+"/", a.Name+"/"):
				return fmt.Errorf("%q: %w: %q is there, too", a, ErrSlot, b)
			}
		}
	}
	return nil
}
