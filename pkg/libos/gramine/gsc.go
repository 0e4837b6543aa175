package gramine

import (
	"path"
	"strings"

	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/libos/gramine/enclave"
	"github.com/cconvert/cconvert/pkg/rootfs"
)

// GSC knows the images of Gramine Shielded Containers. Where Gramine is in such an image depends on the distribution.
type GSC struct{}

const (
	gscApp   = "/gramine/app_files/"
	gscRoot  = "/gramine/meson_build_output"
	gscPAL   = "/gramine/sgx/libpal.so"
	gscStart = gscApp + "apploader.sh"
)

// Name is "gsc".
func (GSC) Name() string { return "gsc" }

// Keep lists the manifest, the signature and the enclave image.
func (GSC) Keep() []string {
	return []string{gscApp + "entrypoint.manifest.sgx", gscApp + "entrypoint.sig", gscRoot + "/**" + gscPAL}
}

// Find returns the places of an image. Of several enclave images, which one is started is said nowhere: it has none.
func (GSC) Find(tree *rootfs.Tree) (libos.Places, bool) {
	found := 0
	p := libos.Places{
		Manifest: gscApp + "entrypoint.manifest.sgx", SigStruct: gscApp + "entrypoint.sig",
		Start: []string{"/bin/bash", gscStart},
	}
	root := tree.Lookup(gscRoot)
	if tree.Lookup(p.Manifest) == nil || root == nil {
		return p, false
	}
	_ = root.Walk(func(n *rootfs.Node) error {
		if n.Type == rootfs.Regular && strings.HasSuffix(path.Clean(n.Path), gscPAL) {
			p.Image = n.Path
			found++
		}
		return nil
	})
	return p, found == 1
}

// Open reads the manifest, and lays out the enclave.
func (GSC) Open(p libos.Places, files map[string][]byte) (*libos.Enclave, error) {
	e, err := readManifest(p.Manifest, files[p.Manifest])
	if err != nil {
		return nil, err
	}
	e.Start = p.Start
	if e.layOut(enclave.Version); e.LayoutError == nil {
		e.load(files[p.Image])
	}
	return e.Enclave, nil
}
