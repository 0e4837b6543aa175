// Package libc works out which C library the programs of an image need, and what the image has of it.
package libc

import (
	debugelf "debug/elf"
	"path"
	"slices"
	"strings"

	"github.com/cconvert/cconvert/pkg/reach"
	"github.com/cconvert/cconvert/pkg/rootfs"
	"github.com/cconvert/cconvert/pkg/rootfs/elf"
)

// Kind is the kind of C library that the program is linked to.
type Kind string

// The kinds of C libraries that matter.
const (
	GLIBC  Kind = "glibc"
	Musl   Kind = "musl"
	Static Kind = "static" // none: system calls come from the program itself
)

// Needs is what the program needs of a C library.
type Needs struct {
	Kind Kind
	// Program is the path of the ELF file that was looked at: the entrypoint or its interpreter.
	Program string
	// Shell is the path of the shell that runs the entrypoint, if one does.
	Shell string
	// Interp is the dynamic linker that the program names.
	Interp string
	// Choice is the user's: which C library is to be used.
	Choice Choice
	// Interps are the dynamic linkers that the programs of the image name, by base name: the path without
	// links. That of Program is there too.
	Interps map[string]string
	// Kinds are the C libraries of all programs that can be started, Kind first.
	Kinds []Kind
	// UsesIconv says that a program that can be started converts character sets.
	UsesIconv bool
	// NeedsGLIBC is the highest version that any program of the image needs, as "2.36".
	NeedsGLIBC string
	// Cache is the path of the image's ld.so.cache, if it has one.
	Cache string
	// Dirs are the directories of ld.so.conf and the usual ones that exist, for when there is no cache.
	Dirs []string
	// Localtime, Zoneinfo and Locales are the data that a C library reads from its own paths.
	Localtime, Zoneinfo, Locales string
	// Gconv is the directory of character set converters, if there is one.
	Gconv string
}

// Choice says which C library is to be used.
type Choice string

// Choices. The zero value is Auto.
const (
	Auto    Choice = "auto"    // the runtime's patched one where it works
	Patched Choice = "patched" // the runtime's, even where the image's is newer
	Image   Choice = "image"   // the image's own: every system call is trapped
)

// kind is the C library of a program, told by its dynamic linker.
func kind(e *elf.Facts) Kind {
	switch {
	case e.Interp == "":
		return Static
	case strings.HasPrefix(path.Base(e.Interp), "ld-musl-"):
		return Musl
	}
	return GLIBC
}

// Find finds out which C libraries the programs use and what the image has of them. With all, every
// program of the image counts, otherwise those that are reached.
func (l *Needs) Find(tree *rootfs.Tree, set *reach.Set, all bool) {
	program := tree.Lookup(l.Program).ELF
	l.Kind, l.Interp, l.Interps = kind(program), program.Interp, map[string]string{}
	l.Kinds = []Kind{l.Kind}
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
func (l *Needs) addInterp(tree *rootfs.Tree, interp string) {
	name := path.Base(interp)
	if interp == "" || l.Interps[name] != "" {
		return
	}
	if n, real, err := tree.Resolve(interp); err == nil && n.Type == rootfs.Regular {
		l.Interps[name] = real
	}
}
