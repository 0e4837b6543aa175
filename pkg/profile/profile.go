// Package profile knows what kinds of programs need of an enclave: how large it is to be, how many threads
// it has, which settings its library OS wants. A profile is data, with the rule by which it is recognised:
// see templates/profiles.
package profile

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"path"
	"regexp"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/pelletier/go-toml/v2"

	"github.com/cconvert/cconvert/templates"
)

// Profile is what a kind of program needs.
type Profile struct {
	Name        string `toml:"-"`
	Text        string `toml:"-"` // what it was read from
	Description string `toml:"description"`
	// Language says that it runs programs of a language: what it can do by itself says little of what they do.
	Language bool   `toml:"language"`
	Detect   Detect `toml:"detect"`
	Enclave  struct {
		Size    Size `toml:"size"`
		Threads int  `toml:"threads"`
	} `toml:"enclave"`
	// Env are variables that are set if the image does not.
	Env   map[string]string `toml:"env"`
	Paths struct {
		// Read are patterns of files that are trusted whatever the policy finds.
		Read []string `toml:"read"`
		// Tmpfs are directories of temporary storage.
		Tmpfs []string `toml:"tmpfs"`
		// Commands are patterns, as of path.Match, of files that name the programs that are started.
		Commands []string `toml:"commands"`
	} `toml:"paths"`
	// Config is how the program is configured.
	Config Config `toml:"config"`
	Host   struct {
		// Capabilities of Linux that the start needs if the image's user is root: "SETUID". For package deploy alone.
		Capabilities []string `toml:"capabilities"`
	} `toml:"host"`
	// Manifest is merged over the base manifest.
	Manifest map[string]any `toml:"manifest"`
	// Memory and Threads are options of the program that say how much it will take.
	Memory   []Option  `toml:"memory"`
	Threads  []Option  `toml:"threads"`
	Findings []Finding `toml:"finding"`
}

// Config says which file a program reads that names the programs that it starts.
type Config struct {
	// Files are read unless one of Options names another one, which is found if it is among Others: patterns, as of
	// path.Match.
	Files   []string `toml:"files"`
	Options []string `toml:"options"`
	Others  []string `toml:"others"`
}

// read returns the files that texts, which are arguments and scripts, have the program read.
func (c Config) read(texts []string, dir string) []string {
	var named []string
	for _, option := range c.Options {
		after := regexp.MustCompile(`(?:^|\s)` + regexp.QuoteMeta(option) + `(?:\s+|=)["']?([^\s"']+)`)
		for _, text := range texts {
			for _, m := range after.FindAllStringSubmatch(text, -1) {
				if !path.IsAbs(m[1]) {
					m[1] = path.Join(dir, m[1])
				}
				named = append(named, path.Clean(m[1]))
			}
		}
	}
	if len(named) == 0 {
		return c.Files
	}
	return named
}

// Read returns patterns of the files that name the programs that are started. Texts are arguments and scripts; dir is
// the working directory.
func (p *Profile) Read(texts []string, dir string) []string {
	return slices.Concat(p.Paths.Commands, p.Config.read(texts, dir))
}

// Kept returns patterns of all files of which Read may return some.
func (p *Profile) Kept() []string {
	return slices.Concat(p.Paths.Commands, p.Config.Files, p.Config.Others)
}

// Detect is the rule by which a profile is recognised: any of its parts is enough.
type Detect struct {
	// Programs are patterns for the program's name, or that of a link to it.
	Programs []string `toml:"programs"`
	// Libraries are patterns for the names of libraries that it is linked to.
	Libraries []string `toml:"libraries"`
	// Go is for programs of the Go linker.
	Go bool `toml:"go"`
	// StartsOthers is for programs that only start another one.
	StartsOthers bool `toml:"starts_others"`
}

