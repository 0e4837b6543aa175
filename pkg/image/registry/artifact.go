package registry

import (
	"context"
	"fmt"

	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/internal/document"
	"github.com/cconvert/cconvert/pkg/image/internal/roundtrip"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// Artifacts are those of a repository.
type Artifacts struct {
	repo name.Repository
	o    Options

	one      chan struct{}       // of those who look at sessions
	sessions map[string]*session // by what they may do
}

// NewArtifacts returns the artifacts of a repository, named as in "registry.example/cconvert/index".
func NewArtifacts(repository string, insecure bool, o Options) (*Artifacts, error) {
	repo, err := image.ParseRepository(repository, insecure)
	if err != nil {
		return nil, err
	}
	return &Artifacts{repo: repo, o: o, one: make(chan struct{}, 1), sessions: map[string]*session{}}, nil
}

// String is the repository's name.
func (as *Artifacts) String() string { return as.repo.Name() }

// session connects once for reading and once for writing.
func (as *Artifacts) session(ctx context.Context, scope string) (*session, error) {
	select {
	case as.one <- struct{}{}:
		defer func() { <-as.one }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if s := as.sessions[scope]; s != nil {
		return s, nil
	}
	s, err := connect(ctx, as.repo, []string{as.repo.Scope(scope)}, as.o, nil)
	if err == nil {
		as.sessions[scope] = s
	}
	return s, err
}

// Push stores an artifact under a tag.
func (as *Artifacts) Push(ctx context.Context, tag string, a image.Artifact) error {
	s, err := as.session(ctx, transport.PushScope)
	if err != nil {
		return err
	}
	if err := s.pushArtifact(ctx, tag, a); err != nil {
		return fmt.Errorf("storing %s:%s: %w", as, tag, roundtrip.Explain(err))
	}
	return nil
}

func (s *session) pushArtifact(ctx context.Context, tag string, a image.Artifact) error {
	p, err := document.PackArtifact(a, nil)
	if err != nil {
		return err
	}
	if err := s.upload(ctx, p.Manifest.Layers[0].Digest, p.Blob, nil); err != nil {
		return err
	}
	if err := s.upload(ctx, p.Manifest.Config.Digest, document.EmptyConfigBlob(), nil); err != nil {
		return err
	}
	return s.putManifest(ctx, tag, p.Manifest.MediaType, p.Raw)
}

// Has reports whether there is something of a tag. An error is a no.
func (as *Artifacts) Has(ctx context.Context, tag string) bool {
	s, err := as.session(ctx, transport.PushScope)
	return err == nil && s.has(ctx, "manifests", tag)
}

// Pull fetches an artifact of a type, whose blob may have so many bytes. Before the blob is read, accept is called with
// all else that the artifact has; its error ends Pull. If there is no artifact the error is ErrNotFound.
func (as *Artifacts) Pull(
	ctx context.Context, tag, kind string, limit int64, accept func(*image.Artifact) error,
) (*image.Artifact, error) {
	s, err := as.session(ctx, transport.PullScope)
	if err != nil {
		return nil, err
	}
	a, err := s.artifact(ctx, as.repo.Tag(tag), []string{kind}, limit, accept)
	if err != nil {
		return nil, fmt.Errorf("fetching %s:%s: %w", as, tag, err)
	}
	return a, nil
}
