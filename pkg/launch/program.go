package launch

import (
	debugelf "debug/elf"
	"fmt"
	"path"
	"slices"

	"github.com/cconvert/cconvert/pkg/launch/process"
	"github.com/cconvert/cconvert/pkg/rootfs"
)

// shells are the programs by which an image's script or command line is run.
var shells = map[string]bool{
	"sh": true, "bash": true, "dash": true, "ash": true, "busybox": true, "zsh": true, "ksh": true,
}

// program finds the ELF file that runs in the end: the entrypoint or its interpreter.
func (s *Spec) program(tree *rootfs.Tree) error {
	entry := tree.Lookup(s.Entrypoint)
	chain, err := s.Interpreters(tree, entry)
	if err != nil {
		return err
	}
	n := entry
	if len(chain) > 0 {
		n = chain[len(chain)-1]
	}
	switch {
	case n.ELF == nil:
		return fmt.Errorf("%w: %s is neither a program nor a script", process.ErrImage, n.Path)
	case n.ELF.Machine != debugelf.EM_X86_64 || n.ELF.Class != debugelf.ELFCLASS64:
		return fmt.Errorf("%w: %s is not a 64-bit program for x86-64", process.ErrImage, n.Path)
	}
	s.LibC.Program = n.Path
	if shells[path.Base(n.Path)] && (n != entry || slices.Contains(s.Argv, "-c")) {
		s.LibC.Shell = n.Path
	}
	return nil
}
