package local

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/internal/document"
	"github.com/gofrs/flock"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/renameio/v2"
)

const maxIndex = 16 << 20

func blobPath(dir string, h v1.Hash) string { return filepath.Join(dir, "blobs", h.Algorithm, h.Hex) }

func readLayoutIndex(dir string) (*v1.IndexManifest, error) {
	b, err := readFile(filepath.Join(dir, "index.json"), maxIndex)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s is not an OCI layout", image.ErrNotFound, dir)
	}
	if err != nil {
		return nil, err
	}
	return parseLayoutIndex(b)
}

func parseLayoutIndex(b []byte) (*v1.IndexManifest, error) {
	if _, err := document.Type(string(types.OCIImageIndex), b); err != nil {
		return nil, fmt.Errorf("index.json: %w", err)
	}
	return document.ReadIndex(b)
}

func readFile(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s has more than %d bytes", path, limit)
	}
	return b, err
}

func openLayout(ctx context.Context, ref image.Reference) (*image.Image, error) {
	index, err := readLayoutIndex(ref.Path)
	if err != nil {
		return nil, err
	}
	return openIndex(ctx, ref, index, func(_ context.Context, h v1.Hash) (io.ReadCloser, error) {
		return os.Open(blobPath(ref.Path, h)) // a v1.Hash is hexadecimal: no path of the image's
	})
}

// openOCIArchive reads a layout in a tar file.
func openOCIArchive(ctx context.Context, ref image.Reference) (_ *image.Image, err error) {
	a, err := openTar(ctx, ref.Path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			a.f.Close()
		}
	}()
	b, err := a.read(ctx, "index.json", maxIndex)
	if err != nil {
		return nil, fmt.Errorf("reading the archive: %w", err)
	}
	index, err := parseLayoutIndex(b)
	if err != nil {
		return nil, err
	}
	img, err := openIndex(ctx, ref, index, func(ctx context.Context, h v1.Hash) (io.ReadCloser, error) {
		return a.open(ctx, blobPath("", h))
	})
	if err != nil {
		return nil, err
	}
	img.OnClose = a.f.Close
	var names []string
	if ref.Tag != "" {
		names = []string{ref.Tag}
	}
	if ref.Digest == "" {
		raw, err := img.Manifest()
		if err != nil {
			return nil, err
		}
		chosen, _ := a.ofManifest(img.MediaType, raw)
		others, err := a.rivals(ctx, chosen, names)
		if err != nil {
			return nil, fmt.Errorf("reading the archive: %w", err)
		}
		img.Rivals = append(img.Rivals, others...)
	}
	return img, nil
}

// openIndex opens an image of a layout, by a function that opens its blobs.
func openIndex(
	ctx context.Context, ref image.Reference, index *v1.IndexManifest,
	blob func(context.Context, v1.Hash) (io.ReadCloser, error),
) (*image.Image, error) {
	d, rivals, err := chooseTag(index.Manifests, ref)
	if err != nil {
		return nil, err
	}
	open := func(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
		if d.Digest.Algorithm != "sha256" {
			return nil, fmt.Errorf("the digest %s is %w", d.Digest, image.ErrUnsupported)
		}
		f, err := blob(ctx, d.Digest)
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("blob %s: %w", d.Digest, image.ErrNotFound)
		}
		return f, err
	}
	load := func() (raw []byte, err error) {
		if raw, err = document.ReadBlob(ctx, d, document.MaxConfig, open); err != nil {
			return nil, fmt.Errorf("reading the manifest: %w", document.PartOf(err))
		}
		d.MediaType, err = document.Type(string(d.MediaType), raw)
		return raw, err
	}
	raw, err := load()
	if err != nil {
		return nil, err
	}
	for range 2 { // an index may name an index
		if !d.MediaType.IsIndex() {
			break
		}
		inner, err := document.ReadIndex(raw)
		if err != nil {
			return nil, err
		}
		var others []string
		if d, others, err = document.Choose(inner.Manifests); err != nil {
			return nil, err
		}
		rivals = append(rivals, others...)
		if raw, err = load(); err != nil {
			return nil, err
		}
	}
	img, err := document.NewImage(ctx, ref, d.MediaType, raw, open, func(l v1.Layer) v1.Layer { return l })
	if err != nil {
		return nil, err
	}
	img.Rivals = rivals
	return img, nil
}

