package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
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
	if err := boundTokens(text); err != nil {
		return nil, fmt.Errorf("reading the manifest: %w", err)
	}
	if err := boundKeys(text); err != nil {
		return nil, fmt.Errorf("reading the manifest: %w", err)
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

// maxFewTokens is how many punctuation marks a manifest may have outside of strings, whatever its size.
const maxFewTokens = 200_000

// boundTokens refuses a text of little else than punctuation: "{}," becomes hundreds of bytes in memory. In an entry
// for a file five marks come with 90 bytes at least.
func boundTokens(text []byte) error {
	tokens := 0
	for i := 0; i < len(text); {
		switch c := text[i]; c {
		case '"', '\'':
			i += quoted(text[i:])
			continue
		case '#':
			if end := bytes.IndexByte(text[i:], '\n'); end >= 0 {
				i += end
				continue
			}
			return nil
		case ',', '.', '[', '{', '=':
			if tokens++; tokens > maxFewTokens+len(text)/16 {
				return errors.New("it has less text than such lists must have")
			}
		}
		i++
	}
	return nil
}

// quoted is the length of the string that a text begins with, to the end of the text if it does not end (TOML 1.0,
// "String").
func quoted(text []byte) int {
	mark := text[:1]
	if long := bytes.Repeat(mark, 3); bytes.HasPrefix(text, long) {
		mark = long
	}
	for i := len(mark); i < len(text); i++ {
		switch {
		case text[i] == '\\' && mark[0] == '"':
			i++
		case len(mark) == 1 && text[i] == '\n': // no string: for the decoder to tell
			return i
		case bytes.HasPrefix(text[i:], mark):
			return i + len(mark)
		}
	}
	return len(text)
}

// maxKeys is how many keys a table may have. What decodes them needs a time that grows with the square of their number:
// 0.4 s for so many.
const maxKeys = 10_000

// boundKeys refuses a table of too many keys, before it is decoded. What is no TOML is for the decoder to tell.
func boundKeys(text []byte) error {
	var p unstable.Parser
	p.Reset(text)
	keys := map[string]int{} // of each table, by its dotted name
	count := func(table string, it unstable.Iterator) (string, error) {
		for parts := 1; it.Next(); parts++ {
			if parts > maxDepth {
				return "", fmt.Errorf("a key of the table %.100q has more than %d parts",
					strings.TrimSuffix(table, "."), maxDepth)
			}
			if keys[table]++; keys[table] > maxKeys {
				return "", fmt.Errorf("the table %.100q has more than %d keys", strings.TrimSuffix(table, "."), maxKeys)
			}
			table += string(it.Node().Data) + "."
		}
		return table, nil
	}
	table := ""
	for p.NextExpression() {
		var err error
		switch e := p.Expression(); e.Kind {
		case unstable.Table:
			table, err = count("", e.Key())
		case unstable.ArrayTable:
			if table, err = dotted(e.Key()); err != nil {
				return err
			}
			if _, again := keys[table]; !again {
				_, err = count("", e.Key())
			}
			keys[table] = 0 // each is a table of its own
		case unstable.KeyValue:
			if _, err = count(table, e.Key()); err == nil {
				err = boundInline(e.Value())
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func dotted(it unstable.Iterator) (path string, err error) {
	for parts := 1; it.Next(); parts++ {
		if parts > maxDepth {
			return "", fmt.Errorf("a key has more than %d parts", maxDepth)
		}
		path += string(it.Node().Data) + "."
	}
	return path, nil
}

// boundInline is boundKeys for what is written on one line, or in an array.
func boundInline(n *unstable.Node) error {
	if n == nil || n.Kind != unstable.Array && n.Kind != unstable.InlineTable {
		return nil
	}
	keys := 0
	for it := n.Children(); it.Next(); {
		c := it.Node()
		if n.Kind == unstable.InlineTable {
			if keys++; keys > maxKeys {
				return fmt.Errorf("a table on one line has more than %d keys", maxKeys)
			}
			c = c.Value()
		}
		if err := boundInline(c); err != nil {
			return err
		}
	}
	return nil
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

// deeper reports whether tables and arrays are nested more than so deep.
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
