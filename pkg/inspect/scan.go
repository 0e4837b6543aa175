package inspect

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cconvert/cconvert/internal/bug"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/recipe"
	"github.com/cconvert/cconvert/pkg/rootfs"
	"github.com/cconvert/cconvert/pkg/rootfs/glob"
	"github.com/cconvert/cconvert/pkg/rootfs/inflate"
)

// Scanned is an image of which every layer was read.
type Scanned struct {
	Image   *image.Image
	Indexes []*rootfs.Index
	Tree    *rootfs.Tree
	Places  Places
	Bundle  *libos.Bundle // of images of this program
	Files   map[string][]byte
}

// Scan reads all layers and finds the enclave.
func Scan(ctx context.Context, img *image.Image, o Options) (*Scanned, error) {
	s := &Scanned{Image: img, Files: map[string][]byte{}}
	recipe, err := recipeOf(ctx, img)
	if err != nil {
		return nil, err
	}
	so := rootfs.Options{Keep: slices.Clone(recipe.Keep()), Inflate: o.Inflate, DiffID: true, Limits: o.Limits}
	keep := o.keep()
	so.Keep = append(so.Keep, keep...)
	if s.Indexes, err = o.ScanAll(ctx, img, so); err != nil {
		return nil, err
	}
	if s.Tree, err = rootfs.Merge(s.Indexes); err != nil {
		return nil, err
	}
	found := false
	if s.Places, found = o.Find(s.Tree); !found {
		return nil, notConverted(img)
	}
	if b := s.Places.Backend; b != nil {
		at := s.Tree.Lookup(libos.MetaPath(b.Kind())).Layer
		if s.Bundle, err = RuntimeOf(ctx, img.Layers[at], recipe.Runtime.Digest); err != nil {
			return nil, err
		}
	}
	wanted := glob.Compile(keep).Matcher()
	err = s.Tree.Walk(func(n *rootfs.Node) error {
		if n.Type != rootfs.Regular || !wanted.Match(n.Path) {
			return nil
		}
		s.Files[n.Path] = n.Content
		if n.Content != nil || n.Size == 0 {
			return nil
		}
		s.Files[n.Path], err = contentOf(ctx, img, n) // too large to be kept
		return err
	})
	return s, err
}

// notConverted says that there is no enclave; of an image whose labels speak of one, that it is gone.
func notConverted(img *image.Image) error {
	if recipe.IsResult(img) {
		return &Damage{
			PartOnTop, fmt.Errorf("%w: its labels speak of an enclave, and the files of one are not there, or no "+
				"longer", ErrNotConverted),
		}
	}
	return ErrNotConverted
}

// ScanAll reads the layers.
func (o Options) ScanAll(ctx context.Context, img *image.Image, so rootfs.Options) ([]*rootfs.Index, error) {
	so.Kept = new(rootfs.Kept)
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

// Added is how many layers the conversion has put on the image; 0 for images of other programs.
func (s *Scanned) Added() int {
	if s.Places.Backend == nil {
		return 0
	}
	return s.Places.Backend.Layers() + hasAgent(s.Files)
}

// hasAgent is 1 if the enclave's layer has the configuration of an agent, which then is in a layer of its own.
func hasAgent(files map[string][]byte) int {
	if files[libos.AgentConfigPath] != nil {
		return 1
	}
	return 0
}

// read returns a file of the layers that the conversion has added; nil if they have none of the path.
func (s *Scanned) read(ctx context.Context, path string) ([]byte, error) {
	if content, err := s.Bundle.Content(path); err != nil || content != nil {
		return content, err
	}
	n := len(s.Image.Layers)
	from := max(0, n-s.Added()+1)
	for _, l := range s.Image.Layers[from:max(from, n-1)] {
		files, err := ExtractFiles(ctx, l, map[string]bool{path: true})
		if err != nil || files[path] != nil {
			return files[path], err
		}
	}
	return nil, nil
}

// open has the library OS read the enclave.
func (s *Scanned) open(ctx context.Context) (*libos.Enclave, error) {
	if s.Places.Backend == nil {
		return s.Places.foreign.Open(s.Places.Places, s.Files)
	}
	return s.Places.Backend.Open(libos.Stored{
		Layout: s.Bundle.Layout, Files: s.Files,
		Read: func(path string) ([]byte, error) { return s.read(ctx, path) },
	})
}

// Converted returns what the image says of itself.
func (s *Scanned) Converted(ctx context.Context) (*Converted, error) {
	e, err := s.open(ctx)
	if err != nil {
		return nil, &Damage{PartMeasurement, err}
	}
	c, err := newConverted(s.Image, s.Places, e, s.Files)
	if err != nil {
		return nil, err
	}
	if s.Bundle != nil {
		c.runtime = s.Bundle.Layer.DiffID
	}
	c.LayerDigests = s.Image.LayerDigests()
	if s.Tree == nil {
		return c, nil
	}
	c.top = s.Indexes[len(s.Indexes)-1].DiffID
	for _, x := range s.Indexes {
		c.archives = append(c.archives, x.DiffID)
	}
	for i, f := range c.Trusted {
		if n, _, err := s.Tree.Resolve(strings.TrimPrefix(f.URI, "file:")); err == nil {
			c.Trusted[i].Layer, c.Trusted[i].Size = n.Layer+1, n.Size
		}
	}
	return c, nil
}

// Steering names the annotations by which an image is run otherwise than others, and what its manifest says of
// other images.
func Steering(img *image.Image) (problems []string, err error) {
	steering, err := img.Steering()
	if err != nil {
		return nil, err
	}
	if len(steering) > 0 {
		problems = append(problems,
			"the manifest has annotations by which engines run it otherwise: "+strings.Join(steering, ", "))
	}
	others, err := img.OtherKeys()
	if len(others) > 0 {
		problems = append(problems,
			"the manifest has keys by which registries attach it to another image: "+strings.Join(others, ", "))
	}
	return problems, err
}
