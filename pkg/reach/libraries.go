package reach

import (
	"bufio"
	"bytes"
	"debug/elf"
	"encoding/binary"
	"path"
	"slices"
	"strings"

	"github.com/cconvert/cconvert/pkg/rootfs"
	"github.com/cconvert/cconvert/pkg/rootfs/glob"
)

var loaderFiles = []string{
	"/etc/ld.so.conf", "/etc/ld.so.conf.d/*.conf", "/etc/ld.so.cache", "/etc/ld-musl-x86_64.path",
}

// defaultDirs are the directories that dynamic linkers know without being told: glibc's as Debian and as
// Fedora builds it, and musl's.
var defaultDirs = []string{
	"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/local/lib", "/usr/lib",
}

// hwcaps are the subdirectories for newer processors, which glibc prefers (ld.so(8)).
var hwcaps = []string{
	"", "glibc-hwcaps/x86-64-v4/", "glibc-hwcaps/x86-64-v3/", "glibc-hwcaps/x86-64-v2/", "haswell/", "tls/", "x86_64/",
}

// libraries finds shared libraries as dynamic linkers do (ld.so(8)).
type libraries struct {
	tree      *rootfs.Tree
	env       []string            // LD_LIBRARY_PATH
	cache     map[string][]string // of ld.so.cache, by name
	dirs      []string            // of ld.so.conf, and the usual ones
	known     map[*rootfs.Node][]*rootfs.Node
	lost      map[*rootfs.Node][]string
	byLibrary map[*rootfs.Node][]*rootfs.Node // modules that were found
	byName    map[string][]*rootfs.Node       // of the usual directories
	// places are a directory and those of its subdirectories for newer processors that exist.
	places map[string][]*rootfs.Node
	left   int // look-ups that may still be made
}

// maxLookUps is how many files are looked for in all.
const maxLookUps = 10_000_000

func newLibraries(tree *rootfs.Tree, libraryPath string) *libraries {
	l := &libraries{
		tree: tree, cache: map[string][]string{}, dirs: append(LoaderDirs(tree), defaultDirs...),
		known: map[*rootfs.Node][]*rootfs.Node{}, lost: map[*rootfs.Node][]string{},
		byLibrary: map[*rootfs.Node][]*rootfs.Node{}, byName: map[string][]*rootfs.Node{},
		places: map[string][]*rootfs.Node{}, left: maxLookUps,
	}
	for d := range strings.SplitSeq(libraryPath, ":") {
		if path.IsAbs(d) {
			l.env = append(l.env, d)
		}
	}
	if n, _, err := tree.Resolve("/etc/ld.so.cache"); err == nil {
		l.cache = readCache(n.Content)
	}
	if n, _, err := tree.Resolve("/etc/ld-musl-x86_64.path"); err == nil {
		l.dirs = append(strings.FieldsFunc(string(n.Content), func(c rune) bool {
			return c == ':' || c == '\n'
		}), l.dirs...)
	}
	return l
}

// LoaderDirs lists the directories of ld.so.conf and of what it includes (ldconfig(8)). Includes other
// than of the usual directory are not read.
func LoaderDirs(tree *rootfs.Tree) []string {
	conf := []*rootfs.Node{tree.Lookup("/etc/ld.so.conf")}
	if d := tree.Lookup("/etc/ld.so.conf.d"); d != nil {
		conf = append(conf, d.Children()...)
	}
	var dirs []string
	for _, n := range conf {
		if n == nil {
			continue
		}
		for lines := bufio.NewScanner(bytes.NewReader(n.Content)); lines.Scan(); {
			line, _, _ := strings.Cut(lines.Text(), "#")
			if line = strings.TrimSpace(line); path.IsAbs(line) {
				dirs = append(dirs, line)
			}
		}
	}
	return dirs
}

