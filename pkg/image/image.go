package image

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"net/http"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Options say how images are fetched and stored. The zero value is ready for use.
type Options struct {
	// Keychain finds credentials; nil: the Docker configuration and its helpers.
	Keychain authn.Keychain
	// HTTP sends requests to registries; nil: a transport with proxies from the environment.
	HTTP http.RoundTripper
	// Jobs is how many blobs are transferred at a time; 0: 4.
	Jobs int
	// FirstPause is the wait before the first repetition of a request; 0: half a second. It doubles.
	FirstPause time.Duration
	// Idle is how long a registry may be silent while something is expected of it; 0: DefaultIdle. Over that time it
	// must also send a kilobyte a second.
	Idle time.Duration
	// MaxAnswer is how many bytes a manifest, or another answer that is read whole, may have; 0: 4 MiB, as the OCI
	// distribution specification has it ("Pushing Manifests").
	MaxAnswer int64
	// OnlyRegistry leaves out other places from which an image says that its layers can be fetched. StrictNames follows
	// no redirect of a manifest to another repository, whatever host it is on.
	OnlyRegistry, StrictNames bool
	// Pace waits until a request may be sent, and returns what is to be called if it was answered. The registry is not
	// blamed for that time. Nil: there is no limit.
	Pace func(*http.Request) (done func(), err error)
	// Watch is told how transfers get on; nil: nobody is.
	Watch Watcher
	// BeforeTag is called right before a tag is moved; its error keeps the tag where it is. Nil: nobody is asked.
	BeforeTag func(context.Context) error
	// Shared is what transfers of many images have in common; nil: nothing.
	Shared *Shared
}

func (o Options) jobs() int {
	if o.Jobs > 0 {
		return o.Jobs
	}
	return 4
}

func (o Options) firstPause() time.Duration {
	if o.FirstPause > 0 {
		return o.FirstPause
	}
	return 500 * time.Millisecond
}

func (o Options) maxAnswer() int64 {
	if o.MaxAnswer > 0 {
		return o.MaxAnswer
	}
	return maxAnswer
}

func (o Options) idle() time.Duration {
	if o.Idle > 0 {
		return o.Idle
	}
	return DefaultIdle
}

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

	session   *registrySession       // in a registry: how it was reached
	tagged    string                 // the digest of what its name has there: the image itself, or an index
	manifest  func() ([]byte, error) // as stored, or made for an image that has none
	mediaType types.MediaType
	close     func() error
}

// Close lets go of what reading the image needed.
func (img *Image) Close() error {
	if img.close == nil {
		return nil
	}
	return img.close()
}

// ID is the digest of the configuration, by which engines know the image, however its layers are compressed.
func (img *Image) ID() string { return digestOf(img.Config) }

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

	push v1.Layer
}

// Open finds an image.
func Open(ctx context.Context, ref Reference, o Options) (*Image, error) {
	var img *Image
	var err error
	switch ref.Transport {
	case Registry:
		img, err = openRegistry(ctx, ref, o)
	case OCILayout:
		img, err = openLayout(ctx, ref)
	case OCIArchive:
		img, err = openOCIArchive(ctx, ref)
	case DockerArchive:
		img, err = openArchive(ctx, ref)
	case DockerDaemon:
		img, err = openDaemon(ctx, ref)
	}
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", ref, err)
	}
	return checkPlatform(img)
}

// checkPlatform closes an image that is not for linux/amd64.
func checkPlatform(img *Image) (*Image, error) {
	var c struct{ OS, Architecture string }
	if err := json.Unmarshal(img.Config, &c); err != nil {
		img.Close()
		return nil, fmt.Errorf("opening %s: reading the configuration: %w", img.Ref, err)
	}
	// Without an architecture an image is taken for the engine's own, which for SGX is amd64.
	p := normal(v1.Platform{OS: cmp.Or(c.OS, "linux"), Architecture: cmp.Or(c.Architecture, "amd64")})
	if p.OS != "linux" || p.Architecture != "amd64" {
		img.Close()
		return nil, fmt.Errorf("opening %s: %w: it is for %s/%s", img.Ref, ErrPlatform, c.OS, c.Architecture)
	}
	return img, nil
}

