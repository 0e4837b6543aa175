package rootfs

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"path"
	"slices"
	"strings"
	"sync/atomic"
)

// maxLinks is how many symbolic links one look-up follows, as in Linux (path_resolution(7)).
const maxLinks = 40

// maxFollowed is how many bytes of targets are followed in all look-ups of a tree together: each look-up may go through
// 40 links of 4 KB, and an image has millions of paths. It is some seconds' work.
const maxFollowed = 1 << 27

// ErrFollowed says that an image's symbolic links cannot be followed to the end.
var ErrFollowed = errors.New("the image's symbolic links lead through too many paths")

// ErrLoop says that a path goes through too many symbolic links.
var ErrLoop = errors.New("too many levels of symbolic links")

// Node is an entry of the merged tree. Trees hold millions of them, so what most of them have none of is
// elsewhere: the Entry is the layer's, and must not be changed.
type Node struct {
	*Entry
	// Layer is the index of the layer that holds the entry's content.
	Layer int
	// origin is the path of the content in that layer, where it is not the node's.
	origin string
	parent *Node      // nil for the root
	dir    *directory // nil for what is none
	number int
}

// directory is what directories have besides.
type directory struct {
	// sorted are the entries by name, unless there is byName: the map is for entries that come in no order.
	sorted   []*Node
	byName   map[string]*Node
	implicit bool // only its children's paths speak of it
	opaque   bool // in a layer's own tree: hides what is below
	gone     map[string]bool
}

// Number is the node's place in the order of Walk, for lists of what is known of a tree's nodes: the root's is 0, and
// the last one is less than the tree's Len.
func (n *Node) Number() int { return n.number }

// Parent is the directory that holds the node; nil for the root.
func (n *Node) Parent() *Node { return n.parent }

// Name is the last component of the node's path.
func (n *Node) Name() string { return n.Path[strings.LastIndexByte(n.Path, '/')+1:] }

// Origin is the path under which the node's content is in its layer: another one than the node's where
// the entry is a hard link, or was packed through a symbolic link.
func (n *Node) Origin() string {
	if n.origin != "" {
		return n.origin
	}
	return n.Path
}

// at returns an entry under another path.
func (e *Entry) at(p string) *Entry {
	if e.Path == p {
		return e
	}
	moved := *e
	moved.Path = p
	return &moved
}

// Child returns a directory's entry of a name, or nil.
func (n *Node) Child(name string) *Node {
	if n.dir == nil {
		return nil
	}
	if n.dir.byName != nil {
		return n.dir.byName[name]
	}
	i, ok := n.search(name)
	if !ok {
		return nil
	}
	return n.dir.sorted[i]
}

// search finds the place of a name among a directory's sorted entries.
func (n *Node) search(name string) (int, bool) {
	above := len(n.Path) + 1 // of the path of each
	if n.Path == "/" {
		above = 1
	}
	list := n.dir.sorted
	if len(list) == 0 || list[len(list)-1].Path[above:] < name {
		return len(list), false // the next one, where they come in their order
	}
	return slices.BinarySearchFunc(list, name, func(c *Node, name string) int {
		return strings.Compare(c.Path[above:], name)
	})
}

// put makes a node a directory's entry, in the place of one of the same name.
func (n *Node) put(name string, c *Node) {
	c.parent = n
	if n.dir.byName == nil {
		switch i, ok := n.search(name); {
		case ok:
			n.dir.sorted[i] = c
			return
		case i == len(n.dir.sorted):
			n.dir.sorted = append(n.dir.sorted, c)
			return
		}
	}
	n.useMap()[name] = c
}

// useMap is for entries that come in no order.
func (n *Node) useMap() map[string]*Node {
	if n.dir.byName == nil {
		n.dir.byName = make(map[string]*Node, len(n.dir.sorted))
		for _, c := range n.dir.sorted {
			n.dir.byName[c.Name()] = c
		}
		n.dir.sorted = nil
	}
	return n.dir.byName
}

// entries are a directory's, in any order.
func (n *Node) entries() iter.Seq[*Node] {
	if n.dir.byName != nil {
		return maps.Values(n.dir.byName)
	}
	return slices.Values(n.dir.sorted)
}

// Children returns a directory's entries, sorted by name. The list must not be changed.
func (n *Node) Children() []*Node {
	if n.dir == nil {
		return nil
	}
	return n.dir.sorted
}

// Tree is the filesystem that a container of the image would see.
type Tree struct {
	root     *Node
	len      int
	followed *atomic.Int64 // bytes of the targets of symbolic links, in all look-ups
}

// follow counts a link that a look-up goes through.
func (t *Tree) follow(target string) error {
	if t.followed.Add(int64(len(target)+1)) > maxFollowed {
		return ErrFollowed
	}
	return nil
}

// Err is ErrFollowed if look-ups have failed by it. Whoever has used a tree must ask before the outcome is used: a file
// that was not found because of it may be there.
func (t *Tree) Err() error {
	if t.followed.Load() > maxFollowed {
		return ErrFollowed
	}
	return nil
}

