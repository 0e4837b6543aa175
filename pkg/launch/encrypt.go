package launch

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/launch/process"
	"github.com/cconvert/cconvert/pkg/reach"
	"github.com/cconvert/cconvert/pkg/rootfs"
	"github.com/cconvert/cconvert/pkg/rootfs/glob"
)

// Encryption says which files of an image are encrypted.
type Encryption struct {
	// Paths are directories, files, and patterns as of package glob. A link stands for what it leads to.
	Paths []string
	// Also are files, by their paths without links, that are encrypted because they are hard links of the others.
	Also []string
	// Key is the name of the key in the library OS, and KeyID tells it apart from others.
	Key, KeyID string
	// Mutable are patterns of encrypted files that the program may change: an agent does not compare them with those of
	// the image when a container starts again.
	Mutable []string
	// Random has the files encrypted otherwise each time.
	Random bool
	// AtStart says that the library OS has the key before the program starts.
	AtStart bool
}

// area is a directory or file that an encrypted mount is for.
type area struct {
	path string
	dir  bool
}

// maxEncryptedPath is protectedfs.MaxPath.
const maxEncryptedPath = 771

// ToEncrypt returns the files of the image that are to be encrypted, in the order of the tree. What cannot be is an
// OptionError with the reason. Chosen reports whether a path is one of theirs, or one that they could have: files are
// there that another layer removes.
func (contents *Contents) ToEncrypt(
	config []byte, o Options,
) (files []*rootfs.Node, chosen func(path string) bool, err error) {
	var c v1.ConfigFile
	if err := json.Unmarshal(config, &c); err != nil {
		return nil, nil, fmt.Errorf("reading the image's configuration: %w", err)
	}
	areas, files, err := o.Encrypt.choose(contents.Tree)
	if err != nil {
		return nil, nil, err
	}
	if err := o.mayEncrypt(contents.Tree, c.Config, files); err != nil {
		return nil, nil, err
	}
	chosen, err = o.Encrypt.chosen(areas)
	return files, chosen, err
}

// Chosen is that of ToEncrypt, of an image whose files are encrypted already.
func (contents *Contents) Chosen(o Options) (chosen func(path string) bool, err error) {
	areas, _, err := o.Encrypt.choose(contents.Tree)
	if err != nil {
		return nil, err
	}
	return o.Encrypt.chosen(areas)
}

func (e Encryption) chosen(areas []area) (func(path string) bool, error) {
	found := map[string]bool{}
	for _, a := range areas {
		found[a.path] = true
	}
	patterns := glob.Compile(e.Paths)
	if err := patterns.Check(); err != nil {
		return nil, notEncrypted("", "%v", err)
	}
	m := patterns.Matcher()
	return func(p string) bool { return covered(p, found) || m.Match(p) }, nil
}

// MayChange returns what reports whether the program may change a file.
func (e Encryption) MayChange() func(path string) bool {
	return glob.Compile(e.Mutable).Matcher().Match
}

func notEncrypted(p, format string, args ...any) error {
	return &OptionError{"encrypt", p, fmt.Sprintf(format, args...)}
}

// choose finds the places for mounts, parents first, and the files below them.
func (e Encryption) choose(tree *rootfs.Tree) (areas []area, files []*rootfs.Node, err error) {
	found := map[string]bool{} // whether it is a directory
	take := func(n *rootfs.Node) {
		if n.Type == rootfs.Dir || n.Type == rootfs.Regular {
			found[n.Path] = n.Type == rootfs.Dir
		}
	}
	for _, p := range e.Paths {
		before := len(found)
		literal := strings.TrimSuffix(p, "/**")
		switch n, _, err := tree.Resolve(literal); {
		case err == nil && n.Type != rootfs.Dir && n.Type != rootfs.Regular:
			return nil, nil, notEncrypted(p, "it is neither a file nor a directory")
		case err == nil && (literal == p || n.Type == rootfs.Dir):
			if take(n); found[n.Path] && !hasFiles(n) {
				return nil, nil, notEncrypted(p, "the directory has no files")
			}
			continue // one of the paths before may be the same
		}
		if err := match(tree, p, take); err != nil {
			return nil, nil, err
		}
		if len(found) == before {
			return nil, nil, notEncrypted(p, "the image has no such file or directory")
		}
	}
	for _, p := range e.Also {
		n := tree.Lookup(p)
		if n == nil || n.Type != rootfs.Regular {
			return nil, nil, notEncrypted(p, "the image has no such file")
		}
		take(n)
	}
	if found["/"] {
		return nil, nil, notEncrypted("/",
			"the root of the image cannot be encrypted as a whole: name the directories and files")
	}
	for _, p := range slices.Sorted(maps.Keys(found)) {
		if !covered(path.Dir(p), found) {
			areas = append(areas, area{p, found[p]})
		}
	}
	slices.SortFunc(areas, func(a, b area) int {
		return slices.Compare(strings.Split(a.path, "/"), strings.Split(b.path, "/"))
	})
	for _, a := range areas {
		n := tree.Lookup(a.path)
		if !a.dir {
			files = append(files, n)
			continue
		}
		if err := n.Walk(func(n *rootfs.Node) error {
			if n.Type == rootfs.Regular {
				files = append(files, n)
			}
			return nil
		}); err != nil {
			return nil, nil, err
		}
	}
	slices.SortFunc(files, func(a, b *rootfs.Node) int { return cmp.Compare(a.Number(), b.Number()) })
	return areas, files, nil
}

