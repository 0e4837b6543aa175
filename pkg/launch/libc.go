package launch

import (
	debugelf "debug/elf"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/cconvert/cconvert/pkg/reach"
	"github.com/cconvert/cconvert/pkg/rootfs"
	"github.com/cconvert/cconvert/pkg/rootfs/elf"
)

// shells are the programs by which an image's script or command line is run.
var shells = map[string]bool{
	"sh": true, "bash": true, "dash": true, "ash": true, "busybox": true, "zsh": true, "ksh": true,
}

// program finds the ELF file that runs in the end: the entrypoint or its interpreter.
func (s *Spec) program(tree *rootfs.Tree) error {
	entry := tree.Lookup(s.Entrypoint)
	chain, err := s.interpreters(tree, entry)
	if err != nil {
		return err
	}
	n := entry
	if len(chain) > 0 {
		n = chain[len(chain)-1]
	}
	switch {
	case n.ELF == nil:
		return fmt.Errorf("%w: %s is neither a program nor a script", ErrImage, n.Path)
	case n.ELF.Machine != debugelf.EM_X86_64 || n.ELF.Class != debugelf.ELFCLASS64:
		return fmt.Errorf("%w: %s is not a 64-bit program for x86-64", ErrImage, n.Path)
	}
	s.LibC.Program = n.Path
	if shells[path.Base(n.Path)] && (n != entry || slices.Contains(s.Argv, "-c")) {
		s.LibC.Shell = n.Path
	}
	return nil
}

// kind is the C library of a program, told by its dynamic linker.
func kind(e *elf.Facts) LibCKind {
	switch {
	case e.Interp == "":
		return Static
	case strings.HasPrefix(path.Base(e.Interp), "ld-musl-"):
		return Musl
	}
	return GLIBC
}

// libC finds out which C libraries the programs use and what the image has of them. With all, every
// program of the image counts, otherwise those that are reached.
func (s *Spec) libC(tree *rootfs.Tree, set *reach.Set, all bool) {
	l := &s.LibC
	program := tree.Lookup(l.Program).ELF
	l.Kind, l.Interp, l.Interps = kind(program), program.Interp, map[string]string{}
	l.Kinds = []LibCKind{l.Kind}
	l.addInterp(tree, l.Interp) // before others of the same name
	_ = tree.Walk(func(n *rootfs.Node) error {
		if n.ELF == nil || n.ELF.Machine != debugelf.EM_X86_64 {
			return nil
		}
		if _, reached := set.Has(n); !reached && !all {
			return nil
		}
		l.addInterp(tree, n.ELF.Interp)
		if n.ELF.DefinesGLIBC != "" {
			return nil // the C library's own files need each other in versions that only they provide
		}
		if k := kind(n.ELF); n.ELF.Interp != "" && !slices.Contains(l.Kinds, k) {
			l.Kinds = append(l.Kinds, k)
		}
		if elf.CompareVersions(n.ELF.NeedsGLIBC, l.NeedsGLIBC) > 0 {
			l.NeedsGLIBC = n.ELF.NeedsGLIBC
		}
		l.UsesIconv = l.UsesIconv || slices.Contains(n.ELF.Imports, "iconv_open")
		return nil
	})
	existing := func(p string, t rootfs.Type) string {
		if n, real, err := tree.Resolve(p); err == nil && n.Type == t {
			return real
		}
		return ""
	}
	l.Cache = existing("/etc/ld.so.cache", rootfs.Regular)
	l.Localtime = existing("/etc/localtime", rootfs.Regular)
	l.Zoneinfo = existing("/usr/share/zoneinfo", rootfs.Dir)
	l.Locales = existing("/usr/lib/locale", rootfs.Dir)
	dirs := append(reach.LoaderDirs(tree), "/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64",
		"/lib", "/usr/lib")
	seen := map[string]bool{"": true}
	for _, d := range dirs {
		if real := existing(d, rootfs.Dir); !seen[real] {
			seen[real] = true
			l.Dirs = append(l.Dirs, real)
		}
	}
	for _, d := range []string{"/usr/lib/x86_64-linux-gnu/gconv", "/usr/lib64/gconv", "/usr/lib/gconv"} {
		if real := existing(d, rootfs.Dir); real != "" {
			l.Gconv = real
			break
		}
	}
}

// addInterp notes a dynamic linker that exists; of two with one name the first stays.
func (l *LibC) addInterp(tree *rootfs.Tree, interp string) {
	name := path.Base(interp)
	if interp == "" || l.Interps[name] != "" {
		return
	}
	if n, real, err := tree.Resolve(interp); err == nil && n.Type == rootfs.Regular {
		l.Interps[name] = real
	}
}
