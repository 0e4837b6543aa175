package attest

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/cconvert/cconvert/pkg/sgx"
)

// Types of what is attached to an image.
const (
	// StatementType is that of in-toto statements (in-toto attestation framework, "Statement v1").
	StatementType = "https://in-toto.io/Statement/v1"
	// IdentityType is the predicate that describes an enclave.
	IdentityType = "https://github.com/cconvert/cconvert/enclave-identity/v1"
	// ProvenanceType is the predicate that says how the image was made (SLSA, "Provenance v1").
	ProvenanceType = "https://slsa.dev/provenance/v1"
	// BuildType says what the parameters of a provenance mean.
	BuildType = "https://github.com/cconvert/cconvert/conversion/v1"

	// InTotoMediaType is the payload of envelopes that hold statements (in-toto, "Envelope").
	InTotoMediaType = "application/vnd.in-toto+json"
	// DSSEMediaType is that of envelopes in JSON.
	DSSEMediaType = "application/vnd.dsse.envelope.v1+json"
	// CoRIMMediaType is that of a concise reference integrity manifest in CBOR (draft-ietf-rats-corim).
	CoRIMMediaType = "application/rim+cbor"
)

// Statement says something of images, by their digests.
type Statement struct {
	Type          string          `json:"_type"`
	Subject       []Resource      `json:"subject"`
	PredicateType string          `json:"predicateType"`
	Predicate     json.RawMessage `json:"predicate"`
}

// Resource is something with a digest (in-toto, "ResourceDescriptor").
type Resource struct {
	Name   string            `json:"name,omitempty"`
	URI    string            `json:"uri,omitempty"`
	Digest map[string]string `json:"digest"`
}

// NewResource makes a Resource of a digest "sha256:…".
func NewResource(name, digest string) Resource {
	algorithm, sum, _ := strings.Cut(digest, ":")
	return Resource{Name: name, Digest: map[string]string{algorithm: sum}}
}

// Is reports whether the resource has a digest "sha256:…".
func (r Resource) Is(digest string) bool {
	algorithm, sum, _ := strings.Cut(digest, ":")
	return sum != "" && r.Digest[algorithm] == sum
}

// NewStatement makes a statement of an image.
func NewStatement(subject Resource, predicateType string, predicate any) (*Statement, error) {
	b, err := json.Marshal(predicate)
	if err != nil {
		return nil, fmt.Errorf("writing a statement: %w", err)
	}
	return &Statement{StatementType, []Resource{subject}, predicateType, b}, nil
}

// Identity is the predicate IdentityType: everything that a quote of the enclave can show, and what it was
// made of.
type Identity struct {
	Enclave
	// What nobody has looked at is left out.
	EnclaveSize uint64 `json:"enclave_size,omitempty"` // bytes
	MaxThreads  int    `json:"max_threads,omitempty"`
	EDMM        bool   `json:"edmm"`
	// Source is the image that was converted, by the name that it had.
	Source Resource `json:"source,omitzero"`
	// Runtime is the library OS, by the digest of its layer.
	Runtime Runtime         `json:"runtime,omitzero"`
	Epoch   int             `json:"format_epoch,omitempty"`
	Options json.RawMessage `json:"options"`
	// Findings are JSON, null if nothing was looked for.
	Findings json.RawMessage `json:"findings"`
	// Simulated says that there is no enclave: no CPU will ever report these values.
	Simulated bool `json:"simulated,omitempty"`
}

// Runtime is a library OS.
type Runtime struct {
	Kind    string `json:"kind"`
	Version string `json:"version"`
	Digest  string `json:"digest"`
}

// Enclave are the fields of a SIGSTRUCT.
type Enclave sgx.Description

// NewEnclave describes a SIGSTRUCT.
func NewEnclave(s *sgx.SigStruct) Enclave { return Enclave(s.Describe()) }

// Provenance is the predicate ProvenanceType. There are no times in it: a conversion does not depend on any.
type Provenance struct {
	BuildDefinition struct {
		BuildType            string         `json:"buildType"`
		ExternalParameters   map[string]any `json:"externalParameters"`
		ResolvedDependencies []Resource     `json:"resolvedDependencies"`
	} `json:"buildDefinition"`
	RunDetails struct {
		Builder struct {
			ID      string            `json:"id"`
			Version map[string]string `json:"version"`
		} `json:"builder"`
	} `json:"runDetails"`
}

// builderID names this program as a builder.
const builderID = "https://github.com/cconvert/cconvert"

// Ours reports whether a provenance says that this program has made it, or that the image was made as by it.
func (p *Provenance) Ours() bool {
	return p.RunDetails.Builder.ID == builderID || p.BuildDefinition.BuildType == BuildType
}

// NewProvenance says that an image was converted from a source with a runtime and options.
func NewProvenance(source, runtime Resource, options any, version string) *Provenance {
	p := &Provenance{}
	p.BuildDefinition.BuildType = BuildType
	p.BuildDefinition.ExternalParameters = map[string]any{"source": source, "options": options}
	p.BuildDefinition.ResolvedDependencies = []Resource{source, runtime}
	p.RunDetails.Builder.ID = builderID
	p.RunDetails.Builder.Version = map[string]string{"cconvert": version}
	return p
}
