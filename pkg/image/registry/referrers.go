package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"

	"github.com/cconvert/cconvert/internal/strictjson"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/internal/document"
	"github.com/cconvert/cconvert/pkg/image/internal/roundtrip"
)

// Bounds on what is attached to an image.
const (
	maxReferrers     = 256     // that are fetched
	maxReferrerPages = 64      // of the list
	maxReferrerBlob  = 4 << 20 // of statements and reference values
)

// referrer is a descriptor in a list of referrers (OCI image specification, "Image Index"), which
// go-containerregistry's type has no artifactType for.
type referrer struct {
	v1.Descriptor
	ArtifactType string `json:"artifactType,omitempty"`
}

type referrerIndex struct {
	SchemaVersion int             `json:"schemaVersion"`
	MediaType     types.MediaType `json:"mediaType"`
	Manifests     []referrer      `json:"manifests"`
}

func (i *referrerIndex) has(p *document.PackedArtifact) bool {
	return slices.ContainsFunc(i.Manifests, func(r referrer) bool { return r.Digest == p.Digest })
}

// attach stores artifacts that refer to a manifest of the repository, which need not be there yet, unless they are
// attached already, and fills in their digests. If the registry has no list of referrers, it is kept under a tag (OCI
// distribution specification, "Referrers Tag Schema").
func (s *session) attach(ctx context.Context, subject v1.Descriptor, add []image.Artifact) error {
	index, err := s.referrers(ctx, subject.Digest.String())
	if err != nil {
		return err
	}
	var missing []*document.PackedArtifact
	config := s.has(ctx, "blobs", document.EmptyConfigDigest) // of all of them
	for i, a := range add {
		p, err := document.PackArtifact(a, &subject)
		if err != nil {
			return err
		}
		add[i].Digest = p.Digest.String()
		// a list under a tag can speak of what was removed
		if !config || !index.has(p) || !s.has(ctx, "manifests", p.Digest.String()) ||
			!s.has(ctx, "blobs", p.Manifest.Layers[0].Digest.String()) {
			missing = append(missing, p)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	if err := s.upload(ctx, missing[0].Manifest.Config.Digest, document.EmptyConfigBlob(), nil); err != nil {
		return err
	}
	known := make([]bool, len(missing)) // whether the registry lists it by itself
	g, gctx := errgroup.WithContext(ctx)
	for i, p := range missing {
		g.Go(func() error {
			if err := s.upload(gctx, p.Manifest.Layers[0].Digest, p.Blob, nil); err != nil {
				return err
			}
			var err error
			known[i], err = s.putReferrer(gctx, p)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if !slices.Contains(known, false) {
		return nil
	}
	return s.shared.alone(ctx, s.repo.Name()+"@"+subject.Digest.String(), func() error {
		return s.list(ctx, subject, missing)
	})
}

// putReferrer stores the manifest of an artifact, and reports whether the registry lists by itself what it refers to.
func (s *session) putReferrer(ctx context.Context, p *document.PackedArtifact) (listed bool, err error) {
	digest := p.Digest.String()
	said, err := s.putManifestFor(ctx, digest, p.Manifest.MediaType, p.Raw)
	if err != nil && refusal(err) { // some registries take manifests by tag alone
		said, err = s.putManifestFor(ctx, fallbackTag(digest)+".artifact", p.Manifest.MediaType, p.Raw)
	}
	return err == nil && said.subject != "", err
}

// maxListings is how often a list is written again because somebody else wrote it at the same time.
const maxListings = 5

// list puts artifacts on the list of what refers to a manifest, under its tag, until they are there: whoever writes it
// at the same time takes them off again.
func (s *session) list(ctx context.Context, subject v1.Descriptor, add []*document.PackedArtifact) error {
	for range maxListings {
		index, err := s.referrers(ctx, subject.Digest.String())
		if err != nil {
			return err
		}
		if err := s.mayList(ctx, subject, index); err != nil {
			return err
		}
		before := len(index.Manifests)
		for _, p := range add {
			if !index.has(p) {
				index.Manifests = append(index.Manifests, referrer{
					v1.Descriptor{
						MediaType: p.Manifest.MediaType, Size: int64(len(p.Raw)), Digest: p.Digest,
						Annotations: p.Manifest.Annotations,
					}, p.Manifest.ArtifactType,
				})
			}
		}
		if len(index.Manifests) == before {
			return nil
		}
		err = s.putList(ctx, subject, index)
		if refusal(err) { // some registries take no list that speaks of what was removed
			index.Manifests = slices.DeleteFunc(index.Manifests, func(r referrer) bool {
				return !s.has(ctx, "manifests", r.Digest.String())
			})
			err = s.putList(ctx, subject, index)
		}
		if err != nil {
			return err
		}
	}
	return fmt.Errorf("the list of what refers to %s is written by others all the time", subject.Digest)
}

// errNoList says that a tag for a list of referrers has something else.
var errNoList = errors.New("it is no list of what refers to an image")

// mayList reports why the list of what refers to a manifest must not be written to its tag: the tag has an image, or an
// index of images, which it would replace.
func (s *session) mayList(ctx context.Context, subject v1.Descriptor, index *referrerIndex) error {
	tag := s.repo.Tag(fallbackTag(subject.Digest.String()))
	if slices.ContainsFunc(index.Manifests, func(r referrer) bool { return r.Platform != nil }) {
		return fmt.Errorf("%s is left as it is: %w", tag, errNoList)
	}
	if len(index.Manifests) > 0 {
		return nil
	}
	d, err := s.get(ctx, tag, Options{})
	if err != nil {
		return nothingThere(err)
	}
	if !d.MediaType.IsIndex() {
		return fmt.Errorf("%s is left as it is: %w", tag, errNoList)
	}
	return nil
}

func (s *session) putList(ctx context.Context, subject v1.Descriptor, index *referrerIndex) error {
	raw, err := json.Marshal(index)
	if err != nil {
		return err
	}
	return s.putManifest(ctx, fallbackTag(subject.Digest.String()), types.OCIImageIndex, raw)
}

func fallbackTag(digest string) string { return strings.ReplaceAll(digest, ":", "-") }

// noReferrers are answers of registries that have no list of referrers. Proxies and old registries say so in many ways.
var noReferrers = []int{
	http.StatusNoContent, http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden,
	http.StatusMethodNotAllowed,
	http.StatusNotAcceptable, http.StatusGone, http.StatusUnsupportedMediaType, http.StatusNotImplemented,
}

// referrers fetches the list of what refers to a manifest: an empty one if there is none.
func (s *session) referrers(ctx context.Context, digest string) (*referrerIndex, error) {
	index, err := s.referrerIndex(ctx, "referrers/"+digest)
	if errors.Is(err, image.ErrNotFound) || isStatus(err, noReferrers...) {
		index, err = s.referrerIndex(ctx, "manifests/"+fallbackTag(digest))
	}
	if errors.Is(err, image.ErrNotFound) {
		return &referrerIndex{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []referrer{}}, nil
	}
	return index, err
}

// referrerIndex fetches a list of referrers, all its pages (OCI distribution specification, "Listing Referrers").
func (s *session) referrerIndex(ctx context.Context, what string) (*referrerIndex, error) {
	at := s.url(what, nil)
	var whole *referrerIndex
	for range maxReferrerPages {
		index, next, err := s.referrerPage(ctx, at)
		if err != nil {
			return nil, err
		}
		if whole == nil {
			whole = index
		} else {
			whole.Manifests = append(whole.Manifests, index.Manifests...)
		}
		if len(whole.Manifests) > document.MaxElements {
			return nil, fmt.Errorf("the list of referrers has more than %d entries", document.MaxElements)
		}
		if next == "" {
			return whole, nil
		}
		at = next
	}
	return nil, fmt.Errorf("the list of referrers has more than %d pages", maxReferrerPages)
}

// nextPage is a link to the next page (RFC 8288).
var nextPage = regexp.MustCompile(`<([^>]*)>\s*;[^,]*\brel="?next"?`)

func (s *session) referrerPage(ctx context.Context, at string) (_ *referrerIndex, next string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return nil, "", err
	}
	req.Header.Set("Accept", string(types.OCIImageIndex))
	resp, err := roundtrip.Send(s.rt, req)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	if err := transport.CheckError(resp, http.StatusOK); err != nil {
		return nil, "", roundtrip.Explain(err)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, roundtrip.MaxAnswer))
	if err != nil {
		return nil, "", err
	}
	if t := document.Given(resp.Header.Get("Content-Type")); len(bytes.TrimSpace(b)) == 0 || t == "text/html" ||
		bytes.HasPrefix(bytes.TrimSpace(b), []byte("<")) {
		return nil, "",
			fmt.Errorf("the list of referrers is %w: the registry answers with a page, or nothing", image.ErrNotFound)
	}
	var index referrerIndex
	if err := strictjson.Check(b, document.Rules); err != nil {
		return nil, "", fmt.Errorf("reading the list of referrers: %w", err)
	}
	if err := json.Unmarshal(b, &index); err != nil {
		return nil, "", fmt.Errorf("reading the list of referrers: %w", err)
	}
	if index.MediaType != types.OCIImageIndex {
		// a registry without one may answer anything
		return nil, "", fmt.Errorf("the list of referrers is %w", image.ErrNotFound)
	}
	if m := nextPage.FindStringSubmatch(resp.Header.Get("Link")); m != nil {
		to, err := resp.Request.URL.Parse(m[1])
		if err != nil || to.Host != resp.Request.URL.Host { // credentials are for this one
			return nil, "", fmt.Errorf("the list of referrers goes on at %q", m[1])
		}
		next = to.String()
	}
	return &index, next, nil
}

// Referrers fetches the artifacts of the given types that refer to an image in a registry. What cannot be
// read of them is an error: an attacker must not be able to have evidence passed over.
func Referrers(ctx context.Context, img *image.Image, kinds ...string) ([]image.Artifact, error) {
	s := sessionOf(img.Origin)
	if s == nil {
		return nil, nil
	}
	list, err := s.listReferrers(ctx, img.Digest, kinds)
	if err != nil {
		return nil, err
	}
	if list.Len() > maxReferrers {
		return nil, fmt.Errorf("more than %d artifacts refer to %s", maxReferrers, img.Ref)
	}
	var found []image.Artifact
	for i := range list.Len() {
		a, err := list.Fetch(ctx, i, maxReferrerBlob)
		if errors.Is(err, errOtherType) {
			continue
		}
		if err != nil {
			return nil, err
		}
		found = append(found, *a)
	}
	return found, nil
}

// ReferrerList lists artifacts that refer to a manifest, and may be of certain types.
type ReferrerList struct {
	s       *session
	of      string
	digests []string
	kinds   []string
}

// ListReferrers lists the artifacts that refer to a manifest and may be of one of the types.
func ListReferrers(ctx context.Context, of name.Digest, o Options, kinds ...string) (*ReferrerList, error) {
	s, err := connect(ctx, of.Context(), []string{of.Context().Scope(transport.PullScope)}, o, nil)
	if err != nil {
		return nil, err
	}
	return s.listReferrers(ctx, of.DigestStr(), kinds)
}

func (s *session) listReferrers(ctx context.Context, digest string, kinds []string) (*ReferrerList, error) {
	index, err := s.referrers(ctx, digest)
	if err != nil {
		return nil, fmt.Errorf("listing what refers to %s: %w", s.repo.Digest(digest), err)
	}
	list := &ReferrerList{s: s, of: digest, kinds: kinds}
	for _, r := range index.Manifests {
		// Some registries list the configuration's type in the place of the artifact's, or none.
		told := r.ArtifactType != "" && r.ArtifactType != document.EmptyConfigType
		if !told || slices.Contains(kinds, r.ArtifactType) {
			list.digests = append(list.digests, r.Digest.String())
		}
	}
	return list, nil
}

// HasEvidence reports whether all that belongs to an image is attached to it in a repository, to the byte.
func HasEvidence(ctx context.Context, repo name.Repository, img *image.Output, o Options) bool {
	if len(img.Evidence) == 0 {
		return true
	}
	subject := v1.Descriptor{MediaType: img.MediaType, Size: int64(len(img.Manifest))}
	var err error
	if subject.Digest, err = v1.NewHash(img.Digest); err != nil {
		return false
	}
	var kinds, digests []string
	for _, a := range img.Evidence {
		p, err := document.PackArtifact(a, &subject)
		if err != nil {
			return false
		}
		kinds, digests = append(kinds, a.Type), append(digests, p.Digest.String())
	}
	list, err := ListReferrers(ctx, repo.Digest(img.Digest), o, kinds...)
	return err == nil && list.Have(ctx, digests)
}

// Have reports whether artifacts of certain digests, as Attach makes them, are among them, and are there as a whole.
func (l *ReferrerList) Have(ctx context.Context, digests []string) bool {
	if len(digests) > 0 && !l.s.has(ctx, "blobs", document.EmptyConfigDigest) {
		return false
	}
	for _, d := range digests {
		i := slices.Index(l.digests, d)
		if i < 0 {
			return false
		}
		if _, err := l.Fetch(ctx, i, maxReferrerBlob); err != nil {
			return false
		}
	}
	return true
}

// Len is how many there are.
func (l *ReferrerList) Len() int { return len(l.digests) }

// Fetch fetches one of the artifacts, whose blob may have so many bytes. The error is ErrUnsupported if it is of
// another type, or is not an artifact with one blob.
func (l *ReferrerList) Fetch(ctx context.Context, i int, limit int64) (*image.Artifact, error) {
	a, err := l.s.artifact(ctx, l.s.repo.Digest(l.digests[i]), l.kinds, limit, nil)
	if err != nil {
		return nil, fmt.Errorf("fetching %s, which refers to %s: %w", l.digests[i], l.of, err)
	}
	return a, nil
}

// Attach stores artifacts that refer to an image in a registry, unless they are attached already.
func Attach(ctx context.Context, img *image.Image, add []image.Artifact, o Options) error {
	near := sessionOf(img.Origin)
	if near == nil {
		return fmt.Errorf("%s: %w: only images in registries have something attached", img.Ref, image.ErrUnsupported)
	}
	raw, err := img.Manifest()
	if err != nil {
		return err
	}
	subject := v1.Descriptor{MediaType: img.MediaType, Size: int64(len(raw))}
	if subject.Digest, err = v1.NewHash(img.Digest); err != nil {
		return err
	}
	s, err := connect(ctx, near.repo, []string{near.repo.Scope(transport.PushScope)}, o, near)
	if err != nil {
		return err
	}
	if err := s.attach(ctx, subject, add); err != nil {
		return fmt.Errorf("attaching to %s: %w", img.Ref, roundtrip.Explain(err))
	}
	return nil
}

func isStatus(err error, codes ...int) bool {
	var answer *transport.Error
	return errors.As(err, &answer) && slices.Contains(codes, answer.StatusCode)
}

// errOtherType says that an artifact is of another type than those that are asked for.
var errOtherType = fmt.Errorf("%w: another type", image.ErrUnsupported)

// artifact fetches an artifact of one of the types, whose blob may have so many bytes. Accept is as that of Pull; nil:
// all are accepted.
func (s *session) artifact(
	ctx context.Context, ref name.Reference, kinds []string, limit int64, accept func(*image.Artifact) error,
) (*image.Artifact, error) {
	d, err := s.get(ctx, ref, Options{})
	if err != nil {
		return nil, err
	}
	var m document.ArtifactManifest
	if err := json.Unmarshal(d.Manifest, &m); err != nil {
		return nil, fmt.Errorf("reading the manifest: %w", err)
	}
	if !slices.Contains(kinds, m.ArtifactType) {
		return nil, fmt.Errorf("%w: it is a %q", errOtherType, m.ArtifactType)
	}
	if len(m.Layers) != 1 || m.Layers[0].Size > limit {
		return nil, fmt.Errorf("%w: it is a %q with %d blobs", image.ErrUnsupported, m.ArtifactType, len(m.Layers))
	}
	a := &image.Artifact{
		Type: m.ArtifactType, MediaType: string(m.Layers[0].MediaType), BlobDigest: m.Layers[0].Digest.String(),
		Annotations: m.Annotations, Digest: d.Digest.String(),
	}
	if accept != nil {
		if err := accept(a); err != nil {
			return nil, err
		}
	}
	blob := m.Layers[0]
	blob.URLs = nil // whoever attached it sends nobody elsewhere
	a.Blob, err = document.ReadBlob(ctx, blob, limit, s.blob)
	return a, err
}
