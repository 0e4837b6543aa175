package convert

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/manifest"
)

// ErrNotOurs says that this program did not make an image.
var ErrNotOurs = errors.New("the image was not made by cconvert")

// OpenEnclave reads the enclave of a converted image, to be signed for the first time, or by another key: it is what
// Prepare returned when the image was made. The topmost layer is read, and no other. What is to be signed is what the
// manifest in it gives for the measurement that it claims, which is not computed: the image may lie about that. The
// image stays open until the caller closes it.
func OpenEnclave(ctx context.Context, img *image.Image, backends []libos.Backend) (*Prepared, error) {
	files, err := topFiles(ctx, img)
	if err != nil {
		return nil, err
	}
	c, err := readConversion(img, files)
	if err != nil {
		return nil, err
	}
	now, err := sigStructOf(files)
	if err != nil {
		return nil, err
	}
	kind := "gramine"
	if c.Simulated {
		kind = "sim"
	}
	i := slices.IndexFunc(backends, func(b libos.Backend) bool { return b.Kind() == kind })
	if i < 0 || c.Recipe.Runtime.Kind != kind {
		return nil, fmt.Errorf("%w: its recipe speaks of the runtime %q, and its manifest of another one", ErrNotOurs,
			c.Recipe.Runtime.Kind)
	}
	c.unsigned, err = backends[i].SigStruct(c.Recipe.Runtime.Layout, c.Manifest, now.MREnclave, now.Date)
	if err != nil {
		return nil, err
	}
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
				Kind: kind, Version: c.Recipe.Runtime.Version, Digest: c.Recipe.Runtime.Digest,
				Source: "the converted image",
			},
			EnclaveSize: c.enclave.EnclaveSize, MaxThreads: c.enclave.MaxThreads, EDMM: c.enclave.EDMM,
			Trust: c.Recipe.Options.Trust, HostArgs: c.Recipe.Options.HostArgs, ManifestSize: len(c.Manifest),
			Findings: []finding.Finding{},
		},
	}, nil
}

// readConversion reads what the files of an image's topmost layer say, but for the SIGSTRUCT.
func readConversion(img *image.Image, files []libos.File) (*Conversion, error) {
	recipe, text := contentOf(files, libos.RecipePath), contentOf(files, libos.ManifestPath)
	if recipe == nil || text == nil {
		return nil, fmt.Errorf("%w: its layer on top has no recipe and manifest", ErrNotOurs)
	}
	c := &Conversion{
		Manifest: text,
		files: slices.DeleteFunc(slices.Clone(files), func(f libos.File) bool {
			return f.Path == libos.SigPath || f.Path == libos.UnsignedPath
		}),
		config: func() (map[string]json.RawMessage, error) { return withoutTop(img.Config, len(img.Layers)) },
	}
	var err error
	if c.Recipe, err = ParseRecipe(recipe); err != nil {
		return nil, fmt.Errorf("reading %s: %w", libos.RecipePath, err)
	}
	if _, err := manifest.Parse(text); err != nil {
		return nil, err
	}
	if c.enclave, err = manifest.ReadSGX(text); err != nil {
		return nil, err
	}
	var m struct {
		Loader struct {
			Entrypoint struct {
				URI string `toml:"uri"`
			} `toml:"entrypoint"`
		} `toml:"loader"`
	}
	if err := toml.Unmarshal(text, &m); err != nil {
		return nil, fmt.Errorf("reading the manifest: %w", err)
	}
	c.Simulated = strings.HasPrefix(m.Loader.Entrypoint.URI, "file:"+libos.Root+"/sim/")
	if c.base, err = img.Below(1); err != nil {
		return nil, err
	}
	return c, nil
}
