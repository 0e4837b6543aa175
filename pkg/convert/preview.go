package convert

import (
	"context"
	"crypto/rsa"

	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// Preview returns what Run would tell, and stores nothing. Unchanged reports whether the target has the image already,
// with all that is to be attached to it, and what is to be copied with it; only of registries is that known. An image
// that Run would not replace is the same error.
func Preview(ctx context.Context, o Options, signer sgx.Signer) (_ *Result, unchanged bool, err error) {
	to := *o.Target
	if err := o.Check(o.Source, to); err != nil {
		return nil, false, err
	}
	o.Target = nil // else the upload begins before the image is known
	p, err := Prepare(ctx, o)
	if err != nil {
		return nil, false, err
	}
	defer p.Close()
	var public *rsa.PublicKey
	var signature []byte
	if signer != nil {
		if public, signature, err = Sign(ctx, p, signer); err != nil {
			return nil, false, err
		}
		if err := p.acceptable(public); err != nil {
			return nil, false, err
		}
	}
	signed, out, err := p.complete(public, signature)
	if err != nil {
		return nil, false, err
	}
	if to.Transport == image.Registry {
		at := openDestination(ctx, to, o.Image)
		defer at.close()
		if err := at.check(signed, o.StoreOptions); err != nil {
			return nil, false, err
		}
		if unchanged, err = p.unchanged(ctx, signed, out, to, o.StoreOptions); err != nil {
			return nil, false, err
		}
	}
	return p.told(signed, out, to, p.findings), unchanged, nil
}

// unchanged reports whether nothing is left to do for a registry that may have the image already.
func (p *Prepared) unchanged(
	ctx context.Context, signed *sgx.SigStruct, out *image.Output, to image.Reference, o StoreOptions,
) (bool, error) {
	missing := false
	if o.CopyReferrers {
		var list []registry.Carried
		var err error
		repo, withImage := to.Name.Context(), p.Recipe.Options.Encrypt == nil
		if list, missing, err = registry.LookAtReferrers(ctx, p.base, repo, withImage, o.Image); err != nil {
			return false, err
		}
		if err := o.Gate.Pass(KeptTags(list)); err != nil {
			return false, err
		}
	}
	now, err := registry.At(ctx, to, o.Image)
	if missing || err != nil || now != out.Digest {
		return false, nil //nolint:nilerr // Run tells what is wrong with the target
	}
	if err := p.addEvidence(ctx, signed, out, to, o); err != nil {
		return false, err
	}
	return registry.HasEvidence(ctx, to.Name.Context(), out, o.Image), nil
}
