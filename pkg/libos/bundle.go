package libos

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cconvert/cconvert/pkg/cache"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/rootfs/inflate"
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
	Files map[string]RuntimeFile
	// Source is what the runtime was taken from, with the digest if it has one.
	Source string
	// SourceDigest is the digest of the image it was taken from, empty for files.
	SourceDigest string
	// Pinned says whether the user, and not a tag, decided on this runtime.
	Pinned bool
	// Foreign says why the layer of an image is none that Pack has written; nil: it is one.
	Foreign error
}

// RuntimeFile is a file of a runtime.
type RuntimeFile struct {
	Size   int // in bytes
	SHA256 [sha256.Size]byte
	// Content reads it: most are never looked into.
	Content func() ([]byte, error)
}

// NewRuntimeFile returns a file of which the content is known.
func NewRuntimeFile(content []byte) RuntimeFile {
	return RuntimeFile{len(content), sha256.Sum256(content), func() ([]byte, error) { return content, nil }}
}

// Content reads one of the files; nil if the runtime has none of that path.
func (b *Bundle) Content(path string) ([]byte, error) {
	f, ok := b.Files[path]
	if !ok {
		return nil, nil
	}
	return f.Content()
}

// File is a file of a layer that a conversion makes.
type File struct {
	Path    string // absolute
	Mode    int64  // permission bits
	Content []byte
	Link    string // the target, where it is a symbolic link
	// Dir says that it is a directory that belongs to a user of the image. The directories above it stay as they are.
	Dir      bool
	UID, GID int
}

// ByPath returns the contents of files by their paths.
func ByPath(files []File) map[string][]byte {
	contents := make(map[string][]byte, len(files))
	for _, f := range files {
		contents[f.Path] = f.Content
	}
	return contents
}

const (
	metaName     = "runtime.json"
	maxBundle    = 256 << 20
	runtimeLevel = 6 // the highest takes seven times as long, for three per cent
)

// Pack writes an uncompressed layer: the same files give the same bytes, in whatever order they are given.
func Pack(out io.Writer, files []File) error {
	p := NewPacker(out)
	for _, f := range SortFiles(files) {
		if err := p.Add(f); err != nil {
			return err
		}
	}
	return p.Close()
}

// SortFiles puts files in the order in which they are in a layer.
func SortFiles(files []File) []File {
	return slices.SortedFunc(slices.Values(files), func(a, b File) int { return cmp.Compare(a.Path, b.Path) })
}

// Packer writes an uncompressed layer file by file, in the order of SortFiles. Directories are made for all of them.
type Packer struct {
	out  *tar.Writer
	made map[string]bool
}

// NewPacker begins a layer.
func NewPacker(out io.Writer) *Packer {
	return &Packer{tar.NewWriter(out), map[string]bool{"/": true}}
}

// Add writes the next file.
func (p *Packer) Add(f File) error {
	if f.Dir {
		p.made[f.Path] = true
		return p.out.WriteHeader(&tar.Header{
			Typeflag: tar.TypeDir, Name: f.Path[1:] + "/", Mode: f.Mode, ModTime: time.Unix(0, 0),
			Uid: f.UID, Gid: f.GID,
		})
	}
	if err := p.dirs(path.Dir(f.Path)); err != nil {
		return err
	}
	h := &tar.Header{
		Typeflag: tar.TypeReg, Name: f.Path[1:], Mode: f.Mode, Size: int64(len(f.Content)), ModTime: time.Unix(0, 0),
	}
	if f.Link != "" {
		h.Typeflag, h.Linkname, h.Size, h.Mode = tar.TypeSymlink, f.Link, 0, 0o777
	}
	if err := p.out.WriteHeader(h); err != nil {
		return err
	}
	if _, err := p.out.Write(f.Content); err != nil && f.Link == "" {
		return err
	}
	return nil
}

func (p *Packer) dirs(dir string) error {
	if p.made[dir] {
		return nil
	}
	p.made[dir] = true
	if err := p.dirs(path.Dir(dir)); err != nil {
		return err
	}
	return p.out.WriteHeader(&tar.Header{
		Typeflag: tar.TypeDir, Name: dir[1:] + "/", Mode: 0o755, ModTime: time.Unix(0, 0),
	})
}

// Close ends the layer.
func (p *Packer) Close() error { return p.out.Close() }

