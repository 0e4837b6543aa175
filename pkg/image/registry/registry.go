// Package registry reads and writes images, artifacts and lists in registries (OCI distribution specification).
package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/internal/document"
	"github.com/cconvert/cconvert/pkg/image/internal/roundtrip"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// registrySession talks to one repository with the rights it asked for.
type session struct {
	repo  name.Repository
	rt    http.RoundTripper
	stack *roundtrip.Stack
	ping  *roundtrip.Ping
	first time.Duration // the first pause before a repetition
	idle  time.Duration // see Options.Idle
	// shared and watch may be nil.
	shared *Shared
	watch  image.Watcher
}

// pause waits between attempts, for the registry's sake; false: the context has ended.
func (s *session) pause(ctx context.Context, d time.Duration) bool {
	if s.watch != nil {
		defer s.watch.Waiting(s.repo.RegistryStr())()
	}
	return roundtrip.Pause(ctx, d)
}

// retry does something again while its failure is transient.
func (s *session) retry(ctx context.Context, do func() error) error {
	b := roundtrip.NewBackoff(s.first)
	for i := 1; ; i++ {
		err := do()
		if err == nil || i == roundtrip.Attempts || !image.Transient(err) || !s.pause(ctx, b.NextBackOff()) {
			return err
		}
	}
}

// portOfHTTPS names a registry with the port that goes without saying.
type portOfHTTPS struct{ name.Repository }

func (r portOfHTTPS) RegistryStr() string { return r.Repository.RegistryStr() + ":443" }

func (r portOfHTTPS) String() string { return r.RegistryStr() + "/" + r.RepositoryStr() }

// connect prepares to talk to a repository. What is known from an earlier session, if there was one with
// the same registry, is not asked again.
func connect(
	ctx context.Context, repo name.Repository, scopes []string, o Options, near *session,
) (*session, error) {
	keychain := o.Keychain
	if keychain == nil {
		keychain = authn.DefaultKeychain
	}
	auth, err := authn.Resolve(ctx, keychain, repo)
	if err == nil && auth == authn.Anonymous && !strings.Contains(repo.RegistryStr(), ":") &&
		!image.AllowsHTTP(repo.Registry) {
		// "docker login" keeps the port that it was given.
		auth, err = authn.Resolve(ctx, keychain, portOfHTTPS{repo})
	}
	if err != nil {
		return nil, fmt.Errorf("%w for %s: %w", image.ErrCredentials, repo.RegistryStr(), roundtrip.Brief(err))
	}
	ping := o.Shared.ping(repo.Registry)
	if near != nil && near.repo.Registry == repo.Registry {
		ping = near.ping
	}
	first, idle := cmp.Or(o.FirstPause, time.Second/2), cmp.Or(o.Idle, DefaultIdle)
	stack := roundtrip.New(repo.Registry, roundtrip.Options{
		HTTP: o.HTTP, FirstPause: first, Idle: idle,
		MaxAnswer: cmp.Or(o.MaxAnswer, roundtrip.MaxAnswer), Ping: ping,
		StrictNames: o.StrictNames, Pace: o.Pace, Watch: o.Watch,
	})
	rt, err := transport.NewWithContext(ctx, repo.Registry, auth, stack.Registry, scopes)
	if err != nil {
		ping.Forget() // where tokens are to be had can have changed
		return nil, fmt.Errorf("connecting to %s: %w", repo.RegistryStr(), roundtrip.Explain(err))
	}
	return &session{
		repo: repo, rt: rt, stack: stack, ping: ping, first: first, idle: idle, shared: o.Shared, watch: o.Watch,
	}, nil
}

func (s *session) options(ctx context.Context, o Options) []remote.Option {
	return []remote.Option{
		remote.WithContext(ctx), remote.WithTransport(s.rt), remote.WithJobs(o.jobs()),
		remote.WithRetryBackoff(remote.Backoff{Steps: 1}), // ours knows contexts and Retry-After
	}
}

// get asks for a manifest.
func (s *session) get(ctx context.Context, ref name.Reference, o Options) (*remote.Descriptor, error) {
	p, err := remote.NewPuller(s.options(ctx, o)...)
	if err != nil {
		return nil, err
	}
	d, err := p.Get(ctx, ref)
	if err != nil {
		return nil, roundtrip.Explain(err)
	}
	d.MediaType, err = document.Type(string(d.MediaType), d.Manifest)
	return d, err
}

// Open finds the image and the streams of its layers.
func Open(ctx context.Context, ref image.Reference, o Options) (*image.Image, error) {
	repo := ref.Name.Context()
	s, err := connect(ctx, repo, []string{repo.Scope(transport.PullScope)}, o, nil)
	if err != nil {
		return nil, &image.OpenError{Ref: ref, Err: err}
	}
	return s.open(ctx, ref, o)
}

// open finds an image of the repository.
func (s *session) open(ctx context.Context, ref image.Reference, o Options) (*image.Image, error) {
	d, err := s.get(ctx, ref.Name, o)
	if err != nil {
		return nil, &image.OpenError{Ref: ref, Err: err}
	}
	return s.openFrom(ctx, ref, d, o)
}