// Option is one of the program's that has a number: as "-Xmx512m" or "--threads 8".
type Option struct {
	// Option is the text before the number. A blank or "=" at its end stands for either.
	Option string `toml:"option"`
	// Base of the number, 10 if zero.
	Base int `toml:"base"`
	// Unit of numbers without a suffix, one if empty.
	Unit Size `toml:"unit"`
	// Times and Plus make the need from the number: times one if zero, plus nothing.
	Times float64 `toml:"times"`
	Plus  Size    `toml:"plus"`
}

// Finding is what is to be said of the programs of the profile: of all, or of those to which all of its conditions
// apply.
type Finding struct {
	Code     string `toml:"code"`
	Severity string `toml:"severity"`
	Message  string `toml:"message"`
	// If is a regular expression that arguments, variables, scripts or files of Paths.Commands match, and Unless one
	// that none of them does; empty: no condition.
	If     Expression `toml:"if"`
	Unless Expression `toml:"unless"`
	// ReadOnly is a directory in which the program cannot write; empty: no condition.
	ReadOnly string `toml:"read_only"`
}

// Expression is a regular expression (package regexp).
type Expression struct {
	*regexp.Regexp
	steps int // of its program, each of which may be taken for each character
}

// UnmarshalText compiles it.
func (e *Expression) UnmarshalText(b []byte) (err error) {
	if len(b) > maxExpression {
		return fmt.Errorf("the expression has more than %d bytes", maxExpression)
	}
	parsed, err := syntax.Parse(string(b), syntax.Perl)
	if err != nil {
		return err
	}
	program, err := syntax.Compile(parsed.Simplify())
	if err != nil {
		return err
	}
	e.steps = len(program.Inst)
	e.Regexp, err = regexp.Compile(string(b))
	return err
}

// matches reports whether one of the texts matches.
func (e Expression) matches(texts []string) bool {
	return e.Regexp != nil && slices.ContainsFunc(texts, e.MatchString)
}

// Applies reports whether the texts, which are arguments, variables and scripts, are those of a program of which it is
// to be said.
func (f Finding) Applies(texts []string) bool {
	return (f.If.Regexp == nil || f.If.matches(texts)) && !f.Unless.matches(texts)
}

// Size is a number of bytes or of things: an integer, or text such as "512M".
type Size uint64

// UnmarshalText reads sizes as "512M".
func (s *Size) UnmarshalText(b []byte) error {
	n, err := parse(string(b), 10)
	*s = Size(n)
	return err
}

// severities are those of findings.
var severities = []string{"info", "warning", "error"}

// ErrProfile says that a profile cannot be read.
var ErrProfile = errors.New("not a profile")

// maxExpression is how many bytes a regular expression may have.
const maxExpression = 1000

// Bounds of what is tried on each argument, variable and script.
const (
	maxConditions = 64
	maxSteps      = 1000
	maxOption     = 64 // bytes
	// An option is looked for by an expression of its text and of about so many steps more.
	stepsOfOption = 40
)

// capabilities are those that container engines give by default, by the names that Kubernetes and Docker have for
// them: without CAP_ (capabilities(7); moby, "oci/caps/defaults.go"). A profile can be in the recipe of an image, which
// is not measured: it must not give more to a container than it has anyway.
var capabilities = []string{
	"AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "NET_RAW",
	"SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
}

// maxPatterns is how many patterns a profile may have: each of them is tried on each file of an image.
const (
	maxPatterns     = 64
	maxPatternBytes = 256
)

