package deploy

import (
	"context"
	"errors"
	"fmt"

	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
	"github.com/cconvert/cconvert/pkg/image/store"
	"github.com/cconvert/cconvert/pkg/inspect"
)

// Names say under which name the result of a conversion is, as for "cconvert convert".
type Names struct {
	Suffix, Repo string
	Insecure     bool // registries are spoken to by HTTP
}

// InRegistry returns a Finder that looks for counterparts where conversions put them.
func InRegistry(ctx context.Context, names Names, o registry.Options, reading inspect.Options) Finder {
	type answer struct {
		c      *Counterpart
		reason string
		err    error
	}
	known := map[string]answer{}
	return func(name string) (*Counterpart, string, error) {
		a, ok := known[name]
		if !ok {
			a.c, a.reason, a.err = names.find(ctx, name, o, reading)
			known[name] = a
		}
		return a.c, a.reason, a.err
	}
}

func (n Names) find(
	ctx context.Context, name string, o registry.Options, reading inspect.Options,
) (*Counterpart, string, error) {
	ref, err := image.ParseReference(name, n.Insecure)
	if err != nil {
		return nil, err.Error(), nil
	}
	if ref.Transport != image.Registry {
		return nil, "only from a registry can an image be started elsewhere", nil
	}
	source, err := store.Open(ctx, ref, o)
	if err == nil {
		defer source.Close()
		c, err := inspect.Read(ctx, source, reading)
		if err == nil {
			return counterpart(source, c), "", nil
		}
		if !errors.Is(err, inspect.ErrNotConverted) {
			return nil, "", fmt.Errorf("%s: %w", ref, err)
		}
	} else if !errors.Is(err, image.ErrNotFound) {
		return nil, "", err
	}
	target, err := ref.Target(n.Suffix, n.Repo, n.Insecure)
	if err != nil {
		return nil, err.Error(), nil
	}
	img, err := store.Open(ctx, target, o)
	if errors.Is(err, image.ErrNotFound) {
		return nil, fmt.Sprintf("there is no %s. \"cconvert %s\" makes it", target, ref), nil
	}
	if err != nil {
		return nil, "", err
	}
	defer img.Close()
	c, err := inspect.Read(ctx, img, reading)
	if errors.Is(err, inspect.ErrNotConverted) {
		return nil, fmt.Sprintf("%s was not converted", target), nil
	}
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", target, err)
	}
	found := counterpart(img, c)
	switch {
	case c.Recipe == nil:
		found.Notice = fmt.Sprintf("of which image %s was made is not known", target)
	case source == nil:
		found.Notice = fmt.Sprintf("%s is not there: whether %s was made of it is not known", ref, target)
	case c.Recipe.Source != source.Digest:
		found.Notice = fmt.Sprintf("%s was made of another image than %s is now (%s): convert again", target, ref,
			c.Recipe.Source)
	}
	return found, "", nil
}

func counterpart(img *image.Image, c *inspect.Converted) *Counterpart {
	return &Counterpart{Image: img.Ref.Name.Context().Name() + "@" + img.Digest, Converted: c}
}
