package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// maxLinks is how many symbolic links one look-up follows, as in Linux (path_resolution(7)).
const maxLinks = 40

// ErrLoop says that a path goes through too many symbolic links.
var ErrLoop = errors.New("too many levels of symbolic links")

// Node is an entry of the merged tree.
type Node struct {
	Entry
	// Layer is the index of the layer that holds the entry's content, and Origin the path of the entry
	// there: another one than the node's where the entry is a hard link.
	Layer    int
	Origin   string
	name     string
	children map[string]*Node
	implicit bool // a directory that only its children's paths speak of
	opaque   bool // in a layer's own tree: hides what is below
	gone     map[string]bool
}

// Name is the last component of the node's path.
func (n *Node) Name() string { return n.name }

// Child gives a directory's entry of a name, nil if there is none.
func (n *Node) Child(name string) *Node { return n.children[name] }

// Children gives a directory's entries, sorted by name.
func (n *Node) Children() []*Node {
	list := make([]*Node, 0, len(n.children))
	for _, c := range n.children {
		list = append(list, c)
	}
	slices.SortFunc(list, func(a, b *Node) int { return strings.Compare(a.name, b.name) })
	return list
}

// Tree is the filesystem that a container of the image would see.
type Tree struct{ root *Node }

func newDir(p string, layer int) *Node {
	return &Node{
		Entry: Entry{Path: p, Type: Dir, Mode: 0o755}, Layer: layer, name: path.Base(p),
		children: map[string]*Node{}, implicit: true,
	}
}

// Merge lays layers over each other, the first being the lowest. A layer is unpacked by itself and then
// laid over the others, as overlay filesystems do: what it puts below a path that is a symbolic link in
// a lower layer replaces the link.
func Merge(layers []*Index) (*Tree, error) {
	t := &Tree{root: newDir("/", 0)}
	for i, l := range layers {
		b := &layerBuilder{lower: t, own: &Tree{root: newDir("/", i)}, layer: i}
		for k := range l.Entries {
			if err := b.add(&l.Entries[k]); err != nil {
				return nil, fmt.Errorf("layer %s: %w", l.Digest, err)
			}
		}
		overlay(t.root, b.own.root)
	}
	return t, nil
}

// layerBuilder unpacks one layer into a tree of its own.
type layerBuilder struct {
	lower, own *Tree
	layer      int
}

func (b *layerBuilder) add(e *Entry) error {
	if e.Path == "/" {
		if e.Type == Dir {
			b.own.root.Mode, b.own.root.UID, b.own.root.GID = e.Mode, e.UID, e.GID
		}
		if e.Type == Opaque {
			b.own.root.opaque = true
		}
		return nil
	}
	if e.Type == Opaque {
		dir, err := b.dir(e.Path)
		if err != nil {
			return err
		}
		dir.opaque = true
		return nil
	}
	dir, err := b.dir(path.Dir(e.Path))
	if err != nil {
		return err
	}
	name := path.Base(e.Path)
	if e.Type == Whiteout {
		if dir.gone == nil {
			dir.gone = map[string]bool{}
		}
		dir.gone[name] = true
		return nil
	}
	n := &Node{Entry: *e, Layer: b.layer, Origin: e.Path, name: name}
	n.Path = path.Join(dir.Path, name)
	switch e.Type {
	case Dir:
		if old := dir.children[name]; old != nil && old.Type == Dir {
			old.Mode, old.UID, old.GID, old.implicit = e.Mode, e.UID, e.GID, false
			return nil
		}
		n.children = map[string]*Node{}
	case Hardlink:
		target, _, err := b.own.ResolveParent(e.Link)
		if err != nil {
			target, _, err = b.lower.ResolveParent(e.Link)
		}
		if err != nil {
			return fmt.Errorf("%q is a hard link to %q, which does not exist", e.Path, e.Link)
		}
		if target.Type == Dir {
			return fmt.Errorf("%q is a hard link to the directory %q", e.Path, e.Link)
		}
		p := n.Path
		n.Entry = target.Entry
		n.Path = p
		n.Layer, n.Origin = target.Layer, target.Origin
	}
	dir.children[name] = n
	return nil
}

