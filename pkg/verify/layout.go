package verify

import (
	"path"
	"strings"

	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/libos/gramine"
	"github.com/cconvert/cconvert/pkg/libos/sim"
	"github.com/cconvert/cconvert/pkg/rootfs"
)

// Places are where an image holds its enclave.
type Places struct {
	// Layout names the kind of image.
	Layout string
	// Manifest, SigStruct and PAL (the enclave image) are what is measured and signed.
	Manifest, SigStruct, PAL string
	// Start is the command that the image's configuration must have.
	Start []string
	// Backend is the runtime's, for images of this program; nil for others, which have no recipe.
	Backend libos.Backend
}

// A layout knows images of one kind.
type layout interface {
	// find returns the places of an image of this kind.
	find(tree *rootfs.Tree) (Places, bool)
	// keep lists the files whose content is needed, as patterns for rootfs.Scan.
	keep() []string
}

// layouts are those that can be read.
var layouts = []layout{ours{}, gsc{}}

// Names of layouts.
const (
	LayoutOurs = "cconvert"
	LayoutGSC  = "gsc"
)

// ours is the layout of this program.
type ours struct{}

var backends = []libos.Backend{gramine.Backend{}, sim.Backend{}}

func (ours) keep() []string {
	return []string{
		libos.ManifestPath, libos.SigPath, libos.UnsignedPath, libos.RecipePath, libos.ReasonsPath, libos.HostsPath,
		launch.StarterPath + "*",
	}
}

func (ours) find(tree *rootfs.Tree) (Places, bool) {
	if tree.Lookup(libos.ManifestPath) == nil || tree.Lookup(libos.RecipePath) == nil {
		return Places{}, false
	}
	for _, b := range backends {
		if tree.Lookup(libos.MetaPath(b.Kind())) != nil {
			return oursOf(b), true
		}
	}
	return Places{}, false
}

func oursOf(b libos.Backend) Places {
	return Places{
		Layout: LayoutOurs, Manifest: libos.ManifestPath, SigStruct: libos.SigPath, PAL: b.Paths().PAL,
		Start: libos.Start(b), Backend: b,
	}
}

// gsc is the layout of Gramine Shielded Containers. Where Gramine is in the image depends on the distribution.
type gsc struct{}

const (
	gscApp   = "/gramine/app_files/"
	gscRoot  = "/gramine/meson_build_output"
	gscPAL   = "/gramine/sgx/libpal.so"
	gscStart = gscApp + "apploader.sh"
)

func (gsc) keep() []string {
	return []string{gscApp + "entrypoint.manifest.sgx", gscApp + "entrypoint.sig", gscRoot + "/**" + gscPAL}
}

func (gsc) find(tree *rootfs.Tree) (Places, bool) {
	found := 0
	p := Places{
		Layout: LayoutGSC, Manifest: gscApp + "entrypoint.manifest.sgx", SigStruct: gscApp + "entrypoint.sig",
		Start: []string{"/bin/bash", gscStart},
	}
	root := tree.Lookup(gscRoot)
	if tree.Lookup(p.Manifest) == nil || root == nil {
		return p, false
	}
	_ = root.Walk(func(n *rootfs.Node) error {
		if n.Type == rootfs.Regular && strings.HasSuffix(path.Clean(n.Path), gscPAL) {
			p.PAL = n.Path
			found++
		}
		return nil
	})
	// Of several, which one is started is said nowhere.
	return p, found == 1
}
