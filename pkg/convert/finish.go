package convert

import (
	"context"
	"crypto/rsa"
	"errors"
	"fmt"
	"slices"

	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/sbom"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// StoreOptions say how a result is stored.
type StoreOptions struct {
	// Image says how images are fetched and stored.
	Image registry.Options
	// Evidence is attached to the result in registries; nil: nothing is.
	Evidence *Evidence
	// AllowRollback lets it replace an image with a higher security version number, ReplaceSigner one that another key
	// has signed.
	AllowRollback, ReplaceSigner bool
	// CopyReferrers copies to the target's repository what refers to the source of a conversion; both are in
	// registries.
	CopyReferrers bool
	// Gate decides which findings stop a conversion before anything is stored.
	Gate Gate
}

// ErrNotInRegistry says that something is to be attached to an image, and that it is not in a registry.
var ErrNotInRegistry = errors.New("only images in registries have something attached")

// ErrReferrersTag says that a result would have a tag under which registries, or cosign, keep what refers to an image.
var ErrReferrersTag = errors.New("registries keep under such a tag what refers to an image: whoever attaches " +
	"something to that image would replace the result")

// Check reports whether what is asked for can be done for a result of an image that goes to a place.
func (o StoreOptions) Check(source, to image.Reference) error {
	if o.Evidence != nil && o.Evidence.Required && to.Transport != image.Registry {
		return fmt.Errorf("statements are to be attached to %s: %w", to, ErrNotInRegistry)
	}
	if to.Transport == image.Registry && image.IsReferrersTag(to.Name.Identifier()) {
		return fmt.Errorf("%s: %w", to, ErrReferrersTag)
	}
	for _, ref := range []image.Reference{source, to} {
		if o.CopyReferrers && ref.Transport != image.Registry {
			return fmt.Errorf("what refers to %s is to be copied to %s: %w", source, to, ErrNotInRegistry)
		}
	}
	return nil
}

// Finish completes the image with a signature over ToBeSigned by the key, and stores it. Without a key the image is
// one to be signed later, see OpenEnclave. The same conversion, signed at once, later or again, has the same digest. A
// registry that refuses evidence which is not required is a finding of the result.
func Finish(
	ctx context.Context, p *Prepared, key *rsa.PublicKey, signature []byte, to image.Reference, o StoreOptions,
) (*Result, error) {
	if key != nil {
		if err := p.acceptable(key); err != nil {
			return nil, err
		}
	}
	if err := o.Check(p.base.Ref, to); err != nil {
		return nil, err
	}
	p.watch.lap("sign")
	p.observer.Stage("putting the image together")
	signed, out, err := p.complete(key, signature)
	if err != nil {
		return nil, err
	}
	if err := p.addEvidence(ctx, signed, out, to, o); err != nil {
		return nil, err
	}
	p.observer.Stage("writing " + to.String())
	at := p.begun
	if at == nil || !p.target.Same(to) {
		if at != nil {
			at.close()
		}
		at = openDestination(ctx, to, o.Image)
		defer at.close()
	}
	if err := at.check(signed, o); err != nil {
		return nil, err
	}
	findings := slices.Clone(p.findings)
	err = at.upload.Write(out)
	if errors.Is(err, image.ErrEvidence) {
		out.Evidence = nil
		findings = append(findings,
			finding.New(finding.EvidenceRefused, finding.Warning, to.String(), err.Error()))
		err = nil
	}
	if err != nil {
		return nil, err
	}
	r := p.told(signed, out, to, findings)
	if o.CopyReferrers {
		p.observer.Stage("copying what refers to the source")
		if r.Referrers, err = p.copyReferrers(ctx, to, o.Image); err == nil {
			kept := KeptTags(r.Referrers)
			r.Findings = append(r.Findings, kept...)
			err = o.Gate.passStored(kept)
		}
		if err == nil {
			err = p.stillThere(ctx, to, out.Digest, o.Image)
		}
		if err != nil {
			return nil, fmt.Errorf("%s is stored, but not all that refers to its source: %w", r.Output.Ref, err)
		}
	}
	p.watch.lap("write")
	r.Timings = p.watch.all()
	return r, nil
}

// EvidenceNeeded reports whether an image is not to be stored in a registry without its evidence: it was asked for, or
// that the registry refuses it would stop the conversion.
func (o StoreOptions) EvidenceNeeded() bool {
	if o.Evidence == nil {
		return false
	}
	refused := finding.New(finding.EvidenceRefused, finding.Warning, "", "")
	return o.Evidence.Required || o.Gate.Pass([]finding.Finding{refused}) != nil
}

// addEvidence makes what is to be attached to an image that goes to a registry.
func (p *Prepared) addEvidence(
	ctx context.Context, signed *sgx.SigStruct, out *image.Output, to image.Reference, o StoreOptions,
) error {
	if o.Evidence == nil || to.Transport != image.Registry {
		return nil
	}
	identity, err := p.identity(ctx, signed, o.Evidence)
	if err != nil {
		return err
	}
	name := to.Name.Context().Name()
	bill := func() (sbom.Bill, error) { return p.bill(ctx, signed, out, name) }
	out.EvidenceOptional = !o.EvidenceNeeded()
	out.Evidence, err = o.Evidence.about(ctx, identity, bill, out, name)
	return err
}

// copyReferrers copies what refers to the source, and the source's manifest, so that the copies refer to something. The
// target has its layers, unless files in them are encrypted.
func (p *Prepared) copyReferrers(ctx context.Context, to image.Reference, o registry.Options) (
	[]registry.Carried, error,
) {
	return registry.CopyReferrers(ctx, p.base, to.Name.Context(), p.Recipe.Options.Encrypt == nil, o)
}

// stillThere reports by ErrMoved that a tag has something else than was stored under it, after more was stored in the
// repository.
func (p *Prepared) stillThere(ctx context.Context, to image.Reference, digest string, o registry.Options) error {
	now, err := registry.At(ctx, to, o)
	if err == nil && now != digest {
		err = fmt.Errorf("%w: %s has %s", image.ErrMoved, to, now)
	}
	return err
}

// KeptTags tells of tags that have something else in the target's repository.
func KeptTags(list []registry.Carried) (findings []finding.Finding) {
	for _, c := range list {
		if c.Kept {
			findings = append(findings, finding.New(finding.ReferrerKept, finding.Warning, c.Tag,
				"the tag has something else in the target's repository, which was left there: what refers to the "+
					"source by it is not copied"))
		}
	}
	return findings
}

// Complete puts the image together with a signature over ToBeSigned by the key, without storing it. Without a key it
// lacks the signature.
func (p *Prepared) Complete(key *rsa.PublicKey, signature []byte) (*image.Output, error) {
	_, out, err := p.complete(key, signature)
	return out, err
}

func (p *Prepared) complete(key *rsa.PublicKey, signature []byte) (*sgx.SigStruct, *image.Output, error) {
	signed := *p.SigStruct
	if key != nil {
		if err := signed.Attach(key, signature); err != nil {
			return nil, nil, err
		}
	}
	layer := p.packing
	p.packing = nil
	if layer == nil { // it was completed before, or never begun
		var err error
		if layer, err = libos.PackEnclave(p.files); err != nil {
			return nil, nil, err
		}
	}
	enclave, err := layer.Complete(&signed)
	if err != nil {
		return nil, nil, err
	}
	config, err := p.Config(&signed)
	if err != nil {
		return nil, nil, err
	}
	out, err := image.Append(p.base, config, append(slices.Clone(p.below), enclave))
	if err != nil {
		return nil, nil, fmt.Errorf("putting the image together: %w", err)
	}
	return &signed, out, nil
}

// told is what is told of a result that was stored.
func (p *Prepared) told(
	s *sgx.SigStruct, out *image.Output, to image.Reference, findings []finding.Finding,
) *Result {
	r := p.result
	r.Source, r.Target = p.base.Ref.String(), to.String()
	r.Output.Ref, r.Output.Digest = out.Name(to)
	r.Output.AddedBytes = out.Added
	r.MREnclave, r.MRSigner, r.ISVProdID, r.ISVSVN = s.MREnclave, s.MRSigner(), s.ISVProdID, s.ISVSVN
	r.DebugEnclave, r.Findings = s.Debug(), append([]finding.Finding{}, findings...)
	for _, a := range out.Evidence {
		r.Output.Attached = append(r.Output.Attached, a.Digest)
	}
	r.Timings = p.watch.all()
	return &r
}
