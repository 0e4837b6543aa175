package attest

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"

	"github.com/cconvert/cconvert/internal/strictjson"
	"github.com/cconvert/cconvert/pkg/image"
)

// annotationPredicate names the predicate of a statement, so that it can be chosen in a list (in-toto
// attestations in OCI registries).
const annotationPredicate = "in-toto.io/predicate-type"

// Pack makes an artifact of a statement: an envelope, signed where there is a key.
func (s *Statement) Pack(ctx context.Context, key *PrivateKey) (image.Artifact, error) {
	payload, err := json.Marshal(s)
	if err != nil {
		return image.Artifact{}, err
	}
	var envelope []byte
	if key != nil {
		envelope, err = key.Envelope(ctx, InTotoMediaType, payload)
	} else {
		envelope, err = unsigned(payload)
	}
	if err != nil {
		return image.Artifact{}, fmt.Errorf("signing a statement: %w", err)
	}
	return image.Artifact{
		Type: InTotoMediaType, MediaType: DSSEMediaType, Blob: envelope,
		Annotations: map[string]string{annotationPredicate: s.PredicateType},
	}, nil
}

func unsigned(payload []byte) ([]byte, error) {
	return json.Marshal(dsse.Envelope{
		PayloadType: InTotoMediaType, Payload: base64.StdEncoding.EncodeToString(payload),
		Signatures: []dsse.Signature{},
	})
}

// PackCoRIM makes an artifact of a CoRIM.
func PackCoRIM(b []byte) image.Artifact {
	return image.Artifact{Type: CoRIMMediaType, MediaType: CoRIMMediaType, Blob: b}
}

// Kinds are the types of artifacts that Read understands.
var Kinds = []string{InTotoMediaType, CoRIMMediaType}

// Found is a piece of evidence that was attached to an image.
type Found struct {
	// Digest of the artifact's manifest.
	Digest string
	// Statement is nil for a CoRIM.
	Statement *Statement
	CoRIM     []byte
	// Signed says that there are signatures, Verified that one of them is by the key that was asked for.
	Signed, Verified bool
	// Err says why the artifact cannot be read.
	Err error
}

// Read reads artifacts, and checks the signatures of statements by a key, which may be nil.
func Read(ctx context.Context, artifacts []image.Artifact, key *PublicKey) []Found {
	var list []Found
	for _, a := range artifacts {
		f := Found{Digest: a.Digest}
		if a.Type == CoRIMMediaType {
			f.CoRIM = a.Blob
		} else {
			f.Err = f.read(ctx, a.Blob, key)
		}
		list = append(list, f)
	}
	return list
}

// maxSaid is how many elements a list in a statement may have.
const maxSaid = 100_000

// named are keys of statements whose objects have names of somebody's choice.
var named = []string{
	"digest", "annotations", "args", "env", "environment", "labels", "parameters", "externalparameters",
	"internalparameters", "version",
}

func (f *Found) read(ctx context.Context, blob []byte, key *PublicKey) error {
	var e dsse.Envelope
	err := strictjson.Check(blob, strictjson.Rules{MaxList: maxSaid})
	if err == nil {
		err = json.Unmarshal(blob, &e)
	}
	if err != nil {
		return fmt.Errorf("reading the envelope: %w", err)
	}
	if e.PayloadType != InTotoMediaType {
		return fmt.Errorf("the envelope holds %q, not a statement", e.PayloadType)
	}
	payload, err := e.DecodeB64Payload()
	if err != nil {
		return fmt.Errorf("reading the envelope: %w", err)
	}
	if err = strictjson.Check(payload, strictjson.Rules{Named: named, MaxList: maxSaid}); err == nil {
		err = json.Unmarshal(payload, &f.Statement)
	}
	if err != nil {
		f.Statement = nil
		return fmt.Errorf("reading the statement: %w", err)
	}
	if f.Statement == nil || f.Statement.Type != StatementType {
		f.Statement = nil
		return errors.New("it is no statement of in-toto")
	}
	f.Signed = len(e.Signatures) > 0
	if key != nil {
		_, err := key.Open(ctx, InTotoMediaType, blob)
		f.Verified = err == nil
	}
	return nil
}
