package image

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"os"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// NewSpool returns a file for what is too large for memory. It has no name, so that nobody else can open it and nothing
// is left of it when the process ends. The caller closes it.
func NewSpool() (*os.File, error) {
	f, err := os.CreateTemp("", "cconvert-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// SpooledLayer is a layer of which the blob is in a spool.
func SpooledLayer(spool *os.File, size int64, digest, diffID string, mt types.MediaType) NewLayer {
	return NewLayer{
		Digest: digest, DiffID: diffID, Size: int(size), MediaType: mt,
		Open: func() (io.ReadCloser, error) { return io.NopCloser(io.NewSectionReader(spool, 0, size)), nil },
	}
}

// LayerSpool writes a layer to a spool while its archive is written to it: the same archive makes the same layer.
type LayerSpool struct {
	mediaType types.MediaType
	spool     *os.File
	size      int64
	digest    hash.Hash
	diffID    hash.Hash
	packed    io.WriteCloser
}

// NewLayerSpool begins a layer in the form that a media type says: compressed with gzip, with zstd or not at all. What
// is left where its descriptor says has a form, too, and stays there no longer.
func NewLayerSpool(spool *os.File, mt types.MediaType) (*LayerSpool, error) {
	s := &LayerSpool{mediaType: Distributable(mt), spool: spool, digest: sha256.New(), diffID: sha256.New()}
	blob := blobWriter{s}
	var err error
	switch form(mt) {
	case "":
		s.packed = blob
	case "zstd":
		s.packed, err = zstd.NewWriter(blob, zstd.WithEncoderConcurrency(1))
	default:
		s.packed, err = gzip.NewWriterLevel(blob, gzip.DefaultCompression)
	}
	return s, err
}

// Write takes the next part of the archive.
func (s *LayerSpool) Write(b []byte) (int, error) {
	s.diffID.Write(b)
	return s.packed.Write(b)
}

// Layer ends the archive.
func (s *LayerSpool) Layer() (NewLayer, error) {
	if err := s.packed.Close(); err != nil {
		return NewLayer{}, err
	}
	return SpooledLayer(s.spool, s.size, sumOf(s.digest), sumOf(s.diffID), s.mediaType), nil
}

func sumOf(h hash.Hash) string { return "sha256:" + hex.EncodeToString(h.Sum(nil)) }

// blobWriter writes the blob of a LayerSpool.
type blobWriter struct{ *LayerSpool }

func (w blobWriter) Write(b []byte) (int, error) {
	n, err := w.spool.WriteAt(b, w.size)
	w.digest.Write(b[:n])
	w.size += int64(n)
	return n, err
}

func (blobWriter) Close() error { return nil }

// Distributable returns the media type of a layer that is sent with its image, in the form of another one, which need
// not be (OCI image specification, "Non-Distributable Layers").
func Distributable(mt types.MediaType) types.MediaType {
	switch mt {
	case types.DockerForeignLayer:
		return types.DockerLayer
	case types.OCIRestrictedLayer:
		return types.OCILayer
	case types.OCIUncompressedRestrictedLayer:
		return types.OCIUncompressedLayer
	}
	return types.MediaType(strings.Replace(string(mt), ".nondistributable", "", 1))
}

// Uncompressed returns the media type of a layer that is not compressed, in an image of a media type.
func Uncompressed(manifest types.MediaType) types.MediaType {
	if manifest == types.DockerManifestSchema2 {
		return types.DockerUncompressedLayer
	}
	return types.OCIUncompressedLayer
}

// form names how a media type says that a layer is compressed; empty: not at all.
func form(mt types.MediaType) string {
	name := string(mt)
	switch {
	case strings.HasSuffix(name, "zstd"):
		return "zstd"
	case strings.HasSuffix(name, "gzip"):
		return "gzip"
	}
	return ""
}

// decompress reads the archive in a layer's blob.
func decompress(mt types.MediaType, blob io.ReadCloser) (io.ReadCloser, error) {
	switch form(mt) {
	case "":
		return blob, nil
	case "zstd":
		z, err := zstd.NewReader(blob)
		if err != nil {
			return nil, fmt.Errorf("reading a layer: %w", err)
		}
		return readCloser{z, func() error { z.Close(); return blob.Close() }}, nil
	}
	z, err := gzip.NewReader(blob)
	if err != nil {
		return nil, fmt.Errorf("reading a layer: %w", err)
	}
	return readCloser{z, blob.Close}, nil
}

type readCloser struct {
	io.Reader
	close func() error
}

func (r readCloser) Close() error { return r.close() }
