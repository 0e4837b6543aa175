package reach_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"

	. "github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/reach"
	"github.com/cconvert/cconvert/pkg/rootfs/elf"
)

// What libraries have for those who work on them is not listed, not even where a profile names the whole library.
func TestUnreadFilesOfLibraries(t *testing.T) {
	files := map[string]bool{
		"usr/lib/python3/dist-packages/numpy/core.py":                         true,
		"usr/lib/python3/dist-packages/numpy/tests/test_core.py":              false,
		"usr/lib/python3/dist-packages/numpy/linalg/tests/data/x":             false,
		"usr/lib/python3/dist-packages/numpy/testing/utils.py":                true,
		"usr/lib/python3/dist-packages/numpy/core/include/ndarray.h":          false,
		"usr/lib/python3/dist-packages/numpy/core/fast.cpython-311-x86_64.so": true,
		// some read them when they are loaded
		"usr/lib/python3/dist-packages/numpy/core.pyi":                true,
		"usr/lib/python3/dist-packages/tests/x.py":                    true, // a library of this name
		"usr/lib/python3/dist-packages/astropy/tests/runner.py":       true,
		"usr/lib/python3/dist-packages/astropy/io/tests/x.py":         false,
		"usr/lib/python3.11/test/test_os.py":                          false,
		"usr/lib/python3.11/unittest/test/x.py":                       false,
		"usr/lib/python3.11/unittest/case.py":                         true,
		"usr/local/lib/python3.13/site-packages/pkg/tests/x.py":       false,
		"usr/lib/python3.11/json/__pycache__/decoder.cpython-311.pyc": false,
		"usr/lib/python3.11/json/decoder.py":                          true,
		"srv/app/__pycache__/main.cpython-311.pyc":                    false, // main.py is there
		"srv/app/main.py": true,
		"srv/app/__pycache__/hidden.cpython-311.pyc":            true, // all that there is
		"srv/app/hidden2.pyc":                                   true,
		"srv/app/node_modules/express/index.d.ts":               false,
		"usr/share/nodejs/undici/types/x.d.mts":                 false,
		"usr/share/nodejs/undici/index.js":                      true,
		"srv/app/src/app.d.ts":                                  true,
		"srv/app/tests/x.py":                                    true, // the author's own
		"srv/app/native.c":                                      true,
		"srv/app/node_modules/express/lib/x.js":                 true,
		"srv/app/node_modules/express/test/x.js":                false,
		"srv/app/node_modules/express/lib/test/x.js":            true,
		"srv/app/node_modules/@a/b/__tests__/x.js":              false,
		"srv/app/node_modules/a/node_modules/test/index.js":     true,
		"usr/lib/ruby/gems/3.1.0/gems/rack-2.2/lib/rack.rb":     true,
		"usr/lib/ruby/gems/3.1.0/gems/rack-2.2/spec/x.rb":       false,
		"usr/lib/ruby/gems/3.1.0/gems/json-2/ext/json/parser.c": false,
	}
	checked(t, files)
	files["srv/app/node_modules/typescript/lib/lib.d.ts"] = true // which reads declarations
	for name := range files {
		files[name] = files[name] || strings.Contains(name, ".d.")
	}
	checked(t, files)
}

func checked(t *testing.T, files map[string]bool) {
	t.Helper()
	entries := []Entry{Program("usr/bin/app", ELF(""))}
	for name := range files {
		entries = append(entries, File(name, "x"))
	}
	tree := Tree(t, reach.Keep, map[string]elf.Facts{}, entries...)
	for _, read := range [][]string{nil, {"/usr/lib/**", "/usr/local/lib/**", "/srv/**"}} {
		set, _ := find(t, tree, reach.Start{}, "/usr/bin/app", read...)
		for name, want := range files {
			_, has := set.Has(tree.Lookup("/" + name))
			assert.Equal(t, want, has, "%s %v", name, read)
		}
	}
}
