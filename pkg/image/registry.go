package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// registrySession talks to one repository with the rights it asked for.
type registrySession struct {
	repo name.Repository
	rt   http.RoundTripper
	// others is for hosts that the registry's images name, without credentials and what is known of the registry.
	others http.RoundTripper
	ping   *rememberPing
	first  time.Duration // the first pause before a repetition
	idle   time.Duration // see Options.Idle
	// shared and watch may be nil.
	shared *Shared
	watch  Watcher
}

// pause waits between attempts, for the registry's sake; false: the context has ended.
func (s *registrySession) pause(ctx context.Context, d time.Duration) bool {
	if s.watch != nil {
		defer s.watch.Waiting(s.repo.RegistryStr())()
	}
	return pause(ctx, d)
}

// retry does something again while its failure is transient.
func (s *registrySession) retry(ctx context.Context, do func() error) error {
	b := newBackoff(s.first)
	for i := 1; ; i++ {
		err := do()
		if err == nil || i == attempts || !Transient(err) || !s.pause(ctx, b.NextBackOff()) {
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
	ctx context.Context, repo name.Repository, scopes []string, o Options, near *registrySession,
) (*registrySession, error) {
	keychain := o.Keychain
	if keychain == nil {
		keychain = authn.DefaultKeychain
	}
	auth, err := authn.Resolve(ctx, keychain, repo)
	if err == nil && auth == authn.Anonymous && !strings.Contains(repo.RegistryStr(), ":") &&
		!allowsHTTP(repo.Registry) {
		// "docker login" keeps the port that it was given.
		auth, err = authn.Resolve(ctx, keychain, portOfHTTPS{repo})
	}
	if err != nil {
		return nil, fmt.Errorf("%w for %s: %w", ErrCredentials, repo.RegistryStr(), brief{err})
	}
	inner := o.HTTP
	if inner == nil {
		inner = remote.DefaultTransport
	}
	if !allowsHTTP(repo.Registry) {
		inner = &requireTLS{inner, onThisMachine((&url.URL{Host: repo.RegistryStr()}).Hostname())}
	}
	ping := o.Shared.ping(repo.Registry)
	if near != nil && near.repo.Registry == repo.Registry {
		ping = near.ping
	}
	asking := http.RoundTripper(&patient{inner, o.idle()})
	if o.Pace != nil {
		asking = &paced{asking, o.Pace}
	}
	repeated := &checkedDocuments{&retryTransport{asking, o.firstPause(), o.maxAnswer()}}
	told := func(rt http.RoundTripper) http.RoundTripper {
		rt = transport.NewUserAgent(rt, "cconvert")
		if o.Watch == nil {
			return rt
		}
		return &watched{rt, o.Watch, repo.RegistryStr()}
	}
	asked := told(ping.over(&sameRepository{repeated, o.StrictNames}))
	rt, err := transport.NewWithContext(ctx, repo.Registry, auth, asked, scopes)
	if err != nil {
		ping.forget() // where tokens are to be had can have changed
		return nil, fmt.Errorf("connecting to %s: %w", repo.RegistryStr(), explain(err))
	}
	return &registrySession{
		repo: repo, rt: rt, others: told(repeated), ping: ping, first: o.firstPause(), idle: o.idle(), shared: o.Shared,
		watch: o.Watch,
	}, nil
}

func (s *registrySession) options(ctx context.Context, o Options) []remote.Option {
	return []remote.Option{
		remote.WithContext(ctx), remote.WithTransport(s.rt), remote.WithJobs(o.jobs()),
		remote.WithRetryBackoff(remote.Backoff{Steps: 1}), // ours knows contexts and Retry-After
	}
}

// get asks for a manifest.
func (s *registrySession) get(ctx context.Context, ref name.Reference, o Options) (*remote.Descriptor, error) {
	p, err := remote.NewPuller(s.options(ctx, o)...)
	if err != nil {
		return nil, err
	}
	d, err := p.Get(ctx, ref)
	if err != nil {
		return nil, explain(err)
	}
	d.MediaType, err = documentType(string(d.MediaType), d.Manifest)
	return d, err
}

// openRegistry finds the image and the streams of its layers.
func openRegistry(ctx context.Context, ref Reference, o Options) (*Image, error) {
	repo := ref.Name.Context()
	s, err := connect(ctx, repo, []string{repo.Scope(transport.PullScope)}, o, nil)
	if err != nil {
		return nil, err
	}
	return s.open(ctx, ref, o)
}

// open finds an image of the repository.
func (s *registrySession) open(ctx context.Context, ref Reference, o Options) (*Image, error) {
	d, err := s.get(ctx, ref.Name, o)
	if err != nil {
		return nil, err
	}
	return s.openFrom(ctx, ref, d, o)
}

// openFrom opens what was found under the reference.
func (s *registrySession) openFrom(
	ctx context.Context, ref Reference, d *remote.Descriptor, o Options,
) (_ *Image, err error) {
	var rivals []string
	index, tagged := d.MediaType.IsIndex(), d.Digest.String()
	for range 2 { // an index may name an index
		if !d.MediaType.IsIndex() {
			break
		}
		list, err := readIndex(d.Manifest)
		if err != nil {
			return nil, err
		}
		chosen, others, err := choose(list.Manifests)
		if err != nil {
			return nil, err
		}
		rivals = append(rivals, others...)
		if d, err = s.get(ctx, s.repo.Digest(chosen.Digest.String()), o); err != nil {
			return nil, partOf(err)
		}
	}
	img, err := newImage(ctx, ref, d.MediaType, d.Manifest,
		func(ctx context.Context, desc v1.Descriptor) (io.ReadCloser, error) {
			elsewhere := o.OnlyRegistry && len(desc.URLs) > 0
			if elsewhere {
				desc.URLs = nil
			}
			r, err := s.blob(ctx, desc)
			if elsewhere && errors.Is(err, ErrNotFound) {
				err = fmt.Errorf("%w: the image says that it is elsewhere, and only the registry is asked", err)
			}
			return r, err
		}, func(l *blobLayer) v1.Layer {
			return &remote.MountableLayer{Layer: l, Reference: ref.Name}
		})
	if err != nil {
		return nil, err
	}
	img.session, img.tagged, img.Rivals, img.Index = s, tagged, rivals, index
	for _, l := range img.Layers {
		l.From = s.repo.Name()
		l.At = func(ctx context.Context) io.ReaderAt { return &ranges{ctx, s, l.Digest} }
	}
	return img, nil
}

// ranges reads parts of a blob, each with a request (OCI distribution specification, "Pulling blobs").
type ranges struct {
	ctx    context.Context
	s      *registrySession
	digest string
}

var errNoRanges = errors.New("the registry does not give parts of blobs")

func (r *ranges) ReadAt(p []byte, off int64) (int, error) {
	req, err := http.NewRequestWithContext(r.ctx, http.MethodGet, r.s.url("blobs/"+r.digest, nil), nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+int64(len(p))-1))
	// The answer is as long as the blob where ranges are not known: it must not be read whole.
	req = req.WithContext(context.WithValue(r.ctx, streamed, true))
	resp, err := send(r.s.rt, req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if err := transport.CheckError(resp, http.StatusOK, http.StatusPartialContent); err != nil {
		return 0, explain(err)
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
	s      *registrySession
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
		return nil, fmt.Errorf("the media type %q is %w: it is not a manifest with layers", d.MediaType, ErrUnsupported)
	}
	m, err := parseManifest(d.Manifest)
	if err != nil {
		return nil, fmt.Errorf("reading the manifest: %w", err)
	}
	return &Manifest{m.Layers, s}, nil
}

// Blob fetches one of the layers, of at most so many bytes, from the registry and nowhere else.
func (m *Manifest) Blob(ctx context.Context, d v1.Descriptor, limit int64) ([]byte, error) {
	d.URLs = nil
	return readBlob(ctx, d, limit, func(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
		return m.s.blob(ctx, d)
	})
}

// ResolveTag asks a registry for the digest that a reference has now.
func ResolveTag(ctx context.Context, ref Reference, o Options) (string, error) {
	if ref.Transport != Registry {
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
