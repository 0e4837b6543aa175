package local

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/therootcompany/xz"

	"github.com/cconvert/cconvert/internal/strictjson"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/internal/document"
	"github.com/cconvert/cconvert/pkg/rootfs/inflate"
)

// Bounds of an archive: entries with the directories above them, bytes of a name, bytes after decompression.
const (
	maxArchiveEntries = 100_000
	maxArchiveName    = 4096
	maxArchiveBytes   = 64 << 30
)

// archive is a tar file whose entries are read in any order.
type archive struct {
	f     *os.File
	parts map[string]part   // by clean path
	ids   map[string]string // of configurations, by the names that lists have for them
	list  []savedImage      // of manifest.json, once it was read
	sums  map[part]string   // of contents that were hashed
}

// part is where the content of an entry lies, or the path that it is a link to.
type part struct {
	at, size int64
	link     string
}

// openTar opens a file that may be compressed as a whole. What is in it becomes no path on disk.
func openTar(ctx context.Context, file string) (*archive, error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", image.ErrNotFound, err)
	}
	if err != nil {
		return nil, err
	}
	if f, err = unpacked(ctx, f, maxArchiveBytes); err != nil {
		return nil, fmt.Errorf("reading the archive: %w", err)
	}
	a, err := listTar(ctx, f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("reading the archive: %w", err)
	}
	return a, nil
}

// unpacked returns a file's plain content, in a file that has no name if it was compressed, and closes the given one
// then. Content of more than limit bytes is an error. Archives as a whole may be compressed with xz too, layers in them
// may not.
func unpacked(ctx context.Context, f *os.File, limit int64) (_ *os.File, err error) {
	keep := false
	defer func() {
		if !keep {
			f.Close()
		}
	}()
	r := bufio.NewReader(f)
	if magic, _ := r.Peek(len(xzMagic)); string(magic) == xzMagic {
		if err := inflate.CheckPolyglot(r); err != nil {
			return nil, err
		}
		plain, err := xz.NewReader(r, maxDictionary)
		if err != nil {
			return nil, err
		}
		return spool(ctx, plain, limit)
	}
	if !inflate.IsCompressed(r) {
		if err := inflate.CheckPlain(r); err != nil {
			return nil, err
		}
		keep = true
		return f, nil
	}
	plain, err := inflate.Decompress(ctx, r)
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	return spool(ctx, plain, limit)
}

// maxDictionary is how much memory a dictionary of xz may take, in bytes: as much as "xz -9" makes, and room for one
// more.
const maxDictionary = 128 << 20

const xzMagic = "\xfd7zXZ\x00"

