// Package store finds images wherever they are, and stores them wherever they shall be: in a registry, an OCI layout,
// an archive of "docker save", or a Docker daemon.
//
// [Open] resolves a reference to one image for linux/amd64, whose layers are streams. [image.Append] puts layers on top
// of it, and [Write] stores the outcome. Layers that the target has already are not sent, and a tag is moved only when
// everything that it names is there.
package store

import (
	"context"

	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/local"
	"github.com/cconvert/cconvert/pkg/image/registry"
)

// Open finds an image.
func Open(ctx context.Context, ref image.Reference, o registry.Options) (*image.Image, error) {
	if ref.Transport == image.Registry {
		return registry.Open(ctx, ref, o)
	}
	return local.Open(ctx, ref)
}

// Find asks for the digest of the image for linux/amd64 that a reference has now. In a registry that is one request,
// which opening the image does not repeat.
func Find(ctx context.Context, ref image.Reference, o registry.Options) (*image.Found, error) {
	if ref.Transport == image.Registry {
		return registry.Find(ctx, ref, o)
	}
	img, err := local.Open(ctx, ref)
	if err != nil {
		return nil, err
	}
	open := func(ctx context.Context) (*image.Image, error) { return local.Open(ctx, ref) }
	return &image.Found{Digest: img.Digest, Open: open}, img.Close()
}

// NewUpload begins to store an image. The upload must be closed.
func NewUpload(ctx context.Context, to image.Reference, o registry.Options) image.Upload {
	if to.Transport == image.Registry {
		return registry.NewUpload(ctx, to, o)
	}
	return local.NewUpload(ctx, to, o.BeforeTag)
}

// Write stores an image.
func Write(ctx context.Context, to image.Reference, img *image.Output, o registry.Options) error {
	u := NewUpload(ctx, to, o)
	defer u.Close()
	return u.Write(img)
}
