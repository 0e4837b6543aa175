package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/internal/roundtrip"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"
)

// registryUpload is an image on its way to a registry.
type upload struct {
	to     image.Reference
	o      Options
	ctx    context.Context
	cancel context.CancelFunc

	session func() (*session, error)     // connects once; nil before the source is known
	current func() (*image.Image, error) // asks once for what the place has
	asked   atomic.Bool                  // whether current was called
	before  string                       // the digest that the tag had then; empty: it was not there
	blobs   *errgroup.Group
	sending context.Context  // ends with the first blob that fails
	few     chan struct{}    // as many as may be sent at a time
	begun   []chan *url.URL  // uploads of blobs that are not known yet: where to, nil where that failed
	sent    map[v1.Hash]bool // or being sent
}

// NewUpload begins to store an image.
func NewUpload(ctx context.Context, to image.Reference, o Options) image.Upload {
	if o.Shared == nil {
		o.Shared = &Shared{}
	}
	u := &upload{to: to, o: o, few: make(chan struct{}, o.jobs()), sent: map[v1.Hash]bool{}}
	u.ctx, u.cancel = context.WithCancel(ctx)
	u.blobs, u.sending = errgroup.WithContext(u.ctx)
	u.current = sync.OnceValues(u.ask)
	return u
}

// Current returns the image that the place has before anything is written; nil if it has none for linux/amd64. It is
// asked for once. What cannot be read is an error: it may be an image all the same.
func (u *upload) Current() (*image.Image, error) {
	u.asked.Store(true)
	img, err := u.current()
	if image.HoldsNoImage(err) {
		return nil, nil
	}
	return img, err
}

// ask opens the image that the place has, and notes what its tag has, be it an image or not.
func (u *upload) ask() (*image.Image, error) {
	img, err := Open(u.ctx, u.to, u.o)
	if errors.Is(err, image.ErrUnauthorized) {
		// Some registries deny reading what is not there, unless one may write it (Quay, Docker Hub).
		repo := u.to.Name.Context()
		s, pushErr := connect(u.ctx, repo, []string{repo.Scope(transport.PushScope)}, u.o, nil)
		if pushErr == nil {
			img, err = s.open(u.ctx, u.to, u.o)
		}
	}
	if err == nil {
		u.before = img.Origin.(*reached).tagged
		return img, nil
	}
	// An image whose configuration is gone is not found, but its tag is there. What the tag has by now is looked at,
	// for it can be another one.
	at, atErr := At(u.ctx, u.to, u.o)
	if atErr != nil || at == "" {
		return nil, err
	}
	u.before = at
	now := u.to
	now.Name = u.to.Name.Context().Digest(at)
	return Open(u.ctx, now, u.o)
}

// possibly reports whether the place may have an image: whether it is worth asking again.
func (u *upload) possibly(digest string) bool {
	if !u.asked.Load() {
		return true
	}
	now, err := u.Current()
	return err == nil && now != nil && now.Digest == digest
}

// unmoved reports a tag that has another image than Current returned, whose reader decided by it. Between this and
// moving the tag there is no time that a registry would let anybody exclude. An earlier attempt can have moved the tag
// to what is wanted, though it was answered by an error.
func (u *upload) unmoved(ctx context.Context, s *session, wanted string) error {
	if !u.asked.Load() {
		return nil
	}
	at, err := s.at(ctx, u.to.Name)
	if err != nil {
		return fmt.Errorf("looking at the tag before it is moved: %w", roundtrip.Explain(err))
	}
	if at != u.before && at != "" && at != wanted {
		return fmt.Errorf("%w: it has %s", image.ErrMoved, at)
	}
	return nil
}

// Context ends when the upload is closed.
func (u *upload) Context() context.Context { return u.ctx }

// Close ends what is under way.
func (u *upload) Close() {
	u.release()
	u.cancel()
	_ = u.blobs.Wait() // Write told of errors, if anybody wanted to know
}

// Begin starts to send an image's layers, and new ones that come on top. Only registries take layers
// before there is an image. What goes wrong is told by Write.
func (u *upload) Begin(source *image.Image, add ...image.NewLayer) {
	layers, _, err := image.NewLayers(source.MediaType, add)
	if err != nil {
		return
	}
	for _, l := range source.Layers {
		layers = append(layers, l.Push)
	}
	u.connect(source.Ref, sessionOf(source.Origin))
	u.send(layers)
	u.reserve(2) // the enclave layer and the configuration
}

