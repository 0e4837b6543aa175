package launch

import (
	"bufio"
	"bytes"
	"debug/elf"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/cconvert/cconvert/pkg/rootfs"
)

// shells are the programs by which an image's script or command line is run.
var shells = map[string]bool{"sh": true, "bash": true, "dash": true, "ash": true, "busybox": true, "zsh": true, "ksh": true}

// libC finds out which C library the program uses and what the image has of it.
func (s *Spec) libC(tree *rootfs.Tree) error {
	entry := tree.Lookup(s.Entrypoint)
	n, err := s.interpreter(tree, entry)
	if err != nil {
		return err
	}
	l := &s.LibC
	l.Program = n.Path
	if shells[path.Base(n.Path)] && (n != entry || slices.Contains(s.Argv, "-c")) {
		l.Shell = n.Path
	}
	switch {
	case n.ELF == nil:
		return fmt.Errorf("%w: %s is neither a program nor a script", ErrImage, n.Path)
	case n.ELF.Machine != elf.EM_X86_64 || n.ELF.Class != elf.ELFCLASS64:
		return fmt.Errorf("%w: %s is not a 64-bit program for x86-64", ErrImage, n.Path)
	case n.ELF.Interp == "":
		l.Kind = Static
		return nil
	}
	l.Interp, l.Kind = n.ELF.Interp, GLIBC
	if strings.HasPrefix(path.Base(l.Interp), "ld-musl-") {
		l.Kind = Musl
		return nil
	}
	_ = tree.Walk(func(n *rootfs.Node) error {
		// The C library's own files need each other in versions that only they provide.
		if n.ELF != nil && n.ELF.DefinesGLIBC == "" && n.ELF.Machine == elf.EM_X86_64 &&
			rootfs.CompareVersions(n.ELF.NeedsGLIBC, l.NeedsGLIBC) > 0 {
			l.NeedsGLIBC = n.ELF.NeedsGLIBC
		}
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
	dirs := append(loaderDirs(tree), "/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib")
	for _, d := range dirs {
		if real := existing(d, rootfs.Dir); real != "" && !slices.Contains(l.Dirs, real) {
			l.Dirs = append(l.Dirs, real)
		}
	}
	for _, d := range []string{"/usr/lib/x86_64-linux-gnu/gconv", "/usr/lib64/gconv", "/usr/lib/gconv"} {
		if real := existing(d, rootfs.Dir); real != "" {
			l.Gconv = real
			break
		}
	}
	return nil
}

// loaderDirs lists the directories of ld.so.conf and of what it includes (ldconfig(8)). Includes other
// than of the usual directory are not read.
func loaderDirs(tree *rootfs.Tree) []string {
	conf := []*rootfs.Node{tree.Lookup("/etc/ld.so.conf")}
	if d := tree.Lookup("/etc/ld.so.conf.d"); d != nil {
		conf = append(conf, d.Children()...)
	}
	var dirs []string
	for _, n := range conf {
		if n == nil {
			continue
		}
		for lines := bufio.NewScanner(bytes.NewReader(n.Content)); lines.Scan(); {
			line, _, _ := strings.Cut(lines.Text(), "#")
			if line = strings.TrimSpace(line); path.IsAbs(line) {
				dirs = append(dirs, line)
			}
		}
	}
	return dirs
}
