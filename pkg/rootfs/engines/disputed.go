package engines

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/cconvert/cconvert/pkg/rootfs"
)

// Disputed returns why engines may not agree on what is at some paths, which begin with "/". Engines that unpack all
// layers into one directory follow the links of lower layers, where overlay file systems make directories in their
// place. Overlay file systems keep what lower layers have in a directory that a layer removes and makes anew, and know
// no opaque root.
func Disputed(layers []*rootfs.Index, paths []string) (problems []string) {
	names := map[string]bool{}
	for _, p := range paths {
		for name := range strings.SplitSeq(strings.Trim(p, "/"), "/") {
			names[name] = true
		}
	}
	links := newAncestors(symlinks(layers))
	for i, l := range layers {
		gone, told := map[string]bool{}, map[string]bool{}
		for k := range l.Entries {
			e := &l.Entries[k]
			if e.Type == rootfs.Whiteout {
				gone[e.Path] = true
			}
		}
		removed := newAncestors(gone)
		for k := range l.Entries {
			e := &l.Entries[k]
			switch {
			case e.Type == rootfs.Opaque && e.Path == "/" && i > 0:
				problems = append(problems, fmt.Sprintf("layer %d removes all that is in lower layers, which overlay "+
					"file systems do not do", i+1))
			case e.Type != rootfs.Dir && names[path.Base(e.Path)]:
				if problem := through(links, i, e); problem != "" {
					problems = append(problems, problem)
				}
			}
			if i > 0 && len(gone) > 0 && e.Type != rootfs.Whiteout {
				at := removed.of(e.Path)
				if at == "" && e.Type == rootfs.Dir && gone[e.Path] {
					at = e.Path
				}
				if at != "" && !told[at] {
					told[at] = true
					problems = append(problems, fmt.Sprintf("layer %d removes %q and makes it anew: overlay file "+
						"systems keep what lower layers have in it", i+1, at))
				}
			}
		}
	}
	return slices.Compact(problems)
}

// maxHidden is how many files that are hidden are told of.
const maxHidden = 100

// Hidden returns which files of some kind are not in the tree of all layers, though engines may have them: those that
// are not replaced or removed in a way that all engines take for the same.
func Hidden(layers []*rootfs.Index, tree *rootfs.Tree, kind func(*rootfs.Entry) bool) (problems []string) {
	links := newAncestors(symlinks(layers))
	// What later entries have put in the place of something, or removed, and the directories that they have emptied.
	// The removals of a layer are about lower ones.
	gone, emptied := map[string]bool{}, map[string]bool{}
	for i, l := range slices.Backward(layers) {
		var removed, opaque []string
		for k := len(l.Entries) - 1; k >= 0; k-- {
			e := &l.Entries[k]
			if e.Type == rootfs.Regular && kind(e) {
				n := tree.Lookup(e.Path)
				shown := n != nil && n.Type == rootfs.Regular && n.SHA256 == e.SHA256
				replaced := links.of(e.Path) == "" &&
					(gone[e.Path] || above(e.Path, gone) != "" || above(e.Path, emptied) != "")
				if !shown && !replaced {
					problems = append(problems,
						fmt.Sprintf("layer %d has %q, which is hidden in a way that engines differ in", i+1, e.Path))
					if len(problems) >= maxHidden {
						return problems
					}
				}
			}
			switch e.Type {
			case rootfs.Regular, rootfs.Hardlink, rootfs.Symlink:
				gone[e.Path] = true
			case rootfs.Whiteout:
				removed = append(removed, e.Path)
			case rootfs.Opaque:
				opaque = append(opaque, e.Path)
			}
		}
		for _, p := range removed {
			gone[p] = true
		}
		for _, p := range opaque {
			emptied[p] = true
		}
	}
	slices.Reverse(problems)
	return problems
}

// above returns a path above p that is in a set, or the empty string.
func above(p string, set map[string]bool) string {
	if len(set) == 0 {
		return ""
	}
	for i := strings.LastIndexByte(p, '/'); i > 0; i = strings.LastIndexByte(p[:i], '/') {
		if set[p[:i]] {
			return p[:i]
		}
	}
	return ""
}

// ancestors are paths above others that are in a set, remembered by directory: many files are in each.
type ancestors struct {
	set   map[string]bool
	known map[string]string
}

func newAncestors(set map[string]bool) *ancestors { return &ancestors{set, map[string]string{}} }

// of is above, of a set that does not change.
func (a *ancestors) of(p string) string {
	if len(a.set) == 0 {
		return ""
	}
	i := strings.LastIndexByte(p, '/')
	if i <= 0 {
		return ""
	}
	dir := p[:i]
	at, ok := a.known[dir]
	if !ok {
		if at = dir; !a.set[dir] {
			at = a.of(dir)
		}
		a.known[dir] = at
	}
	return at
}

// symlinks are the paths of links in any layer. A hard link can be one to a symbolic link.
func symlinks(layers []*rootfs.Index) map[string]bool {
	links := map[string]bool{}
	for _, l := range layers {
		for k := range l.Entries {
			if e := &l.Entries[k]; e.Type == rootfs.Symlink || e.Type == rootfs.Hardlink {
				links[e.Path] = true
			}
		}
	}
	return links
}

// Through returns the files of layers that may be one of some others, by the last names of their paths: their own paths
// go through links of other layers, which engines that unpack all layers into one directory follow.
func Through(layers []*rootfs.Index, last map[string]bool) (problems []string) {
	links := newAncestors(symlinks(layers))
	for i, l := range layers {
		for k := range l.Entries {
			if e := &l.Entries[k]; e.Type != rootfs.Dir && last[path.Base(e.Path)] {
				if problem := through(links, i, e); problem != "" {
					problems = append(problems, problem)
				}
			}
		}
	}
	return problems
}

func through(links *ancestors, layer int, e *rootfs.Entry) string {
	at := links.of(e.Path)
	if at == "" {
		return ""
	}
	return fmt.Sprintf("layer %d: %q goes through %q, which is a link in one of the layers: engines differ in where "+
		"it leads to", layer+1, e.Path, at)
}
