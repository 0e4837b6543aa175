// Package packages reads the databases that package managers leave in an image: which package a file
// belongs to, and what that package needs at run time. It knows dpkg, with the separate records of
// distroless images, apk and rpm.
package packages

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/cconvert/cconvert/pkg/rootfs"
)

// Keep lists the files whose content Read needs, as patterns for rootfs.Scan.
var Keep = slices.Concat(dpkgFiles, apkInstalled, []string{apkWorld}, rpmFiles, sqliteLogs(),
	[]string{dnfHistory, dnfHistory + sqliteLog, dnf5State})

func sqliteLogs() (list []string) {
	for _, file := range rpmFiles {
		if strings.HasSuffix(file, ".sqlite") {
			list = append(list, file+sqliteLog)
		}
	}
	return list
}

// Package is an installed package.
type Package struct {
	Name, Version string
	// Manager is what installed it: dpkg, apk or rpm.
	Manager string
	// Essential packages are there in every installation, and others need them without saying so.
	Essential bool
	// base packages are those of every installation, as far as their manager says so.
	base bool
	// Asked says that whoever built the image has asked for the package, as far as its manager has noted that: it is
	// not there for the sake of others alone, and neither a base package nor needed by one.
	Asked bool
	// Depends are what it needs at run time, each by any of the alternatives.
	Depends [][]string
	// Provides are names by which others depend on it, besides its own: virtual packages, libraries,
	// commands.
	Provides []string
	// Files are the paths that it installs, as the database spells them.
	Files []string
}

// DB is what an image has of packages. The zero value is one of no packages.
type DB struct {
	Packages []*Package
	tree     *rootfs.Tree
	owners   []*Package                  // of files, by their number in the tree
	dirs     map[*rootfs.Node][]*Package // of directories
	byName   map[string][]*Package       // and by what they provide
}

// ErrDamaged says that a database is not what it should be. It is the image's fault, and the same every time.
var ErrDamaged = errors.New("the database of packages is damaged")

// Read reads all databases of a tree. For a damaged one the error is ErrDamaged; other errors are this machine's. A
// database of rpm is read by a child process, for which the program's main must begin with reexec.Init of
// github.com/moby/sys.
func Read(ctx context.Context, tree *rootfs.Tree) (*DB, error) {
	db := &DB{tree: tree, dirs: map[*rootfs.Node][]*Package{}, byName: map[string][]*Package{}}
	for _, m := range []struct {
		name string
		read func(context.Context, *rootfs.Tree) ([]*Package, error)
	}{{"dpkg", readDPKG}, {"apk", readAPK}, {"rpm", readRPM}} {
		list, err := m.read(ctx, tree)
		if err != nil {
			return nil, fmt.Errorf("reading the database of %s: %w", m.name, err)
		}
		for _, p := range list {
			p.Manager = m.name
		}
		db.Packages = append(db.Packages, list...)
	}
	slices.SortFunc(db.Packages, func(a, b *Package) int {
		return strings.Compare(a.Name+"\x00"+a.Manager, b.Name+"\x00"+b.Manager)
	})
	if len(db.Packages) == 0 {
		return db, nil
	}
	db.owners = make([]*Package, tree.Len())
	f := finder{tree, make(map[string]*rootfs.Node, tree.Len()), map[string]*rootfs.Node{}}
	_ = tree.Walk(func(n *rootfs.Node) error { f.nodes[n.Path] = n; return nil })
	for _, p := range db.Packages {
		for _, name := range append([]string{p.Name}, p.Provides...) {
			db.byName[name] = append(db.byName[name], p)
		}
		for _, file := range p.Files {
			switch n := f.find(file); {
			case n == nil:
			case n.Type == rootfs.Dir:
				db.dirs[n] = append(db.dirs[n], p)
			default:
				db.owners[n.Number()] = p
			}
		}
	}
	var base []*Package
	for _, p := range db.Packages {
		if p.base || p.Essential {
			base = append(base, p)
		}
	}
	for _, p := range db.Closure(base, func(*Package) bool { return false }) {
		p.Asked = false
	}
	return db, nil
}

// finder finds what packages have installed. They spell paths as they were before /bin, /lib and /sbin became links.
type finder struct {
	tree  *rootfs.Tree
	nodes map[string]*rootfs.Node // by path
	dirs  map[string]*rootfs.Node // directories, by paths with links in them; nil where there is none
}

// find returns what there is now, nil if it was removed: a directory if it is a link to one, other links as they are.
func (f *finder) find(file string) *rootfs.Node {
	n := f.nodes[file]
	if n == nil {
		in, name := path.Split(file)
		dir, known := f.dirs[in]
		if !known {
			dir, _, _ = f.tree.Resolve(in)
			f.dirs[in] = dir
		}
		if dir != nil {
			n = dir.Child(name)
		}
		if n == nil { // no plain name
			if n, _, _ = f.tree.ResolveParent(file); n == nil {
				return nil
			}
		}
	}
	if to, _, err := f.tree.Follow(n); err == nil && to.Type == rootfs.Dir {
		return to
	}
	return n
}

// content returns what a database's file holds; nil if there is no such file.
func content(tree *rootfs.Tree, file string) ([]byte, error) {
	n, _, err := tree.Resolve(file)
	if err != nil || n.Type != rootfs.Regular {
		return nil, nil //nolint:nilerr // most images have none
	}
	if n.Content == nil && n.Size > 0 {
		return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, n.Path, errNotKept)
	}
	return n.Content, nil
}

var errNotKept = errors.New("it is too large, or a link leads to it from the place where it is looked for")

// Owner returns the package that installed a file of the tree; nil if none.
func (db *DB) Owner(n *rootfs.Node) *Package {
	if db.owners == nil {
		return nil
	}
	return db.owners[n.Number()]
}

// DirOwners returns the packages that have a directory.
func (db *DB) DirOwners(dir *rootfs.Node) []*Package { return db.dirs[dir] }

// Provider returns the packages of a name, or that provide it. A path stands for its owner.
func (db *DB) Provider(name string) []*Package {
	if list := db.byName[name]; list != nil || !path.IsAbs(name) || path.Clean(name) != name || db.tree == nil {
		return list
	}
	if n := db.tree.Lookup(name); n != nil {
		if p := db.Owner(n); p != nil {
			return []*Package{p}
		}
	}
	return nil
}

// Closure returns the packages and everything that they depend on, of alternatives all that are
// installed. Packages for which skip says yes are left out, unless they are among the roots.
func (db *DB) Closure(roots []*Package, skip func(*Package) bool) []*Package {
	seen, asked := map[*Package]bool{}, map[string]bool{}
	var list []*Package
	visit := func(p *Package) {
		if !seen[p] {
			seen[p] = true
			list = append(list, p)
		}
	}
	for _, p := range roots {
		visit(p)
	}
	for i := 0; i < len(list); i++ { // every name is looked up once: many can need, and many provide, the same
		for _, alternatives := range list[i].Depends {
			for _, name := range alternatives {
				if asked[name] {
					continue
				}
				asked[name] = true
				for _, q := range db.Provider(name) {
					if !seen[q] && !skip(q) {
						visit(q)
					}
				}
			}
		}
	}
	return list
}