// Unpack reads what Pack wrote. An archive that Pack would not have written in the same way is an error.
func Unpack(archive []byte) ([]File, error) {
	var files []File
	in := bytes.NewReader(archive)
	for r := tar.NewReader(in); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("reading the archive: %w", err)
		}
		f := File{Path: "/" + h.Name, Mode: h.Mode}
		switch h.Typeflag {
		case tar.TypeDir:
			if f.Path = path.Clean(f.Path); f.Path == Root || strings.HasPrefix(f.Path, Root+"/") {
				continue // above files
			}
			f.Dir, f.UID, f.GID = true, h.Uid, h.Gid
		case tar.TypeSymlink:
			f.Link = h.Linkname
		default:
			rest := archive[len(archive)-in.Len():]
			if h.Size > int64(len(rest)) {
				return nil, fmt.Errorf("reading the archive: %w", io.ErrUnexpectedEOF)
			}
			f.Content = rest[:h.Size:h.Size]
		}
		files = append(files, f)
	}
	var again bytes.Buffer
	if err := Pack(&again, files); err != nil || !bytes.Equal(again.Bytes(), archive) {
		return nil, errors.New("the archive was not written by this program")
	}
	return files, nil
}

// PackRuntime makes the archive of a runtime's layer.
func PackRuntime(m Meta, files []File) ([]byte, error) {
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, err
	}
	files = append(files, File{Path: MetaPath(m.Kind), Mode: 0o644, Content: append(text, '\n')})
	var b bytes.Buffer
	size := 64 << 10 // for directories and the end
	for _, f := range files {
		size += len(f.Content) + 1024
	}
	b.Grow(size)
	if err := Pack(&b, files); err != nil {
		return nil, fmt.Errorf("packing the runtime: %w", err)
	}
	return b.Bytes(), nil
}

// packingAgain is how long it may take to pack a runtime again whose files were removed from the cache.
const packingAgain = 10 * time.Minute

// Cached returns the runtime that is kept under a key or, if there is none, packs it and keeps it. If the key is empty,
// only packing it shows which one it is. What was kept can be removed while the runtime is in use: then it is packed
// again, even if ctx has ended since, for a runtime is used longer than by whoever loaded it.
func Cached(
	ctx context.Context, store cache.Store, key string, pack func(context.Context) (archive []byte, err error),
) (*Bundle, error) {
	if store == nil {
		archive, err := pack(ctx)
		if err != nil {
			return nil, err
		}
		return NewBundle(archive)
	}
	again := func() ([]byte, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), packingAgain)
		defer cancel()
		return pack(ctx)
	}
	if b := keptBundle(store, key, again); b != nil {
		return b, nil
	}
	archive, err := pack(ctx)
	if err != nil {
		return nil, err
	}
	if key == "" {
		sum := sha256.Sum256(archive)
		key = "runtime/" + hex.EncodeToString(sum[:])
		if b := keptBundle(store, key, again); b != nil {
			return b, nil
		}
	}
	b, err := NewBundle(archive)
	if err != nil {
		return nil, err
	}
	return b, b.keep(store, key)
}

// keptBundle returns the runtime that is kept under a key, or nil. Its files and its layer are kept
// beside, and read when they are wanted: if they were removed meanwhile the runtime is packed again.
func keptBundle(store cache.Store, key string, pack func() ([]byte, error)) *Bundle {
	if key == "" {
		return nil
	}
	entry, ok := store.Get(key)
	if !ok {
		return nil
	}
	var kept keptRuntime
	if err := json.Unmarshal(entry, &kept); err != nil || kept.Meta.Kind == "" {
		return nil // of another version of this program
	}
	b := &Bundle{
		Meta: kept.Meta, Layer: image.NewLayer{Digest: kept.Digest, DiffID: kept.DiffID, Size: kept.Layer},
		Files: map[string]RuntimeFile{},
	}
	var mu sync.Mutex
	var packed *Bundle
	again := func() (*Bundle, error) {
		mu.Lock()
		defer mu.Unlock()
		if packed != nil {
			return packed, nil
		}
		archive, err := pack()
		if err != nil {
			return nil, err // it may succeed next time
		}
		now, err := NewBundle(archive)
		if err != nil {
			return nil, err
		}
		if now.Layer.Digest != b.Layer.Digest {
			return nil, fmt.Errorf("the runtime was changed while it was used: its layer is %s now, and was %s",
				now.Layer.Digest, b.Layer.Digest)
		}
		packed = now
		return packed, nil
	}
	for _, f := range kept.Files {
		file := RuntimeFile{Size: f.Size, Content: func() ([]byte, error) {
			if content, ok := store.Get(fileKey(f.SHA256)); ok {
				return content, nil
			}
			packed, err := again()
			if err != nil {
				return nil, err
			}
			return packed.Content(f.Path)
		}}
		copy(file.SHA256[:], f.SHA256)
		b.Files[f.Path] = file
	}
	b.Layer.Open = func() (io.ReadCloser, error) {
		if blob, ok := store.Get(layerKey(b.Layer.Digest)); ok {
			return io.NopCloser(bytes.NewReader(blob)), nil
		}
		packed, err := again()
		if err != nil {
			return nil, err
		}
		return packed.Layer.Open()
	}
	return b
}

func layerKey(digest string) string { return "runtime-layer/" + strings.ReplaceAll(digest, ":", "-") }
func fileKey(sum []byte) string     { return "runtime-file/" + hex.EncodeToString(sum) }

