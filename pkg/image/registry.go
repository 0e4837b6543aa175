package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"
)

// registrySession talks to one repository with the rights it asked for.
type registrySession struct {
	repo  name.Repository
	rt    http.RoundTripper
	first time.Duration // the first pause before a repetition
}

func connect(ctx context.Context, repo name.Repository, scopes []string, o Options) (*registrySession, error) {
	keychain := o.Keychain
	if keychain == nil {
		keychain = authn.DefaultKeychain
	}
	auth, err := authn.Resolve(ctx, keychain, repo)
	if err != nil {
		return nil, fmt.Errorf("finding credentials for %s: %w", repo.RegistryStr(), err)
	}
	inner := o.HTTP
	if inner == nil {
		inner = remote.DefaultTransport
	}
	rt, err := transport.NewWithContext(ctx, repo.Registry, auth,
		transport.NewUserAgent(&retryTransport{inner, o.firstPause()}, "cconvert"), scopes)
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", repo.RegistryStr(), explain(err))
	}
	return &registrySession{repo, rt, o.firstPause()}, nil
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
	return d, nil
}

// openRegistry finds the image and the streams of its layers.
func openRegistry(ctx context.Context, ref Reference, o Options) (*Image, error) {
	repo := ref.Name.Context()
	s, err := connect(ctx, repo, []string{repo.Scope(transport.PullScope)}, o)
	if err != nil {
		return nil, err
	}
	d, err := s.get(ctx, ref.Name, o)
	if err != nil {
		return nil, err
	}
	for range 2 { // an index may name an index
		if !d.MediaType.IsIndex() {
			break
		}
		var index v1.IndexManifest
		if err := json.Unmarshal(d.Manifest, &index); err != nil {
			return nil, fmt.Errorf("reading the index: %w", err)
		}
		chosen, err := choose(index.Manifests)
		if err != nil {
			return nil, err
		}
		if d, err = s.get(ctx, repo.Digest(chosen.Digest.String()), o); err != nil {
			return nil, err
		}
	}
	return newImage(ctx, ref, d.MediaType, d.Manifest, func(ctx context.Context, desc v1.Descriptor) (io.ReadCloser, error) {
		return s.blob(ctx, desc)
	}, func(l *blobLayer) v1.Layer {
		return &remote.MountableLayer{Layer: l, Reference: ref.Name}
	})
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
		r.client, r.url = &http.Client{Transport: &retryTransport{remote.DefaultTransport, s.first}}, foreign
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
			err = fmt.Errorf("%w: %w", errBroken, err)
		}
		if err == nil {
			continue
		}
		if r.ctx.Err() != nil {
			return 0, r.ctx.Err()
		}
		r.broken++
		if !Transient(err) || r.broken >= attempts || !pause(r.ctx, b.NextBackOff()) {
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

// writeRegistry uploads what is missing, then the manifest by its digest, and moves the tag last.
func writeRegistry(ctx context.Context, ref Reference, img *Output, o Options) error {
	repo := ref.Name.Context()
	scopes := []string{repo.Scope(transport.PushScope)}
	if img.source.Transport == Registry && img.source.Name.Context().Registry == repo.Registry {
		if from := img.source.Name.Context(); from != repo {
			scopes = append(scopes, from.Scope(transport.PullScope)) // for mounting
		}
	}
	s, err := connect(ctx, repo, scopes, o)
	if err != nil {
		return err
	}
	p, err := remote.NewPusher(s.options(ctx, o)...)
	if err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(o.jobs())
	for _, l := range append(slices.Clone(img.layers), configLayer(img)) {
		if mt, err := l.MediaType(); err == nil && mt.IsLayer() && !mt.IsDistributable() {
			continue // kept by reference
		}
		g.Go(func() error {
			err := retry(gctx, s.first, func() error {
				return p.Upload(context.WithValue(gctx, unrepeated, true), repo, l)
			})
			if d, digestErr := l.Digest(); err != nil && digestErr == nil {
				return fmt.Errorf("uploading the blob %s: %w", d, explain(err))
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	// The manifest is sent as bytes: all it refers to is there.
	raw := rawManifest{img.manifest, img.mediaType}
	digest := repo.Digest(img.Digest)
	if err := retry(ctx, s.first, func() error { return p.Push(ctx, digest, raw) }); err != nil {
		return fmt.Errorf("writing the manifest: %w", explain(err))
	}
	if tag, ok := ref.Name.(name.Tag); ok {
		if err := retry(ctx, s.first, func() error { return p.Push(ctx, tag, raw) }); err != nil {
			return fmt.Errorf("moving the tag: %w", explain(err))
		}
	}
	return nil
}

// rawManifest is a manifest without what it refers to.
type rawManifest struct {
	raw       []byte
	mediaType types.MediaType
}

func (m rawManifest) RawManifest() ([]byte, error)        { return m.raw, nil }
func (m rawManifest) MediaType() (types.MediaType, error) { return m.mediaType, nil }

// ResolveTag asks a registry for the digest that a reference has now.
func ResolveTag(ctx context.Context, ref Reference, o Options) (string, error) {
	if ref.Transport != Registry {
		return "", errors.New("only a registry resolves tags")
	}
	repo := ref.Name.Context()
	s, err := connect(ctx, repo, []string{repo.Scope(transport.PullScope)}, o)
	if err != nil {
		return "", err
	}
	d, err := s.get(ctx, ref.Name, o)
	if err != nil {
		return "", err
	}
	return d.Digest.String(), nil
}
