// Package reach finds the files that a program can be expected to open: by what it is linked to, by the
// packages it belongs to and what these depend on, by the commands that its scripts name, and by what
// nobody but the image's author can have put there. It never runs anything, so it errs on the side of too
// many files.
package reach

import (
	"debug/elf"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/cconvert/cconvert/pkg/packages"
	"github.com/cconvert/cconvert/pkg/rootfs"
	"github.com/cconvert/cconvert/pkg/rootfs/glob"
	"github.com/cconvert/cconvert/templates"
)

// Keep lists the files whose content Find needs, as patterns for rootfs.Scan.
var Keep = slices.Concat(packages.Keep, loaderFiles)

// Reason says why a file is in the set.
type Reason string

// Reasons, those first whose files a program is most likely to open.
const (
	Program     Reason = "program"
	Library     Reason = "linked library"
	Named       Reason = "named at start"
	Shell       Reason = "shell"
	Profile     Reason = "profile"
	Module      Reason = "module of a library"
	Config      Reason = "configuration"
	Unpackaged  Reason = "owned by no package"
	Package     Reason = "package"
	Locale      Reason = "locale"
	Generated   Reason = "generated for a package"
	Dependency  Reason = "package it depends on"
	Asked       Reason = "package that the image's author asked for"
	Essential   Reason = "essential package"
	Certificate Reason = "certificates"
	TimeZone    Reason = "time zones"
	AnyProgram  Reason = "another program"
	AnyLibrary  Reason = "another library"
)

var order = []Reason{
	Program, Library, Named, Shell, Profile, Module, Config, Unpackaged, Package, Locale, Generated, Dependency, Asked,
	Essential, Certificate, TimeZone, AnyProgram, AnyLibrary,
}

// Rank is the place of a reason in their order; unknown ones come last.
func (r Reason) Rank() int {
	if i := slices.Index(order, r); i >= 0 {
		return i
	}
	return len(order)
}

// File says why a file is in the set and which package it belongs to, if any.
type File struct {
	Reason  Reason
	Package string
}

// Start is where a program begins.
type Start struct {
	// Programs are what is started, the entrypoint first, then its interpreters.
	Programs []*rootfs.Node
	// Words are the arguments and whatever else can name programs and files.
	Words []string
	// LookUp finds a program by its name or path, as the program's shell would, and returns the path by
	// which it was found.
	LookUp func(name string) (n *rootfs.Node, spelled string, err error)
	// Interpreters returns the programs that run a script, none for other programs.
	Interpreters func(*rootfs.Node) ([]*rootfs.Node, error)
	// LibraryPath is LD_LIBRARY_PATH.
	LibraryPath string
	// Preload are the libraries of LD_PRELOAD and LD_AUDIT, by name or path.
	Preload []string
	// Locales are the values of LANG and its like.
	Locales []string
	// Zones are values of TZ; AnyZone says that the host chooses one.
	Zones   []string
	AnyZone bool
}

// Set is what a program reaches.
type Set struct {
	files []File         // by the number of their nodes; those without a reason are not in the set
	nodes []*rootfs.Node // that are
	libs  *libraries
	// Started are the programs and scripts that are started or named, in the order in which they were
	// found: the entrypoint first.
	Started []*rootfs.Node
	// Commands are the files that Finder.Commands found.
	Commands []*rootfs.Node
	// Linked are the programs and libraries that are loaded into the process of the entrypoint, and of the
	// program that it starts in the end.
	Linked []*rootfs.Node
	// Scripts says that one of Started is a script.
	Scripts bool
	// Missing are libraries that something in Linked needs and the image does not have.
	Missing []string
	// LeftOut are the packages of which nothing is in the set.
	LeftOut []string
}

// Has reports whether and why a file is in the set.
func (s *Set) Has(n *rootfs.Node) (File, bool) {
	f := s.files[n.Number()]
	return f, f.Reason != ""
}

// LosesLibraries reports whether a program that is started by a path in another directory than its own does not find a
// library that it has beside itself ("$ORIGIN" of ld.so(8)).
func (s *Set) LosesLibraries(program *rootfs.Node, dir string) bool {
	return s.libs.losesLibraries(program, dir)
}

// rules is templates/trust.toml.
type rules struct {
	MaintainerOnly []string            `toml:"maintainer_only"`
	Never          []string            `toml:"never"`
	Secrets        []string            `toml:"secrets"`
	Names          []string            `toml:"names"`
	Administrators []string            `toml:"administrators"`
	Shared         []string            `toml:"shared"`
	Always         map[string][]string `toml:"always"`
	Except         map[string][]string `toml:"except"`
	Modules        map[string][]string `toml:"modules"`
	Libraries      []libraryRules      `toml:"libraries"`
}

var data = func() (r rules) {
	if err := toml.Unmarshal(templates.Trust, &r); err != nil {
		panic(err) // embedded, and read by every test
	}
	return r
}()

