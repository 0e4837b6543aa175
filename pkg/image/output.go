package image

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
)

// NewLayer is a layer that is put on top of an image, or in the place of another one.
type NewLayer struct {
	Digest string // of the blob
	DiffID string // of the archive
	Size   int    // of the blob, in bytes
	// MediaType is that of the blob; empty: that of an archive which is compressed with gzip, in such an image.
	MediaType types.MediaType
	// Open opens the blob, to be sent to a place that does not have it.
	Open func() (io.ReadCloser, error)
}

// BlobLayer is a layer of which the blob is known, and the digest of the archive in it.
func BlobLayer(blob []byte, diffID string) NewLayer {
	return NewLayer{
		Digest: DigestOf(blob), DiffID: diffID, Size: len(blob),
		Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(blob)), nil },
	}
}

// Blob reads the whole blob.
func (l NewLayer) Blob() ([]byte, error) {
	r, err := l.Open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// LayerWriter compresses a layer while its tar archive is written to it: the same archive makes the same layer.
type LayerWriter struct {
	packed *gzip.Writer
	blob   bytes.Buffer
	diffID hash.Hash
}

// NewLayerWriter begins a layer, at one of gzip's levels.
func NewLayerWriter(level int) (w *LayerWriter, err error) {
	w = &LayerWriter{diffID: sha256.New()}
	w.packed, err = gzip.NewWriterLevel(&w.blob, level)
	return w, err
}

// Write takes the next part of the archive.
func (w *LayerWriter) Write(b []byte) (int, error) {
	w.diffID.Write(b)
	return w.packed.Write(b)
}

// Layer ends the archive.
func (w *LayerWriter) Layer() (NewLayer, error) {
	if err := w.packed.Close(); err != nil {
		return NewLayer{}, err
	}
	return BlobLayer(w.blob.Bytes(), "sha256:"+hex.EncodeToString(w.diffID.Sum(nil))), nil
}

// CompressLayer compresses a tar archive.
func CompressLayer(level int, archive []byte) (NewLayer, error) {
	w, err := NewLayerWriter(level)
	if err != nil {
		return NewLayer{}, err
	}
	if _, err := w.Write(archive); err != nil {
		return NewLayer{}, err
	}
	return w.Layer()
}

// Output is an image that is complete but not stored. It is a v1.Image of go-containerregistry.
type Output struct {
	// Digest of the manifest.
	Digest string
	// ImageID is the digest of the configuration, by which Docker knows the image.
	ImageID string
	// Evidence is attached to the image before its tag is moved, in registries; see Image.Referrers.
	Evidence []Artifact
	// EvidenceOptional stores the image all the same if the registry refuses artifacts, which Write tells by
	// ErrEvidence.
	EvidenceOptional bool
	// Added is how many bytes the new layers have, compressed.
	Added int

	// Source is what the layers below are from, and Origin that of the image there.
	Source Reference
	Origin any
	// Manifest and Config are as they are to be stored.
	Manifest, Config []byte
	MediaType        types.MediaType
	// Blobs are the layers in the form in which they are sent.
	Blobs []v1.Layer
}

// descriptors returns the manifest's members, and its layers' descriptors to the letter: they may carry annotations.
func (img *Image) descriptors() (manifest map[string]json.RawMessage, layers []json.RawMessage, err error) {
	raw, err := img.Manifest()
	if err != nil {
		return nil, nil, err
	}
	if err := json.Unmarshal(raw, &manifest); err != nil {
		return nil, nil, fmt.Errorf("reading the manifest: %w", err)
	}
	if err := json.Unmarshal(manifest["layers"], &layers); err != nil {
		return nil, nil, fmt.Errorf("reading the manifest's layers: %w", err)
	}
	return manifest, layers, nil
}

// Below returns an image without its topmost layers, for others to be put in their place.
func (img *Image) Below(layers int) (*Image, error) {
	left := len(img.Layers) - layers
	if left < 0 {
		return nil, fmt.Errorf("the image has %d layers, not %d", len(img.Layers), layers)
	}
	below := *img
	below.Layers = img.Layers[:left]
	below.Manifest = func() ([]byte, error) {
		manifest, list, err := img.descriptors()
		if err != nil {
			return nil, err
		}
		if manifest["layers"], err = json.Marshal(list[:min(left, len(list))]); err != nil {
			return nil, err
		}
		return json.Marshal(manifest)
	}
	return &below, nil
}

// Append puts layers on top of an image. The source's layers stay as they are, and so do the annotations of its
// manifest and its layers, but for those that steer engines. What else its manifest has is left out. Config is the new
// configuration but for its rootfs, which is completed here. The media types follow the source's: Docker's or OCI's.
func Append(img *Image, config map[string]json.RawMessage, add []NewLayer) (*Output, error) {
	manifest, layers, err := img.descriptors()
	if err != nil {
		return nil, err
	}
	if len(layers) != len(img.Layers) {
		return nil, fmt.Errorf("the manifest lists %d layers, %d were read", len(layers), len(img.Layers))
	}
	var rootfs v1.RootFS
	if err := json.Unmarshal(config["rootfs"], &rootfs); err != nil {
		return nil, fmt.Errorf("reading the configuration's rootfs: %w", err)
	}
	configType := types.OCIConfigJSON
	if img.MediaType == types.DockerManifestSchema2 {
		configType = types.DockerConfigJSON
	}
	if len(rootfs.DiffIDs) != len(img.Layers) {
		return nil, fmt.Errorf("the configuration lists %d layers, %d were read", len(rootfs.DiffIDs), len(img.Layers))
	}
	for i, raw := range layers {
		if layers[i], err = withoutLazy(raw); err != nil {
			return nil, err
		}
	}
	out := &Output{Source: img.Ref, Origin: img.Origin, MediaType: img.MediaType}
	for _, l := range img.Layers {
		out.Blobs = append(out.Blobs, l.Push)
	}
	added, descriptors, err := NewLayers(img.MediaType, add)
	if err != nil {
		return nil, err
	}
	for i, d := range descriptors {
		out.Added += add[i].Size
		diffID, err := added[i].DiffID()
		if err != nil {
			return nil, err
		}
		rootfs.DiffIDs = append(rootfs.DiffIDs, diffID)
		raw, err := json.Marshal(d)
		if err != nil {
			return nil, err
		}
		layers = append(layers, raw)
		out.Blobs = append(out.Blobs, added[i])
	}
	if config["rootfs"], err = json.Marshal(rootfs); err != nil {
		return nil, err
	}
	if out.Config, err = json.Marshal(config); err != nil {
		return nil, err
	}
	out.ImageID = DigestOf(out.Config)
	configDigest, err := v1.NewHash(out.ImageID)
	if err != nil {
		return nil, err
	}
	manifest["layers"], err = json.Marshal(layers)
	if err != nil {
		return nil, err
	}
	manifest["config"],
		err = json.Marshal(v1.Descriptor{MediaType: configType, Size: int64(len(out.Config)), Digest: configDigest})
	if err != nil {
		return nil, err
	}
	maps.DeleteFunc(manifest, func(key string, _ json.RawMessage) bool { return !slices.Contains(ownKeys, key) })
	if annotations, ok := manifest["annotations"]; ok {
		if manifest["annotations"], err = withoutSteering(annotations); err != nil {
			return nil, err
		}
	}
	if out.Manifest, err = json.Marshal(manifest); err != nil {
		return nil, err
	}
	out.Digest = DigestOf(out.Manifest)
	return out, nil
}

// NewLayers returns new layers of an image, with the media type that suits the manifest's.
func NewLayers(manifest types.MediaType, add []NewLayer) ([]v1.Layer, []v1.Descriptor, error) {
	var layers []v1.Layer
	var descriptors []v1.Descriptor
	for _, l := range add {
		mt := l.MediaType
		switch {
		case mt != "":
		case manifest == types.DockerManifestSchema2:
			mt = types.DockerLayer
		default:
			mt = types.OCILayer
		}
		digest, err := v1.NewHash(l.Digest)
		if err != nil {
			return nil, nil, err
		}
		diffID, err := v1.NewHash(l.DiffID)
		if err != nil {
			return nil, nil, err
		}
		layers = append(layers, &addedLayer{l, mt, digest, diffID})
		descriptors = append(descriptors, v1.Descriptor{MediaType: mt, Size: int64(l.Size), Digest: digest})
	}
	return layers, descriptors, nil
}

// addedLayer is a NewLayer of an image whose manifest is of a certain kind.
type addedLayer struct {
	NewLayer
	mediaType      types.MediaType
	digest, diffID v1.Hash
}

func (l *addedLayer) Digest() (v1.Hash, error)            { return l.digest, nil }
func (l *addedLayer) DiffID() (v1.Hash, error)            { return l.diffID, nil }
func (l *addedLayer) Size() (int64, error)                { return int64(l.NewLayer.Size), nil }
func (l *addedLayer) MediaType() (types.MediaType, error) { return l.mediaType, nil }

func (l *addedLayer) Compressed() (io.ReadCloser, error) { return l.Open() }

func (l *addedLayer) Uncompressed() (io.ReadCloser, error) {
	r, err := l.Open()
	if err != nil {
		return nil, err
	}
	return decompress(l.mediaType, r)
}

// output is a v1.Image over an Output, whose fields have the methods' names.
type output struct{ *Output }

// Image returns the image in go-containerregistry's form.
func (img *Output) Image() v1.Image { return output{img} }

func (o output) MediaType() (types.MediaType, error) { return o.Output.MediaType, nil }
func (o output) Size() (int64, error)                { return int64(len(o.Output.Manifest)), nil }
func (o output) ConfigName() (v1.Hash, error)        { return v1.NewHash(o.ImageID) }
func (o output) ConfigFile() (*v1.ConfigFile, error) { return partial.ConfigFile(o) }
func (o output) RawConfigFile() ([]byte, error)      { return o.Config, nil }
func (o output) Digest() (v1.Hash, error)            { return v1.NewHash(o.Output.Digest) }
func (o output) Manifest() (*v1.Manifest, error)     { return partial.Manifest(o) }
func (o output) RawManifest() ([]byte, error)        { return o.Output.Manifest, nil }
func (o output) Layers() ([]v1.Layer, error)         { return o.Blobs, nil }

func (o output) LayerByDigest(h v1.Hash) (v1.Layer, error) {
	return o.find(h, v1.Layer.Digest)
}

func (o output) LayerByDiffID(h v1.Hash) (v1.Layer, error) {
	return o.find(h, v1.Layer.DiffID)
}

func (o output) find(h v1.Hash, by func(v1.Layer) (v1.Hash, error)) (v1.Layer, error) {
	for _, l := range o.Blobs {
		if got, err := by(l); err == nil && got == h {
			return l, nil
		}
	}
	return nil, errors.New("no layer " + h.String())
}

// ConfigBlob is the configuration as a blob to be stored.
func (img *Output) ConfigBlob() v1.Layer {
	mt := types.OCIConfigJSON
	if img.MediaType == types.DockerManifestSchema2 {
		mt = types.DockerConfigJSON
	}
	return static.NewLayer(img.Config, mt)
}

// Name returns the name by which a stored image is found for certain, and the digest in it: in a registry
// or layout that of the manifest, in an archive or daemon, which know no manifests, the image's ID.
func (img *Output) Name(at Reference) (ref, digest string) {
	switch at.Transport {
	case Registry:
		return at.Name.Context().Name() + "@" + img.Digest, img.Digest
	case OCILayout, OCIArchive:
		return string(at.Transport) + ":" + at.Path + "@" + img.Digest, img.Digest
	}
	return img.ImageID, img.ImageID
}

// KeptByReference reports whether a layer is left where its descriptor says that it is (OCI image specification,
// "Non-Distributable Layers"). One that does not say so can only be in the image's own place.
func KeptByReference(l v1.Layer) bool {
	d, err := partial.Descriptor(l)
	return err == nil && d.MediaType.IsLayer() && !d.MediaType.IsDistributable() && len(d.URLs) > 0
}
