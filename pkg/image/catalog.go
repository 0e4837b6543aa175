package image

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// Repositories lists what a registry holds (distribution's "Listing Repositories", which not all registries offer).
func Repositories(ctx context.Context, registry name.Registry, o Options) ([]string, error) {
	s, err := connect(ctx, registry.Repo(""), []string{registry.Scope(transport.CatalogScope)}, o, nil)
	if err != nil {
		return nil, err
	}
	var pages *remote.Catalogger
	puller, err := remote.NewPuller(s.options(ctx, o)...)
	if err == nil {
		pages, err = puller.Catalogger(ctx, registry)
	}
	var all list
	for err == nil && pages.HasNext() {
		var page *remote.Catalogs
		if page, err = pages.Next(ctx); err == nil {
			err = all.add(page.Repos)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("listing the repositories of %s: %w", registry.RegistryStr(), explain(err))
	}
	return all.names, nil
}

// Tags lists a repository's tags (OCI distribution specification, "Listing Tags").
func Tags(ctx context.Context, repo name.Repository, o Options) ([]string, error) {
	s, err := connect(ctx, repo, []string{repo.Scope(transport.PullScope)}, o, nil)
	if err != nil {
		return nil, err
	}
	var pages *remote.Lister
	puller, err := remote.NewPuller(s.options(ctx, o)...)
	if err == nil {
		pages, err = puller.Lister(ctx, repo)
	}
	var all list
	for err == nil && pages.HasNext() {
		var page *remote.Tags
		if page, err = pages.Next(ctx); err == nil {
			err = all.add(page.Tags)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("listing the tags of %s: %w", repo.Name(), explain(err))
	}
	return all.names, nil
}

// maxListed is how many names and pages a list may have, and maxListedBytes how long the names may be together.
// Registries limit a repository to some 100,000 images.
const (
	maxListed      = 1 << 20
	maxListedBytes = 64 << 20
)

// list is one whose end only the registry knows.
type list struct {
	names       []string
	pages, size int
}

func (l *list) add(page []string) error {
	l.names, l.pages = append(l.names, page...), l.pages+1
	for _, s := range page {
		l.size += len(s)
	}
	if len(l.names) > maxListed || l.pages > maxListed || l.size > maxListedBytes {
		return fmt.Errorf("%w: the list is longer than %d names or %d bytes", ErrUnsupported, maxListed, maxListedBytes)
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

// At asks a registry which digest a tag has, of whatever kind; empty where there is none.
func At(ctx context.Context, ref Reference, o Options) (string, error) {
	repo := ref.Name.Context()
	s, err := connect(ctx, repo, []string{repo.Scope(transport.PullScope)}, o, nil)
	if err != nil {
		return "", err
	}
	return s.at(ctx, ref.Name.Identifier()), nil
}

// Created is when an image was made, as its configuration says; zero where it does not.
func (img *Image) Created() time.Time {
	var c struct {
		Created time.Time `json:"created"`
	}
	if json.Unmarshal(img.Config, &c) != nil {
		return time.Time{}
	}
	return c.Created
}
