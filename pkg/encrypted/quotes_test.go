package encrypted

import (
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestQuotes(t *testing.T) {
	const secret = "line one of the secret\n  and its second line\nshort\n"
	for what, c := range map[string]struct {
		text  string
		found bool
	}{
		"a line":                      {"RUN echo 'line one of the secret' >/srv/a", true},
		"an indented line":            {"and its second line", true},
		"a part of a line":            {"second line\nshort\n#", false},
		"a text that is in the file":  {"one of the secret", true},
		"a short line":                {"this is too short for that", false},
		"a short text":                {"one of", false},
		"a path":                      {"/one of the secret", false},
		"something else":              {"nothing of that kind is in it", false},
		"a line over the end of text": {"line one of the", false},
	} {
		q := NewQuotes([]Text{{"the text", c.text}})
		r, done := q.Reader("/a", strings.NewReader(secret))
		b, err := io.ReadAll(r)
		require.NoError(t, err)
		assert.Equal(t, secret, string(b))
		done()
		assert.Equal(t, c.found, len(q.Found) > 0, what)
	}
}

// What an image says, and what is looked at of its files, is bounded.
func TestQuotesAreBounded(t *testing.T) {
	var texts []Text
	for i := range 3000 {
		texts = append(texts, Text{fmt.Sprint(i), strings.Repeat("x", 100)})
	}
	q := NewQuotes(texts)
	assert.LessOrEqual(t, len(q.texts), maxTexts)
	assert.LessOrEqual(t, len(q.all), maxText+maxTexts)
	line := strings.Repeat("y", 1023) + "\n"
	for range 80 {
		r, done := q.Reader("/a", io.LimitReader(endless(line), 2<<20))
		n, err := io.Copy(io.Discard, r)
		require.NoError(t, err)
		assert.Equal(t, int64(2<<20), n)
		done()
	}
	assert.Zero(t, q.left)
}

// endless repeats a text.
type endless string

func (e endless) Read(b []byte) (int, error) { return copy(b, e), nil }
