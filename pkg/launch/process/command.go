package process

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/rootfs"
)

// maxInterpreters is how many scripts may interpret each other, as in Linux (execve(2)).
const maxInterpreters = 4

// maxPathDirs is how many directories of PATH are looked into, which are spelled in at most maxPathBytes.
const (
	maxPathDirs  = 256
	maxPathBytes = 16 << 10
)

// command finds the program that the image starts.
func (s *Process) command(tree *rootfs.Tree, c v1.Config, args []string) error {
	cmd := c.Cmd
	if args != nil {
		cmd = args
	}
	if len(c.Entrypoint) == 1 && c.Entrypoint[0] == "" {
		c.Entrypoint = nil // by which Dockerfiles take back that of their base
	}
	s.Argv = slices.Concat(c.Entrypoint, cmd)
	if len(s.Argv) == 0 || s.Argv[0] == "" {
		return fmt.Errorf("%w: it has neither ENTRYPOINT nor CMD", ErrImage)
	}
	for _, dir := range []string{"/dev", "/proc", "/sys"} {
		if n := tree.Lookup(dir); n != nil && n.Type == rootfs.Symlink {
			return fmt.Errorf("%w: %s is a link to %q, and engines differ in where they mount what is the kernel's",
				ErrImage, dir, n.Link)
		}
	}
	n, _, err := s.LookUp(tree, s.Argv[0])
	if err != nil {
		return err
	}
	if !utf8.ValidString(n.Path) {
		return fmt.Errorf("%w: the name of its program %q is not UTF-8, so a manifest cannot hold it", ErrImage, n.Path)
	}
	s.Entrypoint = n.Path
	s.FixedArgs = max(len(c.Entrypoint), 1)
	if s.HostArgs && s.Argv[0] != n.Path {
		s.Find(finding.ArgvZero, finding.Warning, s.Argv[0],
			"with arguments of the host, the program does not see this name as "+
				"its first argument: one that acts by its name, as busybox does, will not work")
	}
	return nil
}

// LookUp finds a program as execvp does: by its path, or by its name in the directories of PATH. It returns
// the path by which it was found as well.
func (s *Process) LookUp(tree *rootfs.Tree, program string) (n *rootfs.Node, spelled string, err error) {
	if strings.Contains(program, "/") {
		return s.choose(tree, program, []string{s.abs(program)})
	}
	if known, ok := s.found[program]; ok {
		return known.node, known.spelled, known.err
	}
	tried, err := s.inPath(tree, program)
	if err == nil {
		n, spelled, err = s.choose(tree, program, tried)
	}
	if missing := (*notFoundError)(nil); errors.As(err, &missing) {
		missing.path, missing.tried = s.path, nil
	}
	if s.found == nil || len(s.found) >= maxFound {
		s.found = map[string]found{}
	}
	s.found[program] = found{n, spelled, err}
	return n, spelled, err
}

// found is what came of looking a program up. Scripts in great number name the same few.
type found struct {
	node    *rootfs.Node
	spelled string
	err     error
}

const maxFound = 10_000

// inPath returns the paths at which a program of a name may be: those in directories of PATH that have the name.
func (s *Process) inPath(tree *rootfs.Tree, program string) (tried []string, err error) {
	if s.path == nil {
		list, _ := s.Getenv("PATH")
		if len(list) > maxPathBytes || strings.Count(list, ":") >= maxPathDirs {
			return nil, fmt.Errorf("%w: its PATH has more than %d directories, or %d bytes", ErrImage, maxPathDirs,
				maxPathBytes)
		}
		for dir := range strings.SplitSeq(list, ":") {
			d := pathDir{spelled: dir}
			var through []*rootfs.Node
			visit := func(n *rootfs.Node) { through = append(through, n) }
			if n, _, err := tree.Through(s.abs(path.Clean(dir)), visit); err == nil && n.Type == rootfs.Dir {
				d.node = n
			}
			d.kernels = LeadsInto(s.abs(path.Clean(dir)), through, "/proc")
			s.path = append(s.path, d)
		}
	}
	for _, d := range s.path {
		if d.kernels || d.node != nil && d.node.Child(program) != nil {
			tried = append(tried, s.abs(path.Join(d.spelled, program)))
		}
	}
	return tried, nil
}

// pathDir is a directory of PATH, nil if the image has none of the name. What is in the kernel's is not known.
type pathDir struct {
	spelled string
	node    *rootfs.Node
	kernels bool
}

