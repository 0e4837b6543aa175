package launch

import (
	"context"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/launch/libc"
	"github.com/cconvert/cconvert/pkg/launch/process"
	"github.com/cconvert/cconvert/pkg/profile"
	"github.com/cconvert/cconvert/pkg/reach"
	"github.com/cconvert/cconvert/pkg/release"
	"github.com/cconvert/cconvert/pkg/rootfs"
)

// notice finds what the image's content says about how it will run.
func (f *files) notice(ctx context.Context, c v1.Config, o Options) error {
	s := f.spec
	texts := s.texts(f.set)
	for _, n := range f.set.Commands {
		text := withoutComments(n.Content)
		texts = append(texts, text[:min(len(text), maxLooked)])
	}
	for _, own := range s.Profile.Findings {
		if err := ctx.Err(); err != nil {
			return err
		}
		if own.Applies(texts) && !f.canWrite(own.ReadOnly) {
			s.Find(own.Code, finding.Severity(own.Severity), s.main.Path, own.Message)
		}
	}
	f.noticeScripts()
	f.noticePrograms()
	f.noticeUser()
	f.noticeList(o)
	if h := c.Healthcheck; h != nil && len(h.Test) > 0 && h.Test[0] != "NONE" {
		s.Find(finding.Healthcheck, finding.Warning, "",
			"the health check runs outside the enclave, as a second process with the "+
				"image's own files: it sees neither the enclave's memory nor its temporary files and local sockets")
	}
	f.noticeLauncher()
	f.noticeSecrets()
	f.noticeLocale()
	f.noticeEnclave()
	return nil
}

// canWrite reports whether the program can write below a directory; false for none.
func (f *files) canWrite(dir string) bool {
	if dir == "" {
		return false
	}
	if _, real, _ := f.tree.Resolve(dir); real != "" {
		dir = real
	}
	_, covered := f.cover(dir)
	return covered
}

// writes finds in a script what writes files: a redirection to other than a device or another
// descriptor, and commands whose purpose it is. Options such as "-cp", and arrows, are neither.
var writes = regexp.MustCompile(`(?m)(?:^|[^-=<>])>>?\s*["']?(?:/(?:[^d\s]|d[^e])|[$\w.])|` +
	`(?:^|[\s;&|({"'\x60/])(?:sed\b[^|;&\n]*\s-[a-zA-Z]*i\b|(?:envsubst|tee|install|mktemp|cp|mv)\s)`)

// builtins are commands that shells have in themselves, though there are programs of the name.
var builtins = map[string]bool{
	"[": true, "test": true, "echo": true, "printf": true, "pwd": true, "kill": true, "true": true, "false": true,
}

// switches finds in a script that it goes on as another user by a program that Gramine v1.9 lets down: setpriv asks for
// PR_SET_KEEPCAPS, which does not exist, and the others open a session of PAM, which is refused.
var switches = regexp.MustCompile(`(?m)(?:^|[\s;&|({])exec\s+(?:/\S*/)?(setpriv|runuser|su)\s`)

// execs finds the programs that take a script's place.
var execs = regexp.MustCompile(`(?m)(?:^|[\s;&|({])exec\s+([\w./-]+)`)

// noticeSwitch looks at a command line, or the text of a script. Scripts switch users if they are started as root.
func (f *files) noticeSwitch(p, text string) {
	m := switches.FindStringSubmatch(text)
	if m == nil || f.spec.UID != 0 {
		return
	}
	f.spec.Find(finding.UserSwitch, finding.Error, p, m[1]+
		" cannot change the user in an enclave: it ends, and the program is not started")
}

// maxNamed is how many programs a finding names.
const maxNamed = 6

