package occlum

import (
	"debug/elf"
	"fmt"
	"slices"
	"strings"

	"github.com/Masterminds/semver/v3"

	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/reach"
	"github.com/cconvert/cconvert/pkg/rootfs"
)

// occlumGLIBC is the version of the GNU C library that Occlum has a fork of, which every program must use.
const occlumGLIBC = "2.31"

// preflight returns what would stop the program in Occlum, or be otherwise than in a container: what Occlum's kernel
// does not have, and how it starts programs.
func preflight(s *launch.Spec, tree *rootfs.Tree) []finding.Finding {
	list := []finding.Finding{finding.New(finding.OcclumUnmeasured, finding.Info, "",
		"Occlum's measurement does not vouch for these files: whoever builds the instance decides on them, and no "+
			"MRENCLAVE is claimed")}
	find := func(code string, severity finding.Severity, path, format string, args ...any) {
		list = append(list, finding.New(code, severity, path, fmt.Sprintf(format, args...)))
	}
	main := tree.Lookup(s.LibC.Program)
	entry, _, err := tree.Resolve(s.Entrypoint)
	if err != nil {
		entry = nil
	}
	for _, f := range s.Trusted {
		n := tree.Lookup(f.Path)
		started := f.Reason == reach.Program || f.Reason == reach.Named || n == main || n == entry
		if n == nil || !started {
			continue
		}
		severity := finding.Warning // a script may do without it
		if n == main || n == entry {
			severity = finding.Error
		}
		if interpreter, rest, ok := strings.Cut(strings.TrimSpace(n.Shebang), " "); ok && n.Shebang != "" {
			find(finding.OcclumShebang, severity, n.Path,
				"Occlum takes all of %q for the path of the interpreter, and finds none", interpreter+" "+rest)
		}
		if e := n.ELF; e != nil {
			switch {
			case e.Class != elf.ELFCLASS64 || e.Machine != elf.EM_X86_64:
				find(finding.OcclumProgram, severity, n.Path, "Occlum starts programs for x86-64 only")
			case e.Type == elf.ET_EXEC:
				find(finding.OcclumProgram, severity, n.Path, "it is linked to a fixed address, and Occlum starts "+
					"position-independent programs only")
			case e.Go || !e.Dynamic || e.Interp == "":
				find(finding.OcclumSyscalls, finding.Warning, n.Path,
					"it makes system calls by itself, each of which is trapped and emulated: it is slow")
			}
			if slices.Contains(e.Imports, "fork") && !slices.ContainsFunc(e.Imports, func(i string) bool {
				return i == "vfork" || strings.HasPrefix(i, "posix_spawn")
			}) {
				find(finding.OcclumFork, severity, n.Path, "it calls fork(2), which Occlum does not have")
			}
		}
	}
	if needs := s.LibC.NeedsGLIBC; needs != "" {
		severity, words := finding.Warning, "the image's own lacks its hooks"
		if v, err := semver.NewVersion(needs); err != nil || v.GreaterThan(semver.MustParse(occlumGLIBC)) {
			severity, words = finding.Error, "its programs need "+needs
		}
		find(finding.OcclumLibC, severity, "",
			"Occlum's fork of the GNU C library %s must take the place of the image's: %s", occlumGLIBC, words)
	} else if strings.Contains(string(s.LibC.Kind), "musl") {
		find(finding.OcclumLibC, finding.Warning, "", "the image's musl lacks the hooks of Occlum's, which must take "+
			"its place")
	}
	if s.UID != 0 || s.GID != 0 {
		find(finding.OcclumUser, finding.Warning, "", "it is to run as %d:%d, and all are 0 in Occlum", s.UID, s.GID)
	}
	if len(s.Argv) > 1 {
		find(finding.OcclumArguments, finding.Warning, "", "the host chooses the arguments: these are not fixed by "+
			"anything: %q", s.Argv[1:])
	}
	for _, m := range s.Mounts {
		if m.Type == launch.Encrypted {
			find(finding.OcclumVolume, finding.Warning, m.Path,
				"what is written to it is in Occlum's own encrypted file system, not on a volume")
		}
	}
	return list
}
