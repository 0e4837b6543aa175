package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// registrySession talks to one repository with the rights it asked for.
type registrySession struct {
	repo  name.Repository
	rt    http.RoundTripper
	ping  *rememberPing
	first time.Duration // the first pause before a repetition
	idle  time.Duration // how long the registry may be silent
	// shared may be nil.
	shared *Shared
}

// connect prepares to talk to a repository. What is known from an earlier session, if there was one with
// the same registry, is not asked again.
func connect(ctx context.Context, repo name.Repository, scopes []string, o Options, near *registrySession) (*registrySession, error) {
	keychain := o.Keychain
	if keychain == nil {
		keychain = authn.DefaultKeychain
	}
	auth, err := authn.Resolve(ctx, keychain, repo)
	if err != nil {
		return nil, fmt.Errorf("%w for %s: %w", ErrCredentials, repo.RegistryStr(), brief{err})
	}
	inner := o.HTTP
	if inner == nil {
		inner = remote.DefaultTransport
	}
	ping := o.Shared.ping(repo.Registry)
	if near != nil && near.repo.Registry == repo.Registry {
		ping = near.ping
	}
	repeated := &retryTransport{&patient{inner, o.idle()}, o.firstPause(), o.maxAnswer()}
	rt, err := transport.NewWithContext(ctx, repo.Registry, auth,
		transport.NewUserAgent(ping.over(&sameRepository{repeated, o.OnlyRegistry}), "cconvert"), scopes)
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", repo.RegistryStr(), explain(err))
	}
	return &registrySession{repo, rt, ping, o.firstPause(), o.idle(), o.Shared}, nil
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
func (s *registrySession) openFrom(ctx context.Context, ref Reference, d *remote.Descriptor, o Options) (_ *Image, err error) {
	var rivals []string
	index := d.MediaType.IsIndex()
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
			return nil, err
		}
	}
	img, err := newImage(ctx, ref, d.MediaType, d.Manifest, func(ctx context.Context, desc v1.Descriptor) (io.ReadCloser, error) {
		if o.OnlyRegistry {
			desc.URLs = nil
		}
		return s.blob(ctx, desc)
	}, func(l *blobLayer) v1.Layer {
		return &remote.MountableLayer{Layer: l, Reference: ref.Name}
	})
	if err != nil {
		return nil, err
	}
	img.session, img.Rivals, img.Index = s, rivals, index
	for _, l := range img.Layers {
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
	resp, err := (&http.Client{Transport: r.s.rt}).Do(req)
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

// blob streams a blob and, when the connection breaks, goes on where it was.
func (s *registrySession) blob(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	u := url.URL{
		Scheme: s.repo.Scheme(), Host: s.repo.RegistryStr(),
		Path: fmt.Sprintf("/v2/%s/blobs/%s", s.repo.RepositoryStr(), d.Digest),
	}
	r := &blobReader{ctx: context.WithValue(ctx, streamed, true), client: &http.Client{Transport: s.rt}, url: u.String(), first: s.first}
	err := r.open()
	if err == nil {
		return r, nil
	}
	// A foreign layer need not be in the registry (OCI image specification, descriptor "urls").
	for _, foreign := range d.URLs {
		f, parseErr := url.Parse(foreign)
		if parseErr != nil || f.Scheme != "https" && f.Scheme != s.repo.Scheme() {
			continue
		}
		r.client, r.url = &http.Client{Transport: &retryTransport{&patient{remote.DefaultTransport, s.idle}, s.first, maxAnswer}}, foreign
		if r.open() == nil {
			return r, nil
		}
	}
	return nil, explain(err)
}

type blobReader struct {
	ctx    context.Context
	client *http.Client
	url    string
	first  time.Duration
	body   io.ReadCloser
	offset int64
	broken int // times in a row without a byte
	slow   int // times that it was too slow, with bytes or without
}

func (r *blobReader) open() error {
	req, err := http.NewRequestWithContext(r.ctx, http.MethodGet, r.url, nil)
	if err != nil {
		return err
	}
	if r.offset > 0 {
		req.Header.Set("Range", "bytes="+strconv.FormatInt(r.offset, 10)+"-")
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return err
	}
	if err := transport.CheckError(resp, http.StatusOK, http.StatusPartialContent); err != nil {
		resp.Body.Close()
		return err
	}
	if r.offset > 0 && resp.StatusCode == http.StatusOK { // the server knows no ranges
		if _, err := io.CopyN(io.Discard, resp.Body, r.offset); err != nil {
			resp.Body.Close()
			return fmt.Errorf("%w: %w", errBroken, err)
		}
	}
	r.body = resp.Body
	return nil
}

func (r *blobReader) Read(p []byte) (int, error) {
	b := newBackoff(r.first)
	for {
		var err error
		if r.body == nil {
			err = r.open()
		} else {
			var n int
			n, err = r.body.Read(p)
			r.offset += int64(n)
			if n > 0 {
				r.broken = 0
				return n, nil // an error comes again
			}
			if err == nil || errors.Is(err, io.EOF) {
				return n, err
			}
			r.body.Close()
			r.body = nil
			if errors.Is(err, errSlow) {
				r.slow++
			}
			err = fmt.Errorf("%w: %w", errBroken, err)
		}
		if err == nil {
			continue
		}
		if r.ctx.Err() != nil {
			return 0, r.ctx.Err()
		}
		r.broken++
		if !Transient(err) || r.broken >= attempts || r.slow >= attempts || !pause(r.ctx, b.NextBackOff()) {
			return 0, fmt.Errorf("downloading: %w", err)
		}
	}
}

func (r *blobReader) Close() error {
	if r.body == nil {
		return nil
	}
	return r.body.Close()
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
	return readBlob(ctx, d, limit, func(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) { return m.s.blob(ctx, d) })
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
