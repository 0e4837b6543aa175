package launch

import (
	"fmt"
	"path"
	"strings"

	"github.com/cconvert/cconvert/pkg/rootfs"
)

// Starter is a script that starts a program by its own path. A library OS does not see that a path is a link, so that a
// program behind it takes the link's directory for its own, and does not find what lies beside itself, as Java does.
type Starter struct {
	// Path is where the script goes, Program what it starts.
	Path, Program string
}

// Text is the script.
func (s Starter) Text() string {
	return "#!/bin/sh\nexec " + shellWord(s.Program) + " \"$@\"\n"
}

// shellWord is a word for a shell (POSIX, "Quoting").
func shellWord(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// StarterPath is where the scripts go, followed by a number.
const StarterPath = enclaveDir + "/app/start-"

// maxStarters is how many programs may need one.
const maxStarters = 1000

// starter returns a mount of a script in the place of a link to a program that would lose its libraries there; false:
// the link will do, or nothing could be done.
func (f *files) starter(link, program *rootfs.Node) (Mount, bool) {
	if path.Dir(link.Path) == path.Dir(program.Path) || !f.set.LosesLibraries(program, path.Dir(link.Path)) {
		return Mount{}, false
	}
	if _, ok := f.choose(program); !ok {
		return Mount{}, false
	}
	if sh, _, err := f.tree.Resolve("/bin/sh"); err != nil || sh.Type != rootfs.Regular {
		return Mount{}, false
	}
	at, known := f.starters[program]
	if !known {
		if len(f.starters) == maxStarters {
			return Mount{}, false
		}
		at = fmt.Sprintf("%s%d", StarterPath, len(f.starters))
		if f.starters == nil {
			f.starters = map[*rootfs.Node]string{}
		}
		f.starters[program] = at
		f.spec.Starters = append(f.spec.Starters, Starter{at, program.Path})
	}
	return Mount{Type: Bind, Path: link.Path, Target: at}, true
}