// dir finds a directory in the layer's own tree, making what is missing and following symbolic links of
// the same layer.
func (b *layerBuilder) dir(p string) (*Node, error) {
	n, todo := b.own.root, split(p)
	for links := 0; len(todo) > 0; {
		name := todo[0]
		todo = todo[1:]
		if name == ".." {
			n = b.own.Lookup(path.Dir(n.Path))
			continue
		}
		c := n.children[name]
		switch {
		case c == nil:
			if len(n.Path)+len(name) > maxPath { // links to links could make it longer and longer
				return nil, fmt.Errorf("%q leads to a path of more than %d bytes", p, maxPath)
			}
			c = newDir(path.Join(n.Path, name), b.layer)
			n.children[name] = c
		case c.Type == Symlink:
			if links++; links > maxLinks {
				return nil, fmt.Errorf("%q: %w", p, ErrLoop)
			}
			todo = append(split(c.Link), todo...)
			if path.IsAbs(c.Link) {
				n = b.own.root
			}
			continue
		case c.Type != Dir:
			return nil, fmt.Errorf("%q is below %q, which is not a directory", p, c.Path)
		}
		n = c
	}
	return n, nil
}

// overlay moves a layer's own tree over the lower one.
func overlay(lower, upper *Node) {
	if !upper.implicit {
		lower.Entry, lower.Layer, lower.Origin = upper.Entry, upper.Layer, upper.Origin
	}
	if upper.opaque {
		clear(lower.children)
	}
	for name := range upper.gone {
		delete(lower.children, name)
	}
	for name, c := range upper.children {
		if old := lower.children[name]; old != nil && old.Type == Dir && c.Type == Dir {
			overlay(old, c)
			continue
		}
		c.opaque, c.gone = false, nil
		lower.children[name] = c
	}
}

// split gives the components of a path, without "." and empty ones.
func split(p string) []string {
	return slices.DeleteFunc(strings.Split(p, "/"), func(s string) bool { return s == "" || s == "." })
}

// Root is the directory "/".
func (t *Tree) Root() *Node { return t.root }

// Lookup finds the node of an absolute, clean path without following symbolic links; nil if none.
func (t *Tree) Lookup(p string) *Node {
	n := t.root
	for _, name := range split(p) {
		if n = n.children[name]; n == nil {
			return nil
		}
	}
	return n
}

// Resolve follows all symbolic links of an absolute path inside the tree, as the kernel would under
// chroot. Where the path does not exist the error is fs.ErrNotExist, and real is still the path that
// would be created. Loops are ErrLoop.
func (t *Tree) Resolve(p string) (n *Node, real string, err error) {
	return t.resolve(p, true)
}

// ResolveParent follows the symbolic links in all components but the last.
func (t *Tree) ResolveParent(p string) (n *Node, real string, err error) {
	return t.resolve(p, false)
}

func (t *Tree) resolve(p string, last bool) (*Node, string, error) {
	stack, todo := []*Node{t.root}, split(p)
	for links := 0; len(todo) > 0; {
		name := todo[0]
		todo = todo[1:]
		if name == ".." {
			stack = stack[:max(1, len(stack)-1)]
			continue
		}
		dir := stack[len(stack)-1]
		if dir.Type != Dir {
			return nil, "", &fs.PathError{Op: "resolve", Path: p, Err: fmt.Errorf("%q is not a directory: %w", dir.Path, fs.ErrNotExist)}
		}
		c := dir.children[name]
		if c == nil {
			return nil, path.Join(append([]string{dir.Path, name}, todo...)...), &fs.PathError{Op: "resolve", Path: p, Err: fs.ErrNotExist}
		}
		if c.Type == Symlink && (last || len(todo) > 0) {
			if links++; links > maxLinks {
				return nil, "", &fs.PathError{Op: "resolve", Path: p, Err: ErrLoop}
			}
			todo = append(split(c.Link), todo...)
			if path.IsAbs(c.Link) {
				stack = stack[:1]
			}
			continue
		}
		stack = append(stack, c)
	}
	n := stack[len(stack)-1]
	return n, n.Path, nil
}

// Walk visits every node but the root, parents first, sorted by name.
func (t *Tree) Walk(visit func(*Node) error) error { return t.root.Walk(visit) }

// Walk visits every node below this one, parents first, sorted by name.
func (n *Node) Walk(visit func(*Node) error) error {
	for _, c := range n.Children() {
		if err := visit(c); err != nil {
			return err
		}
		if err := c.Walk(visit); err != nil {
			return err
		}
	}
	return nil
}