// Len is the number of nodes, the root among them.
func (t *Tree) Len() int { return t.len }

func newDir(p string, layer int) *Node {
	return &Node{Entry: &Entry{Path: p, Type: Dir, Mode: 0o755}, Layer: layer, dir: &directory{implicit: true}}
}

// Merge lays layers over each other, the first being the lowest. A layer is unpacked by itself and then
// laid over the others, as overlay filesystems do: what it puts below a path that is a symbolic link in
// a lower layer replaces the link.
func Merge(layers []*Index) (*Tree, error) { return MergePlaced(layers, nil) }

// MergePlaced is Merge, and tells of each file of each layer where it goes: of those too that another layer replaces.
// The node is that of entry k of layer i, and a hard link has the content of another one.
func MergePlaced(layers []*Index, placed func(i, k int, n *Node)) (*Tree, error) {
	t := &Tree{root: newDir("/", 0), followed: new(atomic.Int64)}
	var room implied
	for i, l := range layers {
		own := &Tree{root: newDir("/", i), followed: t.followed}
		b := &layerBuilder{lower: t, room: &room, own: own, layer: i, nodes: make([]Node, len(l.Entries))}
		for k := range l.Entries {
			if placed != nil {
				b.placed = func(n *Node) { placed(i, k, n) }
			}
			if err := b.add(&l.Entries[k]); err != nil {
				return nil, fmt.Errorf("layer %s: %w", l.Digest, err)
			}
		}
		overlay(t.root, b.own.root)
	}
	if err := t.Err(); err != nil {
		return nil, err
	}
	t.settle(t.root)
	return t, nil
}

// settle sorts what is in and below a directory, and numbers it.
func (t *Tree) settle(n *Node) {
	n.number = t.len
	t.len++
	if n.dir == nil {
		return
	}
	if n.dir.byName != nil {
		n.dir.sorted = slices.AppendSeq(make([]*Node, 0, len(n.dir.byName)), maps.Values(n.dir.byName))
		slices.SortFunc(n.dir.sorted, func(a, b *Node) int { return strings.Compare(a.Path, b.Path) })
	}
	n.dir.byName, n.dir.gone = nil, nil
	for _, c := range n.dir.sorted {
		t.settle(c)
	}
}

// layerBuilder unpacks one layer into a tree of its own.
type layerBuilder struct {
	lower, own *Tree
	layer      int
	room       *implied
	nodes      []Node // room for the layer's, made at once
	placed     func(*Node)

	// The directory that was used last, and its path as it was given: archives list a directory's entries one
	// after the other.
	last *Node
	path string
}

func (b *layerBuilder) add(e *Entry) error {
	if e.Path == "/" {
		switch e.Type {
		case Dir:
			b.own.root.Entry, b.own.root.dir.implicit = e, false
		case Opaque:
			b.own.root.dir.opaque = true
		}
		return nil
	}
	if e.Type == Opaque {
		n, err := b.dir(e.Path)
		if err != nil {
			return err
		}
		n.dir.opaque = true
		return nil
	}
	at := strings.LastIndexByte(e.Path, '/')
	above, name := e.Path[:max(at, 1)], e.Path[at+1:]
	if b.last == nil || b.path != above {
		var err error
		if b.last, err = b.dir(above); err != nil {
			return err
		}
		b.path = above
	}
	parent := b.last
	if e.Type == Whiteout {
		if parent.dir.gone == nil {
			parent.dir.gone = map[string]bool{}
		}
		parent.dir.gone[name] = true
		return nil
	}
	n := &b.nodes[0]
	b.nodes = b.nodes[1:]
	n.Entry, n.Layer = e, b.layer
	if parent.Path != above { // through a symbolic link
		n.Entry, n.origin = e.at(path.Join(parent.Path, name)), e.Path
	}
	old := parent.Child(name)
	switch e.Type {
	case Dir:
		if old != nil && old.Type == Dir {
			old.Entry, old.dir.implicit = n.Entry, false
			return nil
		}
		n.dir = &directory{}
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
		n.Entry, n.Layer, n.origin = target.at(n.Path), target.Layer, target.Origin()
	}
	parent.put(name, n)
	if b.placed != nil {
		b.placed(n)
	}
	if old != nil {
		b.last = nil // it may have been in what is replaced
	}
	return nil
}