// openFrom opens what was found under the reference.
func (s *session) openFrom(
	ctx context.Context, ref image.Reference, d *remote.Descriptor, o Options,
) (*image.Image, error) {
	img, err := s.assemble(ctx, ref, d, o)
	if err != nil {
		return nil, &image.OpenError{Ref: ref, Err: err}
	}
	return document.CheckPlatform(img)
}

// assemble reads the manifest that was found, or one that an index leads to, and the configuration.
func (s *session) assemble(
	ctx context.Context, ref image.Reference, d *remote.Descriptor, o Options,
) (*image.Image, error) {
	var rivals []string
	index, tagged := d.MediaType.IsIndex(), d.Digest.String()
	for range 2 { // an index may name an index
		if !d.MediaType.IsIndex() {
			break
		}
		list, err := document.ReadIndex(d.Manifest)
		if err != nil {
			return nil, err
		}
		chosen, others, err := document.Choose(list.Manifests)
		if err != nil {
			return nil, err
		}
		rivals = append(rivals, others...)
		if d, err = s.get(ctx, s.repo.Digest(chosen.Digest.String()), o); err != nil {
			return nil, document.PartOf(err)
		}
	}
	img, err := document.NewImage(ctx, ref, d.MediaType, d.Manifest,
		func(ctx context.Context, desc v1.Descriptor) (io.ReadCloser, error) {
			elsewhere := o.OnlyRegistry && len(desc.URLs) > 0
			if elsewhere {
				desc.URLs = nil
			}
			r, err := s.blob(ctx, desc)
			if elsewhere && errors.Is(err, image.ErrNotFound) {
				err = fmt.Errorf("%w: the image says that it is elsewhere, and only the registry is asked", err)
			}
			return r, err
		}, func(l v1.Layer) v1.Layer {
			return &remote.MountableLayer{Layer: l, Reference: ref.Name}
		})
	if err != nil {
		return nil, err
	}
	img.Origin, img.Rivals, img.Index = &reached{s, tagged}, rivals, index
	for _, l := range img.Layers {
		l.From = s.repo.Name()
		l.At = func(ctx context.Context) io.ReaderAt { return &ranges{ctx, s, l.Digest} }
	}
	return img, nil
}

// reached is how an image was reached.
type reached struct {
	*session
	tagged string // the digest of what its name has there: the image itself, or an index
}

// sessionOf returns the session by which an image was reached; nil if that was not in a registry.
func sessionOf(of any) *session {
	if o, ok := of.(*reached); ok {
		return o.session
	}
	return nil
}

// ranges reads parts of a blob, each with a request (OCI distribution specification, "Pulling blobs").
type ranges struct {
	ctx    context.Context
	s      *session
	digest string
}

var errNoRanges = errors.New("the registry does not give parts of blobs")

func (r *ranges) ReadAt(p []byte, off int64) (int, error) {
	req, err := http.NewRequestWithContext(r.ctx, http.MethodGet, r.s.url("blobs/"+r.digest, nil), nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+int64(len(p))-1))
	resp, err := roundtrip.Send(r.s.rt, req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if err := transport.CheckError(resp, http.StatusOK, http.StatusPartialContent); err != nil {
		return 0, roundtrip.Explain(err)
	}
	if resp.StatusCode != http.StatusPartialContent {
		return 0, errNoRanges
	}
	return io.ReadFull(resp.Body, p)
}

// Manifest is one of any kind in a registry, read for its layers.
type Manifest struct {
	// Layers are its descriptors, as they are.
	Layers []v1.Descriptor
	s      *session
}

// OpenManifest fetches the manifest of an artifact. The error is ErrNotFound if there is none.
func OpenManifest(ctx context.Context, of name.Reference, o Options) (*Manifest, error) {
	s, err := connect(ctx, of.Context(), []string{of.Context().Scope(transport.PullScope)}, o, nil)
	if err != nil {
		return nil, err
	}
	d, err := s.get(ctx, of, o)
	if err != nil {
		return nil, err
	}
	if !d.MediaType.IsImage() {
		return nil, fmt.Errorf("the media type %q is %w: it is not a manifest with layers", d.MediaType,
			image.ErrUnsupported)
	}
	m, err := document.ParseManifest(d.Manifest)
	if err != nil {
		return nil, fmt.Errorf("reading the manifest: %w", err)
	}
	return &Manifest{m.Layers, s}, nil
}

// Blob fetches one of the layers, of at most so many bytes, from the registry and nowhere else.
func (m *Manifest) Blob(ctx context.Context, d v1.Descriptor, limit int64) ([]byte, error) {
	d.URLs = nil
	return document.ReadBlob(ctx, d, limit, func(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
		return m.s.blob(ctx, d)
	})
}

// ResolveTag asks a registry for the digest that a reference has now.
func ResolveTag(ctx context.Context, ref image.Reference, o Options) (string, error) {
	if ref.Transport != image.Registry {
		return "", errors.New("only a registry resolves tags")
	}
	repo := ref.Name.Context()
	s, err := connect(ctx, repo, []string{repo.Scope(transport.PullScope)}, o, nil)
	if err != nil {
		return "", err
	}
	d, err := s.get(ctx, ref.Name, o)
	if err != nil {
		return "", err
	}
	return d.Digest.String(), nil
}
