// Package plan reads which images are to be converted, and how, from a file, and finds them in registries.
package plan

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"text/template"
	"time"

	"github.com/Masterminds/semver/v3"
	"github.com/agnivade/levenshtein"
	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/google/go-containerregistry/pkg/name"

	"github.com/cconvert/cconvert/pkg/image"
)

// MaxSize is how long a plan may be, in bytes.
const MaxSize = 4 << 20

// DefaultTarget puts a result beside its source.
const DefaultTarget = "{{.Registry}}/{{.Repository}}:{{.Tag}}-confidential"

// Plan says what is to be converted.
type Plan struct {
	Version  int               `yaml:"version"`
	Defaults Defaults          `yaml:"defaults"`
	Creds    []Credential      `yaml:"creds"`
	Limits   map[string]Limits `yaml:"limits"` // by registry
	Convert  []Entry           `yaml:"convert"`
	// TrustedRoot is a file that says which authorities and logs of Sigstore vouch for the identities of entries.
	TrustedRoot string `yaml:"trustedRoot"`

	// Insecure lets registries be spoken to over HTTP.
	Insecure bool `yaml:"-"`
	// ListTime is how long finding the images of one entry may take; 0: DefaultListTime.
	ListTime time.Duration `yaml:"-"`
	// Reserved are what no result may replace, by their places: images that have runtimes, and repositories with
	// indexes of layers. See Reserve.
	Reserved map[string]string `yaml:"-"`
	// Digest is that of the plan's text, "sha256:…".
	Digest string `yaml:"-"`
	// MaxImages is how many images may be found; 0: DefaultMaxImages. An entry may have three tenths of them.
	MaxImages int `yaml:"-"`
}

// DefaultMaxImages is as many as ten times what registries keep in a repository. What is known of them fits into a
// gigabyte of memory.
const DefaultMaxImages = 1_000_000

func (p *Plan) maxImages() int { return cmp.Or(p.MaxImages, DefaultMaxImages) }

// DefaultListTime allows 100,000 images to be asked for when they were made, eight at a time.
const DefaultListTime = 20 * time.Minute

// Defaults hold for all entries that do not say otherwise.
type Defaults struct {
	Target  string  `yaml:"target"`
	Options Options `yaml:"options"`
}

// Credential is who to be at a registry. The password is not in the plan: it is in a variable or a file of the machine
// that reads the plan, and never in a queue.
type Credential struct {
	Registry string `yaml:"registry"`
	User     string `yaml:"user"`
	PassEnv  string `yaml:"pass-env"`
	PassFile string `yaml:"pass-file"`
}

// Limits keep a worker from asking too much of a registry.
type Limits struct {
	// PerSecond is how many requests a worker sends to it in a second; 0: as many as it likes.
	PerSecond float64 `yaml:"requests-per-second" json:"requests_per_second,omitempty"`
	// AtOnce is how many requests of a worker are under way at a time; 0: as many as it likes.
	AtOnce int `yaml:"requests-at-once" json:"requests_at_once,omitempty"`
}

// Identity is one that a signer has logged in with, see package cosign.
type Identity struct {
	Issuer         string `yaml:"issuer"`
	Subject        string `yaml:"subject"`
	SubjectPattern string `yaml:"subjectPattern"`
}

// Entry names images: one, those of a repository, or those of a registry.
type Entry struct {
	Image        string  `yaml:"image"`
	Repository   string  `yaml:"repository"`
	Registry     string  `yaml:"registry"`
	Repositories Pattern `yaml:"repositories"` // of a registry
	Tags         Tags    `yaml:"tags"`         // of each repository
	Target       string  `yaml:"target"`
	Options      Options `yaml:"options"`
	// AllowUnsigned, Keys and Identities are rules of a service: whose signature, made by cosign, an image must have to
	// be converted because somebody asked. Keys are files with public keys.
	AllowUnsigned bool       `yaml:"allowUnsigned"`
	Keys          []string   `yaml:"keys"`
	Identities    []Identity `yaml:"identities"`

	// Line of the plan in which it begins.
	Line int `yaml:"-"`

	target *template.Template
	places [2]string // of what it names: without and with HTTP
}