// reserved are paths at which layouts have files (OCI image specification, "Image Layout Specification"). Repositories
// can be called like that.
var reserved = regexp.MustCompile(`/(index\.json|oci-layout|blobs/sha256)/`)

// writeLayout adds the image to a layout. Blobs come first, each complete or not there at all; the index, which makes
// the image visible, is replaced last, while nobody else does. Check is asked of the index right before.
func writeLayout(
	ctx context.Context, ref image.Reference, img *image.Output, check func(*v1.IndexManifest) error,
) error {
	if reserved.MatchString(filepath.ToSlash(ref.Path) + "/") {
		return fmt.Errorf("%s is where a layout above it has a file", ref.Path)
	}
	if err := os.MkdirAll(filepath.Join(ref.Path, "blobs", "sha256"), 0o755); err != nil {
		return err
	}
	for _, l := range append(slices.Clone(img.Blobs), img.ConfigBlob()) {
		if image.KeptByReference(l) {
			continue
		}
		if err := writeLayoutBlob(ctx, ref.Path, l); err != nil {
			return err
		}
	}
	digest, err := v1.NewHash(img.Digest)
	if err != nil {
		return err
	}
	if err := renameio.WriteFile(blobPath(ref.Path, digest), img.Manifest, 0o644); err != nil {
		return err
	}
	unlock, err := lockDirectory(ctx, ref.Path)
	if err != nil {
		return err
	}
	defer unlock()
	index, err := readLayoutIndex(ref.Path)
	if errors.Is(err, image.ErrNotFound) {
		index, err = &v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}, nil
	}
	if err != nil {
		return err
	}
	if err := check(index); err != nil {
		return err
	}
	if ref.Tag == "" {
		others := 0
		for _, d := range index.Manifests {
			if d.Annotations[annotationRefName] == "" && d.Digest != digest {
				others++
			}
		}
		if others > 1 {
			return fmt.Errorf("the layout holds %d images without a tag: name this one as oci:%s:TAG", others, ref.Path)
		}
	}
	index.Manifests = slices.DeleteFunc(index.Manifests, func(d v1.Descriptor) bool {
		return d.Annotations[annotationRefName] == ref.Tag
	})
	index.Manifests = append(index.Manifests, layoutEntry(ref, img, digest))
	raw, err := json.MarshalIndent(index, "", "  ")
	if err != nil {
		return err
	}
	if err := renameio.WriteFile(filepath.Join(ref.Path, "oci-layout"), layoutVersion, 0o644); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return renameio.WriteFile(filepath.Join(ref.Path, "index.json"), raw, 0o644)
}

// lockDirectory keeps others who do the same out of a directory: those of this process, and of others on the machine.
func lockDirectory(ctx context.Context, dir string) (unlock func(), err error) {
	l := flock.New(dir, flock.SetFlag(os.O_RDONLY))
	if _, err := l.TryLockContext(ctx, 20*time.Millisecond); err != nil {
		l.Close()
		return nil, fmt.Errorf("locking the layout: %w", err)
	}
	return func() { l.Close() }, nil
}

func writeLayoutBlob(ctx context.Context, dir string, l v1.Layer) error {
	digest, err := l.Digest()
	if err != nil {
		return err
	}
	size, err := l.Size()
	if err != nil {
		return err
	}
	file := blobPath(dir, digest)
	if s, err := os.Stat(file); err == nil && s.Size() == size && holds(ctx, file, digest) {
		return nil
	}
	r, err := l.Compressed()
	if err != nil {
		return err
	}
	defer r.Close()
	return writeAtomically(ctx, file, func(w io.Writer) error {
		_, err := io.Copy(w, r)
		return err
	})
}

