package launch

import (
	"fmt"
	"slices"
	"strings"

	"github.com/dustin/go-humanize"

	"github.com/cconvert/cconvert/pkg/launch/libc"
	"github.com/cconvert/cconvert/pkg/launch/process"
)

// OptionError says what is wrong with one of Options.
type OptionError struct {
	// Option is its name at the command line, without dashes.
	Option string
	Value  string
	Why    string
}

func (e *OptionError) Error() string {
	if e.Value == "" {
		return e.Option + ": " + e.Why
	}
	return e.Option + " " + e.Value + ": " + e.Why
}

// OneOf reports, as an OptionError, a value that an option does not have. The empty one is left to others.
func OneOf(option, value string, known ...string) error {
	if value == "" || slices.Contains(known, value) {
		return nil
	}
	last := len(known) - 1
	return &OptionError{option, value, fmt.Sprintf("there is %s and %s", strings.Join(known[:last], ", "), known[last])}
}

// maxValues is how often an option may be given.
const maxValues = 1000

// Check reports what is wrong with the options, as an OptionError, wherever they come from: a command line, a plan, a
// job of a queue, or the recipe in an image.
func (o Options) Check() error {
	wrong := func(option, value, format string, args ...any) error {
		return &OptionError{option, value, fmt.Sprintf(format, args...)}
	}
	if n := o.Memory; n&(n-1) != 0 {
		return wrong("memory", humanize.IBytes(n),
			"the size of an enclave is a power of two, such as 512M, 1G, 2G or 4G")
	}
	if o.Threads < 0 || o.Threads > maxThreads {
		return wrong("threads", "", "%d is not between 1 and %d", o.Threads, maxThreads)
	}
	for _, c := range []struct {
		option, value string
		known         []string
	}{
		{"libc", string(o.LibC), []string{string(libc.Auto), string(libc.Patched), string(libc.Image)}},
		{"trust", string(o.Trust), []string{string(TrustAuto), string(TrustAll), string(TrustList)}},
	} {
		if err := OneOf(c.option, c.value, c.known...); err != nil {
			return err
		}
	}
	for _, c := range []struct {
		option string
		n      int
	}{
		{"allow-file", len(o.AllowedFiles)}, {"tmpfs", len(o.Tmpfs)}, {"encrypt-mount", len(o.Encrypted)},
		{"env", len(o.Env)}, {"encrypt", len(o.Encrypt.Paths)}, {"encrypt-mutable", len(o.Encrypt.Mutable)},
	} {
		if c.n > maxValues {
			return wrong(c.option, "", "it is given %d times, more than %d", c.n, maxValues)
		}
	}
	if err := o.checkSecrets(); err != nil {
		return err
	}
	for _, v := range o.Env {
		switch {
		case v.PassThrough && (v.Name == "" || strings.ContainsAny(v.Name, "=\x00")):
			return wrong("pass-env", v.Name, "the name of a variable expected")
		case v.PassThrough && process.Steers(v.Name):
			return wrong("pass-env", v.Name, "whoever chooses this variable chooses what code runs in the enclave; "+
				"set it with --env, which is measured")
		case v.Name == "" || strings.ContainsAny(v.Name, "= \t\n\x00") || strings.Contains(v.Value, "\x00"):
			return wrong("env", v.Name+"="+v.Value, "NAME=VALUE expected; to take the host's value, use --pass-env")
		}
	}
	for _, c := range []struct {
		option string
		paths  []string
	}{
		{"allow-file", o.AllowedFiles}, {"tmpfs", o.Tmpfs}, {"encrypt", o.Encrypt.Paths},
		{"encrypt-mutable", o.Encrypt.Mutable},
	} {
		for _, p := range c.paths {
			if !isPath(p) {
				return wrong(c.option, p, "an absolute path expected")
			}
		}
	}
	for _, m := range o.Encrypted {
		text := m.Path + "=" + m.Key
		switch {
		case !isPath(m.Path):
			return wrong("encrypt-mount", text, "an absolute path expected")
		case slices.Contains(o.Tmpfs, m.Path):
			return wrong("encrypt-mount", text, "%s is both --tmpfs and --encrypt-mount: it can be one", m.Path)
		case strings.HasPrefix(m.Key, "_sgx_") && m.Key != SealingKey && m.Key != "_sgx_mrenclave":
			return wrong("encrypt-mount", text,
				"of the keys that the CPU gives there are _sgx_mrsigner and _sgx_mrenclave")
		}
	}
	return nil
}

func isPath(p string) bool { return strings.HasPrefix(p, "/") && !strings.Contains(p, "\x00") }
