package convert

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"path"
	"slices"

	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/release"
	"github.com/cconvert/cconvert/pkg/rootfs/inflate"
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
	var secrets []string // directories
	if text := libos.ContentOf(files, libos.AgentConfigPath); text != nil {
		c, err := release.ParseConfig(text)
		if err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrNotOurs, libos.AgentConfigPath, err)
		}
		secrets = c.Dirs
	}
	seen := map[string]bool{}
	for _, f := range files {
		ours := path.Clean(f.Path) == f.Path && path.Dir(f.Path) == path.Dir(libos.App) && !f.Dir ||
			f.Dir && slices.Contains(secrets, f.Path)
		if seen[f.Path] || !ours {
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