// NewBundle reads a runtime's archive, which must not change afterwards, and compresses it.
func NewBundle(archive []byte) (*Bundle, error) {
	b, err := readArchive(archive)
	if err != nil {
		return nil, err
	}
	if b.Layer, err = image.CompressLayer(runtimeLevel, archive); err != nil {
		return nil, fmt.Errorf("compressing the runtime: %w", err)
	}
	return b, nil
}

// ReadBundle reads a runtime from its layer in a converted image: what Load gave when it was converted. The layer may
// have been compressed anew since, or be plain: it is the one that was packed if its archive is, and has the digest of
// that. Digest is what the image says of it, which spares compressing it again if that is the blob's own.
func ReadBundle(ctx context.Context, blob []byte, digest string) (*Bundle, error) {
	z, err := inflate.Decompress(ctx, bytes.NewReader(blob))
	if err != nil {
		return nil, fmt.Errorf("reading the runtime's layer: %w", err)
	}
	defer z.Close()
	archive, err := io.ReadAll(io.LimitReader(z, maxBundle+1))
	if err != nil {
		return nil, fmt.Errorf("reading the runtime's layer: %w", err)
	}
	if len(archive) > maxBundle {
		return nil, fmt.Errorf("the runtime's layer has more than %d bytes", maxBundle)
	}
	b, err := readArchive(archive)
	if err != nil {
		return nil, err
	}
	sum, unpacked := sha256.Sum256(blob), sha256.Sum256(archive)
	if "sha256:"+hex.EncodeToString(sum[:]) == digest {
		b.Layer = image.BlobLayer(blob, "sha256:"+hex.EncodeToString(unpacked[:]))
	} else if b.Layer, err = image.CompressLayer(runtimeLevel, archive); err != nil {
		return nil, err
	}
	b.Source, b.Pinned = "the converted image", true
	var files []File
	if files, b.Foreign = Unpack(archive); b.Foreign == nil {
		for _, f := range files {
			if p := path.Clean("/" + f.Path); !strings.HasPrefix(p, Root+"/") || strings.HasPrefix(p+"/", App+"/") {
				b.Foreign = fmt.Errorf("it has %s, where no runtime has anything", p)
			}
		}
	}
	return b, nil
}

// readArchive finds the files of a runtime, which refer to the archive's bytes.
func readArchive(archive []byte) (*Bundle, error) {
	b := &Bundle{Files: map[string]RuntimeFile{}}
	in := bytes.NewReader(archive)
	for r := tar.NewReader(in); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("reading the runtime's archive: %w", err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		rest := archive[len(archive)-in.Len():]
		if h.Size > int64(len(rest)) {
			return nil, fmt.Errorf("reading the runtime's archive: %w", io.ErrUnexpectedEOF)
		}
		content := rest[:h.Size:h.Size]
		p := path.Clean("/" + h.Name)
		b.Files[p] = NewRuntimeFile(content)
		if path.Base(p) == metaName && strings.HasPrefix(p, Root+"/") {
			if err := json.Unmarshal(content, &b.Meta); err != nil {
				return nil, fmt.Errorf("reading the runtime's archive: %s: %w", metaName, err)
			}
		}
	}
	if b.Kind == "" {
		return nil, fmt.Errorf("the archive holds no runtime: there is no %s", metaName)
	}
	return b, nil
}

// keptRuntime is a runtime in a cache. It is trusted in: the cache has checksums.
type keptRuntime struct {
	Meta   Meta       `json:"meta"`
	Digest string     `json:"digest"`
	DiffID string     `json:"diff_id"`
	Layer  int        `json:"layer"` // bytes
	Files  []keptFile `json:"files"`
}

type keptFile struct {
	Path   string `json:"path"`
	Size   int    `json:"size"`
	SHA256 []byte `json:"sha256"`
}

// keep stores a runtime under a key, its files and its layer beside. A cache that cannot be written costs time, nothing
// else.
func (b *Bundle) keep(store cache.Store, key string) error {
	blob, err := b.Layer.Blob()
	if err != nil {
		return err
	}
	k := keptRuntime{Meta: b.Meta, Digest: b.Layer.Digest, DiffID: b.Layer.DiffID, Layer: b.Layer.Size}
	for _, p := range slices.Sorted(maps.Keys(b.Files)) {
		f := b.Files[p]
		content, err := f.Content()
		if err != nil {
			return err
		}
		k.Files = append(k.Files, keptFile{p, f.Size, f.SHA256[:]})
		_ = store.Put(fileKey(f.SHA256[:]), content)
	}
	entry, err := json.Marshal(k)
	if err != nil {
		return err
	}
	_ = store.Put(layerKey(b.Layer.Digest), blob)
	_ = store.Put(key, entry)
	return nil
}