var (
	neverRead    = glob.Compile(data.Never)
	secrets      = glob.Compile(data.Secrets)
	certificates = glob.Compile(data.Always["certificates"])
	timezones    = glob.Compile(data.Always["timezones"])
	otherZones   = glob.Compile(data.Except["timezones"])
	names        = glob.Compile(data.Names)
	authors      = glob.Compile(data.Administrators)
	shared       = glob.Compile(data.Shared)
)

// Finder works out what a program reaches, in two steps, because what kind of program it is, and so which
// files it needs without saying so, shows only after the first.
type Finder struct {
	tree  *rootfs.Tree
	db    *packages.DB
	kinds *Kinds
	start Start
	libs  *libraries
	set   *Set
	seen  map[*rootfs.Node]bool
	roots map[string]bool                      // further paths whose packages are needed
	tried map[string]bool                      // words that were looked up
	rest  []*rootfs.Node                       // files that belong to packages
	kept  map[*rootfs.Node][]*packages.Package // what keepers found, by directory
	mine  *glob.Matcher                        // authors
	// needed are the packages of which something is in the set.
	needed map[*packages.Package]Reason
}

// Programs finds the programs that are started, with their libraries: everything in the set but Files and
// LeftOut is then known.
func Programs(tree *rootfs.Tree, db *packages.DB, kinds *Kinds, start Start) (*Finder, *Set) {
	f := &Finder{
		tree: tree, db: db, kinds: kinds, start: start, libs: newLibraries(tree, start.LibraryPath),
		set: &Set{files: make([]File, tree.Len())}, seen: map[*rootfs.Node]bool{}, roots: map[string]bool{},
		tried: map[string]bool{},
		kept:  map[*rootfs.Node][]*packages.Package{}, mine: authors.Matcher(),
	}
	f.set.libs = f.libs
	for _, n := range start.Programs {
		f.startProgram(n, Program)
	}
	for _, name := range start.Preload {
		for _, n := range f.libs.find(name, f.libs.env) {
			f.add(n, Library)
			f.link(n)
		}
	}
	f.words(start.Words, "/")
	if sh, _, err := start.LookUp("/bin/sh"); err == nil { // system(3) and popen(3) need it
		f.add(sh, Shell)
		f.link(sh)
	}
	for _, n := range start.Programs {
		f.Process(n)
	}
	return f, f.set
}

// Commands follows the programs that files of such patterns name, as it follows those of scripts. Their
// content must have been kept.
func (f *Finder) Commands(files []string) {
	if len(files) == 0 {
		return
	}
	_ = f.tree.Walk(func(n *rootfs.Node) error {
		if n.Type == rootfs.Regular && slices.ContainsFunc(files, func(pattern string) bool {
			ok, _ := path.Match(pattern, n.Path)
			return ok
		}) {
			f.add(n, Named)
			f.words(Words(string(n.Content)), path.Dir(n.Path))
			f.set.Commands = append(f.set.Commands, n)
		}
		return nil
	})
}

// Files completes the set with everything else, and with the files of patterns.
func (f *Finder) Files(read []string) (*Set, error) {
	patterns := glob.Compile(read)
	if err := patterns.Check(); err != nil {
		return nil, err
	}
	f.unowned(patterns)
	f.packages()
	f.code()
	if f.libs.left <= 0 {
		return nil, fmt.Errorf("%w: they name too many libraries in too many places", ErrPrograms)
	}
	return f.set, nil
}

// ErrPrograms says that an image's programs cannot be followed.
var ErrPrograms = errors.New("what the image's programs load cannot be found out")

// add puts a regular file into the set; the first reason stays.
func (f *Finder) add(n *rootfs.Node, why Reason) {
	if n.Type != rootfs.Regular {
		return
	}
	file := &f.set.files[n.Number()]
	if file.Reason != "" {
		return
	}
	file.Reason = why
	if p := f.db.Owner(n); p != nil {
		file.Package = p.Name
	}
	f.set.nodes = append(f.set.nodes, n)
}

// unowned adds what no package has brought, the image's author did, and notes the rest. Programs among it have
// libraries.
// Where the configuration has a link, that is how the author switched something on.
func (f *Finder) unowned(read glob.Patterns) {
	wanted, kinds := read.Matcher(), f.kinds.all()
	never, renamed := neverRead.Matcher(), names.Matcher()
	zones := f.namedZones()
	_ = f.tree.Walk(func(n *rootfs.Node) error {
		if n.Type == rootfs.Symlink && strings.HasPrefix(n.Path, "/etc/") && !renamed.Match(n.Path) &&
			!never.Match(n.Path) {
			if to, _, err := f.tree.Follow(n); err == nil && to.Type == rootfs.Regular &&
				kinds[to.Number()] != certificate && !timezones.Match(to.Path) && kinds[to.Number()] != secret {
				f.add(to, Config)
				f.roots[to.Path] = true
			}
		}
		if n.Type != rootfs.Regular {
			return nil
		}
		kind := kinds[n.Number()]
		switch {
		case kind == needless:
			return nil
		case wanted.Match(n.Path):
			f.add(n, Profile)
		case kind == secret:
			return nil
		case kind == certificate:
			f.add(n, Certificate)
		case kind == timezone && !f.start.AnyZone && !zones[n]:
			return nil
		case kind == timezone:
			f.add(n, TimeZone)
		case f.locale(n.Path):
			f.add(n, Locale)
		case kind == unread:
			return nil
		case strings.HasPrefix(n.Path, "/etc/"):
			f.add(n, Config)
		case f.db.Owner(n) == nil && f.author(n):
			f.add(n, Unpackaged)
		default:
			f.rest = append(f.rest, n)
			return nil
		}
		if n.ELF != nil {
			f.link(n)
		}
		return nil
	})
}