// Parse reads a profile. The name is for messages.
func Parse(name string, text []byte) (*Profile, error) {
	p := &Profile{Name: name, Text: string(text)}
	d := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields()
	if err := d.Decode(p); err != nil {
		var strict *toml.StrictMissingError
		if errors.As(err, &strict) && len(strict.Errors) > 0 {
			line, _ := strict.Errors[0].Position()
			return nil, fmt.Errorf("%s:%d: %w: the key %s is not known", name, line, ErrProfile,
				strings.Join(strict.Errors[0].Key(), "."))
		}
		return nil, fmt.Errorf("%s: %w: %w", name, ErrProfile, err)
	}
	if p.Enclave.Size&(p.Enclave.Size-1) != 0 {
		return nil, fmt.Errorf("%s: %w: enclave.size %d is not a power of two", name, ErrProfile, p.Enclave.Size)
	}
	if n := len(p.Findings) + len(p.Memory) + len(p.Threads); n > maxConditions {
		return nil, fmt.Errorf("%s: %w: it has %d findings and options, more than %d", name, ErrProfile, n,
			maxConditions)
	}
	steps := 0
	for _, option := range p.options() {
		steps += len(option) + stepsOfOption
		if len(option) > maxOption {
			return nil, fmt.Errorf("%s: %w: the option %.60q… has more than %d bytes", name, ErrProfile, option,
				maxOption)
		}
	}
	for _, f := range p.Findings {
		steps += f.If.steps + f.Unless.steps
		if !slices.Contains(severities, f.Severity) {
			return nil, fmt.Errorf("%s: %w: the severity %q is none of %q", name, ErrProfile, f.Severity, severities)
		}
	}
	if steps > maxSteps {
		return nil, fmt.Errorf("%s: %w: its expressions take %d steps for each character, more than %d", name,
			ErrProfile, steps, maxSteps)
	}
	for _, o := range slices.Concat(p.Memory, p.Threads) {
		if o.Option == "" || o.Base != 0 && o.Base != 16 && o.Base != 10 {
			return nil, fmt.Errorf("%s: %w: the option %q has no text, or its base is neither 10 nor 16", name,
				ErrProfile, o.Option)
		}
	}
	for _, c := range p.Host.Capabilities {
		if !slices.Contains(capabilities, c) {
			return nil, fmt.Errorf("%s: %w: %.60q is not a capability that engines give by default, such as SETUID",
				name, ErrProfile, c)
		}
	}
	patterns := slices.Concat(p.Detect.Programs, p.Detect.Libraries, p.Kept(), p.Paths.Read, p.Config.Options)
	if len(patterns) > maxPatterns {
		return nil, fmt.Errorf("%s: %w: it has more than %d patterns", name, ErrProfile, maxPatterns)
	}
	for _, pattern := range patterns {
		if len(pattern) > maxPatternBytes {
			return nil, fmt.Errorf("%s: %w: the pattern %.60q… has more than %d bytes", name, ErrProfile, pattern,
				maxPatternBytes)
		}
		if _, err := path.Match(pattern, ""); err != nil {
			return nil, fmt.Errorf("%s: %w: the pattern %q: %w", name, ErrProfile, pattern, err)
		}
	}
	return p, nil
}

// options are the texts that are looked for in arguments and scripts.
func (p *Profile) options() []string {
	list := slices.Clone(p.Config.Options)
	for _, o := range slices.Concat(p.Memory, p.Threads) {
		list = append(list, o.Option)
	}
	return list
}

// All returns the profiles that come with the program, sorted by name.
var All = sync.OnceValue(func() []*Profile {
	var list []*Profile
	files, err := templates.Profiles.ReadDir("profiles")
	if err != nil {
		panic(err) // embedded, and read by every test
	}
	for _, f := range files {
		text, err := templates.Profiles.ReadFile("profiles/" + f.Name())
		if err != nil {
			panic(err)
		}
		p, err := Parse(strings.TrimSuffix(f.Name(), ".toml"), text)
		if err != nil {
			panic(err)
		}
		list = append(list, p)
	}
	return list
})

// Keep lists the files whose content profiles need, as patterns for rootfs.Scan.
func Keep() (patterns []string) {
	for _, p := range All() {
		patterns = append(patterns, p.Kept()...)
	}
	return patterns
}

// Find returns the profile of a name, or nil.
func Find(name string) *Profile {
	for _, p := range All() {
		if p.Name == name {
			return p
		}
	}
	return nil
}

// Program is one that an image starts.
type Program struct {
	// Names are its own and those of links to it.
	Names []string
	// Libraries are those that it loads.
	Libraries []string
	// Go says that the Go linker made it.
	Go bool
	// Surely says that it is started; others are only named by a script.
	Surely bool
}

