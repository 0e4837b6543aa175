package launch

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/profile"
	"github.com/cconvert/cconvert/pkg/reach"
)

// Keep lists the files whose content Build reads, as patterns for rootfs.Scan.
func (o Options) Keep() []string {
	if o.Profile == nil || profile.Find(o.Profile.Name) == o.Profile {
		return keep()
	}
	return slices.Concat(keep(), o.Profile.Kept())
}

// keep is what is read whatever the options.
var keep = sync.OnceValue(func() []string {
	// callers append to it
	return slices.Clip(slices.Concat(accounts, reach.Keep, profile.Keep(), []string{tmpfilesDir + "/*.conf"}))
})

// accounts are where users and groups are, in whatever distribution.
var accounts = []string{
	"/etc/passwd", "/etc/group", "/usr/lib/passwd", "/usr/lib/group", "/usr/etc/passwd", "/usr/etc/group",
	"/usr/share/etc/passwd", "/usr/share/etc/group",
}

// ErrImage says that an image lacks what starting it needs.
var ErrImage = errors.New("the image cannot be started")

// Build works out how an image starts, from its configuration as stored and its files.
func (contents *Contents) Build(ctx context.Context, config []byte, o Options) (*Spec, error) {
	tree := contents.Tree
	var c v1.ConfigFile
	if err := json.Unmarshal(config, &c); err != nil {
		return nil, fmt.Errorf("reading the image's configuration: %w", err)
	}
	s := &Spec{HostArgs: o.HostArgs, Enclave: o.Enclave}
	for _, p := range o.AllowedFiles {
		// The host is asked for the path without links, through the mounts that stand for them.
		_, real, _ := tree.Resolve(p)
		if real == "" {
			real = path.Clean(p)
		}
		s.Allowed = append(s.Allowed, real)
	}
	s.WorkDir = path.Clean("/" + c.Config.WorkingDir)
	for _, text := range slices.Concat(c.Config.Entrypoint, c.Config.Cmd, o.Args, []string{s.WorkDir},
		slices.Collect(maps.Keys(c.Config.Volumes))) {
		if strings.ContainsRune(text, 0) {
			return nil, fmt.Errorf("%w: %q holds a NUL byte", ErrImage, text)
		}
	}
	home, err := s.identify(tree, c.Config.User)
	if err != nil {
		return nil, err
	}
	if err := s.environment(c.Config.Env, o.Env, home); err != nil {
		return nil, err
	}
	if err := s.command(tree, c.Config, o.Args); err != nil {
		return nil, err
	}
	if err := s.fits(); err != nil {
		return nil, err
	}
	if err := s.program(tree); err != nil {
		return nil, err
	}
	f := &files{
		spec: s, tree: tree, writable: map[string]Mount{}, policy: cmp.Or(o.Trust, TrustAuto),
		allowed: map[string]bool{},
	}
	for _, p := range s.Allowed {
		f.allowed[p] = true
	}
	if err := f.follow(ctx, contents, o); err != nil {
		return nil, err
	}
	s.libC(tree, f.set, f.policy == TrustAll)
	s.LibC.Choice = cmp.Or(o.LibC, LibCAuto)
	s.size(f.set, o.Enclave)
	if err := f.chooseWritable(c.Config.Volumes, o); err != nil {
		return nil, err
	}
	if err := f.chooseTrusted(o.List); err != nil {
		return nil, err
	}
	s.weaknesses(c.Config)
	return s, f.notice(ctx, c.Config, o)
}

// defaultPath is what container engines set if the image says nothing.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environment returns what the program would have in a container: the image's variables, PATH and
// HOME. The host's are not taken over.
func (s *Spec) environment(image []string, added []EnvVar, home string) error {
	vars := map[string]EnvVar{
		"PATH": {Name: "PATH", Value: defaultPath},
		"HOME": {Name: "HOME", Value: home},
	}
	for _, kv := range image {
		name, value, ok := strings.Cut(kv, "=")
		if !ok || name == "" {
			continue // a variable that is not set, as for container engines
		}
		vars[name] = EnvVar{Name: name, Value: value}
	}
	for _, v := range added {
		vars[v.Name] = v
		if v.PassThrough {
			s.find(finding.PassThrough, finding.Warning, "", "the host chooses the value of the variable "+v.Name)
		}
	}
	for _, v := range vars {
		if strings.ContainsRune(v.Name+v.Value, 0) {
			return fmt.Errorf("%w: the variable %q holds a NUL byte", ErrImage, v.Name)
		}
		s.Env = append(s.Env, v)
	}
	s.sortEnv()
	return nil
}

// Linux starts no program with a longer text among its arguments and variables, or with more of them (execve(2),
// "Limits on size of arguments and environment").
const (
	maxText  = 128<<10 - 1 // bytes
	maxTexts = 6 << 20
)

