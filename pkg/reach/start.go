package reach

import (
	"path"
	"slices"
	"strings"

	"github.com/cconvert/cconvert/pkg/rootfs"
)

// startProgram follows a program that is started or can be: its interpreters, its libraries, and what a
// shell script names.
func (f *Finder) startProgram(n *rootfs.Node, why Reason) {
	if f.seen[n] {
		return
	}
	f.seen[n] = true
	f.set.Started = append(f.set.Started, n)
	f.add(n, why)
	f.link(n)
	if n.ELF != nil {
		return
	}
	if n.Shebang != "" {
		f.set.Scripts = true
	}
	if chain, err := f.start.Interpreters(n); err == nil {
		for _, i := range chain {
			f.startProgram(i, why)
		}
	}
	if n.Shebang != "" || strings.HasSuffix(n.Path, ".sh") { // other contents that were kept are no commands
		f.words(Words(string(n.Content)), path.Dir(n.Path))
	}
}

// maxWords is how many different words are looked up.
const maxWords = 1 << 18

// words looks up what can be the name of a program or a file, in a script in a directory.
func (f *Finder) words(words []string, dir string) {
	for _, w := range words {
		if strings.HasSuffix(w, ".sh") { // one that is included is often named as "$(dirname "$0")/other.sh"
			f.file(path.Join(dir, path.Base(w)))
		}
		if f.tried[w] || len(f.tried) == maxWords {
			continue
		}
		f.tried[w] = true
		if n, spelled, err := f.start.LookUp(w); err == nil {
			f.roots[spelled] = true // a link can be of another package
			f.startProgram(n, Named)
		} else if path.IsAbs(w) {
			f.file(w)
		}
	}
}

// file follows a file that is named: a script that is included or given to an interpreter, or settings. Of
// a directory that is named as those whose scripts are run one after the other (run-parts(8)) it follows
// the scripts.
func (f *Finder) file(p string) {
	n, _, err := f.tree.Resolve(p)
	switch {
	case err != nil:
	case n.Type == rootfs.Regular:
		f.startProgram(n, Named)
	case n.Type == rootfs.Dir && strings.HasSuffix(n.Path, ".d"):
		for _, c := range n.Children() {
			if c.Type == rootfs.Regular && (c.Shebang != "" || strings.HasSuffix(c.Path, ".sh")) {
				f.startProgram(c, Named)
			}
		}
	}
}

// link adds the libraries of a program, and the modules that these load.
func (f *Finder) link(n *rootfs.Node) {
	loaded, _ := f.libs.closure(n)
	for _, l := range loaded {
		f.add(l, Library)
	}
	for _, l := range slices.Concat([]*rootfs.Node{n}, loaded) {
		for _, m := range f.libs.modules(l) {
			f.add(m, Module)
			more, _ := f.libs.closure(m)
			for _, l := range more {
				f.add(l, Library)
			}
		}
	}
}

// Process notes what a process of the program loads.
func (f *Finder) Process(n *rootfs.Node) {
	if n.ELF == nil || slices.Contains(f.set.Linked, n) {
		return
	}
	loaded, missing := f.libs.closure(n)
	for _, l := range append([]*rootfs.Node{n}, loaded...) {
		if !slices.Contains(f.set.Linked, l) {
			f.set.Linked = append(f.set.Linked, l)
		}
	}
	for _, m := range missing {
		if !slices.Contains(f.set.Missing, m) {
			f.set.Missing = append(f.set.Missing, m)
		}
	}
}

// Words splits the text of a script or command line into what can be names of programs and files.
// Lines that are comments are left out; of the rest everything counts.
func Words(text string) []string {
	var words []string
	for line := range strings.Lines(text) {
		if strings.HasPrefix(strings.TrimSpace(line), "#") {
			continue
		}
		for _, w := range strings.FieldsFunc(line, func(c rune) bool {
			return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') &&
				!strings.ContainsRune("_./+-%@[", c)
		}) {
			if w = strings.Trim(w, "%"); w != "" && w[0] != '-' && len(w) < 4096 {
				words = append(words, w)
			}
		}
	}
	return words
}
