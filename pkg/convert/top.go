package convert

import (
	"fmt"

	"github.com/klauspost/compress/gzip"

	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// signatureFile is a SIGSTRUCT where the runtime looks for it or, as long as it is not signed, elsewhere.
func signatureFile(s *sgx.SigStruct) libos.File {
	f := libos.File{Path: libos.SigPath, Mode: 0o644, Content: s.Bytes()}
	if key, _ := s.Signature(); key == nil {
		f.Path = libos.UnsignedPath
	}
	return f
}

// enclaveLayer is the layer on top while it is packed. Manifests, which are most of it, come before the signature.
type enclaveLayer struct {
	out   *image.LayerWriter
	files *libos.Packer
	rest  []libos.File
}

// packEnclave begins the layer with what comes before the signature.
func packEnclave(files []libos.File) (*enclaveLayer, error) {
	out, err := image.NewLayerWriter(gzip.DefaultCompression)
	if err != nil {
		return nil, err
	}
	l := &enclaveLayer{out, libos.NewPacker(out), libos.SortFiles(files)}
	return l, l.pack(func(f libos.File) bool { return f.Path < min(libos.SigPath, libos.UnsignedPath) })
}

// pack writes the next files.
func (l *enclaveLayer) pack(these func(libos.File) bool) error {
	for len(l.rest) > 0 && these(l.rest[0]) {
		if err := l.files.Add(l.rest[0]); err != nil {
			return fmt.Errorf("packing the enclave: %w", err)
		}
		l.rest = l.rest[1:]
	}
	return nil
}

// complete ends the layer.
func (l *enclaveLayer) complete(s *sgx.SigStruct) (image.NewLayer, error) {
	l.rest = libos.SortFiles(append(l.rest, signatureFile(s)))
	if err := l.pack(func(libos.File) bool { return true }); err != nil {
		return image.NewLayer{}, err
	}
	if err := l.files.Close(); err != nil {
		return image.NewLayer{}, fmt.Errorf("packing the enclave: %w", err)
	}
	return l.out.Layer()
}
