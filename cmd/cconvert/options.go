package main

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/sirupsen/logrus"
	"github.com/spf13/pflag"

	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/launch/libc"
	"github.com/cconvert/cconvert/pkg/launch/process"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/libos/gramine"
	"github.com/cconvert/cconvert/pkg/libos/gramine/enclave"
	"github.com/cconvert/cconvert/pkg/libos/gramine/sim"
	"github.com/cconvert/cconvert/pkg/manifest"
	"github.com/cconvert/cconvert/pkg/profile"
	"github.com/cconvert/cconvert/pkg/release"
	"github.com/cconvert/cconvert/pkg/rootfs"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// registryFlags are about where images are.
type registryFlags struct {
	insecure            bool
	jobs                int
	idle                time.Duration
	limits              rootfs.Limits
	ca                  caFlag
	authFile            authFileFlag
	tlsVerify           bool
	transport           func() http.RoundTripper // made once, so that connections are shared; nil: the usual one
	srcCreds, destCreds credsFlag
}

func (r *registryFlags) add(f *pflag.FlagSet) {
	f.BoolVar(&r.insecure, "insecure", false, "speak HTTP to registries, also to those on other machines")
	f.IntVarP(&r.jobs, "jobs", "j", 0, "layers that are read or sent at a time (default: one for each processor)")
	f.DurationVar(&r.idle, "registry-timeout", registry.DefaultIdle,
		"how long a registry may be silent; over that time it must also send a kilobyte a second")
	r.addCredentials(f)
	addLimits(f, &r.limits)
}

func (r *registryFlags) options() registry.Options {
	o := registry.Options{Jobs: r.jobs, Idle: r.idle, Keychain: r.authFile.keychain}
	if r.transport != nil {
		o.HTTP = r.transport()
	}
	if logrus.IsLevelEnabled(logrus.DebugLevel) {
		if o.HTTP == nil {
			o.HTTP = remote.DefaultTransport
		}
		o.HTTP = &loggedRequests{o.HTTP}
	}
	return o
}

// sizeFlag is a number of bytes, as in 64G.
type sizeFlag struct{ bytes *int64 }

func (s sizeFlag) Type() string { return "size" }

func (s sizeFlag) String() string {
	if s.bytes == nil {
		return ""
	}
	return enclave.FormatSize(uint64(*s.bytes))
}

func (s sizeFlag) Set(text string) error {
	n, err := enclave.ParseSize(text)
	if err != nil || n == 0 || n > 1<<50 {
		return errors.New("a size such as 64G expected")
	}
	*s.bytes = int64(n)
	return nil
}

// addLimits adds the flags that bound what an image may hold.
func addLimits(f *pflag.FlagSet, l *rootfs.Limits) {
	*l = rootfs.Limits{
		FileBytes: rootfs.DefaultFileBytes, LayerBytes: rootfs.DefaultLayerBytes, ImageBytes: rootfs.DefaultImageBytes,
	}
	f.Var(sizeFlag{&l.FileBytes}, "max-file", "size of a file up to which images are read")
	f.Var(sizeFlag{&l.LayerBytes}, "max-layer", "size of all files of a layer up to which images are read")
	f.Var(sizeFlag{&l.ImageBytes}, "max-image", "size of all files of all layers up to which images are read")
	f.IntVar(&l.Files, "max-files", rootfs.DefaultFiles,
		"number of files, directories and links up to which images are read")
}

// runtimeFlags choose the library OS.
type runtimeFlags struct {
	runtime, libs, lock string
}

func (r *runtimeFlags) add(f *pflag.FlagSet) {
	f.StringVar(&r.runtime, "runtime", "gramine", "what runs the program: gramine or sim; gramine=SOURCE takes it "+
		"from docker://IMAGE, oci:DIR, dir:PREFIX or deb:FILE[,FILE...]")
	f.StringVar(&r.libs, "runtime-libs", "",
		"where the runtime's loader finds its libraries, if not in its source: DIR or deb:FILE[,FILE...]")
	f.StringVar(&r.lock, "lock", libos.LockFile, "file that pins the runtime; the default one is used if it exists")
}

