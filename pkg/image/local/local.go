// Package local reads and writes images on this machine: in OCI layouts, in archives of layouts and of "docker save",
// and in a Docker daemon.
package local

import (
	"context"
	"errors"
	"fmt"

	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/internal/document"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Open finds an image.
func Open(ctx context.Context, ref image.Reference) (img *image.Image, err error) {
	switch ref.Transport {
	case image.OCILayout:
		img, err = openLayout(ctx, ref)
	case image.OCIArchive:
		img, err = openOCIArchive(ctx, ref)
	case image.DockerArchive:
		img, err = openArchive(ctx, ref)
	case image.DockerDaemon:
		img, err = openDaemon(ctx, ref)
	default:
		err = fmt.Errorf("the transport %q is %w", ref.Transport, image.ErrUnsupported)
	}
	if err != nil {
		return nil, &image.OpenError{Ref: ref, Err: err}
	}
	return document.CheckPlatform(img)
}

// localUpload is an image on its way to a place on this machine.
type upload struct {
	to     image.Reference
	before func(context.Context) error
	ctx    context.Context
	cancel context.CancelFunc
	found  *string // what the name had in the layout if Current was asked, see named
}

// NewUpload begins to store an image. Before is asked right before it is stored; its error keeps the place as it
// is. Nil: nobody is asked.
func NewUpload(ctx context.Context, to image.Reference, before func(context.Context) error) image.Upload {
	u := &upload{to: to, before: before}
	u.ctx, u.cancel = context.WithCancel(ctx)
	return u
}

// Current returns the image that a layout has. Archives are replaced as a whole, and a daemon keeps the image that a
// tag leaves.
func (u *upload) Current() (*image.Image, error) {
	if u.to.Transport != image.OCILayout {
		return nil, nil
	}
	index, err := readLayoutIndex(u.to.Path)
	if err != nil && !errors.Is(err, image.ErrNotFound) {
		return nil, err
	}
	found := u.named(index)
	u.found = &found
	img, err := Open(u.ctx, u.to)
	if image.HoldsNoImage(err) {
		return nil, nil
	}
	return img, err
}

// named returns the digests of what has the tag in a layout's index, which may be nil.
func (u *upload) named(index *v1.IndexManifest) (digests string) {
	if index == nil {
		return ""
	}
	for _, d := range index.Manifests {
		if d.Annotations[annotationRefName] == u.to.Tag {
			digests += d.Digest.String() + " "
		}
	}
	return digests
}

// unmoved reports a tag that has something else than Current returned, whose reader decided by it.
func (u *upload) unmoved(index *v1.IndexManifest) error {
	if now := u.named(index); u.found != nil && now != *u.found {
		return fmt.Errorf("%w: it has %s", image.ErrMoved, now)
	}
	return nil
}

// Begin does nothing: layers are stored with their image.
func (u *upload) Begin(*image.Image, ...image.NewLayer) {}

// Write stores the image.
func (u *upload) Write(img *image.Output) (err error) {
	if u.before != nil {
		if err := u.before(u.ctx); err != nil {
			return err
		}
	}
	switch u.to.Transport {
	case image.OCILayout:
		err = writeLayout(u.ctx, u.to, img, u.unmoved)
	case image.OCIArchive:
		err = writeOCIArchive(u.ctx, u.to, img)
	case image.DockerArchive:
		err = writeArchive(u.ctx, u.to, img)
	case image.DockerDaemon:
		err = writeDaemon(u.ctx, u.to, img)
	default:
		err = fmt.Errorf("the transport %q is %w", u.to.Transport, image.ErrUnsupported)
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", u.to, err)
	}
	return nil
}

// Context ends when the upload is closed.
func (u *upload) Context() context.Context { return u.ctx }

// Close ends what is under way.
func (u *upload) Close() { u.cancel() }
