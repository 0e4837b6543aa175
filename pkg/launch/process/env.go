package process

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/cconvert/cconvert/pkg/finding"
)

// defaultPath is what container engines set if the image says nothing.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environment returns what the program would have in a container: the image's variables, PATH and
// HOME. The host's are not taken over.
func (s *Process) environment(image []string, added []EnvVar, home string) error {
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
			s.Find(finding.PassThrough, finding.Warning, "", "the host chooses the value of the variable "+v.Name)
		}
	}
	for _, v := range vars {
		if strings.ContainsRune(v.Name+v.Value, 0) {
			return fmt.Errorf("%w: the variable %q holds a NUL byte", ErrImage, v.Name)
		}
		s.Env = append(s.Env, v)
	}
	s.SortEnv()
	return nil
}

// Linux starts no program with a longer text among its arguments and variables, or with more of them (execve(2),
// "Limits on size of arguments and environment").
const (
	maxText  = 128<<10 - 1 // bytes
	maxTexts = 6 << 20
)

// fits reports as ErrImage what is too long to start any program with.
func (s *Process) fits() error {
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

// SortEnv sorts the variables by name, after some were added.
func (s *Process) SortEnv() {
	slices.SortFunc(s.Env, func(a, b EnvVar) int { return cmp.Compare(a.Name, b.Name) })
}

// Getenv returns the value that the program sees; false if it is not set or not known beforehand.
func (s *Process) Getenv(name string) (string, bool) {
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

// EnvVar is an environment variable.
type EnvVar struct {
	Name, Value string
	// PassThrough takes the value from the host at start, unmeasured.
	PassThrough bool
}