// covered reports whether a directory, or one above it, is among those that were found.
func covered(dir string, found map[string]bool) bool {
	for ; ; dir = path.Dir(dir) {
		if found[dir] {
			return true
		}
		if dir == "/" {
			return false
		}
	}
}

var errFound = errors.New("found")

func hasFiles(dir *rootfs.Node) bool {
	return dir.Walk(func(n *rootfs.Node) error {
		if n.Type == rootfs.Regular {
			return errFound
		}
		return nil
	}) != nil
}

// match takes what a pattern names.
func match(tree *rootfs.Tree, pattern string, take func(*rootfs.Node)) error {
	p := glob.Compile([]string{pattern})
	if err := p.Check(); err != nil {
		return notEncrypted(pattern, "%v", err)
	}
	m := p.Matcher()
	return tree.Walk(func(n *rootfs.Node) error {
		if !m.Match(n.Path) {
			return nil
		}
		if to, _, err := tree.Follow(n); err == nil {
			take(to)
		}
		return nil
	})
}

// mayEncrypt reports files that something else needs than the program in the enclave.
func (o Options) mayEncrypt(tree *rootfs.Tree, c v1.Config, files []*rootfs.Node) error {
	reserved := o.reserved(tree, c)
	for _, n := range files {
		switch {
		case !utf8.ValidString(n.Path):
			return notEncrypted(fmt.Sprintf("%q", n.Path), "the name is not UTF-8, so a manifest cannot have it")
		case len(n.Path) > maxEncryptedPath:
			return notEncrypted(n.Path, "the path has %d bytes, more than the %d of an encrypted file", len(n.Path),
				maxEncryptedPath)
		case n.ELF != nil && len(n.ELF.SigStructs) > 0:
			return notEncrypted(n.Path, "it is an enclave, which the host has to load")
		}
		for p := n.Path; p != "/"; p = path.Dir(p) {
			if why := reserved[p]; why != "" {
				return notEncrypted(n.Path, "%s", why)
			}
		}
	}
	return nil
}

// reserved are the paths at and below which nothing can be encrypted, with the reasons.
func (o Options) reserved(tree *rootfs.Tree, c v1.Config) map[string]string {
	reserved := map[string]string{}
	add := func(p, why string) {
		if _, real, _ := tree.Resolve(p); real != "" {
			reserved[real] = why
		}
		reserved[path.Clean("/"+p)] = why
	}
	for _, p := range hostTrees {
		add(p, "it is in "+p+", which is the library OS's own")
	}
	for _, p := range temporary {
		add(p, "it is in "+p+", which is temporary storage in the enclave and starts empty")
	}
	for _, p := range hostFiles {
		add(p, "container engines put a file of their own there")
	}
	for _, p := range process.Accounts {
		add(p, "container engines read it to find the image's user")
	}
	add("/etc/ld.so.cache", "programs are linked by it before a key can be there")
	add(enclaveDir, "it is where the enclave goes")
	for p := range c.Volumes {
		add(p, "it is in the VOLUME "+p+", of which engines keep the files when the image changes")
	}
	for _, p := range o.Tmpfs {
		add(p, "it is in "+p+", which --tmpfs makes temporary storage")
	}
	for _, m := range o.Encrypted {
		add(m.Path, "it is in "+m.Path+", whose files are another key's by --encrypt-mount")
	}
	for _, p := range o.AllowedFiles {
		add(p, "--allow-file lets the host change it")
	}
	if h := c.Healthcheck; h != nil && len(h.Test) > 1 {
		program := h.Test[1]
		if h.Test[0] == "CMD-SHELL" {
			program = "/bin/sh"
		}
		s, err := process.New(tree, v1.Config{
			Entrypoint: []string{program}, Env: c.Env, WorkingDir: c.WorkingDir,
		}, nil, false, nil)
		if err == nil { // else the check has never worked
			add(s.Entrypoint, "the health check runs it outside of the enclave")
		}
		for _, arg := range h.Test[1:] {
			for _, w := range append(reach.Words(arg), arg) {
				if path.IsAbs(w) && path.Clean(w) != "/" {
					add(w, "the health check names it, which runs outside of the enclave")
				}
			}
		}
	}
	return reserved
}