// dir finds a directory in the layer's own tree, making what is missing and following symbolic links of
// the same layer.
func (b *layerBuilder) dir(p string) (*Node, error) {
	n, rest, links := b.own.root, p, 0
	if b.last != nil { // most are near it
		for n = b.last; !n.above(p); {
			n = n.parent
		}
		rest = strings.TrimPrefix(p, n.Path)
	}
	for name, todo := Component(rest); name != ""; name, todo = Component(todo) {
		if name == ".." {
			n = cmp.Or(n.parent, n)
			continue
		}
		c := n.Child(name)
		switch {
		case c == nil:
			if len(n.Path)+len(name) > maxPath { // links to links could make it longer and longer
				return nil, fmt.Errorf("%q leads to a path of more than %d bytes", p, maxPath)
			}
			c = newDir(path.Join(n.Path, name), b.layer)
			if err := b.room.take(c.Path); err != nil {
				return nil, err
			}
			n.put(name, c)
		case c.Type == Symlink:
			if links++; links > maxLinks {
				return nil, fmt.Errorf("%q: %w", p, ErrLoop)
			}
			if err := b.own.follow(c.Link); err != nil {
				return nil, err
			}
			todo = c.Link + "/" + todo
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

// above reports whether a path is a directory's own, or that of something below it.
func (n *Node) above(p string) bool {
	rest, ok := strings.CutPrefix(p, n.Path)
	return ok && (rest == "" || rest[0] == '/' || n.parent == nil)
}

// overlay moves a layer's own tree over the lower one.
func overlay(lower, upper *Node) {
	if !upper.dir.implicit {
		lower.Entry, lower.Layer, lower.origin = upper.Entry, upper.Layer, upper.origin
	}
	if upper.dir.opaque {
		lower.dir.sorted, lower.dir.byName = nil, nil
	}
	if len(lower.dir.sorted) > 0 {
		lower.useMap()
	}
	for name := range upper.dir.gone {
		delete(lower.dir.byName, name)
	}
	for c := range upper.entries() {
		name := c.Name()
		if old := lower.Child(name); old != nil && old.Type == Dir && c.Type == Dir {
			overlay(old, c)
			continue
		}
		lower.put(name, c)
	}
}

// Component splits a path after its first component, without "." and empty ones; the name is empty if
// there is none.
func Component(p string) (name, rest string) {
	for p != "" {
		name, p, _ = strings.Cut(p, "/")
		if name != "" && name != "." {
			return name, p
		}
	}
	return "", ""
}

// Root is the directory "/".
func (t *Tree) Root() *Node { return t.root }

// Lookup finds the node of an absolute, clean path without following symbolic links; nil if none.
func (t *Tree) Lookup(p string) *Node {
	n := t.root
	for name, rest := Component(p); name != ""; name, rest = Component(rest) {
		if n = n.Child(name); n == nil {
			return nil
		}
	}
	return n
}

// Resolve follows all symbolic links of an absolute path inside the tree, as the kernel would under
// chroot. Where the path does not exist the error is fs.ErrNotExist, and real is still the path that
// would be created. Loops are ErrLoop.
func (t *Tree) Resolve(p string) (n *Node, real string, err error) {
	return t.resolve(t.root, p, true, 0, nil)
}

// ResolveParent follows the symbolic links in all components but the last.
func (t *Tree) ResolveParent(p string) (n *Node, real string, err error) {
	return t.resolve(t.root, p, false, 0, nil)
}

// Follow is Resolve of a node's own path. Only symbolic links lead anywhere else.
func (t *Tree) Follow(n *Node) (to *Node, real string, err error) {
	if n.Type != Symlink {
		return n, n.Path, nil
	}
	from := n.parent
	if path.IsAbs(n.Link) {
		from = t.root
	}
	if err := t.follow(n.Link); err != nil {
		return nil, "", err
	}
	return t.resolve(from, n.Link, true, 1, nil)
}

// Through is Resolve, and shows each directory in which a name is looked up on the way, by links too.
func (t *Tree) Through(p string, visit func(dir *Node)) (n *Node, real string, err error) {
	return t.resolve(t.root, p, true, 0, visit)
}

// resolve follows a path from a directory, which so many links led to.
func (t *Tree) resolve(n *Node, p string, last bool, links int, visit func(*Node)) (*Node, string, error) {
	for name, todo := Component(p); name != ""; name, todo = Component(todo) {
		if name == ".." {
			n = cmp.Or(n.parent, n)
			continue
		}
		if n.Type != Dir {
			return nil, "", &fs.PathError{
				Op: "resolve", Path: p, Err: fmt.Errorf("%q is not a directory: %w", n.Path, fs.ErrNotExist),
			}
		}
		if visit != nil {
			visit(n)
		}
		c := n.Child(name)
		if c == nil {
			return nil, path.Join(n.Path, name, todo), &fs.PathError{Op: "resolve", Path: p, Err: fs.ErrNotExist}
		}
		if c.Type == Symlink {
			if next, _ := Component(todo); last || next != "" {
				if links++; links > maxLinks {
					return nil, "", &fs.PathError{Op: "resolve", Path: p, Err: ErrLoop}
				}
				if err := t.follow(c.Link); err != nil {
					return nil, "", err
				}
				todo = c.Link + "/" + todo
				if path.IsAbs(c.Link) {
					n = t.root
				}
				continue
			}
		}
		n = c
	}
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
