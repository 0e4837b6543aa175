package convert

import (
	"context"
	"crypto/rsa"

	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// Preview returns what Run would tell, and stores nothing. Unchanged reports whether the target has the image already;
// only of registries is that known. An image that Run would not replace is the same error.
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
		now, err := registry.At(ctx, to, o.Image)
		unchanged = err == nil && now == out.Digest
	}
	return p.told(signed, out, to, p.findings), unchanged, nil
}
