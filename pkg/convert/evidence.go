package convert

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
	"github.com/cconvert/cconvert/pkg/sbom"
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

// identity states what an image is. What a conversion has seen itself, and whatever can be read of its own recipe, is
// stated as it is; of an image that was read back, see asStated.
func (p *Prepared) identity(ctx context.Context, signed *sgx.SigStruct, by *Evidence) (attest.Identity, error) {
	options, err := json.Marshal(p.Recipe.Options)
	if err != nil {
		return attest.Identity{}, err
	}
	runtime := p.Recipe.Runtime
	identity := attest.Identity{
		Enclave: attest.NewEnclave(signed), EnclaveSize: p.settings.EnclaveSize, MaxThreads: p.settings.MaxThreads,
		EDMM:    p.settings.EDMM,
		Source:  attest.NewResource("", p.Recipe.Source),
		Runtime: attest.Runtime{Kind: runtime.Kind, Version: runtime.Version, Digest: runtime.Digest},
		Epoch:   p.Recipe.Epoch, Options: options, Findings: json.RawMessage("null"), Simulated: p.Simulated,
	}
	if p.Now != nil {
		return identity, p.asStated(ctx, &identity, by)
	}
	if p.base.Ref.Transport == image.Registry { // a path of this machine is nobody's business
		identity.Source = attest.NewResource(p.base.Ref.String(), p.Recipe.Source)
	}
	identity.Findings, err = json.Marshal(p.findings)
	return identity, err
}

// asStated adds to the identity of an image that was read back what its evidence says beyond the image itself: the
// source's name, and findings, which stay null if nobody has looked for any. If new evidence is signed, the old one
// must be by the same key: a signature does not make true what somebody else has claimed. Old evidence that cannot be
// read is as if there were none.
func (p *Prepared) asStated(ctx context.Context, identity *attest.Identity, by *Evidence) error {
	var key *attest.PublicKey
	if by.Key != nil {
		key = &by.Key.PublicKey
		// The recipe's source is a word, as is the runtime's version, and the loader is not measured: who signs vouches
		// for none of them.
		if identity.Runtime.Digest, identity.Runtime.Version = "", ""; !p.SourceChecked {
			identity.Source = attest.Resource{}
		}
	}
	artifacts, err := registry.Referrers(ctx, p.base, attest.InTotoMediaType)
	if ctx.Err() != nil || err != nil && by.Required {
		return err
	}
	before := attest.NewEnclave(p.Now)
	for _, f := range attest.Read(ctx, artifacts, key) {
		var said attest.Identity
		if f.Statement == nil || key != nil && !f.Verified || f.Statement.PredicateType != attest.IdentityType ||
			json.Unmarshal(f.Statement.Predicate, &said) != nil {
			continue
		}
		of := slices.ContainsFunc(f.Statement.Subject, func(r attest.Resource) bool { return r.Is(p.base.Digest) })
		if of && said.Enclave == before && said.Source.Is(p.Recipe.Source) &&
			said.Runtime.Digest == p.Recipe.Runtime.Digest {
			identity.Source, identity.Findings, identity.Runtime = said.Source, said.Findings, said.Runtime
			return nil
		}
	}
	return nil
}

// EvidenceKinds returns the types of what a conversion attaches to its result: of predicates, and of the reference
// values.
func (p *Prepared) EvidenceKinds(signer sgx.Measurement) []string {
	kinds := []string{attest.IdentityType, attest.ProvenanceType, sbom.SPDXType, sbom.CycloneDXType}
	if hasReference(signer, p.Simulated) {
		kinds = append(kinds, attest.CoRIMMediaType)
	}
	return kinds
}

// hasReference reports whether there are reference values: of enclaves alone, and of those that can start.
func hasReference(signer sgx.Measurement, simulated bool) bool {
	return signer != (sgx.Measurement{}) && !simulated
}

// about returns the evidence for an output: what it is; unless nobody has looked at what it was made from, how it was
// made and what it has more than its source; and reference values, unless it is not signed yet.
func (e *Evidence) about(
	ctx context.Context, identity attest.Identity, bill func() (sbom.Bill, error), out *image.Output, name string,
) ([]image.Artifact, error) {
	said := []predicate{{attest.IdentityType, identity}}
	if identity.Runtime.Digest != "" && len(identity.Source.Digest) > 0 {
		runtime := attest.NewResource(identity.Runtime.Kind, identity.Runtime.Digest)
		said = append(said, predicate{
			attest.ProvenanceType, attest.NewProvenance(identity.Source, runtime, identity.Options, e.Version),
		})
		bills, err := billPredicates(bill)
		if err != nil {
			return nil, fmt.Errorf("listing what was added: %w", err)
		}
		said = append(said, bills...)
	}
	subject := attest.NewResource(name, out.Digest)
	var artifacts []image.Artifact
	for _, p := range said {
		statement, err := attest.NewStatement(subject, p.kind, p.value)
		if err != nil {
			return nil, err
		}
		a, err := statement.Pack(ctx, e.Key)
		if err != nil {
			return nil, err
		}
		artifacts = append(artifacts, a)
	}
	if !hasReference(identity.MRSigner, identity.Simulated) {
		return artifacts, nil
	}
	corim, err := identity.CoRIM(name + "@" + out.Digest)
	if err != nil {
		return nil, err
	}
	return append(artifacts, attest.PackCoRIM(corim)), nil
}

// predicate is what is stated, with its type.
type predicate struct {
	kind  string
	value any
}

// billPredicates are a bill in each of its formats.
func billPredicates(bill func() (sbom.Bill, error)) ([]predicate, error) {
	b, err := bill()
	if err != nil {
		return nil, err
	}
	spdx, err := b.SPDX()
	if err != nil {
		return nil, err
	}
	cyclonedx, err := b.CycloneDX()
	if err != nil {
		return nil, err
	}
	return []predicate{{sbom.SPDXType, json.RawMessage(spdx)}, {sbom.CycloneDXType, json.RawMessage(cyclonedx)}}, nil
}
