package rootfs

import (
	"archive/tar"
	"bytes"
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
	"strconv"
	"strings"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"

	"github.com/cconvert/cconvert/internal/strictjson"
)

// ErrNoTOC says that a layer has no table of contents, or none that the image's manifest vouches for.
var ErrNoTOC = errors.New("the layer has no table of contents")

const (
	maxTOCBlob = 256 << 20
	maxTOC     = 256 << 20

	maxTOCEntries = 2_000_000
	maxChunk      = 64 << 20
)

// Annotations of a layer by which the manifest vouches for its table of contents: of eStargz
// (github.com/containerd/stargz-snapshotter, docs/estargz.md) and, by two names, of zstd:chunked.
const tocDigest = estargz.TOCJSONDigestAnnotation

var chunkedPrefixes = []string{"io.github.containers.zstd-chunked.", "io.containers.zstd-chunked."}

// ScanTOC returns the Index of a layer whose blob has a table of contents with the digest of every file
// (eStargz, zstd:chunked), without reading all of it: only the files that later steps look into are read,
// which are programs, libraries, scripts and those to be kept. It believes the table, which need not say
// what is in the layer. The annotations are those of the layer in the image's manifest.
func ScanTOC(
	ctx context.Context, blob io.ReaderAt, size int64, digest string, annotations map[string]string, o Options,
) (*Index, error) {
	t, err := readTOC(&blocks{blob: blob, size: size}, size, annotations)
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", digest, err)
	}
	t.scanner = scanner{
		ctx: ctx, keep: CompilePatterns(o.Keep).Matcher(), buf: make([]byte, 128<<10), sum: sha256.New(),
		room: room{limits: o.Limits.defaults()},
	}
	t.each = t.addEntry
	if err := t.index(); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("layer %s: %w", digest, err)
	}
	return &Index{Digest: digest, Entries: t.entries}, nil
}

// toc is a layer's table of contents.
type toc struct {
	scanner
	blob     io.ReaderAt
	end      int64 // of what files are made of
	format   tocFormat
	contents []*estargz.TOCEntry
	raw      []byte // the table itself, where it is a file of the layer too
	// each gets the entries in their order, with what the table says of regular files' contents.
	each func(e *Entry, content *tocFile) error
}

type tocFormat interface {
	estargz.Decompressor
	DecompressTOC(io.Reader) (io.ReadCloser, error)
}

func readTOC(blob io.ReaderAt, size int64, annotations map[string]string) (*toc, error) {
	tables, err := tocsOf(blob, size, annotations)
	if err != nil {
		return nil, err
	}
	return tables[0]()
}

// tocsOf returns how to read each table that an annotation names, one at a time: each engine takes the one that it
// knows.
func tocsOf(
	blob io.ReaderAt, size int64, annotations map[string]string,
) (tables []func() (*toc, error), err error) {
	for _, name := range slices.Sorted(maps.Keys(annotations)) {
		if name != tocDigest && strings.HasPrefix(name, snapshotters) {
			return nil, fmt.Errorf("the annotation %q is of a snapshotter that is not known", name)
		}
	}
	for _, prefix := range chunkedPrefixes {
		at, sum := annotations[prefix+"manifest-position"], annotations[prefix+"manifest-checksum"]
		if at == "" && sum == "" {
			continue
		}
		tables = append(tables, func() (*toc, error) { return readChunkedTOC(blob, size, at, sum) })
	}
	if want := annotations[tocDigest]; want != "" {
		tables = append(tables, func() (*toc, error) { return readEStargzTOC(blob, size, want) })
	}
	if len(tables) == 0 {
		return nil, ErrNoTOC
	}
	return tables, nil
}

