package reach

import (
	"path"
	"slices"
	"strings"

	"github.com/cconvert/cconvert/pkg/rootfs"
)

// libraryRules say what libraries of a language have that programs do not read.
type libraryRules struct {
	In      []string `toml:"in"`
	Tests   []string `toml:"tests"`
	Deep    bool     `toml:"deep"`
	Sources []string `toml:"sources"`
	Types   []string `toml:"types"`
	Checker string   `toml:"checker"`
	But     []string `toml:"but"`
}

// unreadFiles tells the files of libraries that programs do not read. It is asked for files of a directory one after
// the other.
type unreadFiles struct {
	dir   *rootfs.Node
	rules *libraryRules // of the directory; nil: it is no library's
	test  bool          // the directory is one of tests
	// declarations are files of types, which only a type checker reads, and checked reports whether there is one.
	declarations []*rootfs.Node
	checked      bool
}

func (u *unreadFiles) match(n *rootfs.Node) bool {
	if n.Parent() != u.dir {
		u.dir = n.Parent()
		u.rules, u.test = rulesOf(u.dir.Path + "/")
	}
	if compiledAgain(n) {
		return true
	}
	if u.rules == nil {
		return false
	}
	if u.rules.Checker != "" && strings.HasSuffix(n.Path, u.rules.Checker) {
		u.checked = true
	}
	if u.test || slices.Contains(u.rules.Sources, path.Ext(n.Path)) {
		return true
	}
	if slices.ContainsFunc(u.rules.Types, func(end string) bool { return strings.HasSuffix(n.Path, end) }) {
		u.declarations = append(u.declarations, n)
	}
	return false
}

// compiledAgain reports whether a file is compiled Python that is not used if its source is there: Python compares the
// times of the two (PEP 3147), and library OSes tell none.
func compiledAgain(n *rootfs.Node) bool {
	name, compiled := strings.CutSuffix(n.Name(), ".pyc")
	if !compiled || n.Parent().Name() != "__pycache__" {
		return false
	}
	module, _, _ := strings.Cut(name, ".")
	source := n.Parent().Parent().Child(module + ".py")
	return source != nil && source.Type == rootfs.Regular
}

// rulesOf returns the rules for a directory, which ends with a slash, and whether it is one of tests.
func rulesOf(dir string) (rules *libraryRules, test bool) {
	for i := range data.Libraries {
		r := &data.Libraries[i]
		for _, in := range r.In {
			if at := strings.LastIndex(dir, in); at >= 0 {
				return r, r.tests(dir[at+len(in):])
			}
		}
	}
	return nil, false
}

// tests reports whether a directory is one of tests, by its path below that of all libraries.
func (r *libraryRules) tests(dir string) bool {
	if slices.ContainsFunc(r.But, func(p string) bool { return strings.HasPrefix(dir, p+"/") }) {
		return false
	}
	names := strings.Split(strings.TrimSuffix(dir, "/"), "/")
	if strings.HasPrefix(names[0], "@") { // a scope
		names = names[1:]
	}
	if len(names) < 2 {
		return false
	}
	inside := names[1:]
	if !r.Deep {
		inside = inside[:1]
	}
	return slices.ContainsFunc(inside, func(name string) bool { return slices.Contains(r.Tests, name) })
}
