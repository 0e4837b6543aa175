package verify

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cconvert/cconvert/internal/bug"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/rootfs"
	"github.com/cconvert/cconvert/pkg/rootfs/glob"
	"github.com/cconvert/cconvert/pkg/rootfs/inflate"
)

// scanned is an image of which every layer was read.
type scanned struct {
	img     *image.Image
	indexes []*rootfs.Index
	tree    *rootfs.Tree
	places  Places
	bundle  *libos.Bundle // of images of this program
	files   map[string][]byte
}

// scan reads all layers and finds the enclave.
func scan(ctx context.Context, img *image.Image, o Options) (*scanned, error) {
	s := &scanned{img: img, files: map[string][]byte{}}
	recipe, err := recipeOf(ctx, img)
	if err != nil {
		return nil, err
	}
	so := rootfs.Options{Keep: slices.Clone(recipe.Keep()), Inflate: o.Inflate, DiffID: true, Limits: o.Limits}
	keep := o.keep()
	so.Keep = append(so.Keep, keep...)
	if s.indexes, err = o.scanAll(ctx, img, so); err != nil {
		return nil, err
	}
	if s.tree, err = rootfs.Merge(s.indexes); err != nil {
		return nil, err
	}
	found := false
	if s.places, found = o.find(s.tree); !found {
		return nil, notConverted(img)
	}
	if b := s.places.Backend; b != nil {
		at := s.tree.Lookup(libos.MetaPath(b.Kind())).Layer
		if s.bundle, err = runtimeOf(ctx, img.Layers[at], recipe.Runtime.Digest); err != nil {
			return nil, err
		}
	}
	wanted := glob.Compile(keep).Matcher()
	err = s.tree.Walk(func(n *rootfs.Node) error {
		if n.Type != rootfs.Regular || !wanted.Match(n.Path) {
			return nil
		}
		s.files[n.Path] = n.Content
		if n.Content != nil || n.Size == 0 {
			return nil
		}
		s.files[n.Path], err = contentOf(ctx, img, n) // too large to be kept
		return err
	})
	return s, err
}

// notConverted says that there is no enclave; of an image whose labels speak of one, that it is gone.
func notConverted(img *image.Image) error {
	if convert.IsResult(img) {
		return &damage{
			CheckOnTop, fmt.Errorf("%w: its labels speak of an enclave, and the files of one are not there, or no "+
				"longer", ErrNotConverted),
		}
	}
	return ErrNotConverted
}

// scanAll reads the layers.
func (o Options) scanAll(ctx context.Context, img *image.Image, so rootfs.Options) ([]*rootfs.Index, error) {
	index := func(ctx context.Context, i int) (_ *rootfs.Index, err error) {
		defer bug.Catch(&err)
		return o.scan(ctx, img.Layers[i], so)
	}
	return rootfs.Gather(ctx, img.LayerDigests(), o.Jobs, o.Limits, index)
}

// scan reads a layer. What is in it decides, not how a program that inflates fares.
func (o Options) scan(ctx context.Context, l *image.Layer, so rootfs.Options) (*rootfs.Index, error) {
	index, err := o.read(ctx, l, so)
	if errors.Is(err, inflate.ErrInflater) {
		so.Inflate = inflate.Inflater{}
		return o.read(ctx, l, so)
	}
	return index, err
}

func (o Options) read(ctx context.Context, l *image.Layer, so rootfs.Options) (*rootfs.Index, error) {
	r, err := l.Open(ctx)
	if err != nil {
		return nil, fmt.Errorf("fetching the layer %s: %w", l.Digest, err)
	}
	if o.Observe != nil {
		r = o.Observe(l.Digest, l.Size, r)
	}
	defer r.Close()
	return rootfs.Scan(ctx, r, l.Digest, so)
}

// added is how many layers the conversion has put on the image; 0 for images of other programs.
func (s *scanned) added() int {
	if s.places.Backend == nil {
		return 0
	}
	return s.places.Backend.Layers()
}

// read returns a file of the layers that the conversion has added; nil if they have none of the path.
func (s *scanned) read(ctx context.Context, path string) ([]byte, error) {
	if content, err := s.bundle.Content(path); err != nil || content != nil {
		return content, err
	}
	n := len(s.img.Layers)
	from := max(0, n-s.added()+1)
	for _, l := range s.img.Layers[from:max(from, n-1)] {
		files, err := extract(ctx, l, map[string]bool{path: true})
		if err != nil || files[path] != nil {
			return files[path], err
		}
	}
	return nil, nil
}

// open has the library OS read the enclave.
func (s *scanned) open(ctx context.Context) (*libos.Enclave, error) {
	if s.places.Backend == nil {
		return s.places.foreign.Open(s.places.Places, s.files)
	}
	return s.places.Backend.Open(libos.Stored{
		Layout: s.bundle.Layout, Files: s.files,
		Read: func(path string) ([]byte, error) { return s.read(ctx, path) },
	})
}

func (s *scanned) converted(ctx context.Context) (*Converted, error) {
	e, err := s.open(ctx)
	if err != nil {
		return nil, &damage{CheckMeasurement, err}
	}
	c, err := newConverted(s.img, s.places, e, s.files)
	if err != nil {
		return nil, err
	}
	if s.bundle != nil {
		c.runtime = s.bundle.Layer.DiffID
	}
	c.LayerDigests = s.img.LayerDigests()
	if s.tree == nil {
		return c, nil
	}
	c.top = s.indexes[len(s.indexes)-1].DiffID
	for i, f := range c.Trusted {
		if n, _, err := s.tree.Resolve(strings.TrimPrefix(f.URI, "file:")); err == nil {
			c.Trusted[i].Layer, c.Trusted[i].Size = n.Layer+1, n.Size
		}
	}
	return c, nil
}
