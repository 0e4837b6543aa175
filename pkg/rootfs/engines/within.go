// Package engines finds what container engines do not agree on in the layers of an image.
package engines

import (
	"path"
	"strings"

	"github.com/cconvert/cconvert/pkg/rootfs"
)

// maxSteps is how many components of paths Within looks at before it takes an answer for granted.
const maxSteps = 1 << 20

// Within finds an entry that is, or may lead, to a directory or below it, whatever later layers do about it. That an
// entry is in the merged tree is not the question: engines differ. Overlay file systems ignore an opaque root, and
// engines that unpack all layers into one directory follow the links of lower layers. Dir is a directory of the root,
// as in "/cconvert". The path is empty if there is no such entry; in doubt it is not.
func Within(layers []*rootfs.Index, dir string) (layer int, entry string) {
	name := dir[strings.LastIndexByte(dir, '/'):]
	var suspects []place
	for i, l := range layers {
		for k := range l.Entries {
			// Only paths and links with this component lead there.
			e := &l.Entries[k]
			if strings.Contains(e.Path, name) && strings.Contains(e.Path+"/", name+"/") ||
				strings.Contains(e.Link, name[1:]) && strings.Contains("/"+e.Link+"/", name+"/") {
				suspects = append(suspects, place{i, e})
			}
		}
	}
	if len(suspects) == 0 {
		return 0, ""
	}
	w := &walker{dir: dir, links: map[string]map[string]bool{}}
	w.learn(layers)
	for _, p := range suspects {
		w.reached = false
		w.follow("/", p.e.Path, nil)
		if p.e.Type == rootfs.Symlink || p.e.Type == rootfs.Hardlink {
			above := path.Dir(p.e.Path)
			if path.IsAbs(p.e.Link) {
				above = "/"
			}
			w.follow(above, p.e.Link, nil)
		}
		if w.reached || w.steps > maxSteps {
			return p.layer, p.e.Path
		}
	}
	return 0, ""
}

type place struct {
	layer int
	e     *rootfs.Entry
}

// walker follows paths to all places where they may lead, each symbolic link of any layer being there or not.
type walker struct {
	dir     string
	links   map[string]map[string]bool // the targets of symbolic links by every path that they may have
	steps   int
	reached bool
	deep    int
}

// learn notes the links, until those that were found lead to no further ones. A hard link to a symbolic link is one,
// too.
func (w *walker) learn(layers []*rootfs.Index) {
	for again := true; again && w.steps <= maxSteps; {
		again = false
		note := func(at, target string) {
			if w.links[at][target] {
				return
			}
			if w.links[at] == nil {
				w.links[at] = map[string]bool{}
			}
			w.links[at][target], again = true, true
		}
		for _, l := range layers {
			for k := range l.Entries {
				e := &l.Entries[k]
				if e.Type != rootfs.Symlink && e.Type != rootfs.Hardlink {
					continue
				}
				targets := map[string]bool{e.Link: true}
				if e.Type == rootfs.Hardlink {
					targets = map[string]bool{}
					w.follow("/", path.Dir(e.Link), func(real string) {
						above := path.Join(real, path.Base(e.Link))
						for target := range w.links[above] {
							if w.steps++; w.steps > maxSteps {
								return
							}
							if !path.IsAbs(target) { // relative to where the link is now
								targets[path.Join(path.Dir(above), target)] = true
							}
							targets[target] = true
						}
					})
				}
				w.follow("/", path.Dir(e.Path), func(real string) {
					for target := range targets {
						if w.steps++; w.steps > maxSteps {
							return
						}
						note(path.Join(real, path.Base(e.Path)), target)
					}
				})
			}
		}
	}
}

// maxDepth is how many links in a chain are followed: more than any engine and the kernel after it.
const maxDepth = 255

// isKernels reports whether a path is in a directory of the kernel's, in which there are links to anywhere, such as
// /proc/self/root.
func isKernels(p string) bool { return strings.HasPrefix(p, "/proc/") || strings.HasPrefix(p, "/dev/") }

// follow walks a path from a directory, and visits each place where it may end.
func (w *walker) follow(at, p string, visit func(real string)) {
	if w.deep > maxDepth {
		w.reached = true // in doubt
		return
	}
	for name, rest := rootfs.Component(p); name != ""; name, rest = rootfs.Component(rest) {
		if w.steps++; w.steps > maxSteps {
			return
		}
		if name == ".." {
			at = path.Dir(at)
			continue
		}
		at = path.Join(at, name)
		w.reached = w.reached || at == w.dir || name == w.dir[1:] && isKernels(at)
		for target := range w.links[at] {
			from := path.Dir(at)
			if path.IsAbs(target) {
				from = "/"
			}
			w.deep++
			w.follow(from, target+"/"+rest, visit)
			w.deep--
		}
	}
	if visit != nil {
		visit(at)
	}
}
