package cosign

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	gcr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	bundlepb "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	commonpb "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	dssepb "github.com/sigstore/protobuf-specs/gen/pb-go/dsse"
	rekorpb "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/testing/ca"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/image/registry"
)

// What cosign 3 wrote, and what it was about.
const cosigned = "sha256:9fd1263c12af5b9220c1c3bac12a938a719ce4c86265d9a7796b2d2732ce6734"

func read(t testing.TB, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	return text
}

func cosignKey(t *testing.T) *attest.PublicKey {
	t.Helper()
	key, err := attest.ParsePublicKey(read(t, "testdata/key.pub"))
	require.NoError(t, err)
	return key
}

// A bundle that cosign has written is a signature of its image by its key. An attestation by that key is not.
func TestBundleOfCosign(t *testing.T) {
	ctx := context.Background()
	signature, attestation := read(t, "testdata/key.sigstore.json"), read(t, "testdata/attestation.sigstore.json")
	by := Trust{Keys: []*attest.PublicKey{cosignKey(t)}}
	require.NoError(t, checkBundle(ctx, signature, cosigned, signType, by))
	require.NoError(t, checkBundle(ctx, attestation, cosigned, "https://slsa.dev/provenance/v0.2", by))
	require.ErrorIs(t, checkBundle(ctx, attestation, cosigned, signType, by), errUnsuitable)
	require.ErrorIs(t, checkBundle(ctx, signature, "sha256:"+strings.Repeat("0", 64), signType, by), errUnsuitable)
	require.ErrorIs(t, checkBundle(ctx, signature, cosigned, signType, Trust{}), errUnsuitable)
	changed := strings.Replace(string(signature), `"sig":"MEUCIQDv`, `"sig":"MEUCIQDw`, 1)
	require.NotEqual(t, string(signature), changed)
	require.ErrorIs(t, checkBundle(ctx, []byte(changed), cosigned, signType, by), errUnsuitable)
	require.Error(t, checkBundle(ctx, []byte("{}"), cosigned, signType, by))
}

// sigstore is the folder of test data of Sigstore's library.
func sigstore(t testing.TB) string {
	t.Helper()
	return filepath.Join(fixture.ModuleDir(t, "github.com/sigstore/sigstore-go"), "pkg", "testing", "data")
}

// A bundle of the public instance of Sigstore is by the identity that has made it, and by no other; it is not a
// signature of an image.
func TestPublicGood(t *testing.T) {
	const kind = "https://slsa.dev/provenance/v1"
	ctx, dir := context.Background(), sigstore(t)
	text := read(t, filepath.Join(dir, "bundles", "sigstore.js@2.0.0-provenance.sigstore.json"))
	trusted, err := ReadRoot(read(t, filepath.Join(dir, "trusted-roots", "public-good.json")))
	require.NoError(t, err)
	other, err := ReadRoot(read(t, filepath.Join(dir, "trusted-roots", "scaffolding.json")))
	require.NoError(t, err)
	const (
		digest = "sha512:46d4e2f74c4877316640000a6fdf8a8b59f1e0847667973e9859f774dd31b8f1" +
			"e0937813b777fb66a2ac67d50540fe34640966eee9fc2ccca387082b4c85cd3c"
		issuer  = "https://token.actions.githubusercontent.com"
		subject = "https://github.com/sigstore/sigstore-js/.github/workflows/release.yml@refs/heads/main"
	)
	good := Identity{Issuer: issuer, Subject: subject}
	check := func(of, kind string, trusted root.TrustedMaterial, ids ...Identity) error {
		return checkBundle(ctx, text, of, kind, Trust{Identities: ids, Root: trusted})
	}
	require.NoError(t, check(digest, kind, trusted, good))
	require.NoError(t, check(digest, kind, trusted, Identity{Issuer: issuer, Subject: "else"}, good), "one is enough")
	require.NoError(t, check(digest, kind, trusted,
		Identity{Issuer: issuer, SubjectPattern: "https://github.com/sigstore/.*@refs/heads/main"}))
	for what, err := range map[string]error{
		"not a signature of an image": check(digest, signType, trusted, good),
		"another digest":              check("sha512:"+strings.Repeat("0", 128), kind, trusted, good),
		"another algorithm":           check("sha256:"+strings.Repeat("0", 64), kind, trusted, good),
		"another issuer":              check(digest, kind, trusted, Identity{Issuer: issuer + "/x", Subject: subject}),
		"another subject":             check(digest, kind, trusted, Identity{Issuer: issuer, Subject: subject + "x"}),
		"part of the subject": check(digest, kind, trusted,
			Identity{Issuer: issuer, SubjectPattern: "https://github.com/sigstore/sigstore-js"}),
		"one of two patterns": check(digest, kind, trusted,
			Identity{Issuer: issuer, SubjectPattern: "x|https://github.com"}),
		"another root":  check(digest, kind, other, good),
		"no root":       check(digest, kind, nil, good),
		"no identity":   check(digest, kind, trusted),
		"a key instead": checkBundle(ctx, text, digest, kind, Trust{Keys: []*attest.PublicKey{cosignKey(t)}}),
	} {
		assert.Error(t, err, what)
	}
}