// readCache reads ld.so.cache in its present format (glibc, sysdeps/generic/dl-cache.h): a header of 48
// bytes that begins with the magic, entries of 24 bytes, and strings by their offset from the header.
func readCache(b []byte) map[string][]string {
	const headerSize, entrySize = 48, 24
	found := map[string][]string{}
	at := bytes.Index(b, []byte("glibc-ld.so.cache1.1"))
	if at < 0 || len(b)-at < headerSize {
		return found
	}
	b = b[at:]
	str := func(off uint32) string {
		if uint64(off) >= uint64(len(b)) {
			return ""
		}
		s, _, _ := bytes.Cut(b[off:min(len(b), int(off)+4096)], []byte{0})
		return string(s)
	}
	count := binary.LittleEndian.Uint32(b[20:])
	names := len(b) // entries can share their names; all that are read are no longer than the file
	for rest := b[headerSize:]; count > 0 && len(rest) >= entrySize && names > 0; count, rest = count-1,
		rest[entrySize:] {
		key, value := str(binary.LittleEndian.Uint32(rest[4:])), str(binary.LittleEndian.Uint32(rest[8:]))
		found[key] = append(found[key], value)
		names -= len(key) + len(value)
	}
	return found
}

// closure returns the libraries that a program loads at its start, its dynamic linker first, and the names
// of those that are missing.
func (l *libraries) closure(program *rootfs.Node) (loaded []*rootfs.Node, missing []string) {
	if program.ELF == nil {
		return nil, nil
	}
	if loaded, ok := l.known[program]; ok {
		return loaded, l.lost[program]
	}
	seen, lost := map[*rootfs.Node]bool{program: true}, map[string]bool{}
	found := func(n *rootfs.Node) bool {
		if seen[n] {
			return false
		}
		seen[n] = true
		loaded = append(loaded, n)
		return true
	}
	interp := "" // by which libraries name the dynamic linker, which is there already, wherever it is
	if program.ELF.Interp != "" {
		if n, _, err := l.tree.Resolve(program.ELF.Interp); err == nil && n.Type == rootfs.Regular {
			found(n)
			interp = path.Base(program.ELF.Interp)
		} else {
			missing = append(missing, program.ELF.Interp)
		}
	}
	type object struct {
		node  *rootfs.Node
		rpath []string // of the objects that led here
	}
	for queue := []object{{program, nil}}; len(queue) > 0; queue = queue[1:] {
		o := queue[0]
		rpath := o.rpath
		if o.node.ELF.RunPath == "" && o.node.ELF.RPath != "" {
			rpath = l.once(slices.Concat(expand(o.node.ELF.RPath, path.Dir(o.node.Path)), o.rpath))
		}
		dirs := l.once(slices.Concat(rpath, l.env, expand(o.node.ELF.RunPath, path.Dir(o.node.Path))))
		for _, name := range o.node.ELF.Needed {
			list := l.find(name, dirs)
			if len(list) == 0 && name == interp {
				continue
			}
			if len(list) == 0 && !lost[name] && !strings.HasPrefix(name, "libc.musl-") {
				missing, lost[name] = append(missing, name), true
			}
			for _, n := range list {
				if found(n) {
					queue = append(queue, object{n, rpath})
				}
			}
		}
	}
	l.known[program], l.lost[program] = loaded, missing
	return loaded, missing
}

// once drops directories that come again: looking there a second time finds nothing new.
func (l *libraries) once(dirs []string) []string {
	l.left -= len(dirs)
	if l.left <= 0 {
		return nil
	}
	seen := make(map[string]bool, len(dirs))
	return slices.DeleteFunc(dirs, func(d string) bool {
		again := seen[d]
		seen[d] = true
		return again
	})
}

// find returns the files that a name can stand for, with the directories that are looked into before the
// usual ones: one, or one for each kind of processor.
func (l *libraries) find(name string, dirs []string) (found []*rootfs.Node) {
	if l.left--; l.left <= 0 {
		return nil
	}
	if len(dirs) == 0 {
		if list, ok := l.byName[name]; ok {
			return list
		}
		defer func() { l.byName[name] = found }()
	}
	if strings.Contains(name, "/") {
		return l.library(path.Join("/", name))
	}
	for _, dir := range dirs {
		if list := l.in(dir, name); len(list) > 0 {
			return list
		}
	}
	var list []*rootfs.Node
	for _, file := range l.cache[name] {
		list = append(list, l.library(file)...)
	}
	if len(list) > 0 {
		return list
	}
	for _, dir := range l.dirs {
		if list := l.in(dir, name); len(list) > 0 {
			return list
		}
	}
	return nil
}

