package libos

import (
	"archive/tar"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/cconvert/cconvert/pkg/image"
)

// Meta describes a runtime, in a file of its layer, so that a reader of the image needs nothing else.
type Meta struct {
	Kind string `json:"kind"`
	// Version of the runtime, as far as it can be found out: its commit.
	Version string `json:"version"`
	// Layout is the version of the enclave's geometry.
	Layout int `json:"layout"`
	// GLIBC is the version of the patched C library, empty if there is none.
	GLIBC string `json:"glibc,omitempty"`
	// GLIBCData are the paths that are compiled into it.
	GLIBCData DataPaths `json:"glibc_data,omitzero"`
	// Musl says whether there is a patched musl.
	Musl bool `json:"musl,omitempty"`
}

// DataPaths are where a C library looks for its data.
type DataPaths struct {
	Cache     string `json:"cache,omitempty"`     // of the dynamic linker
	Localtime string `json:"localtime,omitempty"` // the default time zone
	Zoneinfo  string `json:"zoneinfo,omitempty"`
	Locales   string `json:"locales,omitempty"`
}

// Bundle is a runtime as a layer.
type Bundle struct {
	Meta
	Layer image.NewLayer
	// Files by their absolute path in the image. Links are left out.
	Files map[string][]byte
	// Source is what the runtime was taken from, with the digest where it has one.
	Source string
	// SourceDigest is the digest of the image it was taken from, empty for files.
	SourceDigest string
	// Pinned says whether the user, and not a tag, decided on this runtime.
	Pinned bool
}

// File is a file of a layer that a conversion makes.
type File struct {
	Path    string // absolute
	Mode    int64  // permission bits
	Content []byte
	Link    string // the target, where it is a symbolic link
}

const (
	metaName     = "runtime.json"
	maxBundle    = 512 << 20
	runtimeLevel = 9 // packed once, fetched by everyone
)

// Pack makes an uncompressed layer: the same files give the same bytes. Directories are made for all
// of them.
func Pack(files []File) ([]byte, error) {
	files = slices.SortedFunc(slices.Values(files), func(a, b File) int { return cmp.Compare(a.Path, b.Path) })
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	made := map[string]bool{"/": true}
	var dirs func(p string) error
	dirs = func(p string) error {
		if made[p] {
			return nil
		}
		made[p] = true
		if err := dirs(path.Dir(p)); err != nil {
			return err
		}
		return w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: p[1:] + "/", Mode: 0o755, ModTime: time.Unix(0, 0)})
	}
	for _, f := range files {
		if err := dirs(path.Dir(f.Path)); err != nil {
			return nil, err
		}
		h := &tar.Header{Typeflag: tar.TypeReg, Name: f.Path[1:], Mode: f.Mode, Size: int64(len(f.Content)), ModTime: time.Unix(0, 0)}
		if f.Link != "" {
			h.Typeflag, h.Linkname, h.Size, h.Mode = tar.TypeSymlink, f.Link, 0, 0o777
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.Content); err != nil && f.Link == "" {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// PackBundle makes the runtime's layer.
func PackBundle(m Meta, files []File) (*Bundle, error) {
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, err
	}
	archive, err := Pack(append(files, File{Path: path.Join(Root, m.Kind, metaName), Mode: 0o644, Content: append(text, '\n')}))
	if err != nil {
		return nil, fmt.Errorf("packing the runtime: %w", err)
	}
	layer, err := image.CompressLayer(archive, runtimeLevel)
	if err != nil {
		return nil, fmt.Errorf("packing the runtime: %w", err)
	}
	return ReadBundle(layer.Blob)
}

// Cached gives the runtime that is kept under a key or, where there is none, packs it and keeps it. An
// empty key and a nil cache keep nothing.
func Cached(cache Cache, key string, pack func() (*Bundle, error)) (*Bundle, error) {
	if cache == nil || key == "" {
		return pack()
	}
	if blob, ok := cache.Get(key); ok {
		if b, err := ReadBundle(blob); err == nil {
			return b, nil
		}
	}
	b, err := pack()
	if err == nil {
		_ = cache.Put(key, b.Layer.Blob) // a cache that cannot be written costs time, nothing else
	}
	return b, err
}

// ReadBundle reads a runtime's layer back: a tar archive compressed with gzip.
func ReadBundle(blob []byte) (*Bundle, error) {
	z, err := gzip.NewReader(bytes.NewReader(blob))
	if err != nil {
		return nil, fmt.Errorf("reading the runtime layer: %w", err)
	}
	b := &Bundle{Files: map[string][]byte{}}
	diffID := sha256.New()
	limited := io.TeeReader(&io.LimitedReader{R: z, N: maxBundle}, diffID)
	for r := tar.NewReader(limited); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("reading the runtime layer: %w", err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		content, err := io.ReadAll(r)
		if err != nil {
			return nil, fmt.Errorf("reading the runtime layer: %w", err)
		}
		p := path.Clean("/" + h.Name)
		b.Files[p] = content
		if path.Base(p) == metaName && strings.HasPrefix(p, Root+"/") {
			if err := json.Unmarshal(content, &b.Meta); err != nil {
				return nil, fmt.Errorf("reading the runtime layer: %s: %w", metaName, err)
			}
		}
	}
	if _, err := io.Copy(io.Discard, limited); err != nil { // what follows the archive's end
		return nil, fmt.Errorf("reading the runtime layer: %w", err)
	}
	digest := sha256.Sum256(blob)
	b.Layer = image.NewLayer{
		Blob: blob, Digest: "sha256:" + hex.EncodeToString(digest[:]), DiffID: "sha256:" + hex.EncodeToString(diffID.Sum(nil)),
	}
	if b.Kind == "" {
		return nil, fmt.Errorf("the layer holds no runtime: there is no %s", metaName)
	}
	return b, nil
}
