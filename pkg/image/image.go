package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Image is an image for linux/amd64 that was found.
type Image struct {
	Ref Reference
	// Digest identifies the image: of its manifest or, in an archive or daemon, which have none, of its
	// configuration.
	Digest string
	// Config is the image's configuration as stored.
	Config []byte
	Layers []*Layer
	// Index says that the name is that of an index, of which this is one image.
	Index bool
	// Rivals are the digests of other images that an engine may choose by the same name, from the index or archive.
	Rivals []string

	// Manifest returns the manifest as stored, or one that is made for an image that has none.
	Manifest  func() ([]byte, error)
	MediaType types.MediaType
	// Origin is what the package that opened the image keeps of how it was reached; nil: nothing.
	Origin any
	// OnClose lets go of what reading the image needed; nil: nothing is to be done.
	OnClose func() error
}

// Close lets go of what reading the image needed.
func (img *Image) Close() error {
	if img.OnClose == nil {
		return nil
	}
	return img.OnClose()
}

// ID is the digest of the configuration, by which engines know the image, however its layers are compressed.
func (img *Image) ID() string { return DigestOf(img.Config) }

// DiffIDs returns the digests of the layers' archives, as the configuration has them (OCI image specification,
// "rootfs.diff_ids").
func (img *Image) DiffIDs() ([]string, error) {
	var config struct {
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(img.Config, &config); err != nil {
		return nil, fmt.Errorf("reading the layers in the configuration: %w", err)
	}
	return config.RootFS.DiffIDs, nil
}

// LayerDigests are those of the layers, in their order.
func (img *Image) LayerDigests() []string {
	digests := make([]string, len(img.Layers))
	for i, l := range img.Layers {
		digests[i] = l.Digest
	}
	return digests
}

// Layer is one layer of an image.
type Layer struct {
	// Digest of the bytes that Open gives, as "sha256:…".
	Digest string
	// Size of these bytes; -1 if it is not known beforehand.
	Size int64
	// Open streams the layer, compressed or not. The reader does not check the digest.
	Open func(context.Context) (io.ReadCloser, error)
	// From names the repository that it is read from; empty: it is in a file or daemon.
	From string
	// At reads parts of the layer; nil if that is not possible.
	At func(context.Context) io.ReaderAt
	// Annotations are those of the layer in the manifest.
	Annotations map[string]string

	// Push is the form in which the layer is sent elsewhere.
	Push v1.Layer
}

// Blob reads the whole layer as it is stored, of at most so many bytes, and checks its digest.
func (l *Layer) Blob(ctx context.Context, limit int64) ([]byte, error) {
	r, err := l.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := ReadChecked(r, l.Digest, limit)
	if err != nil {
		return nil, fmt.Errorf("fetching the layer %s: %w", l.Digest, err)
	}
	return b, nil
}

// Again returns the layer as one that can be put on an image. Its archive has the given digest.
func (l *Layer) Again(ctx context.Context, diffID string) (NewLayer, error) {
	mt, err := l.Push.MediaType()
	if err != nil {
		return NewLayer{}, err
	}
	return NewLayer{
		Digest: l.Digest, DiffID: diffID, Size: int(l.Size), MediaType: mt,
		Open: func() (io.ReadCloser, error) { return l.Open(ctx) },
	}, nil
}

// DigestOf returns the SHA-256 of some bytes, as "sha256:…".
func DigestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// ReadChecked reads all of a blob. One of more than limit bytes is an error, and one that is not what the digest
// names is ErrDigest.
func ReadChecked(r io.Reader, digest string, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("it has more than %d bytes", limit)
	}
	if got := DigestOf(b); got != digest {
		return nil, fmt.Errorf("%w: %s is %s", ErrDigest, digest, got)
	}
	return b, nil
}

// Created returns when an image was made, as its configuration says. That it does not say so is an error, and so is a
// time by which builders say nothing, such as the year 1 or 1970.
func (img *Image) Created() (time.Time, error) {
	var c struct {
		Created *time.Time `json:"created"`
	}
	if err := json.Unmarshal(img.Config, &c); err != nil {
		return time.Time{}, fmt.Errorf("reading when the image was made: %w", err)
	}
	if c.Created == nil || c.Created.Year() < 2000 { // zero values of builders
		return time.Time{}, errors.New("the image does not say when it was made")
	}
	return *c.Created, nil
}

// Found is an image whose digest is known, and which can be opened without asking for that again.
type Found struct {
	// Digest is what Image.Digest will be.
	Digest string
	// Open opens the image.
	Open func(context.Context) (*Image, error)
}
