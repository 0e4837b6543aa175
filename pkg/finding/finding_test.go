package finding

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Every code is explained in the documentation with its remedy, and nothing else is.
func TestFindingsAreDocumented(t *testing.T) {
	docs, err := os.ReadFile("../../docs/findings.md")
	require.NoError(t, err)
	documented := map[string]string{}
	rows := regexp.MustCompile("(?m)^\\| `([^`]+)` \\|.*\\| ([^|]*) \\|$")
	for _, row := range rows.FindAllStringSubmatch(string(docs), -1) {
		documented[row[1]] = strings.ReplaceAll(row[2], "`", "")
	}
	assert.Equal(t, remedies, documented)
	source, err := os.ReadFile("finding.go")
	require.NoError(t, err)
	codes := regexp.MustCompile(`(?m)^\t[A-Z]\w+ += "([\w-]+)"$`).FindAllStringSubmatch(string(source), -1)
	assert.Len(t, codes, len(remedies))
	for _, c := range codes {
		assert.True(t, Known(c[1]), "%s has a remedy", c[1])
	}
}
