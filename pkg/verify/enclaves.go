package verify

import (
	"context"
	"strings"

	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/rootfs"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// EnclaveFile is a signed enclave in an image that was not converted: of Intel's SGX SDK, Open Enclave or EGo.
type EnclaveFile struct {
	Path string `json:"path"`
	attest.Enclave
	// SignatureError says what the CPU would find wrong with the SIGSTRUCT; empty if nothing.
	SignatureError string `json:"signature_error,omitempty"`
}

// LayoutSDK is that of images with enclaves of their own.
const LayoutSDK = "sdk"

// AsItIs describes an image that was not converted for those who deploy it: user and ports, and the memory that its
// enclaves are said to take, in bytes.
func AsItIs(img *image.Image, size uint64) (*Converted, error) {
	c := &Converted{Image: img.Ref.String(), Digest: img.Digest, Layout: LayoutSDK}
	c.Enclave.EnclaveSize = size
	if err := c.readConfig(img); err != nil {
		return nil, err
	}
	if user, _, _ := strings.Cut(c.User, ":"); user != "" && user != "0" && user != "root" {
		c.Program.UID = -1 // some other user
	}
	return c, nil
}

// Enclaves finds the signed enclaves in an image, by path.
func Enclaves(ctx context.Context, img *image.Image, o Options) ([]EnclaveFile, error) {
	indexes := make([]*rootfs.Index, len(img.Layers))
	room := rootfs.Room{Limits: o.Limits}
	for i, l := range img.Layers {
		var err error
		if indexes[i], err = o.scan(ctx, l, rootfs.Options{Inflate: o.Inflate, Limits: o.Limits}); err != nil {
			return nil, err
		}
		if err := room.Take(indexes[i]); err != nil {
			return nil, err
		}
	}
	tree, err := rootfs.Merge(indexes)
	if err != nil {
		return nil, err
	}
	var list []EnclaveFile
	err = tree.Walk(func(n *rootfs.Node) error {
		if n.ELF == nil {
			return nil
		}
		for _, b := range n.ELF.SigStructs {
			s, err := sgx.ParseSigStruct([]byte(b))
			if s == nil {
				continue
			}
			f := EnclaveFile{Path: n.Path, Enclave: attest.NewEnclave(s)}
			if err != nil {
				f.SignatureError = err.Error()
			}
			list = append(list, f)
		}
		return nil
	})
	return list, err
}
