package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"time"

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
		return explain(err)
	}
	return (&list{yield: yield}).pass(pages.HasNext, func() ([]string, error) {
		page, err := pages.Next(ctx)
		if err != nil {
			return nil, explain(err)
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
		return explain(err)
	}
	return (&list{yield: yield}).pass(pages.HasNext, func() ([]string, error) {
		page, err := pages.Next(ctx)
		if err != nil {
			return nil, explain(err)
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
			return fmt.Errorf("%w: after %d pages: %s", errNoDocument, l.pages, err.Error())
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

// Found is an image whose digest is known, and which can be opened without asking for that again.
type Found struct {
	// Digest is what Image.Digest will be.
	Digest string
	open   func(context.Context) (*Image, error)
}

// Open opens the image.
func (f *Found) Open(ctx context.Context) (*Image, error) { return f.open(ctx) }

// Find asks for the digest of the image for linux/amd64 that a reference has now. In a registry that is one request,
// which opening it does not repeat.
func Find(ctx context.Context, ref Reference, o Options) (*Found, error) {
	f := &Found{open: func(ctx context.Context) (*Image, error) { return Open(ctx, ref, o) }}
	if ref.Transport != Registry {
		img, err := Open(ctx, ref, o)
		if err != nil {
			return nil, err
		}
		f.Digest = img.Digest
		return f, img.Close()
	}
	fail := func(err error) (*Found, error) { return nil, fmt.Errorf("opening %s: %w", ref, err) }
	repo := ref.Name.Context()
	s, err := connect(ctx, repo, []string{repo.Scope(transport.PullScope)}, o, nil)
	if err != nil {
		return fail(err)
	}
	d, err := s.get(ctx, ref.Name, o)
	if err != nil {
		return fail(err)
	}
	f.Digest = d.Digest.String()
	f.open = func(ctx context.Context) (*Image, error) {
		img, err := s.openFrom(ctx, ref, d, o)
		if err != nil {
			return nil, fmt.Errorf("opening %s: %w", ref, err)
		}
		return checkPlatform(img)
	}
	if !d.MediaType.IsIndex() {
		return f, nil
	}
	list, err := readIndex(d.Manifest)
	if err != nil {
		return fail(err)
	}
	chosen, _, err := choose(list.Manifests)
	if err != nil {
		return fail(err)
	}
	f.Digest = chosen.Digest.String()
	if chosen.MediaType.IsIndex() { // an index in an index is rare: it is opened twice
		img, err := f.open(ctx)
		if err != nil {
			return nil, err
		}
		f.Digest = img.Digest
	}
	return f, nil
}

// At asks a registry which digest a tag has, of whatever kind; it is empty if the tag is not there.
func At(ctx context.Context, ref Reference, o Options) (string, error) {
	repo := ref.Name.Context()
	s, err := connect(ctx, repo, []string{repo.Scope(transport.PullScope)}, o, nil)
	if err != nil {
		return "", err
	}
	return s.at(ctx, ref.Name)
}

// Created returns when an image was made, as its configuration says. That it does not say so is an error, and so is a
// time by which builders say nothing, such as the year 1 or 1970.
func (img *Image) Created() (time.Time, error) {
	var c struct {
		Created *time.Time `json:"created"`
	}
	if err := json.Unmarshal(img.Config, &c); err != nil {
		return time.Time{}, fmt.Errorf("reading when the image was made: %w", err)
	}
	if c.Created == nil || c.Created.Year() < 2000 { // zero values of builders
		return time.Time{}, errors.New("the image does not say when it was made")
	}
	return *c.Created, nil
}