// choose returns the backend and where its runtime comes from, kept to the lock file if there is one.
func (r *runtimeFlags) choose(reg registryFlags, kept cacheFlags) (libos.Backend, libos.LoadOptions, error) {
	kind, source, _ := strings.Cut(r.runtime, "=")
	o := libos.LoadOptions{Source: source, Libs: r.libs, Image: reg.options(), Insecure: reg.insecure}
	var err error
	if o.Cache, err = kept.store(); err != nil {
		return nil, o, err
	}
	switch kind {
	case "sim":
		return sim.Backend{}, o, nil
	case "gramine":
	default:
		return nil, o, usagef("--runtime %s: there is gramine and sim", r.runtime)
	}
	l, err := libos.ReadLock(r.lock)
	if errors.Is(err, libos.ErrLock) {
		err = &usageError{err}
	}
	named := r.lock != "" && r.lock != libos.LockFile // a file that somebody names is to be used
	switch {
	case err != nil:
	case l == nil && named:
		err = usagef("--lock %s: there is no such file", r.lock)
	case l == nil || l.Pin(&o):
	case named:
		err = usagef("--lock %s is about %s, which is not the runtime that is asked for", r.lock, l.Runtime.Source)
	default:
		logrus.Warnf("%s is about %s and is not used", r.lock, l.Runtime.Source)
	}
	return gramine.Backend{}, o, err
}

// launchFlags are about the enclave and its program.
type launchFlags struct {
	memory, date, attestation, logLevel string
	threads                             int
	prodID, svn                         uint16
	edmm, debug, hostArgs               bool
	env, passEnv, args, allow, tmpfs    []string
	encrypt, secrets, secret            []string
	agent                               string
	manifest                            string
	trust, profile, libc                string
}

func (l *launchFlags) add(f *pflag.FlagSet) {
	f.StringVar(&l.trust, "trust", "auto", "files that the program may read: auto (what it can be expected to open), "+
		"all, or list:FILE (paths, or the output of strace -f -e trace=%file)")
	f.StringVar(&l.profile, "profile", "auto",
		"what kind of program it is: auto, none, a name or a file; see docs/profiles.md")
	f.StringVar(&l.libc, "libc", "auto", "C library to use: auto, patched (the runtime's) or image (its own, slower)")
	f.StringVar(&l.memory, "memory", "auto", "size of the enclave, for each process: auto or a power of two such as 1G")
	f.IntVar(&l.threads, "threads", 0, "threads that can run at a time in the enclave (default: as the profile says)")
	f.BoolVar(&l.edmm, "edmm", false, "add memory while the enclave runs (needs SGX2)")
	f.BoolVar(&l.debug, "debug", false, "make an enclave that a debugger can read: it keeps no secrets")
	f.StringArrayVar(&l.env, "env", nil, "set a variable, NAME=VALUE, measured (repeatable)")
	f.StringArrayVar(&l.passEnv, "pass-env", nil,
		"let the host choose a variable's value at start, unmeasured (repeatable)")
	f.StringArrayVar(&l.args, "arg", nil, "argument instead of the image's CMD, measured (repeatable)")
	f.BoolVar(&l.hostArgs, "insecure-args", false, "let the host choose the arguments at start, unmeasured")
	f.StringArrayVar(&l.allow, "allow-file", nil, "path that the program may use without protection (repeatable)")
	f.StringArrayVar(&l.tmpfs, "tmpfs", nil, "directory of temporary storage in the enclave (repeatable)")
	f.StringArrayVar(&l.encrypt, "encrypt-mount", nil,
		"directory whose files are encrypted, PATH[=KEY]; the default key is sealed to CPU and signer (repeatable)")
	f.StringArrayVar(&l.secrets, "secrets", nil, "server from which the program gets secrets at start, after "+
		"attestation: release=https://HOST:PORT,pin=sha256/DIGEST, or with ca=FILE in the place of the pin; or "+
		"secret-prov=HOST:PORT or kbs=https://HOST:PORT, see docs/secrets.md (repeatable)")
	f.StringArrayVar(&l.secret, "secret", nil, "place for a secret of the server: env:NAME, file:PATH, key:NAME of an "+
		"encrypted mount, or tls:DIRECTORY for a certificate; of kbs, PLACE=REPOSITORY/TYPE/TAG (repeatable)")
	f.StringVar(&l.agent, "agent", "", "program that gets the secrets (default: the one of this version)")
	f.Uint16Var(&l.prodID, "isv-prod-id", 0, "product number in the signature")
	f.Uint16Var(&l.svn, "isv-svn", 0, "security version number in the signature")
	f.StringVar(&l.date, "date", "", "date in the signature, YYYY-MM-DD (default: when the image was created)")
	f.StringVar(&l.attestation, "attestation", "", "remote attestation: none, or dcap, which needs the AESM service "+
		"at start (default: none, and dcap with --secrets)")
	f.StringVar(&l.logLevel, "runtime-log-level", "error",
		"how much the runtime logs: none, error, warning, debug, trace or all")
	f.StringVar(&l.manifest, "manifest", "", "TOML file that is merged over the generated manifest")
}

