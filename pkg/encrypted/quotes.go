package encrypted

import (
	"bytes"
	"io"
	"strings"
)

const (
	// minQuote is how many characters in a line make it telling.
	minQuote = 16
	// maxQuoted is how much of a file is looked at, and maxText how much of what may quote it.
	maxQuoted = 1 << 20
	maxText   = 1 << 20
)

// Text is something that an image says in public: an entry of its history, or a variable.
type Text struct {
	Name string // for people
	Text string
}

// Quotes looks for lines of encrypted files in what stays readable.
type Quotes struct {
	texts []Text
	// Found are the names of the texts with the paths of files that they quote, in the order of the texts.
	Found map[string][]string
}

// NewQuotes looks in these texts.
func NewQuotes(texts []Text) *Quotes {
	q := &Quotes{Found: map[string][]string{}}
	left := maxText
	for _, t := range texts {
		if len(t.Text) >= minQuote && len(t.Text) <= left {
			q.texts = append(q.texts, t)
			left -= len(t.Text)
		}
	}
	return q
}

// Reader passes on the content of a file of a path, and looks at its beginning.
func (q *Quotes) Reader(path string, content io.Reader) (r io.Reader, done func()) {
	var head bytes.Buffer
	return io.TeeReader(content, &limitedWriter{&head, maxQuoted}), func() { q.look(path, head.String()) }
}

func (q *Quotes) look(path, content string) {
	for _, t := range q.texts {
		if quotes(t.Text, content) {
			q.Found[t.Name] = append(q.Found[t.Name], path)
		}
	}
}

// quotes reports whether a text has a line of a content, or is in it as a whole.
func quotes(text, content string) bool {
	// Paths, and lists of them, are in every script.
	if !strings.HasPrefix(text, "/") && strings.Contains(content, text) {
		return true
	}
	for line := range strings.Lines(content) {
		if line = strings.TrimSpace(line); len(line) >= minQuote && strings.Contains(text, line) {
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
