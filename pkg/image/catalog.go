package image

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// Repositories lists what a registry holds (distribution's "Listing Repositories", which not all registries offer).
func Repositories(ctx context.Context, registry name.Registry, o Options) ([]string, error) {
	s, err := connect(ctx, registry.Repo(""), []string{registry.Scope(transport.CatalogScope)}, o, nil)
	if err != nil {
		return nil, err
	}
	list, err := remote.Catalog(ctx, registry, s.options(ctx, o)...)
	if err != nil {
		return nil, fmt.Errorf("listing the repositories of %s: %w", registry.RegistryStr(), explain(err))
	}
	return list, nil
}

// Tags lists a repository's tags (OCI distribution specification, "Listing Tags").
func Tags(ctx context.Context, repo name.Repository, o Options) ([]string, error) {
	s, err := connect(ctx, repo, []string{repo.Scope(transport.PullScope)}, o, nil)
	if err != nil {
		return nil, err
	}
	list, err := remote.List(repo, s.options(ctx, o)...)
	if err != nil {
		return nil, fmt.Errorf("listing the tags of %s: %w", repo.Name(), explain(err))
	}
	return list, nil
}

// Resolve asks for the digest of the image for linux/amd64 that a reference has now: what Image.Digest would be. In a
// registry that is one request.
func Resolve(ctx context.Context, ref Reference, o Options) (string, error) {
	if ref.Transport != Registry {
		img, err := Open(ctx, ref, o)
		if err != nil {
			return "", err
		}
		return img.Digest, img.Close()
	}
	repo := ref.Name.Context()
	s, err := connect(ctx, repo, []string{repo.Scope(transport.PullScope)}, o, nil)
	if err != nil {
		return "", fmt.Errorf("resolving %s: %w", ref, err)
	}
	d, err := s.get(ctx, ref.Name, o)
	if err != nil {
		return "", fmt.Errorf("resolving %s: %w", ref, err)
	}
	if !d.MediaType.IsIndex() {
		return d.Digest.String(), nil
	}
	var list v1.IndexManifest
	if err := cmp.Or(uniqueKeys(d.Manifest), json.Unmarshal(d.Manifest, &list)); err != nil {
		return "", fmt.Errorf("resolving %s: reading the index: %w", ref, err)
	}
	chosen, _, err := choose(list.Manifests)
	if err != nil {
		return "", fmt.Errorf("resolving %s: %w", ref, err)
	}
	if !chosen.MediaType.IsIndex() {
		return chosen.Digest.String(), nil
	}
	img, err := s.open(ctx, ref, o)
	if err != nil {
		return "", fmt.Errorf("resolving %s: %w", ref, err)
	}
	return img.Digest, nil
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
