package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

const maxNesting = 64

// maxElements is how many elements a list may have: three bytes of each become a hundred in memory.
const maxElements = 10_000

// named are keys whose objects have names of the user's choice in them, for which case matters.
var named = []string{"labels", "annotations", "volumes", "exposedports"}

// uniqueKeys refuses JSON in which an object has a key twice, or two keys that differ in upper and lower case
// alone: readers disagree on which of them counts, and some put both together.
func uniqueKeys(text []byte) error {
	d := json.NewDecoder(bytes.NewReader(text))
	type object struct {
		keys map[string]bool // nil for arrays
		size int             // of arrays
		fold bool
		key  string // whose value comes next; empty where a key comes next
	}
	var open []object
	fold := true // whether names that differ in case alone are the same in the value that comes
	for {
		t, err := d.Token()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		at := len(open) - 1
		if end := t == json.Delim(']') || t == json.Delim('}'); at >= 0 && open[at].keys == nil && !end {
			if open[at].size++; open[at].size > maxElements {
				return fmt.Errorf("it has a list of more than %d elements", maxElements)
			}
		}
		if s, ok := t.(string); ok && at >= 0 && open[at].keys != nil && open[at].key == "" {
			k := s
			if open[at].fold {
				k = strings.ToLower(strings.ToUpper(s)) // "ſ" is an "s" to encoding/json
			}
			if open[at].keys[k] {
				return fmt.Errorf("the key %q is there twice", s)
			}
			open[at].keys[k] = true
			open[at].key = s + "\x00" // not empty, whatever the key is
			fold = !slices.Contains(named, strings.ToLower(s))
			continue
		}
		switch t {
		case json.Delim('{'):
			open = append(open, object{keys: map[string]bool{}, fold: fold})
		case json.Delim('['):
			open = append(open, object{fold: fold})
		case json.Delim('}'), json.Delim(']'):
			open = open[:at]
			at--
			fallthrough
		default:
			if at >= 0 {
				open[at].key = ""
			}
			fold = true
		}
		if len(open) > maxNesting {
			return fmt.Errorf("it is nested more than %d deep", maxNesting)
		}
	}
}