// Write stores an image.
func Write(ctx context.Context, to Reference, img *Output, o Options) error {
	u := NewUpload(ctx, to, o)
	defer u.Close()
	return u.Write(img)
}

// maxConfig is how many bytes a configuration may have.
const maxConfig = 8 << 20

// newImage reads a manifest, whose type was told by documentType, and the configuration that it names.
func newImage(ctx context.Context, ref Reference, mt types.MediaType, raw []byte,
	open func(context.Context, v1.Descriptor) (io.ReadCloser, error), wrap func(*blobLayer) v1.Layer,
) (*Image, error) {
	switch mt {
	case types.OCIManifestSchema1, types.DockerManifestSchema2:
	case types.DockerManifestSchema1, types.DockerManifestSchema1Signed:
		return nil, fmt.Errorf("manifest schema 1 is %w: push the image again with a current tool", ErrUnsupported)
	default:
		if mt.IsIndex() {
			return nil, fmt.Errorf("an index in an index in an index is %w", ErrUnsupported)
		}
		return nil, fmt.Errorf("the media type %q is %w", mt, errNoImage)
	}
	m, err := parseManifest(raw)
	if err != nil {
		return nil, err
	}
	if !isConfig(m.Config.MediaType) {
		return nil, fmt.Errorf("a manifest with the configuration %q is %w", m.Config.MediaType, errNoImage)
	}
	img := &Image{
		Ref: ref, Digest: digestOf(raw), mediaType: mt,
		manifest: func() ([]byte, error) { return raw, nil },
	}
	if img.Config, err = readBlob(ctx, m.Config, maxConfig, open); err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", partOf(err))
	}
	c, err := parseConfig(img.Config)
	if err != nil {
		if !m.Config.MediaType.IsConfig() {
			err = fmt.Errorf("its type is %q, which is %w: %w", m.Config.MediaType, errNoImage, err)
		}
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	if len(c.RootFS.DiffIDs) != len(m.Layers) {
		return nil,
			fmt.Errorf("the manifest lists %d layers, the configuration %d", len(m.Layers), len(c.RootFS.DiffIDs))
	}
	for i, d := range m.Layers {
		if !d.MediaType.IsLayer() {
			return nil, fmt.Errorf("a layer of the media type %q is %w", d.MediaType, ErrUnsupported)
		}
		l := &blobLayer{ctx: ctx, desc: d, diffID: c.RootFS.DiffIDs[i], open: open}
		img.Layers = append(img.Layers, &Layer{
			Digest: d.Digest.String(), Size: d.Size, push: wrap(l), Annotations: d.Annotations,
			Open: func(ctx context.Context) (io.ReadCloser, error) { return open(ctx, d) },
		})
	}
	return img, nil
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// readBlob reads a blob of at most so many bytes and checks its digest.
func readBlob(
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
	return ReadChecked(r, d.Digest.String(), limit)
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
	if got := digestOf(b); got != digest {
		return nil, fmt.Errorf("%w: %s is %s", ErrDigest, digest, got)
	}
	return b, nil
}

// blobLayer is a layer in a registry or layout, to be copied as it is.
type blobLayer struct {
	ctx    context.Context
	desc   v1.Descriptor
	diffID v1.Hash
	open   func(context.Context, v1.Descriptor) (io.ReadCloser, error)
}

func (l *blobLayer) Digest() (v1.Hash, error)            { return l.desc.Digest, nil }
func (l *blobLayer) DiffID() (v1.Hash, error)            { return l.diffID, nil }
func (l *blobLayer) Size() (int64, error)                { return l.desc.Size, nil }
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
	return &checkedReader{ctx: l.ctx, ReadCloser: r, sum: sha256.New(), want: l.desc.Digest}, nil
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
			return n, fmt.Errorf("%w: %s is sha256:%s", ErrDigest, r.want, got)
		}
	}
	return n, err
}