// spool copies what can be read only once into a file that has no name. More than limit bytes are an error.
func spool(ctx context.Context, r io.Reader, limit int64) (*os.File, error) {
	f, err := os.CreateTemp("", "cconvert-")
	if err != nil {
		return nil, err
	}
	os.Remove(f.Name())
	n, err := io.Copy(&contextWriter{ctx, f}, io.LimitReader(r, limit+1))
	if err == nil && n > limit {
		err = fmt.Errorf("it has more than %d bytes after decompression", limit)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// listTar notes where the entries of an archive are. One that readers of archives understand in different ways is
// ErrAmbiguous: some take the first entry of a name and some the last, some unpack through links, and some take
// "/manifest.json" for "manifest.json".
func listTar(ctx context.Context, f *os.File) (*archive, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	a := &archive{f: f, parts: map[string]part{}, ids: map[string]string{}}
	parents := map[string]bool{} // what must be a directory
	in := io.NewSectionReader(f, 0, info.Size())
	for r := tar.NewReader(sectionFile{ctx, in}); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if len(a.parts)+len(parents) > maxArchiveEntries {
			return nil, fmt.Errorf("it has more than %d entries", maxArchiveEntries)
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if len(h.Name) > maxArchiveName || len(h.Linkname) > maxArchiveName {
			return nil, fmt.Errorf("an entry has a name of more than %d bytes", maxArchiveName)
		}
		name := path.Clean(h.Name)
		if !fs.ValidPath(name) {
			return nil, fmt.Errorf("%w: an entry is called %q", image.ErrAmbiguous, h.Name)
		}
		for dir := path.Dir(name); dir != "." && !parents[dir]; dir = path.Dir(dir) {
			parents[dir] = true
		}
		if h.Typeflag == tar.TypeDir {
			parents[name] = true
			continue
		}
		p := part{size: h.Size}
		switch h.Typeflag {
		case tar.TypeReg:
			if p.at, err = in.Seek(0, io.SeekCurrent); err != nil {
				return nil, err
			}
			if p.at+h.Size > info.Size() {
				return nil, fmt.Errorf("%q: %w", h.Name, io.ErrUnexpectedEOF)
			}
		case tar.TypeSymlink:
			p.link = path.Join(path.Dir(name), h.Linkname)
			if path.IsAbs(h.Linkname) || !fs.ValidPath(p.link) {
				return nil, fmt.Errorf("%w: %q is a link to %q", image.ErrAmbiguous, name, h.Linkname)
			}
		case tar.TypeLink:
			p.link = path.Clean(h.Linkname)
		default:
			return nil, fmt.Errorf("%q is neither a file nor a directory nor a link", name)
		}
		if before, twice := a.parts[name]; twice && !a.same(ctx, before, p) {
			return nil, fmt.Errorf("%w: %q is in it twice", image.ErrAmbiguous, name)
		}
		a.parts[name] = p
	}
	for name := range a.parts {
		if parents[name] {
			return nil, fmt.Errorf("%w: %q is a directory and something else", image.ErrAmbiguous, name)
		}
	}
	return a, nil
}

// same reports whether two entries have the same content: builders write a layer that an image has twice twice.
func (a *archive) same(ctx context.Context, x, y part) bool {
	if x.link != "" || y.link != "" || x.size != y.size {
		return x.link != "" && x.link == y.link
	}
	sum := func(p part) (string, error) {
		if known, ok := a.sums[p]; ok {
			return known, nil
		}
		h := sha256.New()
		if _, err := io.Copy(h, sectionFile{ctx, io.NewSectionReader(a.f, p.at, p.size)}); err != nil {
			return "", err
		}
		if a.sums == nil {
			a.sums = map[part]string{}
		}
		a.sums[p] = string(h.Sum(nil))
		return a.sums[p], nil
	}
	first, errX := sum(x)
	second, errY := sum(y)
	return errX == nil && errY == nil && first == second
}

// sectionFile reads a part of a file until the context ends.
type sectionFile struct {
	ctx context.Context
	*io.SectionReader
}

func (s sectionFile) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	return s.SectionReader.Read(p)
}

func (sectionFile) Close() error { return nil }

// open finds an entry, also if it is a link to another one, as old versions of Docker write layers that are the
// same.
func (a *archive) open(ctx context.Context, name string) (sectionFile, error) {
	p, err := a.find(name)
	if err != nil {
		return sectionFile{}, err
	}
	return sectionFile{ctx, io.NewSectionReader(a.f, p.at, p.size)}, nil
}

// find finds the file of an entry, through links.
func (a *archive) find(name string) (part, error) {
	name = path.Clean(name)
	for range 8 {
		p, ok := a.parts[name]
		switch {
		case !ok:
			return part{}, fmt.Errorf("%q is not in the archive: %w", name, image.ErrNotFound)
		case p.link == "":
			return p, nil
		}
		name = p.link
	}
	return part{}, fmt.Errorf("%q is a link to a link, and so on", name)
}

// read reads a small entry whole.
func (a *archive) read(ctx context.Context, name string, limit int64) ([]byte, error) {
	f, err := a.open(ctx, name)
	if err != nil {
		return nil, err
	}
	if f.Size() > limit {
		return nil, fmt.Errorf("%q has %d bytes, more than %d", name, f.Size(), limit)
	}
	return io.ReadAll(f)
}

// savedImage is an entry of manifest.json (Docker image specification v1.2, "Combined Image JSON + Filesystem Changeset
// Format").
type savedImage struct {
	Config   string
	RepoTags []string
	Layers   []string
	// LayerSources are descriptors of foreign layers by their diff ID, of archives by go-containerregistry.
	LayerSources map[v1.Hash]v1.Descriptor
}

// openArchive reads a file of "docker save".
func openArchive(ctx context.Context, ref image.Reference) (*image.Image, error) {
	a, err := openTar(ctx, ref.Path)
	if err != nil {
		return nil, err
	}
	return a.image(ctx, ref)
}

// image finds an image in the archive, which it keeps open.
func (a *archive) image(ctx context.Context, ref image.Reference) (_ *image.Image, err error) {
	defer func() {
		if err != nil {
			a.f.Close()
			err = fmt.Errorf("reading the archive: %w", err)
		}
	}()
	images, err := a.saved(ctx)
	if err != nil {
		if _, layout := a.parts["oci-layout"]; layout {
			err = fmt.Errorf("it is one of an OCI layout, to be named oci-archive:%s: %w", ref.Path, err)
		}
		return nil, err
	}
	chosen, err := a.choose(ctx, images, ref)
	if err != nil {
		return nil, err
	}
	config, err := a.read(ctx, chosen.Config, document.MaxConfig)
	if err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	core := &savedCore{a: a, config: config, layers: map[v1.Hash]v1.Layer{}}
	c, err := document.ParseConfig(config)
	if err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	if len(chosen.Layers) != len(c.RootFS.DiffIDs) {
		return nil,
			fmt.Errorf("the archive lists %d layers, the configuration %d", len(chosen.Layers), len(c.RootFS.DiffIDs))
	}
	read := map[v1.Hash]string{} // the entry of each layer
	out := &image.Image{
		Ref: ref, Digest: image.DigestOf(config), Config: config, MediaType: types.DockerManifestSchema2,
		OnClose: a.f.Close,
	}
	for i, id := range c.RootFS.DiffIDs {
		l := &savedLayer{ctx: ctx, a: a, name: chosen.Layers[i], id: id}
		if before, again := read[id]; again && before != l.name { // what is read is what is sent, whatever file it is
			l.name = before
		}
		read[id] = l.name
		if core.layers[id], err = l.layer(chosen.LayerSources); err != nil {
			return nil, err
		}
		// In an archive only the plain layer has a digest that is written down.
		out.Layers = append(out.Layers, &image.Layer{
			Digest: id.String(), Size: -1, Push: core.layers[id], Open: l.open,
		})
	}
	img, err := partial.UncompressedToImage(core)
	if err != nil {
		return nil, err
	}
	out.Manifest = img.RawManifest
	out.Rivals, err = a.rivals(ctx, listed{id: out.ID(), layers: a.places(chosen.Layers)}, chosen.RepoTags)
	return out, err
}

// saved reads the list of "docker save".
func (a *archive) saved(ctx context.Context) ([]savedImage, error) {
	if a.list != nil {
		return a.list, nil
	}
	list, err := a.read(ctx, "manifest.json", document.MaxConfig)
	if err != nil {
		return nil, err
	}
	if err := strictjson.Check(list, document.ConfigRules); err != nil {
		return nil, fmt.Errorf("manifest.json: %w", err)
	}
	if err := json.Unmarshal(list, &a.list); err != nil {
		return nil, fmt.Errorf("manifest.json: %w", err)
	}
	return a.list, nil
}

// savedLayer is a layer in an archive, plain or compressed.
type savedLayer struct {
	ctx  context.Context
	a    *archive
	name string
	id   v1.Hash
}

// layer returns the form in which the layer is sent elsewhere. A foreign one that is not there is kept by reference.
func (l *savedLayer) layer(sources map[v1.Hash]v1.Descriptor) (v1.Layer, error) {
	out, err := partial.UncompressedToLayer(l)
	if err != nil {
		return nil, err
	}
	// What is read is what is sent, whatever else the list says of it.
	if _, there := l.a.parts[path.Clean(l.name)]; there {
		return out, nil
	}
	if d, ok := sources[l.id]; ok {
		return foreignLayer{out, d}, nil
	}
	return out, nil
}

func (l *savedLayer) open(ctx context.Context) (io.ReadCloser, error) {
	f, err := l.a.open(ctx, l.name)
	if err != nil {
		return nil, err
	}
	return inflate.Decompress(ctx, f)
}

func (l *savedLayer) DiffID() (v1.Hash, error)             { return l.id, nil }
func (l *savedLayer) Uncompressed() (io.ReadCloser, error) { return l.open(l.ctx) }
func (l *savedLayer) MediaType() (types.MediaType, error)  { return types.DockerLayer, nil }

// foreignLayer is a layer of which the archive has the descriptor.
type foreignLayer struct {
	v1.Layer
	desc v1.Descriptor
}

func (l foreignLayer) Descriptor() (*v1.Descriptor, error) { return &l.desc, nil }
func (l foreignLayer) Digest() (v1.Hash, error)            { return l.desc.Digest, nil }
func (l foreignLayer) Size() (int64, error)                { return l.desc.Size, nil }
func (l foreignLayer) MediaType() (types.MediaType, error) { return l.desc.MediaType, nil }

// savedCore is what go-containerregistry makes a manifest of: archives have no manifest.
type savedCore struct {
	a      *archive
	config []byte
	layers map[v1.Hash]v1.Layer
}

func (s *savedCore) RawConfigFile() ([]byte, error)      { return s.config, nil }
func (s *savedCore) MediaType() (types.MediaType, error) { return types.DockerManifestSchema2, nil }

func (s *savedCore) LayerByDiffID(id v1.Hash) (partial.UncompressedLayer, error) {
	l, ok := s.layers[id]
	if !ok {
		return nil, fmt.Errorf("no layer %s", id)
	}
	return l, nil
}
