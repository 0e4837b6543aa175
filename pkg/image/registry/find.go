package registry

import (
	"context"

	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/internal/document"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// Find asks for the digest of the image for linux/amd64 that a reference has now. That is one request, which
// opening the image does not repeat.
func Find(ctx context.Context, ref image.Reference, o Options) (*image.Found, error) {
	fail := func(err error) (*image.Found, error) { return nil, &image.OpenError{Ref: ref, Err: err} }
	repo := ref.Name.Context()
	s, err := connect(ctx, repo, []string{repo.Scope(transport.PullScope)}, o, nil)
	if err != nil {
		return fail(err)
	}
	d, err := s.get(ctx, ref.Name, o)
	if err != nil {
		return fail(err)
	}
	f := &image.Found{Digest: d.Digest.String(), Open: func(ctx context.Context) (*image.Image, error) {
		return s.openFrom(ctx, ref, d, o)
	}}
	if !d.MediaType.IsIndex() {
		return f, nil
	}
	list, err := document.ReadIndex(d.Manifest)
	if err != nil {
		return fail(err)
	}
	chosen, _, err := document.Choose(list.Manifests)
	if err != nil {
		return fail(err)
	}
	f.Digest = chosen.Digest.String()
	if chosen.MediaType.IsIndex() { // an index in an index is rare: it is opened twice
		img, err := f.Open(ctx)
		if err != nil {
			return nil, err
		}
		f.Digest = img.Digest
	}
	return f, nil
}