// authority is an instance of Sigstore in this process, by Sigstore's library, without a log of certificates.
type authority struct {
	*ca.VirtualSigstore
	root root.TrustedMaterial
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	virtual, err := ca.NewVirtualSigstore()
	require.NoError(t, err)
	r, err := root.NewTrustedRoot(root.TrustedRootMediaType01, virtual.FulcioCertificateAuthorities(), nil,
		virtual.TimestampingAuthorities(), virtual.RekorLogs())
	require.NoError(t, err)
	return authority{virtual, r}
}

// bundle signs a statement as somebody.
func (a authority) bundle(t *testing.T, subject, statement string) []byte {
	t.Helper()
	e, err := a.AttestAtTime(subject, "https://issuer.example", []byte(statement), time.Now(), true)
	require.NoError(t, err)
	signed, err := e.SignatureContent()
	require.NoError(t, err)
	content, err := e.VerificationContent()
	require.NoError(t, err)
	entries, err := e.TlogEntries()
	require.NoError(t, err)
	stamps, err := e.Timestamps()
	require.NoError(t, err)
	raw := signed.EnvelopeContent().RawEnvelope()
	payload, err := raw.DecodeB64Payload()
	require.NoError(t, err)
	material := &bundlepb.VerificationMaterial{
		Content: &bundlepb.VerificationMaterial_Certificate{
			Certificate: &commonpb.X509Certificate{RawBytes: content.Certificate().Raw},
		},
		TlogEntries:               []*rekorpb.TransparencyLogEntry{},
		TimestampVerificationData: &bundlepb.TimestampVerificationData{},
	}
	for _, entry := range entries {
		entry := entry.TransparencyLogEntry()
		entry.KindVersion = &rekorpb.KindVersion{Kind: "dsse", Version: "0.0.1"} // which the library leaves out
		material.TlogEntries = append(material.TlogEntries, entry)
	}
	for _, s := range stamps {
		material.TimestampVerificationData.Rfc3161Timestamps = append(
			material.TimestampVerificationData.Rfc3161Timestamps, &commonpb.RFC3161SignedTimestamp{SignedTimestamp: s})
	}
	text, err := protojson.Marshal(&bundlepb.Bundle{
		MediaType: bundleType, VerificationMaterial: material,
		Content: &bundlepb.Bundle_DsseEnvelope{DsseEnvelope: &dssepb.Envelope{
			Payload: payload, PayloadType: raw.PayloadType,
			Signatures: []*dssepb.Signature{{Sig: signed.Signature()}},
		}},
	})
	require.NoError(t, err)
	return text
}

func signature(digest string) string {
	return fmt.Sprintf(`{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha256":%q}}],`+
		`"predicateType":%q,"predicate":{}}`, strings.TrimPrefix(digest, "sha256:"), signType)
}

// attach stores a bundle as cosign does: an artifact that refers to an image.
func attach(t *testing.T, of name.Digest, kind string, bundle []byte) {
	t.Helper()
	d, err := remote.Head(of)
	require.NoError(t, err)
	d.Platform = nil
	img, err := mutate.AppendLayers(mutate.MediaType(empty.Image, types.OCIManifestSchema1),
		static.NewLayer(bundle, types.MediaType(kind)))
	require.NoError(t, err)
	img = mutate.Subject(mutate.ConfigMediaType(img, types.MediaType(kind)), *d).(v1.Image)
	raw, err := img.RawManifest()
	require.NoError(t, err)
	var m map[string]any
	require.NoError(t, json.Unmarshal(raw, &m))
	m["artifactType"] = kind
	raw, err = json.Marshal(m)
	require.NoError(t, err)
	require.NoError(t, remote.Write(of.Context().Tag("placeholder"), img)) // its blobs
	require.NoError(t, remote.Put(of.Context().Tag("artifact"), manifest(raw)))
}

type manifest []byte

func (m manifest) RawManifest() ([]byte, error) { return m, nil }