func (l *libraries) in(dir, name string) []*rootfs.Node {
	places, ok := l.places[dir]
	if !ok {
		for _, sub := range hwcaps {
			if n, _, err := l.tree.Resolve(path.Join(dir, sub)); err == nil && n.Type == rootfs.Dir {
				places = append(places, n)
			}
		}
		l.places[dir] = places
	}
	var list []*rootfs.Node
	l.left--
	for _, d := range places {
		if d.Child(name) != nil {
			list = append(list, l.library(d.Path+"/"+name)...)
		}
	}
	return list
}

// library returns the file if it is a library that a program for x86-64 can load.
func (l *libraries) library(file string) []*rootfs.Node {
	l.left--
	if n, _, err := l.tree.Resolve(file); err == nil && n.ELF != nil && n.ELF.Machine == elf.EM_X86_64 {
		return []*rootfs.Node{n}
	}
	return nil
}

// losesLibraries reports whether a program that is started by a path in another directory than its own, as behind a
// link, does not find a library that it has beside itself.
func (l *libraries) losesLibraries(program *rootfs.Node, dir string) bool {
	e := program.ELF
	if e == nil || !strings.Contains(e.RPath+e.RunPath, "ORIGIN") {
		return false
	}
	find := func(name, origin string) []*rootfs.Node {
		rpath := e.RPath
		if e.RunPath != "" { // which takes its place
			rpath = ""
		}
		return l.find(name, slices.Concat(expand(rpath, origin), l.env, expand(e.RunPath, origin)))
	}
	return slices.ContainsFunc(e.Needed, func(name string) bool {
		return len(find(name, path.Dir(program.Path))) > 0 && len(find(name, dir)) == 0
	})
}

// expand returns the directories of a RPATH or RUNPATH of a program or library in a directory (ld.so(8), "Dynamic
// string tokens").
func expand(list, origin string) []string {
	if list == "" {
		return nil
	}
	var dirs []string
	for _, lib := range []string{"lib64", "lib", "lib/x86_64-linux-gnu"} {
		expanded := strings.NewReplacer("${ORIGIN}", origin, "$ORIGIN", origin,
			"${LIB}", lib, "$LIB", lib, "${PLATFORM}", "x86_64", "$PLATFORM", "x86_64").Replace(list)
		for d := range strings.SplitSeq(expanded, ":") {
			if path.IsAbs(d) {
				dirs = append(dirs, d)
			}
		}
		if !strings.Contains(list, "LIB") {
			break // the other names of the directory make no difference
		}
	}
	return dirs
}

// modules returns the files that a library loads by name.
func (l *libraries) modules(library *rootfs.Node) []*rootfs.Node {
	if library.ELF == nil {
		return nil
	}
	if list, ok := l.byLibrary[library]; ok {
		return list
	}
	var list []*rootfs.Node
	for name, globs := range data.Modules {
		if ok, _ := path.Match(name, library.Name()); !ok {
			if ok, _ = path.Match(name, library.ELF.SOName); !ok {
				continue
			}
		}
		dir := path.Dir(library.Path)
		for _, d := range []string{dir, path.Join("/usr", dir)} {
			for _, g := range globs {
				list = append(list, l.below(d, g)...)
			}
		}
	}
	l.byLibrary[library] = list
	return list
}

// below returns the regular files that a pattern matches below a directory.
func (l *libraries) below(dir, wildcard string) []*rootfs.Node {
	fixed := wildcard
	if i := strings.IndexAny(wildcard, "*?["); i >= 0 {
		fixed = path.Dir(wildcard[:i] + "x")
	}
	top := l.tree.Lookup(path.Join(dir, fixed))
	if top == nil {
		return nil
	}
	var list []*rootfs.Node
	// The directory's name is the image's, which no pattern is made of.
	pattern, prefix := glob.Compile([]string{"/" + wildcard}).Matcher(), strings.TrimSuffix(dir, "/")
	visit := func(n *rootfs.Node) error {
		if below, ok := strings.CutPrefix(n.Path, prefix); ok && n.Type == rootfs.Regular && pattern.Match(below) {
			list = append(list, n)
		}
		return nil
	}
	if strings.Contains(wildcard, "/") {
		_ = top.Walk(visit)
		return list
	}
	for _, n := range top.Children() {
		_ = visit(n)
	}
	return list
}
