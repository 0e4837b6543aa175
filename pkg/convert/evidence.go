package convert

import (
	"context"
	"encoding/json"

	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/image"
)

// Evidence says what is attached to the image in a registry.
type Evidence struct {
	// Key signs statements; nil: they are not signed.
	Key *attest.PrivateKey
	// Required fails the conversion where the registry refuses evidence; else that is a finding.
	Required bool
	// Version of this program, for the provenance.
	Version string
}

// evidence states what an image is and how it was made.
func (p *Prepared) evidence(ctx context.Context, out *image.Output, name string) ([]image.Artifact, error) {
	s, e := p.sealed.SigStruct, p.opts.Evidence
	options, err := json.Marshal(recipeOptions(p.opts.Launch))
	if err != nil {
		return nil, err
	}
	findings, err := json.Marshal(p.sealed.Findings)
	if err != nil {
		return nil, err
	}
	from := ""
	if p.source.Ref.Transport == image.Registry { // a path of this machine is nobody's business
		from = p.source.Ref.String()
	}
	source := attest.NewResource(from, p.source.Digest)
	identity := attest.Identity{
		Enclave: attest.NewEnclave(s), EnclaveSize: p.sealed.Enclave.EnclaveSize, MaxThreads: p.sealed.Enclave.MaxThreads, EDMM: p.sealed.Enclave.EDMM,
		Source: source, Runtime: attest.Runtime{Kind: p.bundle.Kind, Version: p.bundle.Version, Digest: p.bundle.Layer.Digest},
		Epoch: FormatEpoch, Options: options, Findings: findings,
	}
	runtime := attest.NewResource(p.bundle.Kind, p.bundle.Layer.Digest)
	subject := attest.NewResource(name, out.Digest)
	var artifacts []image.Artifact
	for _, said := range []struct {
		kind      string
		predicate any
	}{
		{attest.IdentityType, identity},
		{attest.ProvenanceType, attest.NewProvenance(source, runtime, json.RawMessage(options), e.Version)},
	} {
		statement, err := attest.NewStatement(subject, said.kind, said.predicate)
		if err != nil {
			return nil, err
		}
		a, err := statement.Pack(ctx, e.Key)
		if err != nil {
			return nil, err
		}
		artifacts = append(artifacts, a)
	}
	corim, err := identity.CoRIM(name + "@" + out.Digest)
	if err != nil {
		return nil, err
	}
	return append(artifacts, attest.PackCoRIM(corim)), nil
}
