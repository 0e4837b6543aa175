package launch_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Every code is explained in the documentation, and nothing else is.
func TestFindingsAreDocumented(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "finding.go", nil, 0)
	require.NoError(t, err)
	docs, err := os.ReadFile("../../docs/findings.md")
	require.NoError(t, err)
	codes := 0
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if ok && strings.HasPrefix(spec.Names[0].Name, "Code") {
			code := strings.Trim(spec.Values[0].(*ast.BasicLit).Value, `"`)
			assert.Contains(t, string(docs), "| `"+code+"` |")
			codes++
		}
		return true
	})
	assert.Equal(t, strings.Count(string(docs), "\n| `"), codes)
}