func (f *files) noticeScripts() {
	s := f.spec
	script, replacing := "", map[string]bool{}
	f.noticeSwitch(s.Entrypoint, "exec "+strings.Join(s.Argv, " "))
	look := func(p, text string) {
		f.noticeSwitch(p, text)
		for _, m := range execs.FindAllStringSubmatch(text, -1) {
			replacing[path.Base(m[1])] = profile.StartsOthers(path.Base(m[1]))
		}
		if script == "" {
			script = p
		}
		if writes.MatchString(text) {
			s.Find(finding.TmpfsPerProcess, finding.Warning, p,
				"the script writes files, and each process has its own /tmp, /run and other temporary storage: "+
					"what one of its commands writes there, such as a rendered configuration, the others do not see")
		}
	}
	for _, n := range f.set.Started {
		if n.ELF == nil && n.Shebang != "" && len(n.Content) > 0 {
			look(n.Path, withoutComments(n.Content))
		}
	}
	if s.LibC.Shell != "" {
		look(s.Entrypoint, strings.Join(s.Argv, "\n"))
	}
	if script == "" {
		return
	}
	commands := map[*rootfs.Node]bool{}
	for _, n := range f.set.Started {
		if n.ELF != nil && n.Path != s.LibC.Program && n != s.main && !builtins[n.Name()] && !replacing[n.Name()] {
			commands[n] = true
		}
	}
	if s.main.Path != s.LibC.Program {
		commands[s.main] = true
	}
	if len(commands) > 1 {
		var names []string
		for n := range commands {
			names = append(names, n.Name())
		}
		slices.Sort(names)
		more := ""
		if n := len(names) - maxNamed; n > 0 {
			names, more = names[:maxNamed], fmt.Sprintf(" and %d more", n)
		}
		s.Find(finding.Processes, finding.Warning, script, fmt.Sprintf("the script may start %s%s: each program that "+
			"it starts is an enclave of %d MB, which takes memory and time", strings.Join(names, ", "), more,
			s.Memory>>20))
	}
}

// noticePrograms looks at what the programs ask of their system.
func (f *files) noticePrograms() {
	s := f.spec
	for i, n := range f.set.Started {
		if n.Mode&0o4000 != 0 && n.ELF != nil {
			s.Find(finding.SetUID, finding.Warning, n.Path,
				"the program has the set-uid bit, which has no effect in an enclave: it runs as the image's user")
		}
		if i > 0 {
			continue
		}
		for _, m := range f.set.Missing {
			if m == s.LibC.Interp || m == s.main.ELF.Interp {
				s.Find(finding.InterpreterAbsent, finding.Error, m,
					"the program's dynamic linker is not in the image: it cannot run")
			} else {
				s.Find(finding.LibraryAbsent, finding.Warning, s.LibC.Program, "it is linked to "+m+
					", which is not in the image")
			}
		}
	}
	said := map[string]bool{}
	for _, own := range s.Profile.Findings {
		said[own.Code] = true
	}
	flock, _ := s.Profile.Manifest["sys"].(map[string]any)
	said[finding.FileLocks] = said[finding.FileLocks] || flock["experimental__enable_flock"] == true
	for _, n := range f.set.Linked {
		main := n == s.main || n.Path == s.LibC.Program
		if n.ELF.DefinesGLIBC != "" || strings.HasPrefix(n.Name(), "ld-musl-") {
			continue // the C library provides these functions
		}
		for _, name := range n.ELF.Imports {
			code, message := "", ""
			switch {
			case name == "getifaddrs" || name == "if_nameindex":
				code, message = finding.Interfaces,
					"it can list the machine's network interfaces, which fails in an enclave"
			case name == "flock" && main:
				code, message = finding.FileLocks,
					"it can lock files with flock(2), which fails unless it is switched on"
			case name == "shmget" && main:
				code, message = finding.SharedMemory,
					"it can share memory with other processes, which fails in an enclave"
			}
			if code != "" && !said[code] {
				said[code] = true
				s.Find(code, finding.Info, n.Path, message) // most programs do so only where they are told to
			}
		}
	}
}

// noticeUser checks what the image's user may do.
func (f *files) noticeUser() {
	s := f.spec
	if s.UID == 0 {
		return
	}
	s.Find(finding.DeviceUser, finding.Info, "",
		fmt.Sprintf("the image's user is %d, which must be allowed to open /dev/sgx_enclave", s.UID))
	for _, n := range slices.Concat(f.set.Started, f.set.Linked) {
		why, _ := f.set.Has(n)
		if (why.Reason == reach.Program || why.Reason == reach.Library) && !s.May(f.tree, n, process.MayRead) {
			s.Find(finding.UserCannotRead, finding.Error, n.Path,
				fmt.Sprintf("the image's user %d may not read this file, and what runs it has to", s.UID))
		}
	}
}

// noticeList says what the list of files means.
func (f *files) noticeList(o Options) {
	s := f.spec
	if s.Policy == TrustAuto && s.LeftOut > 0 {
		s.Find(finding.LeftOut, finding.Info, "",
			fmt.Sprintf("%d files that the program is not expected to open are left out, "+
				"those of %d packages among them", s.LeftOut, len(f.set.LeftOut)))
	}
	if s.Policy == TrustAll && (o.Trust == TrustAuto || o.Trust == "") {
		s.Find(finding.NoPackages, finding.Info, "", "the image has no database of packages, so every file is listed")
	}
}

