// Package cosign looks for signatures of images that cosign has made: under a tag, or in bundles of Sigstore that
// refer to the image; by keys, or by identities to which an authority has certified a key for minutes. Nothing but the
// image's registry is asked.
package cosign

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/sigstore/sigstore-go/pkg/root"

	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/image/registry"
)

// Trust says whose signatures count: any of them is enough.
type Trust struct {
	Keys       []*attest.PublicKey
	Identities []Identity
	// Root has the authorities and logs that vouch for identities. It is needed if there are some.
	Root Root
}

// Root has authorities and logs that are believed.
type Root = root.TrustedMaterial

// Identity is one that an authority of certificates has seen somebody log in with.
type Identity struct {
	// Issuer is the OpenID provider that was logged in with, as a URL.
	Issuer string
	// Subject is who that was: a mail address, or the URL of a workflow. SubjectPattern is a regular expression for the
	// whole of it. One of them is set.
	Subject, SubjectPattern string
}

// ErrUnsigned says that an image has no signature that counts.
var ErrUnsigned = errors.New("the image has no signature by one of the rule's keys or identities")

// Signed looks for a signature of an image that counts; the error is ErrUnsigned if there is none.
func Signed(ctx context.Context, of name.Digest, by Trust, o registry.Options) error {
	err := signedByTag(ctx, of, by.Keys, o)
	if err == nil {
		return nil
	}
	other := signedByBundle(ctx, of, by, o)
	switch {
	case other == nil:
		return nil
	case !errors.Is(err, ErrUnsigned):
		return err
	}
	return other
}

// reading says what could not be read.
func reading(of name.Digest, err error) error {
	return fmt.Errorf("reading the signatures of %s: %w", of, err)
}