// Write stores the image, which nobody can see before it is complete.
func (u *upload) Write(img *image.Output) error {
	err := u.write(img)
	if errors.Is(err, image.ErrNotFound) {
		err = fmt.Errorf("%w: %w", image.ErrTarget, err)
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", u.to, err)
	}
	return nil
}

// connect asks for the rights to write to the place and to mount layers of the source.
func (u *upload) connect(source image.Reference, near *session) {
	if u.session != nil {
		return
	}
	repo := u.to.Name.Context()
	scopes := []string{repo.Scope(transport.PushScope)}
	if source.Transport == image.Registry && source.Name.Context().Registry == repo.Registry {
		if from := source.Name.Context(); from != repo {
			scopes = append(scopes, from.Scope(transport.PullScope))
		}
	}
	u.session = sync.OnceValues(func() (*session, error) {
		s, err := connect(u.ctx, repo, scopes, u.o, near)
		if errors.Is(err, image.ErrUnauthorized) && len(scopes) > 1 { // whoever may write need not be allowed to mount
			return connect(u.ctx, repo, scopes[:1], u.o, near)
		}
		return s, err
	})
}

// write sends what is missing, and moves the tag last: to a manifest that has its evidence by then.
func (u *upload) write(img *image.Output) error {
	u.connect(img.Source, sessionOf(img.Origin))
	s, err := u.session()
	if err != nil {
		return err
	}
	if u.possibly(img.Digest) {
		if at, err := s.at(u.ctx, u.to.Name); err == nil && at == img.Digest {
			return s.evidence(u.ctx, img) // the same was stored before, and is there still
		}
	}
	u.send(append(append([]v1.Layer(nil), img.Blobs...), img.ConfigBlob()))
	if err := u.blobs.Wait(); err != nil {
		return err
	}
	tag, tagged := u.to.Name.(name.Tag)
	if len(img.Evidence) > 0 || !tagged {
		// What is attached may come before what it is attached to, so that a registry which takes manifests by tag
		// alone will do (OCI distribution specification, "Pushing Manifests with Subject").
		err := s.putManifest(u.ctx, img.Digest, img.MediaType, img.Manifest)
		if err != nil && (!tagged || !refusal(err)) {
			return fmt.Errorf("writing the manifest: %w", roundtrip.Explain(err))
		}
	}
	refused := s.evidence(u.ctx, img)
	if refused != nil && !errors.Is(refused, image.ErrEvidence) {
		return refused
	}
	if tagged {
		if err := u.moveTag(s, tag, img); err != nil {
			return err
		}
	}
	return refused
}

// moveTag asks right before each attempt whether the tag may be moved, after having waited for its turn.
func (u *upload) moveTag(s *session, tag name.Tag, img *image.Output) error {
	at := s.url("manifests/"+tag.TagStr(), nil)
	look, err := http.NewRequestWithContext(u.ctx, http.MethodHead, at, nil)
	if err != nil {
		return err
	}
	move, err := http.NewRequestWithContext(u.ctx, http.MethodPut, at, nil)
	if err != nil {
		return err
	}
	return s.retry(u.ctx, func() error {
		over, err := s.stack.TakeTurns(look, move)
		if err != nil {
			return err
		}
		defer over()
		if err := u.unmoved(u.ctx, s, img.Digest); err != nil {
			return err
		}
		if u.o.BeforeTag != nil { // last of all: the request before can take its time
			if err := u.o.BeforeTag(u.ctx); err != nil {
				return err
			}
		}
		if _, err := s.putOnce(u.ctx, tag.TagStr(), img.MediaType, img.Manifest); err != nil {
			return fmt.Errorf("moving the tag: %w", roundtrip.Explain(err))
		}
		return nil
	})
}

// evidence attaches what belongs to an image.
func (s *session) evidence(ctx context.Context, img *image.Output) error {
	if len(img.Evidence) == 0 {
		return nil
	}
	subject := v1.Descriptor{MediaType: img.MediaType, Size: int64(len(img.Manifest))}
	var err error
	if subject.Digest, err = v1.NewHash(img.Digest); err != nil {
		return err
	}
	err = s.attach(ctx, subject, img.Evidence)
	switch {
	case err == nil:
		return nil
	case img.EvidenceOptional && refusal(err):
		return fmt.Errorf("%w: %w", image.ErrEvidence, err)
	}
	return fmt.Errorf("attaching evidence: %w", roundtrip.Explain(err))
}

// refusal reports whether a registry answered that it will not, rather than that it cannot now.
func refusal(err error) bool {
	var answer *transport.Error
	return errors.As(err, &answer) && answer.StatusCode >= 400 && answer.StatusCode < 500 && !image.Transient(err)
}