func (m manifest) MediaType() (types.MediaType, error) { return types.OCIManifestSchema1, nil }

// In a registry, one signature that counts is enough, whatever else refers to the image.
func TestSignedInRegistry(t *testing.T) {
	ctx := context.Background()
	reg := fixture.NewRegistry(t, gcr.WithReferrersSupport(true))
	img := fixture.Image(t, v1.Config{}, fixture.Layer(t, fixture.File("a", "")))
	ref, err := name.NewTag(reg.Push(t, "app:1", img))
	require.NoError(t, err)
	of := ref.Context().Digest(reg.Digest(t, "app:1"))
	a, other := newAuthority(t), newAuthority(t)
	const who = "builder@team.example"
	by := Trust{Identities: []Identity{{Issuer: "https://issuer.example", Subject: who}}, Root: a.root}
	unsigned := func(what string) {
		t.Helper()
		require.ErrorIs(t, Signed(ctx, of, by, registry.Options{}), ErrUnsigned, what)
	}
	unsigned("nothing refers to the image")
	attach(t, of, "application/else", a.bundle(t, who, signature(of.DigestStr())))
	attach(t, of, bundleType, []byte("{"))
	attach(t, of, bundleType, a.bundle(t, "stranger@team.example", signature(of.DigestStr())))
	attach(t, of, bundleType, other.bundle(t, who, signature(of.DigestStr())))
	attach(t, of, bundleType, a.bundle(t, who, signature("sha256:"+strings.Repeat("0", 64))))
	attach(t, of, bundleType, a.bundle(t, who, strings.Replace(signature(of.DigestStr()), signType, "else", 1)))
	attach(t, of, bundleType, read(t, "testdata/key.sigstore.json"))
	unsigned("what refers to it is of others, about others, or something else")
	require.NoError(t, checkBundle(ctx, a.bundle(t, who, signature(of.DigestStr())), of.DigestStr(), signType, by))
	attach(t, of, bundleType, a.bundle(t, who, signature(of.DigestStr())))
	require.NoError(t, Signed(ctx, of, by, registry.Options{}))
	by.Identities[0].Issuer = "https://other.example"
	unsigned("another issuer")
}

// Somebody must have seen when a signature was made: else a certificate that was stolen later would do.
func TestRoots(t *testing.T) {
	a := newAuthority(t)
	text, err := json.Marshal(a.root)
	require.NoError(t, err)
	_, err = ReadRoot(text)
	require.NoError(t, err)
	var m map[string]any
	require.NoError(t, json.Unmarshal(text, &m))
	delete(m, "tlogs")
	delete(m, "timestampAuthorities")
	text, err = json.Marshal(m)
	require.NoError(t, err)
	_, err = ReadRoot(text)
	require.ErrorContains(t, err, "nobody says when")
	delete(m, "certificateAuthorities")
	text, err = json.Marshal(m)
	require.NoError(t, err)
	_, err = ReadRoot(text)
	require.ErrorContains(t, err, "no certificate authority")
	_, err = ReadRoot([]byte("no JSON"))
	require.Error(t, err)
	for what, id := range map[string]Identity{
		"no issuer": {Subject: "a"}, "no subject": {Issuer: "a"},
		"two":        {Issuer: "a", Subject: "a", SubjectPattern: "b"},
		"no pattern": {Issuer: "a", SubjectPattern: "("},
	} {
		assert.Error(t, id.Check(), what)
	}
	assert.NoError(t, Identity{Issuer: "a", SubjectPattern: ".*"}.Check())
}

func FuzzBundle(f *testing.F) {
	dir := sigstore(f)
	f.Add(read(f, "testdata/key.sigstore.json"))
	f.Add(read(f, filepath.Join(dir, "bundles", "sigstore.js@2.0.0-provenance.sigstore.json")))
	f.Add(read(f, filepath.Join(dir, "bundles", "othername.sigstore.json")))
	trusted, err := ReadRoot(read(f, filepath.Join(dir, "trusted-roots", "public-good.json")))
	require.NoError(f, err)
	key, err := attest.ParsePublicKey(read(f, "testdata/key.pub"))
	require.NoError(f, err)
	by := Trust{
		Keys: []*attest.PublicKey{key}, Root: trusted,
		Identities: []Identity{{Issuer: "https://issuer.example", SubjectPattern: ".*"}},
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if checkBundle(context.Background(), text, "sha256:"+strings.Repeat("0", 64), signType, by) == nil {
			t.Error("a signature that nobody has made")
		}
	})
}