// choose returns the first of several paths at which engines would find a program.
func (s *Process) choose(tree *rootfs.Tree, program string, tried []string) (*rootfs.Node, string, error) {
	var because error
	var denied *rootfs.Node
	deniedAs := ""
	for _, p := range tried {
		var through []*rootfs.Node
		n, _, err := tree.Through(p, func(dir *rootfs.Node) { through = append(through, dir) })
		if err == nil {
			through = append(through, n)
		}
		switch {
		case LeadsInto(p, through, "/proc"):
			return nil, "", fmt.Errorf("%w: its program %q is looked for at %q, which is the kernel's: what is there "+
				"is not known here", ErrImage, program, p)
		case LeadsInto(p, through, "/dev", "/sys"):
			because = errors.New(p + " is where engines mount file systems of the kernel's")
		case err != nil:
			if !errors.Is(err, fs.ErrNotExist) {
				because = err
			}
		case n.Type != rootfs.Regular:
			because = errors.New(n.Path + " is not a regular file")
		case n.Mode&0o111 == 0:
			because = errors.New(n.Path + " is not executable")
		case s.May(tree, n, mayExecute) && !slices.ContainsFunc(through[:len(through)-1], func(dir *rootfs.Node) bool {
			return !s.mayItself(dir, mayExecute)
		}):
			return n, p, nil
		case denied == nil:
			denied, deniedAs = n, p
		}
	}
	if denied != nil { // engines go on to look, as the image's user, and find no other
		return denied, deniedAs, nil
	}
	return nil, "", &notFoundError{program: program, tried: tried, because: because, abs: s.abs}
}

// LeadsInto reports whether a path, or what it leads through, is in one of the directories.
func LeadsInto(p string, through []*rootfs.Node, dirs ...string) bool {
	return slices.ContainsFunc(dirs, func(dir string) bool {
		return Below(path.Clean(p), dir) ||
			slices.ContainsFunc(through, func(n *rootfs.Node) bool { return Below(n.Path, dir) })
	})
}

// notFoundError says where a program was looked for. Its text is made only when it is wanted: most look-ups
// are of words that are no programs.
type notFoundError struct {
	program string
	tried   []string
	path    []pathDir // instead, of a name
	abs     func(string) string
	because error // may be nil
	once    sync.Once
	text    string
}

func (e *notFoundError) Error() string {
	e.once.Do(func() {
		for _, d := range e.path {
			e.tried = append(e.tried, e.abs(path.Join(d.spelled, e.program)))
		}
		e.text = fmt.Sprintf("%v: its program %q was not found, tried %s", ErrImage, e.program,
			strings.Join(e.tried, ", "))
		if e.because != nil {
			e.text += ": " + e.because.Error()
		}
	})
	return e.text
}

func (e *notFoundError) Unwrap() []error {
	if e.because == nil {
		return []error{ErrImage}
	}
	return []error{ErrImage, e.because}
}

// abs is a path seen from the working directory. It is not cleaned: ".." is resolved by the tree.
func (s *Process) abs(p string) string {
	if path.IsAbs(p) {
		return p
	}
	return s.WorkDir + "/" + p
}

// Interpreters follows the first lines of scripts to the ELF file that runs in the end, which comes last.
// It returns every program on the way, env(1) included; none for what is no script.
func (s *Process) Interpreters(tree *rootfs.Tree, n *rootfs.Node) ([]*rootfs.Node, error) {
	var chain []*rootfs.Node
	for range maxInterpreters {
		if n.ELF != nil || n.Shebang == "" {
			return chain, nil
		}
		line := strings.FieldsFunc(n.Shebang, func(c rune) bool { return c == ' ' || c == '\t' })
		if len(line) == 0 {
			return nil, fmt.Errorf("%w: the script %s names no interpreter", ErrImage, n.Path)
		}
		program := line[0]
		programs := []string{program}
		if inner := envProgram(line[1:]); path.Base(program) == "env" && inner != "" {
			programs = append(programs, inner)
		}
		for _, program := range programs {
			next, _, err := s.LookUp(tree, program)
			if err != nil {
				return nil, fmt.Errorf("the script %s begins with #!%s: %w", n.Path, n.Shebang, err)
			}
			chain = append(chain, next)
		}
		n = chain[len(chain)-1]
	}
	return nil, fmt.Errorf("%w: the scripts up to %s interpret each other", ErrImage, n.Path)
}

// envProgram finds the program in the arguments of env(1).
func envProgram(args []string) string {
	for i, a := range args {
		if i > 0 && (args[i-1] == "-u" || args[i-1] == "-C") {
			continue // the option's value
		}
		if !strings.HasPrefix(a, "-") && !strings.Contains(a, "=") {
			return a
		}
	}
	return ""
}

// ErrImage says that an image lacks what starting it needs.
var ErrImage = errors.New("the image cannot be started")
