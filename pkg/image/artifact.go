package image

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sync"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Artifact is one blob in a registry that is no image (OCI image specification, "Guidelines for Artifact
// Usage").
type Artifact struct {
	Type        string // of the artifact
	MediaType   string // of the blob
	Blob        []byte
	Annotations map[string]string
}

// emptyConfig is what artifacts have for a configuration.
var emptyConfig = []byte("{}")

const emptyConfigType = "application/vnd.oci.empty.v1+json"

type artifactManifest struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     types.MediaType   `json:"mediaType"`
	ArtifactType  string            `json:"artifactType"`
	Config        v1.Descriptor     `json:"config"`
	Layers        []v1.Descriptor   `json:"layers"`
	Annotations   map[string]string `json:"annotations,omitempty"`
}

// Artifacts are those of a repository.
type Artifacts struct {
	repo name.Repository
	o    Options

	mu       sync.Mutex
	sessions map[string]*registrySession // by what they may do
}

// NewArtifacts gives the artifacts of a repository, named as in "registry.example/cconvert/index".
func NewArtifacts(repository string, insecure bool, o Options) (*Artifacts, error) {
	var options []name.Option
	if insecure {
		options = append(options, name.Insecure)
	}
	repo, err := name.NewRepository(repository, options...)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrReference, err)
	}
	return &Artifacts{repo: repo, o: o, sessions: map[string]*registrySession{}}, nil
}

// String is the repository's name.
func (as *Artifacts) String() string { return as.repo.Name() }

// session connects once for reading and once for writing.
func (as *Artifacts) session(ctx context.Context, scope string) (*registrySession, error) {
	as.mu.Lock()
	defer as.mu.Unlock()
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
func (as *Artifacts) Push(ctx context.Context, tag string, a Artifact) error {
	s, err := as.session(ctx, transport.PushScope)
	if err != nil {
		return err
	}
	m := artifactManifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: a.Type, Annotations: a.Annotations}
	describe := func(content []byte, mt string) (d v1.Descriptor, err error) {
		l := static.NewLayer(content, types.MediaType(mt))
		if d.Digest, err = l.Digest(); err != nil {
			return d, err
		}
		d.MediaType, d.Size = types.MediaType(mt), int64(len(content))
		return d, s.upload(ctx, d.Digest, l)
	}
	blob, err := describe(a.Blob, a.MediaType)
	if err != nil {
		return fmt.Errorf("storing %s:%s: %w", as, tag, explain(err))
	}
	m.Layers = []v1.Descriptor{blob}
	if m.Config, err = describe(emptyConfig, emptyConfigType); err != nil {
		return fmt.Errorf("storing %s:%s: %w", as, tag, explain(err))
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if err := s.putManifest(ctx, tag, m.MediaType, raw); err != nil {
		return fmt.Errorf("storing %s:%s: %w", as, tag, explain(err))
	}
	return nil
}

// Pull fetches an artifact of a type, whose blob may have so many bytes. Where there is none the
// error is ErrNotFound.
func (as *Artifacts) Pull(ctx context.Context, tag, kind string, limit int64) (*Artifact, error) {
	s, err := as.session(ctx, transport.PullScope)
	if err != nil {
		return nil, err
	}
	d, err := s.get(ctx, as.repo.Tag(tag), as.o)
	if err != nil {
		return nil, fmt.Errorf("fetching %s:%s: %w", as, tag, err)
	}
	var m artifactManifest
	if err := json.Unmarshal(d.Manifest, &m); err != nil {
		return nil, fmt.Errorf("fetching %s:%s: reading the manifest: %w", as, tag, err)
	}
	if m.ArtifactType != kind || len(m.Layers) != 1 || m.Layers[0].Size > limit {
		return nil, fmt.Errorf("fetching %s:%s: %w: it is a %q with %d blobs", as, tag, ErrUnsupported, m.ArtifactType, len(m.Layers))
	}
	blob, err := readBlob(ctx, m.Layers[0], limit, func(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) { return s.blob(ctx, d) })
	if err != nil {
		return nil, fmt.Errorf("fetching %s:%s: %w", as, tag, err)
	}
	return &Artifact{Type: kind, MediaType: string(m.Layers[0].MediaType), Blob: blob, Annotations: m.Annotations}, nil
}
