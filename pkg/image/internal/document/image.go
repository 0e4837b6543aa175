package document

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/cconvert/cconvert/pkg/image"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// MaxConfig is how many bytes a configuration may have.
const MaxConfig = 8 << 20

// NewImage reads a manifest, whose type was told by Type, and the configuration that it names.
func NewImage(ctx context.Context, ref image.Reference, mt types.MediaType, raw []byte,
	open func(context.Context, v1.Descriptor) (io.ReadCloser, error), wrap func(v1.Layer) v1.Layer,
) (*image.Image, error) {
	switch mt {
	case types.OCIManifestSchema1, types.DockerManifestSchema2:
	case types.DockerManifestSchema1, types.DockerManifestSchema1Signed:
		return nil,
			fmt.Errorf("manifest schema 1 is %w: push the image again with a current tool", image.ErrUnsupported)
	default:
		if mt.IsIndex() {
			return nil, fmt.Errorf("an index in an index in an index is %w", image.ErrUnsupported)
		}
		return nil, fmt.Errorf("the media type %q is %w", mt, image.ErrNoImage)
	}
	m, err := ParseManifest(raw)
	if err != nil {
		return nil, err
	}
	if !IsConfig(m.Config.MediaType) {
		return nil, fmt.Errorf("a manifest with the configuration %q is %w", m.Config.MediaType, image.ErrNoImage)
	}
	img := &image.Image{
		Ref: ref, Digest: image.DigestOf(raw), MediaType: mt,
		Manifest: func() ([]byte, error) { return raw, nil },
	}
	if img.Config, err = ReadBlob(ctx, m.Config, MaxConfig, open); err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", PartOf(err))
	}
	c, err := ParseConfig(img.Config)
	if err != nil {
		if !m.Config.MediaType.IsConfig() {
			err = fmt.Errorf("its type is %q, which is %w: %w", m.Config.MediaType, image.ErrNoImage, err)
		}
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	if len(c.RootFS.DiffIDs) != len(m.Layers) {
		return nil,
			fmt.Errorf("the manifest lists %d layers, the configuration %d", len(m.Layers), len(c.RootFS.DiffIDs))
	}
	for i, d := range m.Layers {
		if !d.MediaType.IsLayer() {
			return nil, fmt.Errorf("a layer of the media type %q is %w", d.MediaType, image.ErrUnsupported)
		}
		l := &blobLayer{ctx: ctx, desc: d, diffID: c.RootFS.DiffIDs[i], open: open}
		img.Layers = append(img.Layers, &image.Layer{
			Digest: d.Digest.String(), Size: d.Size, Push: wrap(l), Annotations: d.Annotations,
			Open: func(ctx context.Context) (io.ReadCloser, error) { return open(ctx, d) },
		})
	}
	return img, nil
}

// ReadBlob reads a blob of at most so many bytes and checks its digest.
func ReadBlob(
	ctx context.Context, d v1.Descriptor, limit int64, open func(context.Context, v1.Descriptor) (io.ReadCloser, error),
) ([]byte, error) {
	if d.Size > limit {
		return nil, fmt.Errorf("it has %d bytes, more than %d", d.Size, limit)
	}
	r, err := open(ctx, d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return image.ReadChecked(r, d.Digest.String(), limit)
}

// NewBlob returns a blob that is to be copied as it is. What is in it is not known.
func NewBlob(
	ctx context.Context, d v1.Descriptor, open func(context.Context, v1.Descriptor) (io.ReadCloser, error),
) v1.Layer {
	return &blobLayer{ctx: ctx, desc: d, open: open}
}

// blobLayer is a layer in a registry or layout, to be copied as it is.
type blobLayer struct {
	ctx    context.Context
	desc   v1.Descriptor
	diffID v1.Hash
	open   func(context.Context, v1.Descriptor) (io.ReadCloser, error)
}

func (l *blobLayer) Digest() (v1.Hash, error) { return l.desc.Digest, nil }

func (l *blobLayer) DiffID() (v1.Hash, error) { return l.diffID, nil }

func (l *blobLayer) Size() (int64, error) { return l.desc.Size, nil }

func (l *blobLayer) MediaType() (types.MediaType, error) { return l.desc.MediaType, nil }

func (l *blobLayer) Descriptor() (*v1.Descriptor, error) { return &l.desc, nil }

func (l *blobLayer) Uncompressed() (io.ReadCloser, error) {
	p, err := partial.CompressedToLayer(l)
	if err != nil {
		return nil, err
	}
	return p.Uncompressed()
}

func (l *blobLayer) Compressed() (io.ReadCloser, error) {
	r, err := l.open(l.ctx, l.desc)
	if err != nil {
		return nil, err
	}
	return Checked(l.ctx, r, l.desc.Digest), nil
}

// Checked returns a reader that fails at the end if the content is not what the digest names.
func Checked(ctx context.Context, r io.ReadCloser, want v1.Hash) io.ReadCloser {
	return &checkedReader{ctx: ctx, ReadCloser: r, sum: sha256.New(), want: want}
}

// checkedReader fails at the end if the content is not what the digest names.
type checkedReader struct {
	io.ReadCloser
	ctx  context.Context
	sum  hash.Hash
	want v1.Hash
}

func (r *checkedReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := r.ReadCloser.Read(p)
	r.sum.Write(p[:n])
	if err == io.EOF {
		if got := hex.EncodeToString(r.sum.Sum(nil)); got != r.want.Hex {
			return n, fmt.Errorf("%w: %s is sha256:%s", image.ErrDigest, r.want, got)
		}
	}
	return n, err
}

// PartOf makes an error about a part of an image one about the image.
func PartOf(err error) error {
	if errors.Is(err, image.ErrNotFound) {
		return fmt.Errorf("%w: %v", image.ErrIncomplete, err) //nolint:errorlint // the image itself was found
	}
	return err
}

// CheckPlatform closes an image that is not for linux/amd64.
func CheckPlatform(img *image.Image) (*image.Image, error) {
	var c struct{ OS, Architecture string }
	if err := json.Unmarshal(img.Config, &c); err != nil {
		img.Close()
		return nil, &image.OpenError{Ref: img.Ref, Err: fmt.Errorf("reading the configuration: %w", err)}
	}
	// Without an architecture an image is taken for the engine's own, which for SGX is amd64.
	p := normal(v1.Platform{OS: cmp.Or(c.OS, "linux"), Architecture: cmp.Or(c.Architecture, "amd64")})
	if p.OS != "linux" || p.Architecture != "amd64" {
		img.Close()
		return nil, &image.OpenError{
			Ref: img.Ref, Err: fmt.Errorf("%w: it is for %s/%s", image.ErrPlatform, c.OS, c.Architecture),
		}
	}
	return img, nil
}
