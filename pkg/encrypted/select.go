// Package encrypted moves files of an image into a layer of its own, encrypted, so that only an enclave with the key
// can read them, and no layer has them in plain text any more.
//
// [Select] finds what has to leave the layers, [Cut] takes it out of them, and a [Writer] makes the layer with the
// ciphertexts. A [List] says which files they are, and what must be known of them to start the image. From the layers
// and the list, everybody can repeat a conversion without the key.
package encrypted

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"slices"

	"github.com/containerd/stargz-snapshotter/estargz"

	"github.com/cconvert/cconvert/pkg/rootfs"
)

// Selection is what has to leave an image's layers.
type Selection struct {
	// Files are those of the image that are encrypted, sorted by path: those that were chosen, and the other names of
	// the same files (hard links).
	Files []*rootfs.Node
	// Copies are files with the content of an encrypted one at paths that were not chosen, in any layer.
	Copies []Copy

	layers []map[int]*piece // by the number of the entry
}

// Copy is a file of an image with the content of an encrypted one.
type Copy struct {
	Path  string
	Layer int // from 0
	Of    string
	// Hidden says that a layer above removes or replaces it, so that only whoever reads the layer finds it.
	Hidden bool
}

// piece is an entry of a layer that is cut out.
type piece struct {
	sum [sha256.Size]byte
	// files have this content in the end; none if a layer above replaces it, or it is a hard link.
	files []*rootfs.Node
}

// content identifies the content of entries of a layer: those that have it are hard links of each other.
type content struct {
	layer int
	path  string
	sum   [sha256.Size]byte
}

// place is where an entry goes.
type place struct {
	layer, entry int
	path         string
	content      content
}

// Select finds all that has the content of files at the chosen paths, in whatever version and by whatever name: what
// any layer has there, be it hidden by another one, and hard links to that.
func Select(indexes []*rootfs.Index, chosen func(path string) bool) (*Selection, error) {
	var places []place
	byPath, byContent := map[string][]int{}, map[content][]int{}
	tree, err := rootfs.MergePlaced(indexes, func(i, k int, n *rootfs.Node) {
		if n.Type != rootfs.Regular {
			return
		}
		p := place{i, k, n.Path, contentOf(n)}
		byPath[p.path] = append(byPath[p.path], len(places))
		byContent[p.content] = append(byContent[p.content], len(places))
		places = append(places, p)
	})
	if err != nil {
		return nil, err
	}
	s := &Selection{layers: make([]map[int]*piece, len(indexes))}
	names, found := map[string]bool{}, map[content]bool{}
	var todo []string
	for p := range byPath {
		if chosen(p) {
			todo = append(todo, p)
		}
	}
	for len(todo) > 0 {
		name := todo[0]
		if todo = todo[1:]; names[name] {
			continue
		}
		names[name] = true
		for _, at := range byPath[name] {
			c := places[at].content
			if found[c] {
				continue
			}
			found[c] = true
			for _, other := range byContent[c] {
				todo = append(todo, places[other].path)
			}
		}
	}
	files := map[content][]*rootfs.Node{}
	for name := range names {
		if n := tree.Lookup(name); n != nil && n.Type == rootfs.Regular {
			s.Files = append(s.Files, n)
		}
	}
	slices.SortFunc(s.Files, func(a, b *rootfs.Node) int { return cmp.Compare(a.Path, b.Path) })
	for _, n := range s.Files {
		files[contentOf(n)] = append(files[contentOf(n)], n)
	}
	of := map[[sha256.Size]byte]string{}
	for _, p := range places {
		if !found[p.content] {
			continue
		}
		e := &indexes[p.layer].Entries[p.entry]
		if name, ok := of[p.content.sum]; !ok || p.path < name {
			of[p.content.sum] = p.path
		}
		if s.layers[p.layer] == nil {
			s.layers[p.layer] = map[int]*piece{}
		}
		s.layers[p.layer][p.entry] = &piece{sum: p.content.sum}
		if e.Type == rootfs.Regular && e.Path == p.content.path && e.SHA256 == p.content.sum {
			// The first entry of this content, if the archive has it several times.
			s.layers[p.layer][p.entry].files, files[p.content] = files[p.content], nil
		}
	}
	for i, index := range indexes {
		for k := range index.Entries {
			if len(s.layers[i]) > 0 && index.Entries[k].Path == tableOfContents {
				s.layers[i][k] = &piece{}
			}
		}
	}
	for _, list := range files {
		if len(list) > 0 {
			return nil, fmt.Errorf("%w: the content of %s is not where it says", ErrLayer, list[0].Path)
		}
	}
	s.Copies = copies(places, found, of, tree)
	return s, nil
}

// tableOfContents has the digests of all files of an eStargz layer. It is not that of a layer without some of them.
const tableOfContents = "/" + estargz.TOCTarName

// contentOf identifies a file's content.
func contentOf(n *rootfs.Node) content { return content{n.Layer, n.Origin(), n.SHA256} }

// copies finds files of the same content that stay.
func copies(
	places []place, found map[content]bool, of map[[sha256.Size]byte]string, tree *rootfs.Tree,
) (list []Copy) {
	empty := sha256.Sum256(nil)
	for _, p := range places {
		name, same := of[p.content.sum]
		if found[p.content] || !same || p.content.sum == empty {
			continue
		}
		n := tree.Lookup(p.path)
		list = append(list, Copy{p.path, p.layer, name, n == nil || contentOf(n) != p.content})
	}
	slices.SortFunc(list, func(a, b Copy) int {
		return cmp.Or(cmp.Compare(a.Path, b.Path), cmp.Compare(a.Layer, b.Layer))
	})
	return list
}

// Layers returns the numbers of the layers from which something is cut out.
func (s *Selection) Layers() (list []int) {
	for i, cut := range s.layers {
		if len(cut) > 0 {
			list = append(list, i)
		}
	}
	return list
}

// Bytes is the size of all encrypted files, before they are encrypted.
func (s *Selection) Bytes() (n int64) {
	for _, f := range s.Files {
		n += f.Size
	}
	return n
}

// left is the index of a layer without what is cut out of it.
func (s *Selection) left(i int, index *rootfs.Index) []rootfs.Entry {
	var entries []rootfs.Entry
	for k := range index.Entries {
		if s.layers[i][k] == nil {
			entries = append(entries, index.Entries[k])
		}
	}
	return entries
}
