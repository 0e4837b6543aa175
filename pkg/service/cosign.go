package service

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/cconvert/cconvert/pkg/attest"
)

// Signatures of cosign lie under a tag that is made of the digest, as layers of their own type with the signature in an
// annotation (cosign's specification, "Signature Spec").
const (
	simpleSigning  = "application/vnd.dev.cosign.simplesigning.v1+json"
	signatureKey   = "dev.cosignproject.cosign/signature"
	signatureType  = "cosign container image signature"
	maxSignatures  = 100
	maxSignedBytes = 64 << 10
)

// ErrUnsigned says that an image has no signature by any of the keys.
var ErrUnsigned = errors.New("the image has no signature by one of the rule's keys")

// access is how registries are read.
type access struct {
	keychain authn.Keychain
	http     http.RoundTripper
}

func (a access) options(ctx context.Context) []remote.Option {
	o := []remote.Option{remote.WithContext(ctx), remote.WithAuthFromKeychain(a.keychain)}
	if a.http != nil {
		o = append(o, remote.WithTransport(a.http))
	}
	return o
}

// signed looks for a signature of an image by one of the keys; the error is ErrUnsigned where there is none.
func (a access) signed(ctx context.Context, image name.Digest, keys []*attest.PublicKey) error {
	digest := image.DigestStr()
	tag := image.Context().Tag(strings.ReplaceAll(digest, ":", "-") + ".sig")
	img, err := remote.Image(tag, a.options(ctx)...)
	if err != nil {
		var answer *transport.Error
		if errors.As(err, &answer) && answer.StatusCode == http.StatusNotFound {
			return ErrUnsigned
		}
		return fmt.Errorf("reading the signatures of %s: %w", image, err)
	}
	m, err := img.Manifest()
	if err != nil {
		return fmt.Errorf("reading the signatures of %s: %w", image, err)
	}
	for i, d := range m.Layers {
		signature, err := base64.StdEncoding.DecodeString(d.Annotations[signatureKey])
		if i >= maxSignatures || d.MediaType != simpleSigning || d.Size > maxSignedBytes || err != nil || len(signature) == 0 {
			continue
		}
		payload, err := a.blob(ctx, image.Context().Digest(d.Digest.String()))
		if err != nil {
			return fmt.Errorf("reading the signatures of %s: %w", image, err)
		}
		for _, k := range keys {
			if len(payload) <= maxSignedBytes && k.Verify(ctx, payload, signature) == nil && about(payload, digest) {
				return nil
			}
		}
	}
	return ErrUnsigned
}

// blob reads a small blob, nil where there is none. The registry alone is asked: a manifest can name other places.
func (a access) blob(ctx context.Context, of name.Digest) ([]byte, error) {
	l, err := remote.Layer(of, a.options(ctx)...)
	if err != nil {
		return nil, err
	}
	r, err := l.Compressed()
	if err != nil {
		if codeOf(err) != http.StatusBadGateway {
			return nil, nil
		}
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxSignedBytes+1))
	if err != nil && ctx.Err() == nil {
		return nil, nil //nolint:nilerr // it is not what its digest says
	}
	return b, err
}

// about says whether what was signed is a statement about an image of this digest. The name in it is whatever the signer
// called the image: copies have others.
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