// putManifest stores the manifest under a digest or tag.
func (s *session) putManifest(ctx context.Context, at string, mt types.MediaType, raw []byte) error {
	_, err := s.putManifestFor(ctx, at, mt, raw)
	return err
}

// putManifestFor is putManifest, and returns what the registry says of it.
func (s *session) putManifestFor(
	ctx context.Context, at string, mt types.MediaType, raw []byte,
) (said *answer, err error) {
	err = s.retry(ctx, func() error {
		said, err = s.putOnce(ctx, at, mt, raw)
		return err
	})
	return said, err
}

func (s *session) putOnce(
	ctx context.Context, at string, mt types.MediaType, raw []byte,
) (said *answer, err error) {
	said, err = s.do(ctx, http.MethodPut, s.url("manifests/"+at, nil), &body{
		bytes.NewReader(raw), int64(len(raw)), string(mt),
	}, http.StatusCreated, http.StatusOK, http.StatusAccepted)
	if err != nil || said.status == http.StatusCreated {
		return said, err
	}
	// Only 201 says that it is stored (OCI distribution specification, "Pushing Manifests"): a proxy may answer with a
	// page of its own.
	ref := name.Reference(s.repo.Tag(at))
	if strings.Contains(at, ":") {
		ref = s.repo.Digest(at)
	}
	now, err := s.at(ctx, ref)
	if err == nil && now != image.DigestOf(raw) {
		err = fmt.Errorf("%w: to storing a manifest it answers %d, and does not have it then", image.ErrNoDocument,
			said.status)
	}
	return said, err
}

// has reports whether the repository has a blob or manifest. An error is a no: sending shows what is wrong.
func (s *session) has(ctx context.Context, kind, at string) bool {
	_, err := s.do(ctx, http.MethodHead, s.url(kind+"/"+at, nil), nil, http.StatusOK)
	return err == nil
}

// at returns the digest of the manifest that the repository has under a name, as far as it tells.
func (s *session) at(ctx context.Context, ref name.Reference) (digest string, err error) {
	said, err := s.do(ctx, http.MethodHead, s.url("manifests/"+ref.Identifier(), nil), nil, http.StatusOK)
	if err != nil && (nothingThere(err) == nil || !refusal(err)) {
		return "", nothingThere(err)
	}
	if err == nil && said.digest != "" {
		return said.digest, nil
	}
	// The header is optional (OCI distribution specification, "Checking if content exists in the registry").
	d, err := s.get(ctx, ref, Options{})
	if err != nil {
		return "", nothingThere(err)
	}
	return d.Digest.String(), nil
}

// nothingThere returns an error of asking for a manifest unless it says that there is none, or, as some registries
// answer of what is not there, that it must not be read.
func nothingThere(err error) error {
	var answer *transport.Error
	if errors.Is(err, image.ErrNotFound) || errors.As(err, &answer) &&
		slices.Contains([]int{http.StatusNotFound, http.StatusUnauthorized, http.StatusForbidden}, answer.StatusCode) {
		return nil
	}
	return err
}

func (s *session) url(what string, query url.Values) string {
	u := url.URL{
		Scheme: s.repo.Scheme(), Host: s.repo.RegistryStr(), Path: "/v2/" + s.repo.RepositoryStr() + "/" + what,
		RawQuery: query.Encode(),
	}
	return u.String()
}

// body is what a request sends.
type body struct {
	io.Reader
	size int64
	kind string // its media type
}

// answer is what matters of a registry's.
type answer struct {
	status   int
	digest   string
	subject  string   // of a manifest that refers to another one, if the registry lists it there
	location *url.URL // nil where there is none
}

// do sends a request (OCI distribution specification, "Push"), whose answer must be one of the expected ones.
func (s *session) do(ctx context.Context, method, to string, b *body, expected ...int) (*answer, error) {
	var content io.Reader
	if b != nil {
		content = b.Reader
	}
	req, err := http.NewRequestWithContext(ctx, method, to, content)
	if err != nil {
		return nil, err
	}
	if b != nil {
		req.ContentLength = b.size
		req.Header.Set("Content-Type", b.kind)
	}
	if method == http.MethodHead {
		for _, mt := range roundtrip.ManifestTypes {
			req.Header.Add("Accept", string(mt))
		}
	}
	resp, err := roundtrip.Send(s.rt, req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	a := &answer{
		status: resp.StatusCode, digest: resp.Header.Get("Docker-Content-Digest"),
		subject: resp.Header.Get("OCI-Subject"),
	}
	if l, err := resp.Location(); err == nil {
		a.location = l
	}
	return a, transport.CheckError(resp, expected...)
}
