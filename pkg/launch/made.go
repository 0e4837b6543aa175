package launch

import (
	"path"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/cconvert/cconvert/pkg/launch/process"
	"github.com/cconvert/cconvert/pkg/reach"
	"github.com/cconvert/cconvert/pkg/rootfs"
)

// tmpfilesDir has what systemd makes at each start of a machine, by the packages that want it (tmpfiles.d(5)).
const tmpfilesDir = "/usr/lib/tmpfiles.d"

// makes finds the commands by which scripts make directories, with their arguments.
var makes = regexp.MustCompile(`\b(?:mkdir|install\s[^|;&\n]*-[a-zA-Z]*d)\b[^|;&\n]*`)

// madeAtStart makes the directories exist that scripts plainly make in temporary storage, and packages have made there
// at the start of a machine. Each process has temporary storage of its own: what a script's child makes, the server
// that it starts afterwards would not see.
func (f *files) madeAtStart() {
	for _, n := range f.set.Started {
		if n.ELF != nil || n.Shebang == "" {
			continue
		}
		for _, command := range makes.FindAllString(withoutComments(n.Content), -1) {
			for _, w := range reach.Words(command) {
				f.make(w)
			}
		}
	}
	dir := f.tree.Lookup(tmpfilesDir)
	if dir == nil {
		return
	}
	for _, c := range dir.Children() {
		if c.Type != rootfs.Regular {
			continue
		}
		for line := range strings.Lines(string(c.Content)) {
			fields := strings.Fields(line)
			if len(fields) >= 2 && strings.ContainsRune("dD", rune(fields[0][0])) &&
				!strings.ContainsRune(fields[1], '%') {
				f.make(fields[1])
			}
		}
	}
}

// make makes a directory of temporary storage, unless it lies elsewhere.
func (f *files) make(p string) {
	if !path.IsAbs(p) || !utf8.ValidString(p) || f.made >= maxSubdirectories {
		return
	}
	_, real, _ := f.tree.Resolve(path.Clean(p))
	if real == "" || process.Below(f.spec.Entrypoint, real) || process.Below(f.spec.LibC.Program, real) {
		return
	}
	if m, ok := f.cover(real); ok && m.Type == Tmpfs && m.Path != real {
		f.made++
		f.mount(Mount{Type: Tmpfs, Path: real})
	}
}