// readChunkedTOC reads the table of zstd:chunked, which is at OFFSET:LENGTH:UNPACKED:TYPE.
func readChunkedTOC(blob io.ReaderAt, size int64, position, sum string) (*toc, error) {
	var at [4]int64
	fields := strings.Split(position, ":")
	if len(fields) != len(at) {
		return nil, fmt.Errorf("%w: it is at %q", ErrNoTOC, position)
	}
	for i, f := range fields {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil || n < 0 {
			return nil, fmt.Errorf("%w: it is at %q", ErrNoTOC, position)
		}
		at[i] = n
	}
	packed, err := part(blob, at[0], at[1], size)
	if err != nil {
		return nil, err
	}
	if got := digestOf(packed); got != sum {
		return nil, fmt.Errorf("the table of contents: %w: it is %s, not %s", ErrDigest, got, sum)
	}
	t := &toc{blob: blob, end: at[0], format: new(zstdchunked.Decompressor)}
	raw, err := t.inflate(packed)
	if err != nil {
		return nil, err
	}
	return t, t.decode(raw)
}

// readEStargzTOC finds the table by the footer, which is in one of two forms.
func readEStargzTOC(blob io.ReaderAt, size int64, want string) (*toc, error) {
	for _, format := range []tocFormat{
		new(estargz.GzipDecompressor), new(zstdchunked.Decompressor), new(estargz.LegacyGzipDecompressor),
	} {
		footer, err := part(blob, size-format.FooterSize(), format.FooterSize(), size)
		if err != nil {
			return nil, err
		}
		_, at, length, err := format.ParseFooter(footer)
		if err != nil {
			continue
		}
		if length <= 0 {
			length = size - at - format.FooterSize()
		}
		packed, err := part(blob, at, length, size)
		if err != nil {
			return nil, err
		}
		t := &toc{blob: blob, end: at, format: format}
		raw, err := t.inflate(packed)
		if err != nil {
			return nil, err
		}
		if got := digestOf(raw); got != want {
			return nil, fmt.Errorf("the table of contents: %w: it is %s, not %s", ErrDigest, got, want)
		}
		if err := t.decode(raw); err != nil {
			return nil, err
		}
		if _, chunked := format.(*zstdchunked.Decompressor); !chunked {
			t.raw = raw
		}
		return t, nil
	}
	return nil, fmt.Errorf("%w: its end is not that of eStargz", ErrNoTOC)
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// part reads a part of a blob that must lie inside.
func part(blob io.ReaderAt, at, length, size int64) ([]byte, error) {
	if at < 0 || length < 0 || length > maxTOCBlob || at > size-length {
		return nil, fmt.Errorf("%w: %d bytes at %d are not in the blob", ErrNoTOC, length, at)
	}
	b := make([]byte, length)
	if _, err := blob.ReadAt(b, at); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return b, nil
}

func (t *toc) inflate(packed []byte) (raw []byte, err error) {
	r, err := t.format.DecompressTOC(bytes.NewReader(packed))
	if err != nil {
		return nil, fmt.Errorf("unpacking the table of contents: %w", err)
	}
	defer r.Close()
	raw, err = io.ReadAll(io.LimitReader(r, maxTOC+1))
	if err == nil && len(raw) > maxTOC {
		err = fmt.Errorf("it has more than %d bytes", maxTOC)
	}
	if err != nil {
		return nil, fmt.Errorf("unpacking the table of contents: %w", err)
	}
	return raw, nil
}

// tocRules are those of tables of contents (github.com/containerd/stargz-snapshotter, docs/estargz.md, and the keys
// that containers/storage adds), on whose keys readers must agree.
var tocRules = strictjson.Rules{
	Named: []string{"xattrs"}, MaxList: maxTOCEntries, MaxKeys: 20 * maxTOCEntries,
	Known: []string{
		"version", "entries", "tarSplitDigest", "name", "type", "size", "modtime", "accesstime", "changetime",
		"linkName", "mode", "uid", "gid", "userName", "groupName", "devMajor", "devMinor", "NumLink", "xattrs",
		"digest", "offset", "endOffset", "innerOffset", "chunkOffset", "chunkSize", "chunkDigest", "chunkType",
	},
}

// decode reads the entries one by one: a few bytes of JSON can be a large one in memory.
func (t *toc) decode(raw []byte) error {
	if err := strictjson.Check(raw, tocRules); err != nil {
		return fmt.Errorf("reading the table of contents: %w", err)
	}
	var table struct {
		Entries json.RawMessage `json:"entries"`
	}
	if err := json.Unmarshal(raw, &table); err != nil {
		return fmt.Errorf("reading the table of contents: %w", err)
	}
	d := json.NewDecoder(bytes.NewReader(table.Entries))
	if first, err := d.Token(); err != nil || first != json.Delim('[') {
		return errors.New("reading the table of contents: it has no list of entries")
	}
	for d.More() {
		if len(t.contents) == maxTOCEntries {
			return fmt.Errorf("reading the table of contents: it has more than %d entries", maxTOCEntries)
		}
		e := &estargz.TOCEntry{}
		if err := d.Decode(e); err != nil {
			return fmt.Errorf("reading the table of contents: %w", err)
		}
		if e.Name == "" {
			return errors.New("reading the table of contents: it has an entry without a name")
		}
		t.contents = append(t.contents, e)
	}
	return nil
}

// tocTypes are the types of entries.
var tocTypes = map[string]byte{
	"dir": tar.TypeDir, "reg": tar.TypeReg, "symlink": tar.TypeSymlink, "hardlink": tar.TypeLink,
	"char": tar.TypeChar, "block": tar.TypeBlock, "fifo": tar.TypeFifo,
}

// index makes the entries that a scan of the layer would have found.
func (t *toc) index() error {
	all, chunks := t.contents, 0 // of the file before
	for i, in := range all {
		if err := t.ctx.Err(); err != nil {
			return err
		}
		if in.Type == "chunk" {
			if i >= chunks {
				return fmt.Errorf("a part of %q does not follow the file", in.Name)
			}
			continue
		}
		kind, ok := tocTypes[in.Type]
		if !ok {
			return fmt.Errorf("%q has the unknown entry type %q", in.Name, in.Type)
		}
		h := &tar.Header{
			Typeflag: kind, Name: in.Name, Linkname: in.LinkName, Size: in.Size, Mode: in.Mode, Uid: in.UID,
			Gid:      in.GID,
			Devmajor: int64(in.DevMajor), Devminor: int64(in.DevMinor), PAXRecords: map[string]string{},
		}
		for attribute, value := range in.Xattrs {
			h.PAXRecords[xattrRecord+attribute] = string(value)
		}
		e, err := entryOf(h)
		if err != nil {
			return err
		}
		if e == nil {
			continue
		}
		var content *tocFile
		if e.Type == Regular {
			if err := sumOf(in, e); err != nil {
				return err
			}
			end := i + 1
			for end < len(all) && all[end].Type == "chunk" && all[end].Name == in.Name {
				end++
			}
			content, chunks = &tocFile{toc: t, size: e.Size, chunks: all[i:end]}, end
		}
		if err := t.each(e, content); err != nil {
			return err
		}
	}
	if t.raw == nil {
		return nil
	}
	// The table is a file of the layer that it does not list itself.
	e := &Entry{Path: "/" + estargz.TOCTarName, Type: Regular, Size: int64(len(t.raw)), SHA256: sha256.Sum256(t.raw)}
	return t.each(e, nil)
}

func sumOf(in *estargz.TOCEntry, e *Entry) error {
	hexSum, ok := strings.CutPrefix(in.Digest, "sha256:")
	if n, err := hex.Decode(e.SHA256[:], []byte(hexSum[:min(len(hexSum), 2*sha256.Size)])); ok && err == nil &&
		n == sha256.Size && len(hexSum) == 2*sha256.Size {
		return nil
	}
	if e.Size == 0 {
		e.SHA256 = sha256.Sum256(nil)
		return nil
	}
	return fmt.Errorf("%q has the digest %q", in.Name, in.Digest)
}

// looksInto reports whether later steps want to know more of a file than its digest.
func (t *toc) looksInto(e *Entry) bool {
	name := path.Base(e.Path)
	return e.Mode&0o111 != 0 || strings.HasSuffix(name, ".so") || strings.Contains(name, ".so.") ||
		strings.HasSuffix(name, ".node") ||
		strings.HasSuffix(name, ".sh") || strings.Contains(name, "passwd") || strings.Contains(name, "group") ||
		t.keep.Match(e.Path)
}

// addEntry notes an entry, and what its content shows.
func (t *toc) addEntry(e *Entry, content *tocFile) error {
	if err := t.room.take(e); err != nil {
		return err
	}
	if content != nil && t.looksInto(e) {
		if err := t.lookInto(e, content); err != nil {
			return fmt.Errorf("reading %q: %w", e.Path, err)
		}
	}
	t.entries = append(t.entries, *e)
	return nil
}

// lookInto does what scanner.file does with a file that passes by.
func (t *toc) lookInto(e *Entry, r io.ReaderAt) error {
	first := t.buf[:min(e.Size, int64(len(t.buf)))]
	if _, err := r.ReadAt(first, 0); err != nil {
		return err
	}
	e.Shebang = shebang(first)
	if program := newELFCapture(first, e.Size, nil); program != nil {
		if e.ELF, _ = ParseELF(&elfWindow{r, e.Size, program.dynFrom, program.dynTo}); e.ELF != nil {
			t.room.names += e.ELF.names()
		}
	}
	kept := t.keeper(e)
	if kept == nil && (shellScript(e) || accounts(e, first)) {
		kept = t.text(e)
	}
	if kept == nil {
		return nil
	}
	if _, err := io.Copy(kept, io.NewSectionReader(r, 0, e.Size)); err != nil {
		return err
	}
	if sha256.Sum256(kept.Bytes()) != e.SHA256 {
		return fmt.Errorf("%w: the table of contents says %x", ErrDigest, e.SHA256)
	}
	e.Content = kept.Bytes()
	return nil
}

// elfWindow lets ParseELF read what it can read in a scan, so that it finds the same.
type elfWindow struct {
	r              io.ReaderAt
	size           int64
	dynFrom, dynTo int64
}

func (w *elfWindow) ReadAt(p []byte, off int64) (int, error) {
	to := off + int64(len(p))
	if off < 0 || to < off || to > w.size || to > maxELFHead && (off < w.dynFrom || to > w.dynTo) {
		return 0, io.ErrUnexpectedEOF
	}
	return w.r.ReadAt(p, off)
}

// tocFile reads a file, chunk by chunk. The last chunk stays unpacked.
type tocFile struct {
	toc    *toc
	size   int64
	chunks []*estargz.TOCEntry

	at    int // which chunk is unpacked
	chunk []byte
}

// extent returns the place of a chunk in the file.
func (f *tocFile) extent(i int) (from, to int64) {
	to = f.size
	if i+1 < len(f.chunks) {
		to = f.chunks[i+1].ChunkOffset
	}
	return f.chunks[i].ChunkOffset, to
}

func (f *tocFile) ReadAt(p []byte, off int64) (n int, err error) {
	for i := range f.chunks {
		from, to := f.extent(i)
		if from > to || to > f.size || to-from > maxChunk {
			return n, fmt.Errorf("the table of contents has a chunk from %d to %d", from, to)
		}
		for at := off + int64(n); n < len(p) && at >= from && at < to; at = off + int64(n) {
			b, err := f.unpack(i, to-from)
			if err != nil {
				return n, err
			}
			n += copy(p[n:], b[at-from:])
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *tocFile) unpack(i int, size int64) ([]byte, error) {
	if f.chunk != nil && f.at == i {
		return f.chunk, nil
	}
	c := f.chunks[i]
	r, err := f.toc.piece(c.Offset, c.InnerOffset)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if _, err := io.CopyN(io.Discard, r, c.InnerOffset); err != nil {
		return nil, err
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	// The registry chooses what it sends: only the table is the builder's.
	if got, want := digestOf(b), f.digest(i); got != want {
		return nil, fmt.Errorf("%w: a part is %s, the table of contents says %q", ErrDigest, got, want)
	}
	f.chunk, f.at = b, i
	return b, nil
}

// digest is what the table says of a chunk.
func (f *tocFile) digest(i int) string {
	c := f.chunks[i]
	if c.ChunkDigest == "" && len(f.chunks) == 1 {
		return c.Digest
	}
	return c.ChunkDigest
}

// piece inflates what begins at an offset of the blob, and has a chunk at a place in it.
func (t *toc) piece(offset, inner int64) (io.ReadCloser, error) {
	if offset < 0 || offset >= t.end || inner < 0 {
		return nil, fmt.Errorf("the table of contents has a chunk at %d", offset)
	}
	return t.format.Reader(&contextReader{t.ctx, io.NewSectionReader(t.blob, offset, t.end-offset)})
}
