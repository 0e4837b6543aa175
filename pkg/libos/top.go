package libos

import (
	"fmt"

	"github.com/klauspost/compress/gzip"

	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// SignatureFile is a SIGSTRUCT where the runtime looks for it or, as long as it is not signed, elsewhere.
func SignatureFile(s *sgx.SigStruct) File {
	f := File{Path: SigPath, Mode: 0o644, Content: s.Bytes()}
	if key, _ := s.Signature(); key == nil {
		f.Path = UnsignedPath
	}
	return f
}

// EnclaveLayer is the layer on top while it is packed. Manifests, which are most of it, come before the signature.
type EnclaveLayer struct {
	out   *image.LayerWriter
	files *Packer
	rest  []File
}

// PackEnclave begins the layer with what comes before the signature.
func PackEnclave(files []File) (*EnclaveLayer, error) {
	out, err := image.NewLayerWriter(gzip.DefaultCompression)
	if err != nil {
		return nil, err
	}
	l := &EnclaveLayer{out, NewPacker(out), SortFiles(files)}
	return l, l.pack(func(f File) bool { return f.Path < min(SigPath, UnsignedPath) })
}

// pack writes the next files.
func (l *EnclaveLayer) pack(these func(File) bool) error {
	for len(l.rest) > 0 && these(l.rest[0]) {
		if err := l.files.Add(l.rest[0]); err != nil {
			return fmt.Errorf("packing the enclave: %w", err)
		}
		l.rest = l.rest[1:]
	}
	return nil
}

// Complete ends the layer.
func (l *EnclaveLayer) Complete(s *sgx.SigStruct) (image.NewLayer, error) {
	l.rest = SortFiles(append(l.rest, SignatureFile(s)))
	if err := l.pack(func(File) bool { return true }); err != nil {
		return image.NewLayer{}, err
	}
	if err := l.files.Close(); err != nil {
		return image.NewLayer{}, fmt.Errorf("packing the enclave: %w", err)
	}
	return l.out.Layer()
}
