// Package yamledit changes values in YAML that people wrote, and nothing else: comments, order, blank lines and style
// of the rest stay as they are.
package yamledit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	sigsyaml "sigs.k8s.io/yaml"
)

// MaxBytes is how much text Parse reads.
const MaxBytes = 4 << 20

// ErrSyntax says that a text is not YAML that can be read here.
var ErrSyntax = errors.New("not YAML")

// ErrStyle says that a value is written in a way in which it cannot be changed without changing others.
var ErrStyle = errors.New(
	"it is written in a style that cannot be changed in place, such as JSON's, or shared by an anchor")

// File is a text of YAML documents.
type File struct {
	lines   []string // without their ends
	end     string   // of each line
	docs    []*yaml.Node
	changed bool
}

// Path leads to a value: names of keys, and numbers of elements of lists from 0.
type Path []any

// With returns the path to a value further in.
func (p Path) With(more ...any) Path { return slices.Concat(p, more) }

// Parse reads a text. Errors are ErrSyntax.
func Parse(text []byte) (*File, error) {
	if len(text) > MaxBytes {
		return nil, fmt.Errorf("%w: it has more than %d bytes", ErrSyntax, MaxBytes)
	}
	f := &File{end: "\n"}
	s := strings.TrimPrefix(string(text), "\ufeff")
	if strings.Contains(s, "\r\n") {
		f.end, s = "\r\n", strings.ReplaceAll(s, "\r\n", "\n")
	}
	f.lines = strings.Split(s, "\n")
	return f, f.parse()
}

func (f *File) parse() error {
	f.docs = nil
	d := yaml.NewDecoder(strings.NewReader(strings.Join(f.lines, "\n")))
	for {
		var doc yaml.Node
		switch err := d.Decode(&doc); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("%w: %w", ErrSyntax, err)
		}
		if len(doc.Content) != 1 {
			return fmt.Errorf("%w: a document has no content", ErrSyntax)
		}
		f.docs = append(f.docs, doc.Content[0])
		if _, err := f.decode(len(f.docs) - 1); err != nil {
			return err
		}
	}
}

// Documents is how many there are.
func (f *File) Documents() int { return len(f.docs) }

// Changed reports whether anything was.
func (f *File) Changed() bool { return f.changed }

// Bytes returns the text.
func (f *File) Bytes() []byte { return []byte(strings.Join(f.lines, f.end)) }

// Get decodes a value, as JSON has it: map[string]any, []any, string, float64 and so on; nil if there is none.
func (f *File) Get(doc int, p Path) (any, error) {
	v, err := f.decode(doc)
	if err != nil {
		return nil, err
	}
	return At(v, p), nil
}

func (f *File) decode(doc int) (v any, err error) {
	text, err := yaml.Marshal(f.docs[doc])
	if err == nil {
		err = sigsyaml.UnmarshalStrict(text, &v)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSyntax, err)
	}
	return v, nil
}

// At returns the value to which a path leads from a decoded one; nil if there is none.
func At(v any, p Path) any {
	for _, step := range p {
		switch step := step.(type) {
		case string:
			m, _ := v.(map[string]any)
			v = m[step]
		case int:
			l, _ := v.([]any)
			if step < 0 || step >= len(l) {
				return nil
			}
			v = l[step]
		}
	}
	return v
}

// Set sets the value of a key, with the tables on the way to it if they are missing. The path ends with the key.
func (f *File) Set(doc int, p Path, value any) error {
	return f.edit(doc, p, value)
}

// Append adds an element to a list, which is made if it is missing.
func (f *File) Append(doc int, p Path, value any) error {
	old, err := f.Get(doc, p)
	if err != nil {
		return err
	}
	list, ok := old.([]any)
	if !ok && old != nil {
		return fmt.Errorf("%v: %w: a list is expected", p, ErrSyntax)
	}
	return f.edit(doc, p.With(len(list)), value)
}

// Delete removes a key with its value, if it is there.
func (f *File) Delete(doc int, p Path) error {
	if v, err := f.Get(doc, p); err != nil || v == nil {
		return err
	}
	return f.edit(doc, p, removed{})
}

// removed stands for a value that is to go.
type removed struct{}

