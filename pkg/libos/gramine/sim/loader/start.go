// Package loader starts the program of an image whose runtime is simulated. It checks what the CPU and a library OS
// would check, confines itself to the files of the manifest, and replaces itself by the program. It is in every such
// image, so it imports little.
package loader

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/pelletier/go-toml/v2"
	"golang.org/x/sync/errgroup"

	"github.com/cconvert/cconvert/pkg/libos/gramine/enclave"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// refusedError says that what would be started is not what was signed.
type refusedError struct{ err error }

func (e *refusedError) Error() string { return "refused: " + e.err.Error() }
func (e *refusedError) Unwrap() error { return e.err }

func refused(format string, args ...any) error { return &refusedError{fmt.Errorf(format, args...)} }

// Path is the loader in a converted image. It is also the enclave image that is measured.
const Path = root + "/sim/loader"

// Marker is in every build of the loader: it says which layout of enclaves it checks.
const Marker = "cconvert's simulated runtime, enclave layout 1"

// root is libos.Root, whose package this one does not import.
const root = "/cconvert"

// initialised reports whether Init was called.
var initialised bool

// Init turns the process into the loader if it was started as one, and does not return then. A program whose main
// begins with it can be the loader itself.
func Init() {
	initialised = true
	if invoked(os.Args) || isKeeper(os.Args) {
		os.Exit(Main(os.Args))
	}
}

// Initialised reports whether this program's main began with Init.
func Initialised() bool { return initialised }

// invoked reports whether a command line is that of the loader in a converted image.
func invoked(args []string) bool {
	return len(args) >= 4 && args[0] == Path && args[2] == "init" && strings.HasPrefix(args[3], root+"/")
}

// isKeeper reports whether a command line is that of the loader's own child.
func isKeeper(args []string) bool { return len(args) == 2 && args[0] == Path && args[1] == keeperArg }

// keeperArg has the loader be the process that waits for an agent's key.
const keeperArg = "keeper"

// Main is the loader: LOADER LIBPAL init APP [ARGS…]. It replaces itself by the program and returns
// only an exit code: 4 if something was tampered with, else 1.
func Main(args []string) int {
	err := errors.New(Marker + ": it is started by images that were converted with --runtime sim")
	if invoked(args) {
		err = start(args)
	}
	if isKeeper(args) {
		if err = keep(); err == nil {
			return 0
		}
	}
	fmt.Fprintln(os.Stderr, "cconvert sim:", err)
	var r *refusedError
	if errors.As(err, &r) {
		return 4
	}
	return 1
}

// program is the part of a manifest that the simulation acts on.
type program struct {
	LibOS struct {
		Entrypoint string `toml:"entrypoint"`
	} `toml:"libos"`
	Loader struct {
		Entrypoint trustedFile    `toml:"entrypoint"`
		Argv       []string       `toml:"argv"`
		HostArgs   bool           `toml:"insecure__use_cmdline_argv"`
		HostEnv    bool           `toml:"insecure__use_host_env"`
		Env        map[string]any `toml:"env"`
		UID        int            `toml:"uid"`
		GID        int            `toml:"gid"`
	} `toml:"loader"`
	FS struct {
		StartDir string `toml:"start_dir"`
		Mounts   []struct {
			Type string `toml:"type"`
			Path string `toml:"path"`
			URI  string `toml:"uri"`
		} `toml:"mounts"`
		InsecureKeys map[string]string `toml:"insecure__keys"`
	} `toml:"fs"`
	SGX struct {
		Trusted []trustedFile `toml:"trusted_files"`
		Allowed []string      `toml:"allowed_files"`
	} `toml:"sgx"`
}

// trustedFile is a file that is measured by its digest.
type trustedFile struct {
	URI    string `toml:"uri"`
	SHA256 string `toml:"sha256"`
}

func start(args []string) error {
	pal, app := args[1], args[3]
	text, err := os.ReadFile(app + ".manifest.sgx")
	if err != nil {
		return refused("%w", err)
	}
	if err := checkSignature(pal, app, text); err != nil {
		return err
	}
	var p program
	if err := toml.Unmarshal(text, &p); err != nil {
		return refused("%s: %w", app+".manifest.sgx", err)
	}
	readable, err := p.checkFiles()
	if err != nil {
		return err
	}
	argv := p.Loader.Argv
	if p.Loader.HostArgs {
		argv = append([]string{p.LibOS.Entrypoint}, args[4:]...) // as Gramine does
	} else if len(args) > 4 {
		fmt.Fprintf(os.Stderr, "cconvert sim: the arguments %q are ignored: arguments are measured\n", args[4:])
	}
	if len(argv) == 0 {
		argv = []string{p.LibOS.Entrypoint}
	}
	if names := p.ignored(os.Environ()); len(names) > 0 {
		fmt.Fprintf(os.Stderr, "cconvert sim: the variables %q have no effect: variables are measured, too\n", names)
	}
	fmt.Fprintln(os.Stderr,
		"cconvert sim: SIMULATION, nothing is confidential: there is no enclave around this program")
	return p.run(argv, p.environment(), readable, app+".sig")
}