// encrypt makes the mounts of encrypted files that the image has.
func (f *files) encrypt(c v1.Config, o Options) error {
	if len(o.Encrypt.Paths)+len(o.Encrypt.Also) == 0 {
		return nil
	}
	areas, list, err := o.Encrypt.choose(f.tree)
	if err != nil {
		return err
	}
	if err := o.mayEncrypt(f.tree, c, list); err != nil {
		return err
	}
	for _, a := range areas {
		f.mount(Mount{Type: Encrypted, Path: a.path, Key: o.Encrypt.Key, Shipped: true})
	}
	for _, n := range list {
		f.spec.EncryptedBytes += n.Size
	}
	if err := o.Encrypt.checkMutable(list); err != nil {
		return err
	}
	if a := f.spec.Agent; a != nil {
		a.Encrypted = true
		for _, area := range areas {
			f.spec.Ciphertexts = append(f.spec.Ciphertexts, area.path)
		}
	}
	f.noticeEncrypted(areas[0].path, list, o.Encrypt)
	f.noticeDigests(list)
	return nil
}

// checkMutable reports patterns that name no encrypted file.
func (e Encryption) checkMutable(list []*rootfs.Node) error {
	for _, pattern := range e.Mutable {
		p := glob.Compile([]string{pattern})
		if err := p.Check(); err != nil {
			return &OptionError{"encrypt-mutable", pattern, err.Error()}
		}
		m := p.Matcher()
		if !slices.ContainsFunc(list, func(n *rootfs.Node) bool { return m.Match(n.Path) }) {
			return &OptionError{"encrypt-mutable", pattern, "no encrypted file has this path"}
		}
	}
	return nil
}

// noticeDigests says which encrypted files have a digest in a package manager's records, which stay readable.
func (f *files) noticeDigests(list []*rootfs.Node) {
	said, python := map[string]bool{}, map[*rootfs.Node]string{} // by directory
	for _, n := range list {
		record, known := python[n.Parent()]
		if !known {
			record = f.pythonRecord(n.Parent())
			python[n.Parent()] = record
		}
		if owner := f.db.Owner(n); owner != nil {
			record = owner.Manager + ", of the package " + owner.Name
		}
		if record != "" && !said[record] {
			said[record] = true
			f.spec.Find(finding.PlainDigest, finding.Warning, n.Path,
				"a digest of this file is in the records of "+record)
		}
	}
}

// pythonRecord returns the list of files, with their digests, of a package of Python in a directory or above it, unless
// it is encrypted ("Recording installed projects", RECORD); empty if there is none.
func (f *files) pythonRecord(dir *rootfs.Node) string {
	for ; dir != nil; dir = dir.Parent() {
		for _, c := range dir.Children() {
			if !strings.HasSuffix(c.Path, ".dist-info") {
				continue
			}
			record := c.Child("RECORD")
			if record == nil {
				continue
			}
			if m, ok := f.cover(record.Path); !ok || !m.Shipped {
				return record.Path
			}
		}
	}
	return ""
}

// noticeEncrypted says what encrypted files mean for starting the image.
func (f *files) noticeEncrypted(first string, list []*rootfs.Node, e Encryption) {
	s := f.spec
	s.Find(finding.EncryptedWritable, finding.Info, first,
		fmt.Sprintf("encrypted files are opened for writing, always: the root file system of the container must not "+
			"be read-only, and %d MB may be copied into its writable layer", (s.EncryptedBytes+1<<20-1)>>20))
	encrypted := map[*rootfs.Node]bool{}
	for _, n := range list {
		encrypted[n] = true
	}
	for _, n := range f.set.Started {
		if encrypted[n] && n.ELF == nil && n.Shebang != "" {
			s.Find(finding.EncryptedScript, finding.Info, n.Path,
				"what this script names is not known to whoever repeats the conversion without the key, so it does "+
					"not count: data files that only it names are not listed")
		}
	}
	if e.AtStart || s.Agent != nil {
		return
	}
	s.Find(finding.EncryptedKey, finding.Warning, first, "nothing in the image brings the key: until it is written to "+
		"/dev/attestation/keys/"+e.Key+" these files cannot be opened, and one that was looked for before stays so")
	for _, n := range slices.Concat(f.set.Started[:min(1, len(f.set.Started))], f.set.Linked) {
		if encrypted[n] {
			encrypted[n] = false // told
			s.Find(finding.EncryptedAtStart, finding.Error, n.Path,
				"the program needs this file before anything in the enclave can bring the key")
		}
	}
}

// linkAmongEncrypted decides what a link in an encrypted directory needs: the library OS would take what it leads to
// for an encrypted file of the link's name.
func (f *files) linkAmongEncrypted(n *rootfs.Node) (Mount, bool) {
	target, real, err := f.tree.Follow(n)
	if err != nil || belowAny(real, hostTrees) || !utf8.ValidString(real) || slices.Contains(f.hostFile, real) {
		return f.link(n) // which tells of it
	}
	if m, ok := f.cover(real); ok {
		return f.linkIntoMount(n, target, real, m)
	}
	switch target.Type {
	case rootfs.Dir:
		return Mount{Type: Bind, Path: n.Path, Target: real}, true
	case rootfs.Regular:
		if m, ok := f.starter(n, target); ok {
			return m, true
		}
		return Mount{Type: Bind, Path: n.Path, Target: real}, true
	}
	return Mount{}, false
}
