package convert

import (
	"context"
	"fmt"

	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/recipe"
	"github.com/cconvert/cconvert/pkg/rootfs"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// Recorded returns the decisions as an output records them.
func (c Options) Recorded() recipe.Options { return recipe.Record(c.Launch, c.Enclave, c.Date) }

// Identity is the one of a conversion by these options, of a source and with a runtime of these digests.
func (c Options) Identity(source, runtime string, signer sgx.Measurement) string {
	r := recipe.Recipe{
		Epoch: recipe.FormatEpoch, Source: source, Platform: recipe.Platform, Options: c.Recorded(), Overlay: c.Overlay,
	}
	r.Runtime.Digest = runtime
	return r.Identity(signer)
}

// optionsOf are those of a conversion by the recipe.
func optionsOf(r recipe.Recipe, backend libos.Backend) (Options, error) {
	o := Options{Backend: backend, Overlay: r.Overlay}
	if r.Epoch != recipe.FormatEpoch {
		return o, fmt.Errorf("the image is of the format epoch %d, and this version makes images of %d: %w", r.Epoch,
			recipe.FormatEpoch, recipe.ErrEpoch)
	}
	if r.Options.Date != "" {
		date, err := sgx.ParseDate(r.Options.Date)
		if err != nil {
			return o, err
		}
		o.Date = &date
	}
	if r.Overlay != "" {
		if err := backend.CheckOverlay("the recipe's manifest", r.Overlay); err != nil {
			return o, err
		}
	}
	var err error
	if o.Launch, o.Enclave, err = r.Options.Decisions(); err == nil {
		err = o.check()
	}
	return o, err
}

// Repeat does what Prepare did when an image was made: from what the image itself holds, its recipe, the
// files below the added layers, its configuration and the runtime. Nothing is measured. The error is ErrEpoch for an
// image of another version.
func Repeat(
	ctx context.Context, r recipe.Recipe, backend libos.Backend, bundle *libos.Bundle, tree *rootfs.Tree,
	img *image.Image,
) (*Conversion, error) {
	o, err := optionsOf(r, backend)
	if err != nil {
		return nil, err
	}
	o.Source = image.Reference{Transport: image.OCILayout, Path: "the image that was converted"} // for messages
	source, err := img.Below(min(backend.Layers(), len(img.Layers)))
	if err != nil {
		return nil, err
	}
	source.Digest = r.Source
	if source.Config, err = r.ConfigBefore(img.Config, backend.Layers()); err != nil {
		return nil, err
	}
	runtime := func() (*libos.Bundle, error) { return bundle, nil }
	s, err := seal(ctx, o, source, launch.Examine(ctx, tree), runtime)
	if err != nil {
		return nil, err
	}
	return &s.Conversion, nil
}

// Again returns the options with which Prepare makes the image of a recipe again, from a source and a runtime.
func Again(r recipe.Recipe, source image.Reference, backend libos.Backend) (Options, error) {
	o, err := optionsOf(r, backend)
	o.Source = source
	return o, err
}
