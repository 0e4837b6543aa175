package inspect

import (
	"slices"

	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/libos/all"
	"github.com/cconvert/cconvert/pkg/rootfs"
)

// Places are where an image holds its enclave.
type Places struct {
	// Layout names the kind of image.
	Layout string
	// Manifest, SigStruct and Image (the enclave image) are what is measured and signed.
	libos.Places
	// Backend is the runtime's, for images of this program; nil for others, which have no recipe.
	Backend libos.Backend

	foreign libos.Foreign // of other programs
}

// Layouts beside those of all.Foreign.
const (
	LayoutOurs = "cconvert"
	LayoutGSC  = "gsc"
)

// Known returns the library operating systems that are known.
func (o Options) Known() []libos.Backend {
	if o.Backends != nil {
		return o.Backends
	}
	return all.Backends()
}

// keep lists the files of images of all kinds whose content is needed, as patterns for rootfs.Scan.
func (o Options) keep() []string {
	keep := []string{libos.SigPath, libos.UnsignedPath, libos.RecipePath, libos.ReasonsPath}
	for _, b := range o.Known() {
		keep = append(keep, b.Keep()...)
	}
	for _, f := range all.Foreign() {
		keep = append(keep, f.Keep()...)
	}
	slices.Sort(keep)
	return slices.Compact(keep)
}

// Find returns the places of an image.
func (o Options) Find(tree *rootfs.Tree) (Places, bool) {
	for _, b := range o.Known() {
		if tree.Lookup(libos.RecipePath) != nil && tree.Lookup(b.Keep()[0]) != nil &&
			tree.Lookup(libos.MetaPath(b.Kind())) != nil {
			return placesOf(b), true
		}
	}
	for _, f := range all.Foreign() {
		if p, found := f.Find(tree); found {
			return Places{Layout: f.Name(), Places: p, foreign: f}, true
		}
	}
	return Places{}, false
}

// placesOf are those of an image of this program.
func placesOf(b libos.Backend) Places {
	return Places{
		Layout: LayoutOurs, Places: libos.Places{Manifest: b.Keep()[0], SigStruct: libos.SigPath}, Backend: b,
	}
}