// checkSignature does what the CPU does when an enclave starts: it measures the enclave image and the
// manifest and compares that with what was signed.
func checkSignature(pal, app string, manifestText []byte) error {
	image, err := os.ReadFile(pal)
	if err != nil {
		return refused("%w", err)
	}
	sig, err := os.ReadFile(app + ".sig")
	if err != nil {
		return refused("%w", err)
	}
	signed, err := sgx.ParseSigStruct(sig)
	if err != nil {
		return refused("%s: %w", app+".sig", err)
	}
	e, err := enclave.New(enclave.Version, image, manifestText)
	if err != nil {
		return refused("%s or %s was changed after signing: %w", app+".manifest.sgx", pal, err)
	}
	m, err := sgx.Measure(context.Background(), e.Layout)
	if err != nil {
		return refused("%w", err)
	}
	own := e.SigStruct(m, sgx.Date{})
	if err := signed.CheckEnclave(m, own.Attributes, own.MiscSelect); err != nil {
		return refused("%s or %s was changed after signing: %w", app+".manifest.sgx", pal, err)
	}
	return nil
}

// checkFiles compares every trusted file with its digest and returns the paths of those that there are.
// A file that this user cannot open, or that is not there, cannot harm: the program cannot read it.
func (p *program) checkFiles() ([]string, error) {
	files := p.SGX.Trusted
	files = append(files, p.Loader.Entrypoint)
	readable := make([]string, len(files))
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, f := range files {
		g.Go(func() error {
			name, ok := strings.CutPrefix(f.URI, "file:")
			if !ok {
				return refused("trusted file %q is not a file", f.URI)
			}
			sum, err := digest(name)
			switch {
			case errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist):
				return nil
			case err != nil:
				return refused("%s: %w", name, err)
			case sum != f.SHA256:
				return refused("%s was changed: its SHA-256 is %s, the signed manifest says %s", name, sum, f.SHA256)
			}
			readable[i] = name
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(readable, func(s string) bool { return s == "" }), nil
}

func digest(name string) (string, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe in its place must not block
	if err != nil {
		return "", err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return "", fmt.Errorf("it is not a regular file")
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// environment returns what the manifest says; of the host's only what it lets through.
func (p *program) environment() []string {
	vars := map[string]string{}
	if p.Loader.HostEnv {
		for _, kv := range os.Environ() {
			name, value, _ := strings.Cut(kv, "=")
			vars[name] = value
		}
	}
	for name, v := range p.Loader.Env {
		switch v := v.(type) {
		case string:
			vars[name] = v
		case map[string]any:
			if s, ok := v["value"].(string); ok {
				vars[name] = s
			} else if host, ok := os.LookupEnv(name); ok {
				vars[name] = host
			}
		}
	}
	env := make([]string, 0, len(vars))
	for name, value := range vars {
		env = append(env, name+"="+value)
	}
	slices.Sort(env)
	return env
}

// usual is a pattern of variables that engines and shells set for every container.
const usual = `^(PATH|HOME|HOSTNAME|TERM|PWD|OLDPWD|SHLVL|_|container|LANG|LC_.*|CCONVERT_.*|KUBERNETES_.*|` +
	`.*_SERVICE_HOST|.*_SERVICE_PORT(_.*)?|.*_PORT(_\d+_.*)?)$`

// ignored names variables that somebody has given at the start, and that the program does not get.
func (p *program) ignored(environ []string) (names []string) {
	anyways, got := regexp.MustCompile(usual), map[string]bool{}
	for _, kv := range p.environment() {
		got[kv] = true
	}
	for _, kv := range environ {
		if name, _, _ := strings.Cut(kv, "="); !got[kv] && !anyways.MatchString(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// writable returns the directories and files that the program may change, making directories that are missing. Each
// must lead to one of them: a link that was put there could lead to any files.
func (p *program) writable() (dirs, files []string, err error) {
	known := map[string]bool{}
	for _, m := range p.FS.Mounts {
		if m.Type == "tmpfs" || m.Type == "encrypted" {
			known[m.Path] = true
			known[strings.TrimPrefix(m.URI, "file:")] = true // of a link to encrypted files
		}
	}
	for _, m := range p.FS.Mounts {
		if m.Type != "tmpfs" && m.Type != "encrypted" {
			continue
		}
		_ = os.MkdirAll(m.Path, 0o755) // where that is not possible, the program cannot either
		real, err := filepath.EvalSymlinks(m.Path)
		if err != nil {
			continue
		}
		if !known[real] {
			return nil, nil, refused("%s leads to %s, which the signed manifest does not", m.Path, real)
		}
		if info, err := os.Stat(real); err == nil && !info.IsDir() {
			files = append(files, real)
			continue
		}
		dirs = append(dirs, real)
	}
	return dirs, files, nil
}
