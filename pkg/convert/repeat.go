package convert

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/cconvert/cconvert/pkg/encrypted"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/protectedfs"
	"github.com/cconvert/cconvert/pkg/recipe"
	"github.com/cconvert/cconvert/pkg/rootfs"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// Recorded returns the decisions as an output records them.
func (c Options) Recorded() recipe.Options { return recipe.Record(c.Launch, c.Enclave, c.Date) }

// Identity is the one of a conversion by these options, of a source and with a runtime of these digests.
func (c Options) Identity(source, runtime string, signer sgx.Measurement) (string, error) {
	r := recipe.Recipe{
		Epoch: recipe.FormatEpoch, Source: source, Platform: recipe.Platform, Options: c.Recorded(), Overlay: c.Overlay,
	}
	r.Runtime.Digest = runtime
	if c.Launch.Secrets != nil {
		program, err := c.agentProgram()
		if err != nil {
			return "", err
		}
		r.Agent = fmt.Sprintf("%x", sha256.Sum256(program))
	}
	return r.Identity(signer), nil
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

// Parts are what an image holds of its conversion.
type Parts struct {
	Image   *image.Image
	Recipe  recipe.Recipe
	Backend libos.Backend
	Bundle  *libos.Bundle
	// Agent is what gets secrets; nil: the image has none.
	Agent *libos.Agent
	// Added is how many layers the image has more than its source.
	Added int
	// Tree are the files below the added layers, those that are encrypted as encrypted.List.Describe has them.
	Tree *rootfs.Tree
	// Encrypted is the list of encrypted files, nil if there are none, and Keys those that the manifest has.
	Encrypted *encrypted.List
	Keys      map[string]protectedfs.Key
}

// Repeat does what Prepare did when an image was made, from what the image itself holds. Nothing is measured. The error
// is ErrEpoch for an image of another version.
func Repeat(ctx context.Context, p Parts) (*Conversion, error) {
	o, err := optionsOf(p.Recipe, p.Backend)
	if err != nil {
		return nil, err
	}
	source, err := p.source()
	if err != nil {
		return nil, err
	}
	s, err := p.seal(ctx, o, source)
	if err != nil {
		return nil, err
	}
	return &s.Conversion, nil
}

// source is what the image was made from, without the files that are encrypted.
func (p Parts) source() (*image.Image, error) {
	source, err := p.Image.Below(min(p.Added, len(p.Image.Layers)))
	if err != nil {
		return nil, err
	}
	source.Digest = p.Recipe.Source
	source.Config, err = p.Recipe.ConfigBefore(p.Image.Config, p.Added)
	return source, err
}

// seal is what Prepare does after the source was read, without measuring.
func (p Parts) seal(ctx context.Context, o Options, source *image.Image) (*sealed, error) {
	o.Source = image.Reference{Transport: image.OCILayout, Path: "the image that was converted"} // for messages
	added, err := p.encrypted(&o.Launch.Encrypt)
	if err != nil {
		return nil, err
	}
	runtime := func() (*libos.Bundle, error) { return p.Bundle, nil }
	return seal(ctx, o, source, launch.Examine(ctx, p.Tree), runtime, p.agent, added)
}

// agent is the one in the image, if by the recipe there is one.
func (p Parts) agent() (*libos.Agent, error) {
	switch {
	case p.Recipe.Options.Secrets == nil:
		return nil, nil
	case p.Agent == nil:
		return nil, errors.New("the recipe has an agent, and the image has none")
	}
	return p.Agent, nil
}

// encrypted is what the image's conversion added for encrypted files.
func (p Parts) encrypted(o *launch.Encryption) (*libos.Encrypted, error) {
	if len(o.Paths) == 0 && p.Encrypted == nil {
		return nil, nil
	}
	if len(o.Paths) == 0 || p.Encrypted == nil {
		return nil, fmt.Errorf("%w: recipe and enclave do not agree that there are encrypted files", encrypted.ErrList)
	}
	l := p.Encrypted
	if l.Key != o.Key || l.KeyID != o.KeyID || l.Random != o.Random {
		return nil, fmt.Errorf("%w: the recipe has another key", encrypted.ErrList)
	}
	o.Also = l.Paths()
	text, err := l.Marshal()
	if err != nil {
		return nil, err
	}
	out := &libos.Encrypted{List: text}
	if o.AtStart {
		key, ok := p.Keys[l.Key]
		if !ok || key.ID() != l.KeyID {
			return nil, fmt.Errorf("%w: by the recipe the manifest has the key, and it does not", encrypted.ErrList)
		}
		out.KeyName, out.Key = l.Key, key
	}
	return out, nil
}

// Again returns the options with which Prepare makes the image of a recipe again, from a source and a runtime.
func Again(r recipe.Recipe, source image.Reference, backend libos.Backend) (Options, error) {
	o, err := optionsOf(r, backend)
	o.Source = source
	return o, err
}