// Pattern chooses names by regular expressions, each for the whole of a name.
type Pattern struct {
	Allow []Expression `yaml:"allow"`
	Deny  []Expression `yaml:"deny"`
}

// Tags choose tags: those that are allowed and not denied, in a range of semantic versions, and new enough.
type Tags struct {
	Allow  []Expression `yaml:"allow"`
	Deny   []Expression `yaml:"deny"`
	SemVer Range        `yaml:"semver"`
	// the newest so many: by version where there is a range, else by creation
	Newest       int   `yaml:"newest"`
	UpdatedSince Since `yaml:"updated-since"` // a date, or how long ago
}

// Expression is a regular expression for a whole name.
type Expression struct{ *regexp.Regexp }

// UnmarshalYAML compiles the expression.
func (e *Expression) UnmarshalYAML(n ast.Node) error {
	text, err := scalar(n)
	if err != nil {
		return err
	}
	if e.Regexp, err = regexp.Compile("^(?:" + text + ")$"); err != nil {
		return at(n, fmt.Errorf("the expression %q: %w", text, err))
	}
	return nil
}

// Range is one of semantic versions, as in ">=7.2, <8".
type Range struct{ *semver.Constraints }

// UnmarshalYAML reads the range.
func (r *Range) UnmarshalYAML(n ast.Node) error {
	text, err := scalar(n)
	if err != nil {
		return err
	}
	if r.Constraints, err = semver.NewConstraint(text); err != nil {
		return at(n, fmt.Errorf("the range of versions %q: %w", text, err))
	}
	return nil
}

// Since is a time, given as a date or as a duration before now.
type Since struct {
	Date time.Time
	Ago  time.Duration
}

// UnmarshalYAML reads either.
func (s *Since) UnmarshalYAML(n ast.Node) error {
	text, err := scalar(n)
	if err != nil {
		return err
	}
	if s.Date, err = time.Parse(time.DateOnly, text); err == nil {
		return nil
	}
	if s.Ago, err = time.ParseDuration(text); err != nil || s.Ago <= 0 {
		return at(n, fmt.Errorf("%q is neither a date, such as 2026-02-28, nor a duration, such as 720h", text))
	}
	return nil
}

func (s Since) before(t, now time.Time) bool {
	if s.Ago > 0 {
		return t.Before(now.Add(-s.Ago))
	}
	return t.Before(s.Date)
}

// Options are those of "cconvert convert", by the names of its flags.
type Options []Option

// Option is one of them, with its values: several if it is given several times.
type Option struct {
	Name   string
	Values []string
	Line   int
}

// UnmarshalYAML reads options and notes their lines. Which ones there are is the caller's to know.
func (o *Options) UnmarshalYAML(n ast.Node) error {
	if _, ok := n.(*ast.NullNode); ok {
		return nil
	}
	var pairs []*ast.MappingValueNode
	switch m := n.(type) {
	case *ast.MappingNode:
		pairs = m.Values
	case *ast.MappingValueNode:
		pairs = []*ast.MappingValueNode{m}
	default:
		return at(n, errors.New("options are NAME: VALUE, by the names of the flags of \"cconvert convert\""))
	}
	seen := map[string]bool{}
	for _, p := range pairs {
		key, err := scalar(p.Key)
		if err != nil {
			return err
		}
		if seen[key] {
			return at(p.Key, fmt.Errorf("the option %q is given twice", key))
		}
		seen[key] = true
		opt := Option{Name: key, Line: p.Key.GetToken().Position.Line}
		list := []ast.Node{p.Value}
		if s, ok := p.Value.(*ast.SequenceNode); ok {
			list = s.Values
		}
		for _, v := range list {
			text, err := scalar(v)
			if err != nil {
				return err
			}
			opt.Values = append(opt.Values, text)
		}
		*o = append(*o, opt)
	}
	return nil
}

