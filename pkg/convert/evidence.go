package convert

import (
	"context"
	"encoding/json"

	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// Evidence says what is attached to the image in a registry.
type Evidence struct {
	// Key signs statements; nil: they are not signed.
	Key *attest.PrivateKey
	// Required fails the conversion if the registry refuses evidence; else that is a finding.
	Required bool
	// Version of this program, for the provenance.
	Version string
}

// identity states what an image is.
func (p *Prepared) identity() (attest.Identity, error) {
	options, err := json.Marshal(p.opts.Recorded())
	if err != nil {
		return attest.Identity{}, err
	}
	findings, err := json.Marshal(p.sealed.Findings)
	if err != nil {
		return attest.Identity{}, err
	}
	from := ""
	if p.source.Ref.Transport == image.Registry { // a path of this machine is nobody's business
		from = p.source.Ref.String()
	}
	e := p.sealed.Enclave
	return attest.Identity{
		Enclave: attest.NewEnclave(p.signed), EnclaveSize: e.EnclaveSize, MaxThreads: e.MaxThreads, EDMM: e.EDMM,
		Source:  attest.NewResource(from, p.source.Digest),
		Runtime: attest.Runtime{Kind: p.bundle.Kind, Version: p.bundle.Version, Digest: p.bundle.Layer.Digest},
		Epoch:   FormatEpoch, Options: options, Findings: findings, Simulated: p.simulated(),
	}, nil
}

// about returns the evidence for an output: what it is, how it was made, and reference values. Those are left out for
// one that is not signed yet.
func (e *Evidence) about(
	ctx context.Context, identity attest.Identity, out *image.Output, name string,
) ([]image.Artifact, error) {
	runtime := attest.NewResource(identity.Runtime.Kind, identity.Runtime.Digest)
	subject := attest.NewResource(name, out.Digest)
	var artifacts []image.Artifact
	for _, said := range []struct {
		kind      string
		predicate any
	}{
		{attest.IdentityType, identity},
		{attest.ProvenanceType, attest.NewProvenance(identity.Source, runtime, identity.Options, e.Version)},
	} {
		if said.kind == attest.ProvenanceType && (identity.Runtime.Digest == "" || len(identity.Source.Digest) == 0) {
			continue // nobody has looked at what it was made from
		}
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
	// There are reference values of enclaves alone, and of those that can start.
	if identity.MRSigner == (sgx.Measurement{}) || identity.Simulated {
		return artifacts, nil
	}
	corim, err := identity.CoRIM(name + "@" + out.Digest)
	if err != nil {
		return nil, err
	}
	return append(artifacts, attest.PackCoRIM(corim)), nil
}
