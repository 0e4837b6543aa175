package encrypted

import (
	"bytes"
	"io"
	"strings"
)

const (
	// minQuote is how many characters in a line make it telling.
	minQuote = 16
	// maxQuoted is how much of a file is looked at, and maxLooked of all files.
	maxQuoted = 1 << 20
	maxLooked = 64 << 20
	// maxText is how much of what may quote them is looked at, and maxTexts in how many pieces.
	maxText  = 64 << 10
	maxTexts = 1000
)

// Text is something that an image says in public: an entry of its history, or a variable.
type Text struct {
	Name string // for people
	Text string
}

// Quotes looks for lines of encrypted files in what stays readable, as far as that is quickly done.
type Quotes struct {
	texts []Text
	all   string // the texts, each on lines of its own
	left  int    // bytes of files that are still looked at
	// Found are the names of the texts with the paths of files that they quote, in the order of the texts.
	Found map[string][]string
}

// NewQuotes looks in these texts.
func NewQuotes(texts []Text) *Quotes {
	q := &Quotes{Found: map[string][]string{}, left: maxLooked}
	var all strings.Builder
	for _, t := range texts {
		if len(t.Text) < minQuote || len(t.Text) > maxText-all.Len() || len(q.texts) == maxTexts {
			continue
		}
		q.texts = append(q.texts, t)
		all.WriteString(t.Text + "\n")
	}
	q.all = all.String()
	return q
}

// Reader passes on the content of a file of a path, and looks at its beginning once done is called.
func (q *Quotes) Reader(path string, content io.Reader) (r io.Reader, done func()) {
	var head bytes.Buffer
	limit := min(maxQuoted, q.left)
	return io.TeeReader(content, &limitedWriter{&head, limit}), func() {
		q.left -= head.Len()
		q.look(path, head.String())
	}
}

func (q *Quotes) look(path, content string) {
	lines := map[string]bool{} // that some text has
	for line := range strings.Lines(content) {
		if line = strings.TrimSpace(line); len(line) >= minQuote && strings.Contains(q.all, line) {
			lines[line] = true
		}
	}
	for _, t := range q.texts {
		if quotes(t.Text, content, lines) {
			q.Found[t.Name] = append(q.Found[t.Name], path)
		}
	}
}

// quotes reports whether a text has a line of a content, or is in it as a whole. Paths, and lists of them, are in every
// script.
func quotes(text, content string, lines map[string]bool) bool {
	if !strings.HasPrefix(text, "/") && strings.Contains(content, text) {
		return true
	}
	for line := range lines {
		if strings.Contains(text, line) {
			return true
		}
	}
	return false
}

// limitedWriter takes so many bytes and forgets the rest.
type limitedWriter struct {
	w    io.Writer
	left int
}

func (l *limitedWriter) Write(b []byte) (int, error) {
	part := b[:min(l.left, len(b))]
	l.left -= len(part)
	if _, err := l.w.Write(part); err != nil {
		return 0, err
	}
	return len(b), nil
}