func (l *launchFlags) options() (launch.Options, error) {
	o := launch.Options{
		HostArgs: l.hostArgs, Tmpfs: l.tmpfs, AllowedFiles: l.allow, Args: l.args,
		Threads: l.threads,
	}
	var err error
	if l.memory != "auto" {
		if o.Memory, err = enclave.ParseSize(l.memory); err != nil {
			return o, usagef("--memory: %w", err)
		}
		if o.Memory == 0 {
			return o, usagef("--memory %s: an enclave needs some", l.memory)
		}
	}
	if err := l.choices(&o); err != nil {
		return o, err
	}
	for _, kv := range l.env {
		name, value, ok := strings.Cut(kv, "=")
		if !ok {
			return o, usagef("--env %s: NAME=VALUE expected; to take the host's value, use --pass-env", kv)
		}
		o.Env = append(o.Env, process.EnvVar{Name: name, Value: value})
	}
	for _, name := range l.passEnv {
		o.Env = append(o.Env, process.EnvVar{Name: name, PassThrough: true})
	}
	for _, v := range l.encrypt {
		p, key, _ := strings.Cut(v, "=")
		o.Encrypted = append(o.Encrypted, launch.Mount{Path: p, Key: key})
	}
	if o.Secrets, err = l.readSecrets(); err != nil {
		return o, err
	}
	return o, nil
}

// readSecrets reads from whom the program gets secrets, and which; nil: it gets none.
func (l *launchFlags) readSecrets() (*launch.Secrets, error) {
	if len(l.secrets) == 0 {
		if len(l.secret) > 0 || l.agent != "" {
			return nil, usagef("--secret and --agent are for --secrets, the server that releases them")
		}
		return nil, nil
	}
	var s launch.Secrets
	for _, text := range l.secrets {
		server, err := release.ParseServer(text, os.ReadFile)
		if err != nil {
			return nil, &usageError{fmt.Errorf("--secrets: %w", err)}
		}
		s.Servers = append(s.Servers, server)
	}
	for _, text := range l.secret {
		if err := s.Add(text); err != nil {
			return nil, &usageError{fmt.Errorf("--secret: %w", err)}
		}
	}
	return &s, nil
}

