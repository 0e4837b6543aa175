package convert

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/recipe"
	"github.com/cconvert/cconvert/pkg/sbom"
)

// ErrNotOurs says that this program did not make an image.
var ErrNotOurs = errors.New("the image was not made by cconvert")

// OpenEnclave reads the enclave of a converted image, to be signed for the first time, or by another key: it is what
// Prepare returned when the image was made. The topmost layer is read, and no other. What is to be signed follows from
// the manifest in it and the measurement that it claims, which is not computed: the image may lie about that. The image
// stays open until the caller closes it.
func OpenEnclave(ctx context.Context, img *image.Image, backends []libos.Backend) (*Prepared, error) {
	files, err := topFiles(ctx, img)
	if err != nil {
		return nil, err
	}
	c, err := readConversion(img, files)
	if err != nil {
		return nil, err
	}
	now, err := libos.SigStructOf(files)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(backends, func(b libos.Backend) bool { return b.Kind() == c.Recipe.Runtime.Kind })
	if i < 0 {
		return nil, fmt.Errorf("%w: its recipe speaks of the runtime %q", ErrNotOurs, c.Recipe.Runtime.Kind)
	}
	e, err := backends[i].Open(libos.Stored{Layout: c.Recipe.Runtime.Layout, Files: libos.ByPath(files)})
	if err != nil {
		return nil, err
	}
	if e.Kind != c.Recipe.Runtime.Kind {
		return nil, fmt.Errorf("%w: its recipe speaks of the runtime %q, and its manifest of another one", ErrNotOurs,
			c.Recipe.Runtime.Kind)
	}
	if e.SigStruct == nil {
		return nil, e.LayoutError
	}
	c.Manifest, c.Simulated, c.settings = e.Manifest, e.Simulated, e.Settings
	c.listed = func(ctx context.Context) ([]sbom.Layer, error) {
		return readAdded(ctx, c.base, c.Recipe, c.Recipe.Added(backends[i])-1)
	}
	c.unsigned = e.SigStruct(now.MREnclave, now.Date)
	if !bytes.Equal(now.ToBeSigned(), c.unsigned.ToBeSigned()) || now.Date.String() != c.Recipe.Date {
		return nil, errors.New("the signature structure says something else than the manifest and the recipe: " +
			"attributes, masks, product, version or date")
	}
	if _, err := c.Config(now); err != nil { // before anybody is asked to sign
		return nil, err
	}
	return &Prepared{
		Conversion: *c, SigStruct: c.unsigned, Now: now, observer: nobody{}, watch: startWatch(),
		result: Result{
			Runtime: Runtime{
				Kind: c.Recipe.Runtime.Kind, Version: c.Recipe.Runtime.Version, Digest: c.Recipe.Runtime.Digest,
				Source: "the converted image",
			},
			EnclaveSize: c.settings.EnclaveSize, MaxThreads: c.settings.MaxThreads, EDMM: c.settings.EDMM,
			Trust: c.Recipe.Options.Trust, HostArgs: c.Recipe.Options.HostArgs, ManifestSize: len(c.Manifest),
			Findings: []finding.Finding{},
		},
	}, nil
}

// readConversion reads what this program says in the files of an image's topmost layer.
func readConversion(img *image.Image, files []libos.File) (*Conversion, error) {
	text := libos.ContentOf(files, libos.RecipePath)
	if text == nil {
		return nil, fmt.Errorf("%w: its layer on top has no recipe", ErrNotOurs)
	}
	c := &Conversion{
		files: slices.DeleteFunc(slices.Clone(files), func(f libos.File) bool {
			return f.Path == libos.SigPath || f.Path == libos.UnsignedPath
		}),
		config: func() (map[string]json.RawMessage, error) { return recipe.WithoutTop(img.Config, len(img.Layers)) },
	}
	var err error
	if c.Recipe, err = recipe.Parse(text); err != nil {
		return nil, fmt.Errorf("reading %s: %w", libos.RecipePath, err)
	}
	c.base, err = img.Below(1)
	return c, err
}
