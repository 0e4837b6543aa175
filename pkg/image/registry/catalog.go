package registry

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/internal/roundtrip"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// Repositories lists what a registry holds (distribution's "Listing Repositories", which not all registries offer). An
// error is the last of the list. It is ErrTooMany if the registry does not come to an end.
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
	return (&list{yield: yield}).pass(pages.HasNext, func() ([]string, error) {
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
	return (&list{yield: yield}).pass(pages.HasNext, func() ([]string, error) {
		page, err := pages.Next(ctx)
		if err != nil {
			return nil, roundtrip.Explain(err)
		}
		return page.Tags, nil
	})
}

// maxListed is how many names and pages a list may have, and maxListedBytes how long the names may be together.
// Registries limit a repository to some 100,000 images.
const (
	maxListed      = 1 << 20
	maxListedBytes = 64 << 20
)

// ErrTooMany says that a list is longer than is read.
var ErrTooMany = errors.New("there are too many")

// list is one whose end only the registry knows. It is passed on page by page, so that none is in memory as a whole.
type list struct {
	yield              func(string, error) bool
	names, pages, size int
}

func (l *list) pass(more func() bool, next func() ([]string, error)) error {
	for more() {
		page, err := next()
		if err != nil && l.pages > 0 { // such as "not found", of what was found just now
			return fmt.Errorf("%w: after %d pages: %s", image.ErrNoDocument, l.pages, err.Error())
		}
		if err != nil {
			return err
		}
		l.names, l.pages = l.names+len(page), l.pages+1
		for _, s := range page {
			l.size += len(s)
		}
		if l.names > maxListed || l.pages > maxListed || l.size > maxListedBytes {
			return fmt.Errorf("%w: the list is longer than %d names or %d bytes", ErrTooMany, maxListed, maxListedBytes)
		}
		for _, s := range page {
			if !l.yield(s, nil) {
				return nil
			}
		}
	}
	return nil
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