// edit makes one change of the text, and makes sure that it has changed what it was to change, and nothing else.
func (f *File) edit(doc int, p Path, value any) error {
	value, err := plain(value)
	if err != nil {
		return err
	}
	var want []any
	for i := range f.docs {
		v, err := f.decode(i)
		if err != nil {
			return err
		}
		if i == doc {
			v = put(v, p, value)
		}
		want = append(want, v)
	}
	before := f.lines
	f.lines, err = f.splice(doc, p, value)
	if err == nil {
		err = f.parse()
	}
	if err == nil && len(f.docs) != len(want) {
		err = ErrStyle
	}
	for i := 0; err == nil && i < len(want); i++ {
		var got any
		if got, err = f.decode(i); err == nil && !reflect.DeepEqual(got, want[i]) {
			err = ErrStyle
		}
	}
	if err != nil {
		f.lines = before
		_ = f.parse() // it was read before
		return fmt.Errorf("changing %s: %w", p, err)
	}
	f.changed = true
	return nil
}

// String is the path as people write it.
func (p Path) String() string {
	var b strings.Builder
	for i, step := range p {
		switch step := step.(type) {
		case int:
			fmt.Fprintf(&b, "[%d]", step)
		default:
			if i > 0 {
				b.WriteByte('.')
			}
			fmt.Fprint(&b, step)
		}
	}
	return b.String()
}

// plain makes of a value what decoding it returns. The error is ErrValue if that is another value.
func plain(v any) (any, error) {
	if _, ok := v.(removed); ok {
		return v, nil
	}
	text, err := sigsyaml.Marshal(v)
	if err != nil {
		return nil, err
	}
	return readBack(text, v)
}

// put returns a decoded value with another one in it.
func put(v any, p Path, value any) any {
	if len(p) == 0 {
		return value
	}
	switch step := p[0].(type) {
	case string:
		old, _ := v.(map[string]any)
		m := map[string]any{}
		for k, v := range old {
			m[k] = v
		}
		if _, gone := value.(removed); gone && len(p) == 1 {
			delete(m, step)
		} else {
			m[step] = put(m[step], p[1:], value)
		}
		return m
	case int:
		old, _ := v.([]any)
		l := slices.Clone(old)
		if step >= len(l) {
			step, l = len(l), append(l, nil)
		}
		l[step] = put(l[step], p[1:], value)
		return l
	}
	return v
}

// splice returns the lines with a change. It goes as far along the path as there is block style, in which a value takes
// whole lines (YAML 1.2.2, section 8.2), and writes the rest anew.
func (f *File) splice(doc int, p Path, value any) ([]string, error) {
	at := f.docs[doc]
	if !block(at) {
		return nil, ErrStyle
	}
	var rest Path
	var entry *yaml.Node // the deepest key in block style on the way, and what belongs to it
	for i, step := range p {
		next := child(at, step)
		if next == nil {
			return f.insert(at, p[i:], value)
		}
		if key, ok := step.(string); ok {
			entry, rest = keyOf(at, key), p[i+1:]
		}
		if !block(next) || i == len(p)-1 {
			at = next
			break
		}
		at = next
	}
	if entry == nil {
		return nil, ErrStyle
	}
	return f.replace(doc, entry, at, rest, value)
}

// block reports whether a node is a table or a list in block style that has something in it.
func block(n *yaml.Node) bool {
	return (n.Kind == yaml.MappingNode || n.Kind == yaml.SequenceNode) && n.Style&yaml.FlowStyle == 0 &&
		n.Anchor == "" &&
		len(n.Content) > 0
}

func child(n *yaml.Node, step any) *yaml.Node {
	switch step := step.(type) {
	case string:
		for i := 0; n.Kind == yaml.MappingNode && i < len(n.Content); i += 2 {
			if n.Content[i].Value == step {
				return n.Content[i+1]
			}
		}
	case int:
		if n.Kind == yaml.SequenceNode && step < len(n.Content) {
			return n.Content[step]
		}
	}
	return nil
}

func keyOf(n *yaml.Node, key string) *yaml.Node {
	for i := 0; i < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i]
		}
	}
	return nil
}

// insert adds to a table or list what a path leads to that it does not have.
func (f *File) insert(n *yaml.Node, p Path, value any) ([]string, error) {
	last := n.Content[len(n.Content)-1]
	if n.Kind == yaml.MappingNode {
		last = n.Content[len(n.Content)-2]
	}
	indent := n.Column - 1
	at := f.extent(last.Line-1, indent, deepest(n), n.Kind == yaml.MappingNode)
	text, err := render(put(nil, p, value), indent)
	if err != nil {
		return nil, err
	}
	return slices.Insert(slices.Clone(f.lines), at, text...), nil
}

