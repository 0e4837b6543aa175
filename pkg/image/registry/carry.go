package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/internal/document"
	"github.com/cconvert/cconvert/pkg/image/internal/roundtrip"
)

// Bounds on what is copied of what is attached to an image.
const (
	maxCarriedBlob  = 256 << 20 // bytes of one blob
	maxCarriedBytes = 1 << 30   // of all of them
)

// cosignSuffixes are those of the tags under which cosign keeps what belongs to an image (cosign's specifications of
// signatures, attestations and SBOMs).
var cosignSuffixes = []string{"sig", "att", "sbom"}

// Carried is one thing that was copied because it refers to an image.
type Carried struct {
	// Of is the digest that it speaks of: the image's, its index's, or that of another copied thing.
	Of     string `json:"of"`
	Digest string `json:"digest"`
	// Kind is the artifact's type, or the media type of what cosign's tag has.
	Kind string `json:"kind"`
	// Tag is cosign's; empty: it was found in the list of referrers.
	Tag string `json:"tag,omitempty"`
	// Kept says that the tag had something else in the target, which was left there.
	Kept bool `json:"kept,omitempty"`
}

// CopyReferrers copies to another repository what refers to an image in a registry, to its index if it was found by
// one, and to what was copied: the OCI referrers, and what cosign keeps under tags. They stay what they are, to the
// byte, so that signatures stay valid, and speak of the image that they were made for. If withImage is set, the image's
// manifest is copied too, without a tag, unless it refers to another image itself; its layers must be there. A tag that
// has something else is left alone.
func CopyReferrers(ctx context.Context, img *image.Image, to name.Repository, withImage bool, o Options) (
	[]Carried, error,
) {
	c, err := carry(ctx, img, to, withImage, false, o)
	return c.done, err
}

// LookAtReferrers returns what CopyReferrers would, without copying, and reports whether something is missing in the
// other repository.
func LookAtReferrers(ctx context.Context, img *image.Image, to name.Repository, withImage bool, o Options) (
	list []Carried, missing bool, err error,
) {
	c, err := carry(ctx, img, to, withImage, true, o)
	return c.done, c.missing, err
}

func carry(ctx context.Context, img *image.Image, to name.Repository, withImage, look bool, o Options) (
	carrier, error,
) {
	c := carrier{left: maxCarriedBytes, look: look}
	near, ok := img.Origin.(*reached)
	if !ok {
		return c, fmt.Errorf("%s: %w: only images in registries have something attached", img.Ref,
			image.ErrUnsupported)
	}
	if to == near.repo {
		return c, nil
	}
	scope := transport.PushScope
	if look {
		scope = transport.PullScope
	}
	scopes := []string{to.Scope(scope)}
	if to.Registry == near.repo.Registry {
		scopes = append(scopes, near.repo.Scope(transport.PullScope))
	}
	s, err := connect(ctx, to, scopes, o, near.session)
	if errors.Is(err, image.ErrUnauthorized) && len(scopes) > 1 {
		s, err = connect(ctx, to, scopes[:1], o, near.session)
	}
	if err != nil {
		return c, err
	}
	c.from, c.to = near.session, s
	c.add(img.Digest)
	c.add(near.tagged)
	for i := 0; i < len(c.about); i++ { // it grows
		if err := c.copyAbout(ctx, c.about[i]); err != nil {
			return c, fmt.Errorf("copying what refers to %s: %w", c.about[i], roundtrip.Explain(err))
		}
	}
	if withImage && len(c.done) > 0 {
		if err := c.copyImage(ctx, img); err != nil {
			return c, fmt.Errorf("copying the manifest of %s: %w", img.Ref, roundtrip.Explain(err))
		}
	}
	return c, nil
}

// carrier copies from one repository to another one.
type carrier struct {
	from, to *session
	about    []string // digests of which is copied what refers to them
	done     []Carried
	left     int64 // bytes that may still be copied

	look    bool // nothing is copied
	missing bool // something would have been
}

func (c *carrier) add(digest string) {
	if !slices.Contains(c.about, digest) {
		c.about = append(c.about, digest)
	}
}

// copyAbout copies what refers to a digest.
func (c *carrier) copyAbout(ctx context.Context, digest string) error {
	index, err := c.from.referrers(ctx, digest)
	if err != nil {
		return err
	}
	known, err := c.to.referrers(ctx, digest)
	if err != nil {
		return err
	}
	var unlisted []*document.PackedArtifact
	var subject v1.Descriptor
	for _, r := range index.Manifests {
		p, err := c.read(ctx, c.from.repo.Digest(r.Digest.String()))
		if err != nil {
			return err
		}
		// Whoever writes the list must not attach to another image what nobody has attached to it.
		if p.Manifest.Subject == nil || p.Manifest.Subject.Digest.String() != digest || c.has(p) {
			continue
		}
		subject = *p.Manifest.Subject
		if err := c.blobs(ctx, p.Digest.String(), parts(p)...); err != nil {
			return err
		}
		listed := known.has(p) && c.to.has(ctx, "manifests", p.Digest.String())
		if !listed && c.look {
			c.missing, listed = true, true
		}
		if !listed {
			if listed, err = c.to.putReferrer(ctx, p); err != nil {
				return err
			}
		}
		if !listed {
			unlisted = append(unlisted, p)
		}
		if err := c.note(Carried{Of: digest, Digest: p.Digest.String(), Kind: p.Manifest.ArtifactType}); err != nil {
			return err
		}
		c.add(p.Digest.String())
	}
	if len(unlisted) > 0 {
		err := c.to.shared.alone(ctx, c.to.repo.Name()+"@"+digest, func() error {
			return c.to.list(ctx, subject, unlisted)
		})
		if err != nil {
			return err
		}
	}
	for _, suffix := range cosignSuffixes {
		if err := c.copyTag(ctx, digest, fallbackTag(digest)+"."+suffix); err != nil {
			return err
		}
	}
	return nil
}

