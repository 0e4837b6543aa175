package rootfs_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"

	. "github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/rootfs"
)

func TestWithin(t *testing.T) {
	type layer []Entry
	for what, c := range map[string]struct {
		layers []layer
		entry  string
	}{
		"nothing":                     {[]layer{{File("etc/passwd", "x"), Symlink("bin", "usr/bin")}}, ""},
		"a program of the name":       {[]layer{{Dir("usr/bin"), Symlink("bin", "usr/bin")}, {Program("bin/cconvert", "x")}}, ""},
		"a longer name":               {[]layer{{File("cconvert2", "x"), Symlink("x", "/cconvert2")}}, ""},
		"a link inside":               {[]layer{{Dir("usr/lib/cconvert"), Symlink("usr/bin/x", "../lib/cconvert/x")}}, ""},
		"the directory":               {[]layer{{Dir("cconvert")}}, "/cconvert"},
		"a file in it":                {[]layer{{File("cconvert/gramine/x", "x")}}, "/cconvert/gramine/x"},
		"removed":                     {[]layer{{File("cconvert/x", "x")}, {File(".wh.cconvert", "")}}, "/cconvert/x"},
		"emptied root":                {[]layer{{File("cconvert/x", "x")}, {File(".wh..wh..opq", "")}}, "/cconvert/x"},
		"a whiteout":                  {[]layer{{File(".wh.cconvert", "")}}, "/cconvert"},
		"emptied":                     {[]layer{{File("cconvert/.wh..wh..opq", "")}}, "/cconvert"},
		"a link to it":                {[]layer{{Symlink("x", "/cconvert/gramine/lib")}, {File("x/evil", "x")}}, "/x"},
		"a relative link":             {[]layer{{Symlink("a/x", "../cconvert")}}, "/a/x"},
		"above the root":              {[]layer{{Symlink("a/x", "../../../cconvert/y")}}, "/a/x"},
		"a hard link":                 {[]layer{{Hardlink("x", "cconvert/y")}}, "/x"},
		"through a link to the root":  {[]layer{{Symlink("r", "/")}, {File("r/cconvert/x", "x")}}, "/r/cconvert/x"},
		"through one that is removed": {[]layer{{Symlink("r", "/")}, {File(".wh.r", "")}, {File("r/cconvert/x", "x")}}, "/r/cconvert/x"},
		"through links to links":      {[]layer{{Dir("b"), Symlink("a", "b"), Symlink("a/y", "/")}, {File("b/y/cconvert/x", "x")}}, "/b/y/cconvert/x"},
		"a link through a link":       {[]layer{{Symlink("y", "."), Symlink("z", "y/cconvert")}, {File("z/evil", "x")}}, "/z"},
		"exchanged links":             {[]layer{{Symlink("r", "/usr")}, {Symlink("r", "..")}, {File("r/cconvert", "x")}}, "/r/cconvert"},
	} {
		var indexes []*rootfs.Index
		for _, l := range c.layers {
			indexes = append(indexes, scan(t, l...))
		}
		_, entry := rootfs.Within(indexes, "/cconvert")
		assert.Equal(t, c.entry, entry, what)
	}
}

// Links that lead to links in very many ways end the search, and not well.
func TestWithinIsBounded(t *testing.T) {
	var links []Entry
	for i := range 30 {
		links = append(links, Symlink(fmt.Sprintf("l%d", i), fmt.Sprintf("l%d/../l%[1]d", i+1)))
	}
	links = append(links, File("l0/l0/cconvert", "x"))
	_, entry := rootfs.Within([]*rootfs.Index{scan(t, links...)}, "/cconvert")
	assert.NotEmpty(t, entry)
}
