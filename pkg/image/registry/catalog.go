package registry

import (
	"context"
	"fmt"
	"iter"

	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/internal/roundtrip"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// Repositories lists what a registry holds (distribution's "Listing Repositories", which not all registries offer). An
// error is the last of the list. It is image.ErrTooMany if the registry does not come to an end.
func Repositories(ctx context.Context, registry name.Registry, o Options) iter.Seq2[string, error] {
	return passed("the repositories of "+registry.RegistryStr(), func(yield func(string, error) bool) error {
		return repositories(ctx, registry, o, yield)
	})
}

func repositories(ctx context.Context, registry name.Registry, o Options, yield func(string, error) bool) error {
	s, err := connect(ctx, registry.Repo(""), []string{registry.Scope(transport.CatalogScope)}, o, nil)
	if err != nil {
		return err
	}
	var pages *remote.Catalogger
	puller, err := remote.NewPuller(s.options(ctx, o)...)
	if err == nil {
		pages, err = puller.Catalogger(ctx, registry)
	}
	if err != nil {
		return roundtrip.Explain(err)
	}
	return roundtrip.Pages(yield, pages.HasNext, func() ([]string, error) {
		page, err := pages.Next(ctx)
		if err != nil {
			return nil, roundtrip.Explain(err)
		}
		return page.Repos, nil
	})
}

// Tags lists a repository's tags (OCI distribution specification, "Listing Tags"), as Repositories does.
func Tags(ctx context.Context, repo name.Repository, o Options) iter.Seq2[string, error] {
	return passed("the tags of "+repo.Name(), func(yield func(string, error) bool) error {
		return tags(ctx, repo, o, yield)
	})
}

// passed returns a list as an iterator, of which an error is the last element.
func passed(what string, each func(yield func(string, error) bool) error) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		if err := each(yield); err != nil {
			yield("", fmt.Errorf("listing %s: %w", what, err))
		}
	}
}

func tags(ctx context.Context, repo name.Repository, o Options, yield func(string, error) bool) error {
	s, err := connect(ctx, repo, []string{repo.Scope(transport.PullScope)}, o, nil)
	if err != nil {
		return err
	}
	var pages *remote.Lister
	puller, err := remote.NewPuller(s.options(ctx, o)...)
	if err == nil {
		pages, err = puller.Lister(ctx, repo)
	}
	if err != nil {
		return roundtrip.Explain(err)
	}
	return roundtrip.Pages(yield, pages.HasNext, func() ([]string, error) {
		page, err := pages.Next(ctx)
		if err != nil {
			return nil, roundtrip.Explain(err)
		}
		return page.Tags, nil
	})
}

// At asks a registry which digest a tag has, of whatever kind; it is empty if the tag is not there.
func At(ctx context.Context, ref image.Reference, o Options) (string, error) {
	repo := ref.Name.Context()
	s, err := connect(ctx, repo, []string{repo.Scope(transport.PullScope)}, o, nil)
	if err != nil {
		return "", err
	}
	return s.at(ctx, ref.Name)
}