// copyTag copies what a tag of cosign has.
func (c *carrier) copyTag(ctx context.Context, of, tag string) error {
	p, err := c.read(ctx, c.from.repo.Tag(tag))
	if err != nil {
		return nothingThere(err)
	}
	if p.Manifest.Subject != nil && p.Manifest.Subject.Digest.String() != of {
		return nil
	}
	at, err := c.to.at(ctx, c.to.repo.Tag(tag))
	if err != nil {
		return err
	}
	done := Carried{Of: of, Digest: p.Digest.String(), Kind: p.Manifest.ArtifactType, Tag: tag}
	if len(p.Manifest.Layers) > 0 {
		done.Kind = string(p.Manifest.Layers[0].MediaType)
	}
	switch {
	case at == "" && c.look:
		c.missing = true
	case at == "":
		if err := c.blobs(ctx, p.Digest.String(), parts(p)...); err != nil {
			return err
		}
		if err := c.to.putManifest(ctx, tag, p.Manifest.MediaType, p.Raw); err != nil {
			return err
		}
	case at != done.Digest:
		done.Kept = true
	}
	return c.note(done)
}

// has reports whether an artifact was copied: a list can name it twice.
func (c *carrier) has(p *document.PackedArtifact) bool {
	return slices.ContainsFunc(c.done, func(d Carried) bool { return d.Tag == "" && d.Digest == p.Digest.String() })
}

func (c *carrier) note(done Carried) error {
	if len(c.done) == maxReferrers {
		return fmt.Errorf("there are more than %d", maxReferrers)
	}
	c.done = append(c.done, done)
	return nil
}

// read fetches the manifest of an artifact.
func (c *carrier) read(ctx context.Context, ref name.Reference) (*document.PackedArtifact, error) {
	d, err := c.from.get(ctx, ref, Options{})
	if err != nil {
		return nil, err
	}
	if !d.MediaType.IsImage() {
		return nil, fmt.Errorf("%s: the media type %q is %w: it is not a manifest with layers", ref, d.MediaType,
			image.ErrUnsupported)
	}
	if _, err := document.ParseManifest(d.Manifest); err != nil {
		return nil, fmt.Errorf("reading the manifest %s: %w", ref, err)
	}
	p := &document.PackedArtifact{Raw: d.Manifest, Digest: d.Digest}
	if err := json.Unmarshal(d.Manifest, &p.Manifest); err != nil {
		return nil, fmt.Errorf("reading the manifest %s: %w", ref, err)
	}
	p.Manifest.MediaType = d.MediaType
	if p.Manifest.ArtifactType == "" { // OCI distribution specification, "Listing Referrers"
		p.Manifest.ArtifactType = string(p.Manifest.Config.MediaType)
	}
	return p, nil
}

// parts are what an artifact consists of.
func parts(p *document.PackedArtifact) []v1.Descriptor {
	return append([]v1.Descriptor{p.Manifest.Config}, p.Manifest.Layers...)
}

// blobs copies blobs of a manifest.
func (c *carrier) blobs(ctx context.Context, of string, parts ...v1.Descriptor) error {
	for _, d := range parts {
		if c.left -= max(d.Size, 0); d.Size > maxCarriedBlob || d.Size < 0 || c.left < 0 {
			return fmt.Errorf("%s: %w: a blob of %d bytes", of, image.ErrUnsupported, d.Size)
		}
	}
	if c.look {
		c.missing = c.missing || slices.ContainsFunc(parts, func(d v1.Descriptor) bool {
			return !c.to.has(ctx, "blobs", d.Digest.String())
		})
		return nil
	}
	for _, d := range parts {
		d.URLs = nil // whoever attached it sends nobody elsewhere
		blob := &remote.MountableLayer{
			Layer:     document.NewBlob(ctx, d, c.from.blob),
			Reference: c.from.repo.Digest(d.Digest.String()),
		}
		if err := c.to.upload(ctx, d.Digest, blob, nil); err != nil {
			return fmt.Errorf("%s: copying the blob %s: %w", of, d.Digest, err)
		}
	}
	return nil
}

// copyImage copies an image's manifest and configuration.
func (c *carrier) copyImage(ctx context.Context, img *image.Image) error {
	raw, err := img.Manifest()
	if err != nil {
		return err
	}
	m, err := document.ParseManifest(raw)
	if err != nil || m.Subject != nil || c.to.has(ctx, "manifests", img.Digest) {
		return err // one that refers to another image would be attached to that
	}
	if c.look {
		c.missing = true
		return nil
	}
	if err := c.blobs(ctx, img.Digest, m.Config); err != nil {
		return err
	}
	return c.to.putManifest(ctx, img.Digest, img.MediaType, raw)
}
