package encrypted

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/rootfs"
)

// ErrLayer says that a layer is not what its index says.
var ErrLayer = errors.New("the layer is not what is known of it")

// Stripped are the layers of an image without what was cut out.
type Stripped struct {
	// Layers are those that are others than before, by number.
	Layers map[int]image.NewLayer
	// Indexes are those of all layers.
	Indexes []*rootfs.Index

	spools []*os.File
}

// Close frees the space that the layers take.
func (s *Stripped) Close() error {
	var err error
	for _, f := range s.spools {
		if closing := f.Close(); closing != nil {
			err = closing
		}
	}
	s.spools = nil
	return err
}

// Visit is shown the content of a file that is cut out.
type Visit func(n *rootfs.Node, modified time.Time, content io.Reader) error

// Cut takes out of the layers what was selected, and shows the content of each file, those of a layer in their order; a
// nil visit is shown nothing. A file with several names is read once for each. The caller closes what is returned.
func (s *Selection) Cut(
	ctx context.Context, img *image.Image, indexes []*rootfs.Index, o rootfs.Options, visit Visit,
) (_ *Stripped, err error) {
	out := &Stripped{Layers: map[int]image.NewLayer{}}
	out.Indexes = append(out.Indexes, indexes...)
	defer func() {
		if err != nil {
			out.Close()
		}
	}()
	for _, i := range s.Layers() {
		c := &cutting{pieces: s.layers[i], index: indexes[i], layer: img.Layers[i], visit: visit}
		mt, err := img.LayerType(i)
		if err != nil {
			return nil, err
		}
		spool, err := image.NewSpool()
		if err != nil {
			return nil, err
		}
		out.spools = append(out.spools, spool)
		if err := c.inFull(ctx, o, func() (io.Writer, error) {
			c.packed, err = image.NewLayerSpool(spool, mt)
			return c.packed, err
		}); err != nil {
			return nil, fmt.Errorf("taking files out of layer %d: %w", i+1, err)
		}
		l, err := c.packed.Layer()
		if err != nil {
			return nil, err
		}
		out.Layers[i] = l
		out.Indexes[i] = &rootfs.Index{Digest: l.Digest, DiffID: l.DiffID, Entries: s.left(i, indexes[i])}
	}
	return out, nil
}

// cutting is how one layer is cut.
type cutting struct {
	pieces map[int]*piece
	index  *rootfs.Index
	layer  *image.Layer
	visit  Visit
	packed *image.LayerSpool
}

// inFull reads the layer as often as there are names of one file.
func (c *cutting) inFull(ctx context.Context, o rootfs.Options, begin func() (io.Writer, error)) error {
	names := 1
	for _, p := range c.pieces {
		names = max(names, len(p.files))
	}
	for round := range names {
		out := io.Discard
		if round == 0 {
			var err error
			if out, err = begin(); err != nil {
				return err
			}
		} else if c.visit == nil {
			break
		}
		if err := c.once(ctx, o, out, round); err != nil {
			return err
		}
	}
	return nil
}

// once reads the layer, and shows each file by one of its names.
func (c *cutting) once(ctx context.Context, o rootfs.Options, out io.Writer, round int) error {
	r, err := c.layer.Open(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	count, wrong := 0, error(nil)
	err = rootfs.Rewrite(ctx, r, c.layer.Digest, o, out,
		func(k int, e *rootfs.Entry, modified time.Time) func(io.Reader) error {
			count++
			if k >= len(c.index.Entries) || c.index.Entries[k].Path != e.Path || c.index.Entries[k].Type != e.Type {
				wrong = fmt.Errorf("%w: entry %d is %q", ErrLayer, k+1, e.Path)
				return nil
			}
			p := c.pieces[k]
			if p == nil {
				return nil
			}
			return func(content io.Reader) error {
				if c.visit == nil || round >= len(p.files) {
					return nil
				}
				return c.visit(p.files[round], modified, content)
			}
		})
	if err == nil && count != len(c.index.Entries) {
		wrong = fmt.Errorf("%w: it has %d entries, not %d", ErrLayer, count, len(c.index.Entries))
	}
	return errors.Join(err, wrong)
}
