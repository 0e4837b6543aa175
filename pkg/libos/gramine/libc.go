package gramine

import (
	"cmp"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/launch/libc"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/manifest"
	"github.com/cconvert/cconvert/pkg/rootfs/elf"
)

// interpDir has the image's own dynamic linkers and nothing else, by mounts of single files.
const interpDir = libos.Root + "/app/interp"

// libC lets the programs use the runtime's patched C libraries if that works. The library OS looks
// for a program's dynamic linker by its base name in the directories of LD_LIBRARY_PATH, as it is at the
// start, or in /lib and /lib64 if that is unset. What the image has itself is offered in a directory of
// its own: with the image's library directories in LD_LIBRARY_PATH, which goes before RUNPATH, programs
// that bring libraries along would load others.
type libC struct {
	in  libos.Input
	m   *manifest.Manifest
	out *libos.Sealed
}

func (l libC) find(code string, severity finding.Severity, message string) {
	l.out.Findings = append(l.out.Findings, finding.New(code, severity, l.in.Spec.LibC.Program, message))
}

// choose sets LD_LIBRARY_PATH and lists what has to be found by it.
func (l libC) choose() {
	c := l.in.Spec.LibC
	var dirs, trusted []string
	for _, kind := range c.Kinds { // the program's own first
		switch {
		case kind == libc.GLIBC && l.patchedGLIBC():
			dirs, trusted = append(dirs, glibcDir), append(trusted, glibcDir)
			if !l.mountData() {
				dirs = append(dirs, c.Dirs...)
			}
			if c.Gconv != "" && c.UsesIconv {
				l.find(finding.Gconv, finding.Info, "the runtime's C library does not load the converters in "+
					c.Gconv+": iconv knows only the built-in character sets")
			}
		case kind == libc.Musl && l.in.Bundle.Musl && c.Choice != libc.Image:
			dirs, trusted = append(dirs, muslDir), append(trusted, muslDir)
		case kind == libc.GLIBC && l.tooNew() && c.Choice != libc.Image:
			l.find(finding.GLIBCTooNew, finding.Warning, fmt.Sprintf(
				"the image needs glibc %s, the runtime has %s: the image's own is used, and every system call is "+
					"trapped, which is slower", c.NeedsGLIBC, l.in.Bundle.GLIBC))
		case kind == c.Kind:
			l.find(finding.SyscallTraps, finding.Info, "every system call of it is trapped, which is slower: "+
				l.why(kind))
		}
	}
	if slices.Contains(dirs, glibcDir) { // then all programs with glibc load the runtime's
		l.dropConverters()
	}
	l.trustRuntime(trusted)
	if l.mountInterps() {
		dirs = append(dirs, interpDir)
	}
	env, _ := l.m.Section("loader")["env"].(manifest.Table)
	if image, _ := l.in.Spec.Getenv("LD_LIBRARY_PATH"); image != "" {
		dirs = append(dirs, image)
	}
	delete(env, "LD_LIBRARY_PATH") // set and empty, no dynamic linker would be found at all
	if len(dirs) > 0 {
		env["LD_LIBRARY_PATH"] = strings.Join(dirs, ":")
	}
}

func (l libC) why(kind libc.Kind) string {
	switch kind {
	case libc.Static:
		return "it is linked statically"
	case libc.Musl:
		return "the runtime has no patched musl for it"
	}
	return "it uses the image's own C library"
}

// patchedGLIBC reports whether the runtime's glibc is to be used.
func (l libC) patchedGLIBC() bool {
	choice := l.in.Spec.LibC.Choice
	return l.in.Bundle.GLIBC != "" && (choice == libc.Patched || choice != libc.Image && !l.tooNew())
}

// dropConverters takes the image's converters of character sets out of the list: the runtime's glibc does not load
// them, and a list of Debian's has 254.
func (l libC) dropConverters() {
	dir := l.in.Spec.LibC.Gconv
	if dir == "" || l.in.Spec.Policy != launch.TrustAuto {
		return
	}
	l.m.Trusted = slices.DeleteFunc(l.m.Trusted, func(f manifest.TrustedFile) bool {
		return strings.HasPrefix(f.URI, "file:"+dir+"/")
	})
}

// tooNew reports whether the image's programs need more than the runtime's glibc provides.
func (l libC) tooNew() bool {
	runtime := l.in.Bundle.GLIBC
	return runtime != "" && elf.CompareVersions(runtime, l.in.Spec.LibC.NeedsGLIBC) < 0
}

// mountInterps offers the image's dynamic linkers, and reports whether there are any.
func (l libC) mountInterps() bool {
	interps := l.in.Spec.LibC.Interps
	for _, name := range slices.Sorted(maps.Keys(interps)) {
		l.m.AddMounts(manifest.Table{"path": path.Join(interpDir, name), "uri": "file:" + interps[name]})
	}
	return len(interps) > 0
}

// mountData puts the image's data where the patched C library looks for it, by paths that are compiled
// into it, and reports whether it will find the image's libraries by the cache.
func (l libC) mountData() (cached bool) {
	c, d := l.in.Spec.LibC, l.in.Bundle.GLIBCData
	mount := func(at, from string) bool {
		switch {
		case at == "" || from == "":
			return false
		case at == from:
			return true
		case l.in.Tree.Lookup(at) != nil:
			return false // the image has something of its own there
		}
		l.m.AddMounts(manifest.Table{"path": at, "uri": "file:" + from})
		return true
	}
	mount(d.Localtime, c.Localtime)
	mount(d.Zoneinfo, c.Zoneinfo)
	mount(d.Locales, c.Locales)
	return mount(d.Cache, c.Cache)
}

// trustRuntime lists the runtime's own files below directories, before the image's: they are opened first.
func (l libC) trustRuntime(dirs []string) {
	var files []manifest.TrustedFile
	for p, f := range l.in.Bundle.Files {
		if slices.Contains(dirs, path.Dir(p)) {
			files = append(files, trusted(p, f.SHA256))
		}
	}
	slices.SortFunc(files, func(a, b manifest.TrustedFile) int { return cmp.Compare(a.URI, b.URI) })
	l.m.Trusted = append(files, l.m.Trusted...)
}