// replace writes an entry of a table anew. Rest is the path from its value to the one that changes.
func (f *File) replace(doc int, key, value *yaml.Node, rest Path, to any) ([]string, error) {
	indent, first := key.Column-1, key.Line-1
	whole, err := f.decode(doc)
	if err != nil {
		return nil, err
	}
	parent := find(f.docs[doc], key)
	end := f.extent(first, indent, deepest(child(parent, key.Value)), true)
	if first >= len(f.lines) || len(f.lines[first]) < indent {
		return nil, ErrStyle
	}
	before := f.lines[first][:indent] // "- " of an element whose first key this is
	var text []string
	if _, gone := to.(removed); !gone || len(rest) > 0 {
		old := At(whole, pathTo(f.docs[doc], key))
		if text, err = render(map[string]any{key.Value: put(old, rest, to)}, indent); err != nil {
			return nil, err
		}
		if c := value.LineComment; len(rest) == 0 && len(text) == 1 && end == first+1 && c != "" {
			text[0] += " " + c
		}
	}
	lines := slices.Concat(f.lines[:first], text, f.lines[end:])
	if strings.TrimSpace(before) == "" {
		return lines, nil
	}
	if first >= len(lines) || len(lines[first]) < indent {
		return nil, ErrStyle
	}
	lines[first] = before + lines[first][indent:]
	return lines, nil
}

// find returns the table that has a key.
func find(n, key *yaml.Node) *yaml.Node {
	for i, c := range n.Content {
		if c == key && n.Kind == yaml.MappingNode && i%2 == 0 {
			return n
		}
		if m := find(c, key); m != nil {
			return m
		}
	}
	return nil
}

// pathTo returns the path to the value of a key.
func pathTo(n, key *yaml.Node) Path {
	for i, c := range n.Content {
		var step any = i
		if n.Kind == yaml.MappingNode {
			if i%2 == 0 {
				if c == key {
					return Path{key.Value}
				}
				continue
			}
			step = n.Content[i-1].Value
		}
		if p := pathTo(c, key); p != nil {
			return append(Path{step}, p...)
		}
	}
	return nil
}

// deepest is the last line, from 1, on which a node or one in it begins.
func deepest(n *yaml.Node) int {
	line := n.Line
	for _, c := range n.Content {
		line = max(line, deepest(c))
	}
	return line
}

// extent returns the line after those of an entry, which begins at one, is indented so far, and goes at least to the
// line, from 1, that is known. A list may be no further indented than the key that it belongs to.
func (f *File) extent(first, indent, known int, key bool) int {
	end := min(max(first+1, known), len(f.lines))
	for i := first + 1; i < len(f.lines); i++ {
		line := f.lines[i]
		text := strings.TrimLeft(line, " ")
		depth := len(line) - len(text)
		switch {
		case strings.TrimSpace(text) == "":
			continue
		case depth > indent, key && depth == indent && (strings.HasPrefix(text, "- ") || text == "-"):
			end = max(end, i+1)
			continue
		case depth == indent && strings.HasPrefix(text, "#"), i < known:
			continue
		}
		break
	}
	return end
}

// render writes a value so far to the right.
func render(v any, indent int) ([]string, error) {
	text, err := sigsyaml.Marshal(v)
	if err != nil {
		return nil, err
	}
	var lines []string
	for line := range bytes.Lines(text) {
		s := strings.TrimSuffix(string(line), "\n")
		if s != "" {
			s = strings.Repeat(" ", indent) + s
		}
		lines = append(lines, s)
	}
	return lines, nil
}

// ErrValue says that a value cannot be written so that it is read as it was: the library writes a next line (U+0085) in
// a text as it is, and reads it as a space.
var ErrValue = errors.New("the value has characters that cannot be written in YAML")

// readBack reads a text that was written of a value.
func readBack(text []byte, v any) (any, error) {
	written, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	var want, got any
	if err := json.Unmarshal(written, &want); err != nil {
		return nil, err
	}
	if err := sigsyaml.Unmarshal(text, &got); err != nil {
		return nil, err
	}
	if !reflect.DeepEqual(want, got) {
		return nil, ErrValue
	}
	return got, nil
}