// secretPlaces are where orchestrators mount secrets.
var secretPlaces = []string{
	"/run/secrets", "/var/run/secrets", "/etc/secrets", "/mnt/secrets", "/mnt/secrets-store", "/secrets",
}

// noticeLauncher tells of programs of Go that start others in their own place: by which thread is chance, and Gramine
// loses signals if it is not the first.
func (f *files) noticeLauncher() {
	s := f.spec
	if entry := f.tree.Lookup(s.Entrypoint); entry.ELF == nil || !entry.ELF.Go {
		return
	}
	for _, a := range s.Argv[1:] {
		if n, _, err := s.LookUp(f.tree, a); err == nil && n.Path != s.Entrypoint {
			s.Find(finding.GoLauncher, finding.Warning, s.Entrypoint, "this program of Go starts "+n.Path+", perhaps "+
				"in its own place and from another thread than the first: SIGTERM is lost then")
			return
		}
	}
}

func (f *files) noticeSecrets() {
	texts := slices.Clone(f.spec.Argv)
	for _, v := range f.spec.Env {
		texts = append(texts, v.Value)
	}
	for _, n := range f.set.Started {
		if n.ELF == nil {
			texts = append(texts, withoutComments(n.Content))
		}
	}
	said := map[string]bool{}
	for _, text := range texts {
		for _, w := range reach.Words(text) {
			if belowAny(w, secretPlaces) && !f.exists(w) && !f.released(w) && !said[w] {
				said[w] = true
				f.spec.Find(finding.MountedSecrets, finding.Warning, w,
					"the image expects a secret to be mounted here: a file "+
						"that comes from outside has no digest, so the program cannot read it")
			}
		}
	}
}

// released reports whether a file, or a file of a directory, is one that a server releases.
func (f *files) released(p string) bool {
	return f.spec.Agent != nil && slices.ContainsFunc(f.spec.Agent.Want, func(s release.Slot) bool {
		return s.Dir() != "" && (process.Below(p, s.Name) || process.Below(s.Name, p))
	})
}

func (f *files) exists(p string) bool {
	_, _, err := f.tree.Resolve(p)
	return err == nil
}

func (f *files) noticeLocale() {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		v, _ := f.spec.Getenv(name)
		switch base, _, _ := strings.Cut(v, "."); {
		case v == "" || base == "C" || base == "POSIX":
		case f.spec.LibC.Kind != libc.GLIBC || f.exists("/usr/lib/locale/locale-archive"):
		default:
			language, charset, _ := strings.Cut(v, ".")
			normal := language + "." + strings.ReplaceAll(strings.ToLower(charset), "-", "")
			if !f.exists("/usr/lib/locale/"+v) && !f.exists("/usr/lib/locale/"+normal) {
				f.spec.Find(finding.Locale, finding.Info, "",
					fmt.Sprintf("%s=%s names a locale that the image does not have: the "+
						"program uses the C locale", name, v))
				return
			}
		}
	}
}

// The names by which files of enclaves are known: of Gramine, of Intel's SDK, of Occlum and SCONE.
var (
	enclaveNames    = []string{"libsysdb.so", "enclave_signed.so"}
	enclavePrefixes = []string{"libocclum-pal.so", "libscone"}
	enclaveSuffixes = []string{".manifest.sgx", ".signed.so"}
)

func (f *files) noticeEnclave() {
	_ = f.tree.Walk(func(n *rootfs.Node) error {
		if n.Type != rootfs.Regular {
			return nil
		}
		name := n.Name()
		if n.ELF != nil && len(n.ELF.SigStructs) > 0 {
			f.spec.Find(finding.ContainsEnclave, finding.Error, n.Path,
				"this is a signed enclave of Intel's SDK, Open Enclave or "+
					"EGo: the image runs in SGX as it is, and an enclave cannot be started inside another one")
			return fs.SkipAll
		}
		if slices.Contains(enclaveNames, name) ||
			slices.ContainsFunc(enclavePrefixes, func(s string) bool { return strings.HasPrefix(name, s) }) ||
			slices.ContainsFunc(enclaveSuffixes, func(s string) bool { return strings.HasSuffix(name, s) }) {
			f.spec.Find(finding.ContainsEnclave, finding.Warning, n.Path,
				"the image has an enclave of its own, which cannot be started inside another one")
			return fs.SkipAll
		}
		return nil
	})
}
