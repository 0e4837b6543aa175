package gramine

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/manifest"
	"github.com/cconvert/cconvert/pkg/rootfs"
)

// chooseLibC lets the program use the runtime's patched C library where that works. The library OS
// looks for the program's interpreter by its base name in the directories of LD_LIBRARY_PATH or, where
// that is unset, in /lib and /lib64.
func chooseLibC(in libos.Input, m *manifest.Manifest, out *libos.Sealed) {
	c, b := in.Spec.LibC, in.Bundle
	find := func(code string, severity launch.Severity, message string) {
		out.Findings = append(out.Findings, launch.Finding{Code: code, Severity: severity, Path: c.Program, Message: message})
	}
	image, _ := in.Spec.Getenv("LD_LIBRARY_PATH")
	env, _ := m.Section("loader")["env"].(manifest.Table)
	if image == "" {
		delete(env, "LD_LIBRARY_PATH") // set and empty, no interpreter would be found at all
	}
	setPath := func(dirs ...string) {
		env["LD_LIBRARY_PATH"] = strings.Join(slices.DeleteFunc(dirs, func(d string) bool { return d == "" }), ":")
	}
	switch {
	case c.Kind == launch.GLIBC && b.GLIBC != "" && rootfs.CompareVersions(b.GLIBC, c.NeedsGLIBC) >= 0:
		var dirs []string
		if !mountData(in, m) {
			dirs = c.Dirs
		}
		setPath(append(append([]string{glibcDir}, dirs...), image)...)
		trustRuntime(m, b, glibcDir)
		if c.Gconv != "" {
			find(launch.CodeGconv, launch.Info, "the runtime's C library does not load the converters in "+c.Gconv+": iconv knows only the built-in character sets")
		}
		return
	case c.Kind == launch.Musl && b.Musl:
		setPath(muslDir, image)
		trustRuntime(m, b, muslDir)
		return
	case c.Kind == launch.GLIBC && b.GLIBC != "":
		find(launch.CodeGLIBCTooNew, launch.Warning, fmt.Sprintf(
			"the image needs glibc %s, the runtime has %s: the image's own is used, and every system call is trapped, which is slower", c.NeedsGLIBC, b.GLIBC))
	default:
		find(launch.CodeSyscallTraps, launch.Info, "every system call is trapped, which is slower")
	}
	// The image's own interpreter must be found: that of the program or, where that has none, those of
	// the programs that it starts.
	switch dir := path.Dir(c.Interp); {
	case c.Interp == "" && image != "":
		setPath(image, "/lib", "/lib64")
	case c.Interp != "" && (image != "" || dir != "/lib" && dir != "/lib64"):
		setPath(image, dir)
	}
}

// mountData puts the image's data where the patched C library looks for it, by paths that are compiled
// into it, and says whether it will find the image's libraries by the cache.
func mountData(in libos.Input, m *manifest.Manifest) (cached bool) {
	c, d := in.Spec.LibC, in.Bundle.GLIBCData
	mount := func(at, from string) bool {
		switch {
		case at == "" || from == "":
			return false
		case at == from:
			return true
		case in.Tree.Lookup(at) != nil:
			return false // the image has something of its own there
		}
		m.AddMounts(manifest.Table{"path": at, "uri": "file:" + from})
		return true
	}
	mount(d.Localtime, c.Localtime)
	mount(d.Zoneinfo, c.Zoneinfo)
	mount(d.Locales, c.Locales)
	return mount(d.Cache, c.Cache)
}

// trustRuntime lists the runtime's own files below a directory.
func trustRuntime(m *manifest.Manifest, b *libos.Bundle, dir string) {
	for p, content := range b.Files {
		if strings.HasPrefix(p, dir+"/") {
			m.Trusted = append(m.Trusted, manifest.TrustedFile{URI: "file:" + p, SHA256: hexSum(content)})
		}
	}
}
