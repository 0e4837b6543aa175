package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"
)

// Upload is an image on its way to a place. What is known of it before it is complete can be sent early.
type Upload struct {
	to     Reference
	o      Options
	ctx    context.Context
	cancel context.CancelFunc

	session func() (*registrySession, error) // connects once; nil before the source is known
	current func() (*Image, error)           // asks once for what the place has
	asked   atomic.Bool                      // whether current was called
	before  string                           // the digest that the tag had then; empty: it was not there
	blobs   *errgroup.Group
	sending context.Context  // ends with the first blob that fails
	few     chan struct{}    // as many as may be sent at a time
	begun   []chan *url.URL  // uploads of blobs that are not known yet: where to, nil where that failed
	sent    map[v1.Hash]bool // or being sent
}

// NewUpload begins to store an image. It must be closed.
func NewUpload(ctx context.Context, to Reference, o Options) *Upload {
	if o.Shared == nil {
		o.Shared = &Shared{}
	}
	u := &Upload{to: to, o: o, few: make(chan struct{}, o.jobs()), sent: map[v1.Hash]bool{}}
	u.ctx, u.cancel = context.WithCancel(ctx)
	u.blobs, u.sending = errgroup.WithContext(u.ctx)
	u.current = sync.OnceValues(u.ask)
	return u
}

// Current returns the image that the place has before anything is written; nil if it has none for linux/amd64. It is
// asked for once. What cannot be read is an error: it may be an image all the same.
func (u *Upload) Current() (*Image, error) {
	if u.to.Transport != Registry && u.to.Transport != OCILayout {
		return nil, nil
	}
	u.asked.Store(true)
	img, err := u.current()
	if holdsNoImage(err) {
		return nil, nil
	}
	return img, err
}

// holdsNoImage reports whether an error of Open says what the place has: nothing, or something that is no image for
// linux/amd64. An image that cannot be read, such as one with encrypted layers, is an image.
func holdsNoImage(err error) bool {
	return errors.Is(err, ErrNotFound) || errors.Is(err, errNoImage) || errors.Is(err, ErrPlatform)
}