// fits reports as ErrImage what is too long to start any program with.
func (s *Spec) fits() error {
	all := 0
	for _, arg := range s.Argv {
		if all += len(arg) + 1; len(arg) > maxText || all > maxTexts {
			return fmt.Errorf("%w: Linux starts no program with an argument of %d bytes, or with more than %d bytes "+
				"of arguments and variables", ErrImage, len(arg), maxTexts)
		}
	}
	for _, v := range s.Env {
		n := len(v.Name) + 1 + len(v.Value)
		if all += n; n > maxText || all > maxTexts {
			return fmt.Errorf("%w: Linux starts no program with a variable as long as %.60q, which has %d bytes, or "+
				"with more than %d bytes of variables", ErrImage, v.Name, n, maxTexts)
		}
	}
	return nil
}

func (s *Spec) sortEnv() {
	slices.SortFunc(s.Env, func(a, b EnvVar) int { return cmp.Compare(a.Name, b.Name) })
}

// Getenv returns the value that the program sees; false if it is not set or not known beforehand.
func (s *Spec) Getenv(name string) (string, bool) {
	for _, v := range s.Env {
		if v.Name == name {
			return v.Value, !v.PassThrough
		}
	}
	return "", false
}

// steering are the beginnings of the names of variables by which a host that chooses them could run
// code of its own in the program.
var steering = []string{
	"LD_", "GLIBC_TUNABLES", "GCONV_PATH", "LOCPATH", "NLSPATH", "RES_OPTIONS", "LOCALDOMAIN", "MALLOC_",
	"PYTHON", "NODE_OPTIONS", "NODE_PATH", "NODE_EXTRA_CA_CERTS", "NODE_TLS_REJECT_UNAUTHORIZED", "NODE_ICU_DATA",
	"NODE_V8_COVERAGE", "NPM_CONFIG", "JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS", "CLASSPATH",
	"PERL", "RUBY", "GEM_", "BUNDLE_", "PHP_INI_SCAN_DIR", "PHPRC", "LUA_", "DOTNET_", "CORECLR_", "COMPlus_",
	"BASH_ENV", "ENV", "SHELLOPTS", "BASHOPTS", "IFS", "PS4", "PATH", "GODEBUG", "OPENSSL_", "SSL_CERT_",
	"GIO_EXTRA_MODULES", "GIO_MODULE_DIR", "GTK_PATH", "GTK_MODULES", "QT_PLUGIN_PATH", "R_LIBS", "R_PROFILE",
	"R_ENVIRON",
	"TCLLIBPATH", "ERL_", "ELIXIR_", "GUILE_", "OCAML", "MONO_", "HOME", "TMPDIR",
}

// exact names in the list above end the comparison; the others are prefixes.
var steeringExact = map[string]bool{"ENV": true, "IFS": true, "PATH": true, "HOME": true, "TMPDIR": true, "PS4": true}

// Steers reports whether a variable of this name steers loaders or interpreters, so that whoever chooses
// its value chooses what code runs.
func Steers(name string) bool {
	return slices.ContainsFunc(steering, func(s string) bool {
		if steeringExact[s] {
			return name == s
		}
		return strings.HasPrefix(name, s)
	}) || strings.HasPrefix(name, "BASH_FUNC_")
}

// weaknesses reports what the user decided against the defaults, and what differs from a container.
func (s *Spec) weaknesses(c v1.Config) {
	if s.HostArgs {
		s.find(finding.HostArguments, finding.Warning, "", "the host chooses the program's arguments")
	} else {
		s.find(finding.ArgumentsFixed, finding.Info, "",
			"the arguments are measured: what follows the image's name in \"docker "+
				"run\", or args in a pod, has no effect")
	}
	for _, p := range s.Allowed {
		s.find(finding.AllowedFile, finding.Warning, p, "the host can read and change this file")
	}
	if s.Enclave.Debug {
		s.find(finding.Debug, finding.Warning, "", "the enclave can be read with a debugger: it keeps no secrets")
	}
	if sig := c.StopSignal; sig != "" && sig != "SIGTERM" && sig != "15" && sig != "TERM" {
		s.find(finding.StopSignal, finding.Warning, "",
			fmt.Sprintf("the image stops on %s, which does not reach an enclave: it is sent SIGTERM instead", sig))
	}
	for _, name := range []string{"LD_PRELOAD", "LD_AUDIT"} {
		if v, ok := s.Getenv(name); ok && v != "" {
			s.find(finding.LoaderEnv, finding.Warning, "", fmt.Sprintf(
				"%s=%s is set inside the enclave only: outside, it would be loaded into the runtime's loader", name, v))
		}
	}
}