// StartsOthers reports whether a program does nothing but start another one, by its name.
func StartsOthers(name string) bool {
	p, _, _ := recogniseOne(Program{Names: []string{name}})
	return p != nil && p.Detect.StartsOthers
}

// Recognise finds the profile of what an image starts in the end, given its programs from the entrypoint
// on, and says why. Programs that only start others are passed over. The program is the one that decided, by its
// place in the list; -1 if none did.
func Recognise(programs []Program) (p *Profile, why string, program int) {
	var starter *Profile
	for i, program := range programs {
		p, reason, embedded := recogniseOne(program)
		if embedded && p.Language {
			// A program that has an interpreter in it reads what that does, and does what it does by itself: unbound,
			// uwsgi.
			program := *p
			program.Language = false
			p = &program
		}
		switch {
		case p == nil && !program.Surely:
		case p == nil:
			return Find("native"), "no other profile fits " + program.Names[0], i
		case !p.Detect.StartsOthers:
			return p, reason, i
		case starter == nil:
			starter, why = p, reason
		}
	}
	if starter != nil {
		return starter, why, -1
	}
	return Find("native"), "no other profile fits", -1
}

// Matching returns the profiles of all the programs.
func Matching(programs []Program) []*Profile {
	var list []*Profile
	for _, program := range programs {
		if p, _, _ := recogniseOne(program); p != nil && !slices.Contains(list, p) {
			list = append(list, p)
		}
	}
	return list
}

// recogniseOne finds the profile of a program: by its names, or embedded, by what it loads.
func recogniseOne(program Program) (p *Profile, why string, embedded bool) {
	for _, p := range All() {
		for _, pattern := range p.Detect.Programs {
			for _, name := range program.Names {
				if ok, _ := path.Match(pattern, name); ok {
					return p, "the program is " + name, false
				}
			}
		}
	}
	for _, p := range All() {
		for _, pattern := range p.Detect.Libraries {
			for _, name := range program.Libraries {
				if ok, _ := path.Match(pattern, name); ok {
					return p, program.Names[0] + " loads " + name, true
				}
			}
		}
		if p.Detect.Go && program.Go {
			return p, program.Names[0] + " was made by Go", false
		}
	}
	return nil, "", false
}

// Need returns the largest number that the options have in the texts, which are arguments and variables
// as NAME=VALUE, and the text that has it; zero if none.
func Need(options []Option, texts []string) (need uint64, said string) {
	for _, o := range options {
		digits := "[0-9]+"
		if o.Base == 16 {
			digits = "[0-9a-fA-F]+"
		}
		name := strings.TrimRight(o.Option, " =")
		between := ""
		if name != o.Option {
			between = `(?:\s*=\s*|\s+)`
		}
		re := regexp.MustCompile(`(?:^|[^\w-])(` + regexp.QuoteMeta(name) + between + `(` + digits +
			`(?:[kKmMgGtT](?:i?[bB])?)?))(?:\W|$)`)
		for _, text := range texts {
			for _, m := range re.FindAllStringSubmatch(text, -1) {
				n, err := parse(m[2], max(o.Base, 10))
				if err != nil {
					continue
				}
				if o.Unit > 0 && strings.Trim(m[2], "0123456789") == "" {
					n *= uint64(o.Unit)
				}
				total := float64(n)*max(o.Times, 1) + float64(o.Plus)
				if v := uint64(min(total, math.MaxInt64)); v > need {
					need, said = v, strings.TrimSpace(m[1])
				}
			}
		}
	}
	return need, said
}

// parse reads a number with an optional suffix of powers of 1024.
func parse(s string, base int) (uint64, error) {
	digits := strings.TrimRight(s, "kKmMgGtTiIbB")
	if base == 16 {
		digits = s
	}
	n, err := strconv.ParseUint(digits, base, 63)
	if err != nil || digits == s {
		return n, err
	}
	shift := 10 * (1 + strings.IndexByte("kmgt", strings.ToLower(s)[len(digits)]))
	if n > math.MaxInt64>>shift {
		return 0, strconv.ErrRange
	}
	return n << shift, nil
}