// ask opens the image that the place has, and notes what its tag has, be it an image or not.
func (u *Upload) ask() (*Image, error) {
	img, err := Open(u.ctx, u.to, u.o)
	if u.to.Transport == Registry && errors.Is(err, ErrUnauthorized) {
		// Some registries deny reading what is not there, unless one may write it (Quay, Docker Hub).
		repo := u.to.Name.Context()
		s, pushErr := connect(u.ctx, repo, []string{repo.Scope(transport.PushScope)}, u.o, nil)
		if pushErr == nil {
			img, err = s.open(u.ctx, u.to, u.o)
		}
	}
	if err == nil {
		u.before = img.tagged
		return img, nil
	}
	if u.to.Transport != Registry {
		return nil, err
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
func (u *Upload) possibly(digest string) bool {
	if !u.asked.Load() {
		return true
	}
	now, err := u.Current()
	return err == nil && now != nil && now.Digest == digest
}

// ErrMoved says that a tag was moved by somebody else since Current was asked.
var ErrMoved = errors.New("somebody else has moved the tag meanwhile")

// unmoved reports a tag that has another image than Current gave, whose reader decided by it. Between this and moving
// the tag there is no time that a registry would let anybody exclude. An earlier attempt can have moved the tag to what
// is wanted, though it was answered by an error.
func (u *Upload) unmoved(ctx context.Context, s *registrySession, wanted string) error {
	if !u.asked.Load() {
		return nil
	}
	at, err := s.at(ctx, u.to.Name)
	if err != nil {
		return fmt.Errorf("looking at the tag before it is moved: %w", explain(err))
	}
	if at != u.before && at != "" && at != wanted {
		return fmt.Errorf("%w: it has %s", ErrMoved, at)
	}
	return nil
}

// Context ends when the upload is closed.
func (u *Upload) Context() context.Context { return u.ctx }

// Close ends what is under way.
func (u *Upload) Close() {
	u.release()
	u.cancel()
	_ = u.blobs.Wait() // Write told of errors, if anybody wanted to know
}

// Begin starts to send an image's layers, and new ones that come on top. Only registries take layers
// before there is an image. What goes wrong is told by Write.
func (u *Upload) Begin(source *Image, add ...NewLayer) {
	layers, _, err := newLayers(source.mediaType, add)
	if err != nil || u.to.Transport != Registry {
		return
	}
	for _, l := range source.Layers {
		layers = append(layers, l.push)
	}
	u.connect(source.Ref, source.session)
	u.send(layers)
	u.reserve(2) // the enclave layer and the configuration
}

// Write stores the image, which nobody can see before it is complete.
func (u *Upload) Write(img *Output) error {
	var err error
	if u.o.BeforeTag != nil && u.to.Transport != Registry { // whose tag is moved later
		if err := u.o.BeforeTag(u.ctx); err != nil {
			return err
		}
	}
	switch u.to.Transport {
	case Registry:
		err = u.writeRegistry(img)
	case OCILayout:
		err = writeLayout(u.ctx, u.to, img)
	case OCIArchive:
		err = writeOCIArchive(u.ctx, u.to, img)
	case DockerArchive:
		err = writeArchive(u.ctx, u.to, img)
	case DockerDaemon:
		err = writeDaemon(u.ctx, u.to, img)
	}
	if u.to.Transport == Registry && errors.Is(err, ErrNotFound) {
		err = fmt.Errorf("%w: %w", ErrTarget, err)
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", u.to, err)
	}
	return nil
}

// connect asks for the rights to write to the place and to mount layers of the source.
func (u *Upload) connect(source Reference, near *registrySession) {
	if u.session != nil {
		return
	}
	repo := u.to.Name.Context()
	scopes := []string{repo.Scope(transport.PushScope)}
	if source.Transport == Registry && source.Name.Context().Registry == repo.Registry {
		if from := source.Name.Context(); from != repo {
			scopes = append(scopes, from.Scope(transport.PullScope))
		}
	}
	u.session = sync.OnceValues(func() (*registrySession, error) {
		s, err := connect(u.ctx, repo, scopes, u.o, near)
		if errors.Is(err, ErrUnauthorized) && len(scopes) > 1 { // whoever may write need not be allowed to mount
			return connect(u.ctx, repo, scopes[:1], u.o, near)
		}
		return s, err
	})
}

// writeRegistry sends what is missing, and moves the tag last: to a manifest that has its evidence by then.
func (u *Upload) writeRegistry(img *Output) error {
	u.connect(img.source, img.session)
	s, err := u.session()
	if err != nil {
		return err
	}
	if u.possibly(img.Digest) {
		if at, err := s.at(u.ctx, u.to.Name); err == nil && at == img.Digest {
			return s.evidence(u.ctx, img) // the same was stored before, and is there still
		}
	}
	u.send(append(append([]v1.Layer(nil), img.layers...), configLayer(img)))
	if err := u.blobs.Wait(); err != nil {
		return err
	}
	tag, tagged := u.to.Name.(name.Tag)
	if len(img.Evidence) > 0 || !tagged {
		// What is attached may come before what it is attached to, so that a registry which takes manifests by tag
		// alone will do (OCI distribution specification, "Pushing Manifests with Subject").
		err := s.putManifest(u.ctx, img.Digest, img.mediaType, img.manifest)
		if err != nil && (!tagged || !refusal(err)) {
			return fmt.Errorf("writing the manifest: %w", explain(err))
		}
	}
	refused := s.evidence(u.ctx, img)
	if refused != nil && !errors.Is(refused, ErrEvidence) {
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
func (u *Upload) moveTag(s *registrySession, tag name.Tag, img *Output) error {
	ctx := context.WithValue(context.WithValue(u.ctx, unrepeated, true), unpaced, true)
	return s.retry(ctx, func() error {
		if u.o.Pace != nil {
			req, err := http.NewRequestWithContext(ctx, http.MethodPut, s.url("manifests/"+tag.TagStr(), nil), nil)
			if err != nil {
				return err
			}
			for range 2 { // to look at the tag, and to move it
				done, err := u.o.Pace(req)
				if err != nil {
					return err
				}
				defer done()
			}
		}
		if err := u.unmoved(ctx, s, img.Digest); err != nil {
			return err
		}
		if u.o.BeforeTag != nil { // last of all: the request before can take its time
			if err := u.o.BeforeTag(u.ctx); err != nil {
				return err
			}
		}
		if _, err := s.putOnce(ctx, tag.TagStr(), img.mediaType, img.manifest); err != nil {
			return fmt.Errorf("moving the tag: %w", explain(err))
		}
		return nil
	})
}

// evidence attaches what belongs to an image.
func (s *registrySession) evidence(ctx context.Context, img *Output) error {
	if len(img.Evidence) == 0 {
		return nil
	}
	subject := v1.Descriptor{MediaType: img.mediaType, Size: int64(len(img.manifest))}
	var err error
	if subject.Digest, err = v1.NewHash(img.Digest); err != nil {
		return err
	}
	err = s.attach(ctx, subject, img.Evidence)
	switch {
	case err == nil:
		return nil
	case img.EvidenceOptional && refusal(err):
		return fmt.Errorf("%w: %w", ErrEvidence, err)
	}
	return fmt.Errorf("attaching evidence: %w", explain(err))
}

// refusal reports whether a registry answered that it will not, rather than that it cannot now.
func refusal(err error) bool {
	var answer *transport.Error
	return errors.As(err, &answer) && answer.StatusCode >= 400 && answer.StatusCode < 500 && !Transient(err)
}

// putManifest stores the manifest under a digest or tag.
func (s *registrySession) putManifest(ctx context.Context, at string, mt types.MediaType, raw []byte) error {
	_, err := s.putManifestFor(ctx, at, mt, raw)
	return err
}

// putManifestFor is putManifest, and returns what the registry says of it.
func (s *registrySession) putManifestFor(
	ctx context.Context, at string, mt types.MediaType, raw []byte,
) (said *answer, err error) {
	once := context.WithValue(ctx, unrepeated, true)
	err = s.retry(ctx, func() error {
		said, err = s.putOnce(once, at, mt, raw)
		return err
	})
	return said, err
}

func (s *registrySession) putOnce(
	ctx context.Context, at string, mt types.MediaType, raw []byte,
) (said *answer, err error) {
	return s.do(ctx, http.MethodPut, s.url("manifests/"+at, nil), &body{
		bytes.NewReader(raw), int64(len(raw)), string(mt),
	}, http.StatusCreated, http.StatusOK, http.StatusAccepted)
}

// has reports whether the repository has a blob or manifest. An error is a no: sending shows what is wrong.
func (s *registrySession) has(ctx context.Context, kind, at string) bool {
	_, err := s.do(ctx, http.MethodHead, s.url(kind+"/"+at, nil), nil, http.StatusOK)
	return err == nil
}

// at returns the digest of the manifest that the repository has under a name, as far as it tells.
func (s *registrySession) at(ctx context.Context, ref name.Reference) (digest string, err error) {
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
	if errors.Is(err, ErrNotFound) || errors.As(err, &answer) &&
		slices.Contains([]int{http.StatusNotFound, http.StatusUnauthorized, http.StatusForbidden}, answer.StatusCode) {
		return nil
	}
	return err
}

func (s *registrySession) url(what string, query url.Values) string {
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
func (s *registrySession) do(ctx context.Context, method, to string, b *body, expected ...int) (*answer, error) {
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
		for _, mt := range manifestTypes {
			req.Header.Add("Accept", string(mt))
		}
	}
	resp, err := send(s.rt, req)
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
