package document

import (
	"encoding/json"

	"github.com/cconvert/cconvert/pkg/image"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// emptyConfig is what artifacts have for a configuration (OCI image specification, "Guidance for an Empty Descriptor").
var emptyConfig = []byte("{}")

// EmptyConfigDigest is its digest.
var EmptyConfigDigest = image.DigestOf(emptyConfig)

// EmptyConfigBlob is the configuration of artifacts, to be stored.
func EmptyConfigBlob() v1.Layer { return static.NewLayer(emptyConfig, EmptyConfigType) }

// EmptyConfigType is its media type.
const EmptyConfigType = "application/vnd.oci.empty.v1+json"

// ArtifactManifest is the manifest of an artifact.
type ArtifactManifest struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     types.MediaType   `json:"mediaType"`
	ArtifactType  string            `json:"artifactType"`
	Config        v1.Descriptor     `json:"config"`
	Layers        []v1.Descriptor   `json:"layers"`
	Subject       *v1.Descriptor    `json:"subject,omitempty"`
	Annotations   map[string]string `json:"annotations,omitempty"`
}

// PackedArtifact is an artifact as it is stored.
type PackedArtifact struct {
	Manifest ArtifactManifest
	Raw      []byte // the manifest
	Digest   v1.Hash
	Blob     v1.Layer
}

// PackArtifact makes the manifest of an artifact that refers to another manifest, or to none.
func PackArtifact(a image.Artifact, subject *v1.Descriptor) (*PackedArtifact, error) {
	p := &PackedArtifact{Blob: static.NewLayer(a.Blob, types.MediaType(a.MediaType))}
	p.Manifest = ArtifactManifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: a.Type, Annotations: a.Annotations,
		Subject: subject,
		Config:  v1.Descriptor{MediaType: EmptyConfigType, Size: int64(len(emptyConfig))},
		Layers:  []v1.Descriptor{{MediaType: types.MediaType(a.MediaType), Size: int64(len(a.Blob))}},
	}
	var err error
	if p.Manifest.Config.Digest, err = v1.NewHash(image.DigestOf(emptyConfig)); err != nil {
		return nil, err
	}
	if p.Manifest.Layers[0].Digest, err = v1.NewHash(image.DigestOf(a.Blob)); err != nil {
		return nil, err
	}
	if p.Raw, err = json.Marshal(p.Manifest); err != nil {
		return nil, err
	}
	p.Digest, err = v1.NewHash(image.DigestOf(p.Raw))
	return p, err
}
