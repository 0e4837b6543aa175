package cosign

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/google/go-containerregistry/pkg/name"
	"golang.org/x/sync/errgroup"

	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
)

// Signatures of cosign lie under a tag that is made of the digest, as layers of their own type with the signature in an
// annotation (cosign's specification, "Signature Spec").
const (
	simpleSigning  = "application/vnd.dev.cosign.simplesigning.v1+json"
	signatureKey   = "dev.cosignproject.cosign/signature"
	signatureType  = "cosign container image signature"
	maxSignatures  = 100
	maxSignedBytes = 64 << 10

	// signaturesAtOnce is how many are read at a time: a hundred of them are to be looked at before whoever asks has
	// gone.
	signaturesAtOnce = 8
)

// signedByTag looks for a signature under cosign's tag by one of the keys; the error is ErrUnsigned if there is none.
func signedByTag(ctx context.Context, of name.Digest, keys []*attest.PublicKey, o registry.Options) error {
	if len(keys) == 0 {
		return ErrUnsigned // what is under the tag does not say by which identity
	}
	digest := of.DigestStr()
	tag := of.Context().Tag(strings.ReplaceAll(digest, ":", "-") + ".sig")
	m, err := registry.OpenManifest(ctx, tag, o)
	if errors.Is(err, image.ErrNotFound) {
		return ErrUnsigned
	}
	if err != nil {
		return reading(of, err)
	}
	return anyOf(ctx, of, len(m.Layers), func(ctx context.Context, i int) (bool, error) {
		d := m.Layers[i]
		signature, err := base64.StdEncoding.DecodeString(d.Annotations[signatureKey])
		if d.MediaType != simpleSigning || d.Size > maxSignedBytes || err != nil || len(signature) == 0 {
			return false, nil
		}
		payload, err := m.Blob(ctx, d, maxSignedBytes)
		return err == nil && about(payload, digest) && slices.ContainsFunc(keys, func(k *attest.PublicKey) bool {
			return k.Verify(ctx, payload, signature) == nil
		}), err
	})
}

// anyOf looks at what may be signatures of an image, some at a time, until one counts; the error is ErrUnsigned if none
// does. One that is not there, is of another form or is not what its digest says leaves the others.
func anyOf(ctx context.Context, of name.Digest, n int, counts func(context.Context, int) (bool, error)) error {
	var good, another atomic.Bool
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(signaturesAtOnce)
	for i := range min(n, maxSignatures) {
		g.Go(func() error {
			signed, err := counts(ctx, i)
			switch {
			case signed:
				good.Store(true)
				return errSigned
			case errors.Is(err, image.ErrDigest):
				another.Store(true)
			case err != nil && !errors.Is(err, image.ErrNotFound) && !errors.Is(err, image.ErrUnsupported):
				return reading(of, err)
			}
			return nil
		})
	}
	err := g.Wait()
	switch {
	case good.Load():
		return nil
	case err == nil && another.Load(): // a proxy has answered with a page of its own
		return reading(of, image.ErrNoDocument)
	case err == nil:
		return ErrUnsigned
	}
	return err
}

// errSigned ends the search for signatures.
var errSigned = errors.New("it is signed")

// about reports whether what was signed is a statement about an image of this digest. The name in it is whatever the
// signer called the image: copies have others.
func about(payload []byte, digest string) bool {
	var p struct {
		Critical struct {
			Image struct {
				Digest string `json:"docker-manifest-digest"`
			} `json:"image"`
			Type string `json:"type"`
		} `json:"critical"`
	}
	return json.Unmarshal(payload, &p) == nil && p.Critical.Type == signatureType && p.Critical.Image.Digest == digest
}
