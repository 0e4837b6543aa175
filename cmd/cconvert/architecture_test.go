package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The table of docs/architecture.md, the linter's rules and the imports are the same, and the files that the document
// names are there.
func TestArchitecture(t *testing.T) {
	const module = "github.com/cconvert/cconvert/"
	root := "../.."
	text, err := os.ReadFile(filepath.Join(root, "docs/architecture.md"))
	require.NoError(t, err)
	table := map[string][]string{}
	names := regexp.MustCompile("`([^`]+)`")
	for _, row := range regexp.MustCompile("(?m)^\\| `((?:pkg|internal)/[^`]+)` \\|.*\\| ([^|]*) \\|$").
		FindAllStringSubmatch(string(text), -1) {
		imports := []string{}
		for _, n := range names.FindAllStringSubmatch(row[2], -1) {
			imports = append(imports, n[1])
		}
		table[row[1]] = imports
	}
	files := regexp.MustCompile("`((?:pkg|internal)/[a-z/]+\\.go)`")
	for _, file := range files.FindAllStringSubmatch(string(text), -1) {
		assert.FileExists(t, filepath.Join(root, file[1]))
	}

	list := exec.Command("go", "list", "-json=ImportPath,Imports", "./pkg/...", "./internal/...")
	list.Dir = root
	out, err := list.Output()
	require.NoError(t, err)
	actual := map[string][]string{}
	for d := json.NewDecoder(strings.NewReader(string(out))); d.More(); {
		var p struct {
			ImportPath string
			Imports    []string
		}
		require.NoError(t, d.Decode(&p))
		own := []string{}
		for _, i := range p.Imports {
			if in, ok := strings.CutPrefix(i, module); ok {
				own = append(own, in)
			}
		}
		actual[strings.TrimPrefix(p.ImportPath, module)] = own
	}
	assert.Equal(t, actual, table)

	var linter struct {
		Linters struct {
			Settings struct {
				Depguard struct {
					Rules map[string]struct{ Files, Allow []string }
				}
			}
		}
	}
	text, err = os.ReadFile(filepath.Join(root, ".golangci.yml"))
	require.NoError(t, err)
	require.NoError(t, yaml.Unmarshal(text, &linter))
	allowed := map[string][]string{}
	for _, rule := range linter.Linters.Settings.Depguard.Rules {
		pkg := strings.TrimSuffix(strings.TrimPrefix(rule.Files[0], "**/"), "/*.go")
		allow := []string{}
		for _, a := range rule.Allow {
			allow = append(allow, strings.TrimPrefix(a, module))
		}
		slices.Sort(allow)
		allowed[pkg] = allow
	}
	assert.Equal(t, table, allowed)
}