// holds reports whether a file's content is what the digest names.
func holds(ctx context.Context, file string, digest v1.Hash) bool {
	f, err := os.Open(file)
	if err != nil {
		return false
	}
	defer f.Close()
	_, err = io.Copy(io.Discard, document.Checked(ctx, f, digest))
	return err == nil
}

// writeAtomically makes a file that is there with all its content or not at all.
func writeAtomically(ctx context.Context, file string, write func(io.Writer) error) error {
	t, err := renameio.NewPendingFile(file, renameio.WithPermissions(0o644), renameio.WithExistingPermissions())
	if err != nil {
		return err
	}
	defer t.Cleanup() //nolint:errcheck // after success there is nothing to clean up
	if err := write(&contextWriter{ctx, t}); err != nil {
		return err
	}
	return t.CloseAtomicallyReplace()
}

type contextWriter struct {
	ctx context.Context
	w   io.Writer
}

func (w *contextWriter) Write(p []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	return w.w.Write(p)
}

// writeOCIArchive writes a layout of one image into a tar file.
func writeOCIArchive(ctx context.Context, ref image.Reference, img *image.Output) error {
	digest, err := v1.NewHash(img.Digest)
	if err != nil {
		return err
	}
	raw, err := json.MarshalIndent(v1.IndexManifest{
		SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{layoutEntry(ref, img, digest)},
	}, "", "  ")
	if err != nil {
		return err
	}
	return writeAtomically(ctx, ref.Path, func(w io.Writer) error {
		out := tar.NewWriter(w)
		add := func(name string, size int64, r io.Reader) error {
			if err := out.WriteHeader(&tar.Header{
				Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size, ModTime: time.Unix(0, 0),
			}); err != nil {
				return err
			}
			_, err := io.Copy(out, r)
			return err
		}
		for _, small := range []struct {
			name    string
			content []byte
		}{{"oci-layout", layoutVersion}, {"index.json", raw}, {blobPath("", digest), img.Manifest}} {
			if err := add(small.name, int64(len(small.content)), bytes.NewReader(small.content)); err != nil {
				return err
			}
		}
		written := map[v1.Hash]bool{}
		for _, l := range append(slices.Clone(img.Blobs), img.ConfigBlob()) {
			d, err := partial.Descriptor(l)
			if err != nil {
				return err
			}
			if image.KeptByReference(l) || written[d.Digest] {
				continue
			}
			written[d.Digest] = true
			r, err := l.Compressed()
			if err != nil {
				return err
			}
			err = add(blobPath("", d.Digest), d.Size, r)
			r.Close()
			if err != nil {
				return err
			}
		}
		return out.Close()
	})
}

// layoutVersion is the content of oci-layout (OCI image specification, "Image Layout Specification").
var layoutVersion = []byte(`{"imageLayoutVersion": "1.0.0"}`)

// layoutEntry is an image's in the index of a layout.
func layoutEntry(ref image.Reference, img *image.Output, digest v1.Hash) v1.Descriptor {
	d := v1.Descriptor{
		MediaType: img.MediaType, Size: int64(len(img.Manifest)), Digest: digest,
		Platform: &v1.Platform{OS: "linux", Architecture: "amd64"},
	}
	if ref.Tag != "" {
		d.Annotations = map[string]string{annotationRefName: ref.Tag}
	}
	return d
}

// archiveName is a name to be written into an archive.
func archiveName(ref image.Reference) (name.Tag, error) {
	switch n := ref.Name.(type) {
	case name.Tag:
		return n, nil
	case nil:
		base := strings.TrimSuffix(filepath.Base(ref.Path), filepath.Ext(ref.Path))
		t, err := name.NewTag(strings.ToLower(base))
		if err != nil {
			return t, fmt.Errorf("the archive needs a name: write docker-archive:FILE:NAME:TAG")
		}
		return t, nil
	default:
		return name.Tag{}, fmt.Errorf("%s is a digest: a tag is needed", n)
	}
}