// author reports whether an unowned file lies where the image's author puts things, rather than in a
// directory that packages have for themselves and fill at installation.
func (f *Finder) author(n *rootfs.Node) bool {
	return len(f.keepers(n)) == 0
}

// keepers returns the packages that have the innermost directory around a file for themselves.
func (f *Finder) keepers(n *rootfs.Node) []*packages.Package {
	if f.mine.Match(n.Path) {
		return nil
	}
	at := n.Parent()
	if owners, ok := f.kept[at]; ok {
		return owners
	}
	for dir := at; dir.Parent() != nil && !shared.Match(dir.Path); dir = dir.Parent() {
		if owners := f.db.DirOwners(dir); len(owners) > 0 {
			f.kept[at] = owners
			return owners
		}
	}
	f.kept[at] = nil
	return nil
}

// maintainerOnly reports whether a package is needed by the scripts that install others only.
func maintainerOnly(p *packages.Package) bool {
	return slices.ContainsFunc(data.MaintainerOnly, func(pattern string) bool {
		ok, _ := path.Match(pattern, p.Name)
		return ok
	})
}

// packages adds the files of the packages that own something in the set, and of those that they need.
func (f *Finder) packages() {
	reasons := map[*packages.Package]Reason{}
	var roots []*packages.Package
	root := func(p *packages.Package, why Reason) {
		if p == nil {
			return
		}
		if _, ok := reasons[p]; !ok {
			roots = append(roots, p)
			reasons[p] = why
		}
	}
	for _, n := range f.set.nodes {
		switch f.set.files[n.Number()].Reason {
		case Program, Library, Named, Shell, Module, Profile:
			root(f.db.Owner(n), Package)
		}
	}
	for p := range f.roots {
		if n, _, err := f.tree.ResolveParent(p); err == nil {
			root(f.db.Owner(n), Package)
		}
	}
	if f.set.Scripts {
		for _, p := range f.db.Packages {
			if p.Essential && !maintainerOnly(p) {
				root(p, Essential)
			}
		}
	}
	// What is started by a name that is made up while a program runs needs all of its package.
	for _, p := range f.db.Packages {
		if p.Asked && !maintainerOnly(p) {
			root(p, Asked)
		}
	}
	// A script that the program itself, or what was asked for, may start needs the modules of its language.
	for _, n := range slices.Concat(f.set.nodes, f.rest) {
		own := f.db.Owner(n)
		meant := own != nil && (reasons[own] == Package || reasons[own] == Asked) || own == nil &&
			f.set.files[n.Number()].Reason != ""
		if n.Shebang == "" || n.Mode&0o111 == 0 || !meant {
			continue
		}
		by, _ := f.start.Interpreters(n) // one that names none cannot be started
		for _, i := range by {
			root(f.db.Owner(i), Dependency)
		}
	}
	for _, p := range f.db.Closure(roots, maintainerOnly) {
		if _, ok := reasons[p]; !ok {
			reasons[p] = Dependency
		}
	}
	generated := map[*rootfs.Node]bool{} // by directory
	for _, n := range f.rest {
		if p := f.db.Owner(n); p != nil {
			if why, ok := reasons[p]; ok {
				f.add(n, why)
			}
			continue
		}
		at := n.Parent()
		needed, known := generated[at]
		if !known || f.mine.Match(n.Path) {
			needed = slices.ContainsFunc(f.keepers(n), func(p *packages.Package) bool { return reasons[p] != "" })
			generated[at] = needed
		}
		if needed {
			f.add(n, Generated)
		}
	}
	f.needed = reasons
}

// code adds every other program and shared library, whoever owns it: which of them a program starts or loads by a name
// that it makes up while it runs, nobody can tell before. Their packages' data stay out, and so does what neither is
// executable nor code.
func (f *Finder) code() {
	for _, n := range f.rest {
		if f.set.files[n.Number()].Reason != "" {
			continue
		}
		switch {
		case n.ELF != nil && (strings.HasSuffix(n.Name(), ".so") || strings.Contains(n.Name(), ".so.")):
			f.add(n, AnyLibrary)
		case n.ELF != nil && n.ELF.Type != elf.ET_REL, n.Shebang != "" && n.Mode&0o111 != 0:
			f.add(n, AnyProgram)
		default:
			continue
		}
		if p := f.db.Owner(n); p != nil && f.needed[p] == "" {
			f.needed[p] = AnyProgram
		}
	}
	for _, p := range f.db.Packages {
		if f.needed[p] == "" {
			f.set.LeftOut = append(f.set.LeftOut, p.Name)
		}
	}
}
