package convert

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"path"

	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/rootfs/inflate"
	"github.com/cconvert/cconvert/pkg/sgx"
)

const (
	maxEnclaveLayer   = 256 << 20 // bytes of the layer, compressed
	maxEnclaveArchive = 256 << 20
)

// topFiles are those of the topmost layer, which must be one that packEnclave has made.
func topFiles(ctx context.Context, img *image.Image) (files []libos.File, err error) {
	if len(img.Layers) == 0 {
		return nil, ErrNotOurs
	}
	archive, err := topArchive(ctx, img)
	if err != nil {
		return nil, err
	}
	if files, err = libos.Unpack(archive); err != nil {
		return nil, fmt.Errorf("%w: its layer on top: %w", ErrNotOurs, err)
	}
	seen := map[string]bool{}
	for _, f := range files {
		if seen[f.Path] || path.Clean(f.Path) != f.Path || path.Dir(f.Path) != path.Dir(libos.App) {
			return nil, fmt.Errorf("%w: its layer on top has %q, or has it twice", ErrNotOurs, f.Path)
		}
		seen[f.Path] = true
	}
	return files, nil
}

func topArchive(ctx context.Context, img *image.Image) ([]byte, error) {
	top := img.Layers[len(img.Layers)-1]
	if top.Size > maxEnclaveLayer {
		return nil, fmt.Errorf("%w: its layer on top has %d bytes", ErrNotOurs, top.Size)
	}
	r, err := top.Open(ctx)
	if err != nil {
		return nil, fmt.Errorf("fetching the layer %s: %w", top.Digest, err)
	}
	defer r.Close()
	blob, err := image.ReadChecked(r, top.Digest, maxEnclaveLayer)
	if err != nil {
		return nil, fmt.Errorf("fetching the layer %s: %w", top.Digest, err)
	}
	z, err := inflate.Decompress(ctx, bytes.NewReader(blob)) // registries and engines compress anew as they like
	if err != nil {
		return nil, fmt.Errorf("%w: its layer on top: %w", ErrNotOurs, err)
	}
	defer z.Close()
	archive, err := io.ReadAll(io.LimitReader(z, maxEnclaveArchive+1))
	if err == nil && len(archive) > maxEnclaveArchive {
		err = fmt.Errorf("it has more than %d bytes", maxEnclaveArchive)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: its layer on top: %w", ErrNotOurs, err)
	}
	return archive, nil
}

// contentOf returns the content of a file; nil if there is none of that path.
func contentOf(files []libos.File, path string) []byte {
	for _, f := range files {
		if f.Path == path {
			return f.Content
		}
	}
	return nil
}

// sigStructOf returns the SIGSTRUCT among the files of the topmost layer, signed or not.
func sigStructOf(files []libos.File) (s *sgx.SigStruct, err error) {
	if signed := contentOf(files, libos.SigPath); signed != nil {
		s, err = sgx.ParseSigStruct(signed)
	} else {
		s, err = sgx.ParseUnsigned(contentOf(files, libos.UnsignedPath))
	}
	if err != nil {
		return nil, fmt.Errorf("reading the signature structure: %w", err)
	}
	return s, nil
}
