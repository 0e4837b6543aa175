package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/internal/roundtrip"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// emptyConfig is what artifacts have for a configuration.
var emptyConfig = []byte("{}")

const emptyConfigType = "application/vnd.oci.empty.v1+json"

type artifactManifest struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     types.MediaType   `json:"mediaType"`
	ArtifactType  string            `json:"artifactType"`
	Config        v1.Descriptor     `json:"config"`
	Layers        []v1.Descriptor   `json:"layers"`
	Subject       *v1.Descriptor    `json:"subject,omitempty"`
	Annotations   map[string]string `json:"annotations,omitempty"`
}

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
	p, err := pack(a, nil)
	if err != nil {
		return err
	}
	if err := s.upload(ctx, p.manifest.Layers[0].Digest, p.blob, nil); err != nil {
		return err
	}
	if err := s.upload(ctx, p.manifest.Config.Digest, static.NewLayer(emptyConfig, emptyConfigType), nil); err != nil {
		return err
	}
	return s.putManifest(ctx, tag, p.manifest.MediaType, p.raw)
}

// packedArtifact is an artifact as it is stored.
type packedArtifact struct {
	manifest artifactManifest
	raw      []byte // the manifest
	digest   v1.Hash
	blob     v1.Layer
}

// pack makes the manifest of an artifact that refers to another manifest, or to none.
func pack(a image.Artifact, subject *v1.Descriptor) (*packedArtifact, error) {
	p := &packedArtifact{blob: static.NewLayer(a.Blob, types.MediaType(a.MediaType))}
	p.manifest = artifactManifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: a.Type, Annotations: a.Annotations,
		Subject: subject,
		Config:  v1.Descriptor{MediaType: emptyConfigType, Size: int64(len(emptyConfig))},
		Layers:  []v1.Descriptor{{MediaType: types.MediaType(a.MediaType), Size: int64(len(a.Blob))}},
	}
	var err error
	if p.manifest.Config.Digest, err = v1.NewHash(image.DigestOf(emptyConfig)); err != nil {
		return nil, err
	}
	if p.manifest.Layers[0].Digest, err = v1.NewHash(image.DigestOf(a.Blob)); err != nil {
		return nil, err
	}
	if p.raw, err = json.Marshal(p.manifest); err != nil {
		return nil, err
	}
	p.digest, err = v1.NewHash(image.DigestOf(p.raw))
	return p, err
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
	if errors.Is(err, errOtherType) {
		err = fmt.Errorf("%w: %w", image.ErrUnsupported, err)
	}
	if err != nil {
		return nil, fmt.Errorf("fetching %s:%s: %w", as, tag, err)
	}
	return a, nil
}