// Over returns these options over others, which they replace by name.
func (o Options) Over(others Options) Options {
	var all Options
	for _, other := range others {
		replaced := false
		for _, own := range o {
			replaced = replaced || own.Name == other.Name
		}
		if !replaced {
			all = append(all, other)
		}
	}
	return append(all, o...)
}

func scalar(n ast.Node) (string, error) {
	switch v := n.(type) {
	case *ast.StringNode:
		return v.Value, nil
	case *ast.LiteralNode:
		return v.Value.Value, nil
	case ast.ScalarNode:
		return n.GetToken().Value, nil
	}
	return "", at(n, fmt.Errorf("%s is not a single value", strings.TrimSpace(n.String())))
}

// Error is a mistake in a plan.
type Error struct {
	File string
	Line int // 0: of the plan as a whole
	Err  error
}

func (e *Error) Error() string {
	if e.Line == 0 {
		return fmt.Sprintf("%s: %v", e.File, e.Err)
	}
	return fmt.Sprintf("%s:%d: %v", e.File, e.Line, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

func at(n ast.Node, err error) error { return &Error{Line: n.GetToken().Position.Line, Err: err} }

// Parse reads a plan. Mistakes are an Error.
func Parse(file string, text []byte) (*Plan, error) {
	if len(text) > MaxSize {
		return nil, &Error{file, 0, fmt.Errorf("it has more than %d bytes", MaxSize)}
	}
	var p Plan
	d := yaml.NewDecoder(bytes.NewReader(text), yaml.Strict())
	if err := d.Decode(&p); err != nil {
		return nil, mistake(file, err)
	}
	sum := sha256.Sum256(text)
	p.Digest = "sha256:" + hex.EncodeToString(sum[:])
	lines := entryLines(text)
	for i := range p.Convert {
		if i < len(lines) {
			p.Convert[i].Line = lines[i]
		}
	}
	return &p, p.check(file)
}

func mistake(file string, err error) error {
	var own *Error
	if errors.As(err, &own) {
		return &Error{file, own.Line, own.Err}
	}
	var unknown *yaml.UnknownFieldError
	if errors.As(err, &unknown) && unknown.Token != nil {
		key := unknown.Token.Value
		return &Error{
			file, unknown.Token.Position.Line,
			fmt.Errorf("there is no key %q%s", key, Nearest(key, keys(reflect.TypeFor[Plan]()))),
		}
	}
	var positioned yaml.Error
	if errors.As(err, &positioned) && positioned.GetToken() != nil {
		return &Error{file, positioned.GetToken().Position.Line, errors.New(positioned.GetMessage())}
	}
	return &Error{file, 0, err}
}

// keys are those of a struct, and of all in it.
func keys(t reflect.Type) (list []string) {
	switch t.Kind() {
	case reflect.Slice, reflect.Map, reflect.Pointer:
		return keys(t.Elem())
	case reflect.Struct:
		for f := range t.Fields() {
			if key := f.Tag.Get("yaml"); key != "" && key != "-" {
				list = append(list, key)
				list = append(list, keys(f.Type)...)
			}
		}
	}
	return list
}

// Nearest suggests which of the known names was probably meant.
func Nearest(name string, known []string) string {
	best, distance := "", 4
	for _, k := range known {
		if d := levenshtein.ComputeDistance(k, name); d < distance {
			best, distance = k, d
		}
	}
	if best == "" {
		return ""
	}
	return "; the nearest is " + best
}

// entryLines are the lines of the entries, for messages.
func entryLines(text []byte) (lines []int) {
	path, err := yaml.PathString("$.convert")
	if err != nil {
		return nil
	}
	n, err := path.ReadNode(bytes.NewReader(text))
	if err != nil {
		return nil
	}
	if s, ok := n.(*ast.SequenceNode); ok {
		for _, v := range s.Values {
			lines = append(lines, v.GetToken().Position.Line)
		}
	}
	return lines
}

func (p *Plan) check(file string) error {
	if p.Version != 1 {
		return &Error{file, 0, fmt.Errorf("version: %d, and this program knows plans of version 1", p.Version)}
	}
	if len(p.Convert) == 0 {
		return &Error{file, 0, errors.New("convert: nothing is to be converted")}
	}
	for i, c := range p.Creds {
		var err error
		if _, p.Creds[i].Registry, err = fullRegistry(c.Registry); err != nil {
			return &Error{file, 0, fmt.Errorf("creds: %w", err)}
		}
		if c.Registry == "" || c.User == "" || (c.PassEnv == "") == (c.PassFile == "") {
			return &Error{file, 0, errors.New("creds: registry, user, and one of pass-env and pass-file are needed")}
		}
	}
	for host, l := range p.Limits {
		if !(l.PerSecond >= 0 && l.PerSecond < 1e9) || l.AtOnce < 0 {
			return &Error{file, 0, fmt.Errorf("limits: %s: a limit is positive", host)}
		}
		full, port, err := fullRegistry(host)
		if err != nil {
			return &Error{file, 0, fmt.Errorf("limits: %w", err)}
		}
		delete(p.Limits, host)
		p.Limits[full], p.Limits[port] = l, l
	}
	for i := range p.Convert {
		e := &p.Convert[i]
		if err := e.check(p.Defaults); err != nil {
			return &Error{file, e.Line, err}
		}
	}
	return nil
}

// fullRegistry returns a registry's name as requests to it have it: docker.io has another one. Port is the name with
// the port of HTTPS, if it has that, as names are with --insecure.
func fullRegistry(host string) (full, port string, err error) {
	r, err := image.ParseRegistry(host, false)
	if err != nil {
		return "", "", err
	}
	p, err := image.ParseRegistry(host, true)
	return r.RegistryStr(), p.RegistryStr(), err
}

func (e *Entry) check(defaults Defaults) error {
	named := 0
	for _, s := range []string{e.Image, e.Repository, e.Registry} {
		if s != "" {
			named++
		}
	}
	if named != 1 {
		return errors.New("an entry has one of image, repository and registry")
	}
	if e.Registry == "" && (e.Repositories.Allow != nil || e.Repositories.Deny != nil) {
		return errors.New("repositories are chosen from a registry")
	}
	if e.Image != "" && !reflect.DeepEqual(e.Tags, Tags{}) {
		return errors.New("tags are chosen from a repository or registry; an image has one")
	}
	if e.Tags.Newest < 0 {
		return errors.New("tags: newest is positive")
	}
	if e.Repository != "" {
		if _, err := image.ParseRepository(e.Repository, false); err != nil {
			return err
		}
	}
	if e.Registry != "" {
		if _, err := image.ParseRegistry(e.Registry, false); err != nil {
			return err
		}
	}
	e.locate()
	text := e.Target
	if text == "" {
		text = defaults.Target
	}
	if text == "" {
		text = DefaultTarget
	}
	var err error
	if e.target, err = template.New("target").Option("missingkey=error").Parse(text); err != nil {
		return err
	}
	// a template that fails does so for all
	if _, err = e.targetOf("registry.example", "repository", "tag"); err != nil {
		return err
	}
	var hosts []string
	for _, host := range []string{"one.example", "another.example"} {
		target, err := e.targetOf("registry.example", host+"/repository", host)
		if err != nil {
			continue // it wants other names
		}
		if ref, err := image.ParseReference(target, false); err == nil && ref.Transport == image.Registry {
			hosts = append(hosts, ref.Name.Context().RegistryStr())
		}
	}
	if len(slices.Compact(hosts)) > 1 {
		return fmt.Errorf("the target %q has no registry of its own: a repository's name would choose it", text)
	}
	return nil
}

// targetFor is where the result of an image goes.
func (e *Entry) targetFor(ref name.Reference) (string, error) {
	return e.targetOf(ref.Context().RegistryStr(), ref.Context().RepositoryStr(), image.TagOf(ref))
}

// targetOf fills the template.
func (e *Entry) targetOf(registry, repository, tag string) (string, error) {
	var b strings.Builder
	err := e.target.Execute(&b, struct{ Registry, Repository, Tag string }{registry, repository, tag})
	return b.String(), err
}
