package cosign

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"regexp"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/verify"

	"github.com/cconvert/cconvert/internal/bug"
	"github.com/cconvert/cconvert/internal/strictjson"
	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/image/registry"
)

const (
	// bundleType is that of artifacts that hold a bundle (Sigstore, "Bundle Specification"; cosign, "Bundle Format").
	bundleType = "application/vnd.dev.sigstore.bundle.v0.3+json"
	// signType is the predicate by which a statement is a signature of an image. What a key or an identity has stated
	// otherwise, such as how an image was built, or what is wrong with it, signs nothing.
	signType = "https://sigstore.dev/cosign/sign/v1"

	maxBundleBytes = 256 << 10
	maxElements    = 1000 // of a list in a bundle
)

// statementTypes are those of in-toto's statements, which say the same of what is looked at here.
var statementTypes = []string{attest.StatementType, "https://in-toto.io/Statement/v0.1"}

// errUnsuitable says that a bundle is no signature that counts.
var errUnsuitable = errors.New("the bundle is no signature that counts")

// signedByBundle looks for a bundle that refers to an image and is a signature of it that counts; the error is
// ErrUnsigned if there is none.
func signedByBundle(ctx context.Context, of name.Digest, by Trust, o registry.Options) error {
	list, err := registry.ListReferrers(ctx, of, o, bundleType)
	if err != nil {
		return reading(of, err)
	}
	return anyOf(ctx, of, list.Len(), func(ctx context.Context, i int) (bool, error) {
		a, err := list.Fetch(ctx, i, maxBundleBytes)
		return err == nil && checkBundle(ctx, a.Blob, of.DigestStr(), signType, by) == nil, err
	})
}

// checkBundle reports why a bundle is not a statement of a type about a digest, "sha256:…", by a key or an identity
// that counts.
func checkBundle(ctx context.Context, text []byte, digest, kind string, by Trust) (err error) {
	defer bug.Catch(&err)
	if err := strictjson.Check(text, strictjson.Rules{MaxList: maxElements}); err != nil {
		return err
	}
	var b bundle.Bundle
	if err := b.UnmarshalJSON(text); err != nil {
		return err
	}
	content, err := b.VerificationContent()
	if err != nil {
		return err
	}
	if content.Certificate() == nil {
		return byKey(ctx, text, digest, kind, by.Keys)
	}
	return byIdentity(&b, digest, kind, by)
}

// byKey checks a bundle whose signature names a key. Which one it names is not looked at: anybody can write that.
func byKey(ctx context.Context, text []byte, digest, kind string, keys []*attest.PublicKey) error {
	var b struct {
		Envelope json.RawMessage `json:"dsseEnvelope"`
	}
	if err := json.Unmarshal(text, &b); err != nil {
		return err
	}
	for _, k := range keys {
		payload, err := k.Open(ctx, attest.InTotoMediaType, b.Envelope)
		if err != nil {
			continue
		}
		var s attest.Statement
		if err := json.Unmarshal(payload, &s); err != nil {
			return err
		}
		is := func(r attest.Resource) bool { return r.Is(digest) }
		if slices.Contains(statementTypes, s.Type) && s.PredicateType == kind && slices.ContainsFunc(s.Subject, is) {
			return nil
		}
	}
	return errUnsuitable
}

// byIdentity checks a bundle whose signature is by a key that was certified for minutes: the authority and the logs of
// the root vouch for who had it and when it was used.
func byIdentity(b *bundle.Bundle, digest, kind string, by Trust) error {
	if len(by.Identities) == 0 || by.Root == nil {
		return errUnsuitable
	}
	algorithm, text, _ := strings.Cut(digest, ":")
	sum, err := hex.DecodeString(text)
	if err != nil {
		return err
	}
	verifier, err := verify.NewVerifier(by.Root, demands(by.Root)...)
	if err != nil {
		return err
	}
	var identities []verify.PolicyOption
	for _, id := range by.Identities {
		option, err := id.policy()
		if err != nil {
			return err
		}
		identities = append(identities, option)
	}
	result, err := verifier.Verify(b, verify.NewPolicy(verify.WithArtifactDigest(algorithm, sum), identities...))
	if err != nil {
		return err
	}
	if result.Statement == nil || result.Statement.GetPredicateType() != kind {
		return errUnsuitable
	}
	return nil
}

// demands are what a signature by an identity must have: a time that somebody else has seen it at, and an entry in each
// kind of log that the root has. A private authority need not keep logs.
func demands(trusted Root) []verify.VerifierOption {
	options := []verify.VerifierOption{verify.WithObserverTimestamps(1), verify.WithoutStatementPredicate()}
	if len(trusted.RekorLogs()) > 0 {
		options = append(options, verify.WithTransparencyLog(1))
	}
	if len(trusted.CTLogs()) > 0 {
		options = append(options, verify.WithSignedCertificateTimestamps(1))
	}
	return options
}

// policy is the identity as the verifier asks for it.
func (id Identity) policy() (verify.PolicyOption, error) {
	pattern := ""
	if id.SubjectPattern != "" {
		pattern = "^(?:" + id.SubjectPattern + ")$"
	}
	identity, err := verify.NewShortCertificateIdentity(id.Issuer, "", id.Subject, pattern)
	return verify.WithCertificateIdentity(identity), err
}

// Check reports what is wrong with the identity.
func (id Identity) Check() error {
	if id.Issuer == "" {
		return errors.New("an identity has an issuer, the URL of the provider that was logged in with")
	}
	if (id.Subject == "") == (id.SubjectPattern == "") {
		return errors.New("an identity has a subject or a subjectPattern")
	}
	_, err := regexp.Compile(id.SubjectPattern)
	return err
}

// ReadRoot reads a trusted root of Sigstore: which authorities and logs are believed.
func ReadRoot(text []byte) (Root, error) {
	r, err := root.NewTrustedRootFromJSON(text)
	if err != nil {
		return nil, err // not a nil *root.TrustedRoot in the interface
	}
	if len(r.FulcioCertificateAuthorities()) == 0 {
		return nil, errors.New("it has no certificate authority")
	}
	if len(r.RekorLogs())+len(r.TimestampingAuthorities()) == 0 {
		return nil, errors.New("it has neither a log nor an authority of timestamps: nobody says when a key was used")
	}
	return r, nil
}
