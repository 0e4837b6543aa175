// Package process works out what a container engine would start of an image: which program, with which arguments,
// variables and identity.
package process

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/rootfs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Process is what a container engine starts of an image.
type Process struct {
	// Entrypoint is the program's path with all symbolic links resolved.
	Entrypoint string
	// Argv are the arguments, the first being the program as the image names it.
	Argv []string
	// HostArgs lets whoever starts the container choose the arguments, unmeasured.
	HostArgs bool
	// FixedArgs is how many of Argv belong to the ENTRYPOINT: the others are what arguments of the host
	// replace.
	FixedArgs int
	Env       []EnvVar // sorted by name
	WorkDir   string
	UID, GID  uint32
	// Findings are what the user should know.
	Findings []finding.Finding

	groups []uint32 // the user's, besides GID
	path   []pathDir
	found  map[string]found // by the name of a program
}

// New works out what an image of a configuration starts. Args are instead of its CMD, unless nil, and the
// variables of env are added to the image's, or instead of them.
func New(tree *rootfs.Tree, c v1.Config, args []string, hostArgs bool, env []EnvVar) (*Process, error) {
	s := &Process{HostArgs: hostArgs, WorkDir: path.Clean("/" + c.WorkingDir)}
	for _, text := range slices.Concat(c.Entrypoint, c.Cmd, args, []string{s.WorkDir},
		slices.Collect(maps.Keys(c.Volumes))) {
		if strings.ContainsRune(text, 0) {
			return nil, fmt.Errorf("%w: %q holds a NUL byte", ErrImage, text)
		}
	}
	home, err := s.identify(tree, c.User)
	if err != nil {
		return nil, err
	}
	if err := s.environment(c.Env, env, home); err != nil {
		return nil, err
	}
	if err := s.command(tree, c, args); err != nil {
		return nil, err
	}
	return s, s.fits()
}

// Find notes a finding. The path may be empty.
func (s *Process) Find(code string, severity finding.Severity, path, message string) {
	s.Findings = append(s.Findings, finding.New(code, severity, path, message))
}

// Below reports whether p is dir or under it.
func Below(p, dir string) bool {
	return p == dir || dir == "/" || strings.HasPrefix(p, dir) && p[len(dir)] == '/'
}
