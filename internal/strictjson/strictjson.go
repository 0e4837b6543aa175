// Package strictjson refuses JSON that its readers would read differently: they differ in which of two keys of one name
// counts, in whether names that differ in case alone are the same, and in what becomes of text that is not UTF-8.
package strictjson

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"
)

const maxNesting = 64

// Rules say what is expected of a text.
type Rules struct {
	// Named are keys, in lower case, whose objects have names of the user's choice in them, for which case matters.
	Named []string
	// Known are keys with a meaning: others that are the same but for their case are refused, in all other objects.
	Known []string
	// MaxList is how many elements a list may have: three bytes of each become a hundred in memory.
	MaxList int
	// MaxKeys is how many keys all objects may have together; 0: DefaultMaxKeys.
	MaxKeys int
}

// DefaultMaxKeys is how many keys all objects may have together: ten bytes of each become a hundred in memory.
const DefaultMaxKeys = 100_000

// fold returns what encoding/json takes for the same key: to it "ſ" is an "s".
func fold(key string) string { return strings.ToLower(strings.ToUpper(key)) }

// Check reports why a text must not be read: it is no JSON, has a key twice in an object, or is against the rules. Of a
// text with several values all are checked.
func Check(text []byte, rules Rules) error {
	if !utf8.Valid(text) {
		return errors.New("it is not UTF-8")
	}
	known := map[string]string{}
	for _, k := range rules.Known {
		known[fold(k)] = k
	}
	most, keys := cmp.Or(rules.MaxKeys, DefaultMaxKeys), 0
	d := json.NewDecoder(bytes.NewReader(text))
	type object struct {
		keys  map[string]bool // nil for arrays
		size  int             // of arrays
		fold  bool
		value bool // the value of a key comes next
	}
	var open []object
	folded := true // whether names that differ in case alone are the same in the value that comes
	for {
		t, err := d.Token()
		if errors.Is(err, io.EOF) && len(open) == 0 {
			return nil
		}
		if err != nil {
			return errors.New(err.Error()) // of the text: io.ErrUnexpectedEOF would be taken for one of reading it
		}
		at := len(open) - 1
		if end := t == json.Delim(']') || t == json.Delim('}'); at >= 0 && open[at].keys == nil && !end {
			if open[at].size++; open[at].size > rules.MaxList {
				return fmt.Errorf("it has a list of more than %d elements", rules.MaxList)
			}
		}
		if s, ok := t.(string); ok && at >= 0 && open[at].keys != nil && !open[at].value {
			k := s
			if open[at].fold {
				k = fold(s)
			}
			if open[at].keys[k] {
				return fmt.Errorf("the key %q is there twice", s)
			}
			if must := known[k]; open[at].fold && must != "" && must != s {
				return fmt.Errorf("it has the key %q, which must be %q", s, must)
			}
			if keys++; keys > most {
				return fmt.Errorf("it has more than %d keys", most)
			}
			open[at].keys[k], open[at].value = true, true
			folded = !slices.Contains(rules.Named, strings.ToLower(s))
			continue
		}
		switch t {
		case json.Delim('{'):
			open = append(open, object{keys: map[string]bool{}, fold: folded})
		case json.Delim('['):
			open = append(open, object{fold: folded})
		case json.Delim('}'), json.Delim(']'):
			open = open[:at]
			at--
			fallthrough
		default:
			if at >= 0 {
				open[at].value = false
			}
			folded = true
		}
		if len(open) > maxNesting {
			return fmt.Errorf("it is nested more than %d deep", maxNesting)
		}
	}
}