// conversion gathers what the flags say of a conversion, but for its keys and target.
func conversion(
	source image.Reference, reg registryFlags, layers layerFlags, lib runtimeFlags, start launchFlags,
	files encryptFlags,
) (o convert.Options, err error) {
	o = convert.Options{Source: source, StoreOptions: convert.StoreOptions{Image: reg.options()}, Jobs: reg.jobs}
	if err := layers.choose(&o, reg); err != nil {
		return o, err
	}
	if err := start.choose(&o); err != nil {
		return o, err
	}
	files.addTo(&o)
	if err := o.Launch.Check(); err != nil {
		return o, usagef("--%w", err)
	}
	o.Backend, o.Runtime, err = lib.choose(reg, layers.cache)
	o.Cache = o.Runtime.Cache
	return o, err
}

// choose gathers what the flags say of the enclave and its program.
func (l *launchFlags) choose(o *convert.Options) (err error) {
	if o.Launch, err = l.options(); err != nil {
		return err
	}
	o.Enclave = libos.EnclaveOptions{
		EDMM: l.edmm, Debug: l.debug, ISVProdID: l.prodID, ISVSVN: l.svn, Attestation: l.attestation,
		LogLevel: l.logLevel,
	}
	if l.attestation == "" {
		o.Enclave.Attestation = "none"
		if o.Launch.Secrets != nil {
			o.Enclave.Attestation = "dcap"
		}
	}
	o.AgentFile = l.agent
	if err := o.Enclave.Check(); err != nil {
		return usagef("--%w", err)
	}
	if o.Overlay, err = l.overlay(); err != nil {
		return err
	}
	o.Date, err = parseDate(l.date)
	return err
}

// choices reads the flags that name one of several ways.
func (l *launchFlags) choices(o *launch.Options) error {
	switch kind, file, _ := strings.Cut(l.trust, ":"); {
	case kind == "list" && file != "":
		f, err := os.Open(file)
		if err != nil {
			return &usageError{fmt.Errorf("--trust: %w", err)}
		}
		defer f.Close()
		if o.List, err = launch.ParseList(f); err != nil {
			return &usageError{fmt.Errorf("--trust %s: %w", l.trust, err)}
		}
		o.Trust = launch.TrustList
	case l.trust == "auto" || l.trust == "all":
		o.Trust = launch.Policy(l.trust)
	default:
		return usagef("--trust %s: there is auto, all and list:FILE", l.trust)
	}
	o.LibC = libc.Choice(l.libc)
	switch name := l.profile; {
	case name == "auto":
	case name == "none":
		o.Profile = profile.Find("native")
	case strings.ContainsAny(name, "/."):
		text, err := os.ReadFile(name)
		if err != nil {
			return &usageError{fmt.Errorf("--profile: %w", err)}
		}
		if o.Profile, err = profile.Parse(strings.TrimSuffix(filepath.Base(name), ".toml"), text); err != nil {
			return &usageError{fmt.Errorf("--profile %s: %w", name, err)}
		}
		for _, f := range o.Profile.Findings {
			if !finding.Known(f.Code) {
				return usagef("--profile %s: no finding has the code %q; docs/findings.md lists them", name, f.Code)
			}
		}
	default:
		if o.Profile = profile.Find(name); o.Profile == nil {
			var names []string
			for _, p := range profile.All() {
				names = append(names, p.Name)
			}
			return usagef("--profile %s: there is auto, none, %s, or a file by its path", name,
				strings.Join(names, ", "))
		}
	}
	return nil
}

// overlay reads the user's manifest.
func (l *launchFlags) overlay() (string, error) {
	if l.manifest == "" {
		return "", nil
	}
	text, err := os.ReadFile(l.manifest)
	if err != nil {
		return "", &usageError{err}
	}
	_, err = manifest.ParseOverlay(l.manifest, text)
	return string(text), err
}

func parseDate(s string) (*sgx.Date, error) {
	if s == "" {
		return nil, nil
	}
	d, err := sgx.ParseDate(s)
	if err != nil {
		return nil, &usageError{fmt.Errorf("--date: %w", err)}
	}
	return &d, nil
}
