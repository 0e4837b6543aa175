// Package toc reads the tables of contents of layers that engines load lazily: eStargz and zstd:chunked. It stands
// alone.
package toc

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
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"

	"github.com/cconvert/cconvert/internal/strictjson"
)

// ErrNone says that a layer has no table of contents, or none that the image's manifest vouches for.
var ErrNone = errors.New("the layer has no table of contents")

// ErrDigest says that something is not what its digest names.
var ErrDigest = errors.New("content does not match its digest")

const (
	maxTOCBlob = 256 << 20
	maxTOC     = 256 << 20

	maxTOCEntries = 500_000 // a few bytes of each become two kilobytes
	maxChunk      = 64 << 20
)

// Annotations of a layer by which the manifest vouches for its table of contents: of eStargz
// (github.com/containerd/stargz-snapshotter, docs/estargz.md) and, by two names, of zstd:chunked.
const tocDigest = estargz.TOCJSONDigestAnnotation

var chunkedPrefixes = []string{"io.github.containers.zstd-chunked.", "io.containers.zstd-chunked."}

// Table is a layer's table of contents.
type Table struct {
	ctx      context.Context
	blob     io.ReaderAt
	end      int64 // of what files are made of
	format   tocFormat
	contents []*estargz.TOCEntry
	raw      []byte // the table itself, if it is a file of the layer too
}

type tocFormat interface {
	estargz.Decompressor
	DecompressTOC(io.Reader) (io.ReadCloser, error)
}

// snapshotters begin the names of annotations for those of containerd.
const snapshotters = "containerd.io/snapshot/"

// Find returns how to read each table that an annotation of a layer names, one at a time: each engine takes the one
// that it knows. The annotations are those of the layer in the image's manifest. The error is ErrNone if none names
// one.
func Find(
	ctx context.Context, blob io.ReaderAt, size int64, annotations map[string]string,
) (tables []func() (*Table, error), err error) {
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
		tables = append(tables, func() (*Table, error) { return readChunked(ctx, blob, size, at, sum) })
	}
	if want := annotations[tocDigest]; want != "" {
		tables = append(tables, func() (*Table, error) { return readEStargz(ctx, blob, size, want) })
	}
	if len(tables) == 0 {
		return nil, ErrNone
	}
	return tables, nil
}

// readChunked reads the table of zstd:chunked, which is at OFFSET:LENGTH:UNPACKED:TYPE.
func readChunked(ctx context.Context, blob io.ReaderAt, size int64, position, sum string) (*Table, error) {
	var at [4]int64
	fields := strings.Split(position, ":")
	if len(fields) != len(at) {
		return nil, fmt.Errorf("%w: it is at %q", ErrNone, position)
	}
	for i, f := range fields {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil || n < 0 {
			return nil, fmt.Errorf("%w: it is at %q", ErrNone, position)
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
	t := &Table{ctx: ctx, blob: blob, end: at[0], format: new(zstdchunked.Decompressor)}
	raw, err := t.inflate(packed)
	if err != nil {
		return nil, err
	}
	return t, t.decode(raw)
}

// readEStargz finds the table by the footer, which is in one of two forms.
func readEStargz(ctx context.Context, blob io.ReaderAt, size int64, want string) (*Table, error) {
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
		t := &Table{ctx: ctx, blob: blob, end: at, format: format}
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
	return nil, fmt.Errorf("%w: its end is not that of eStargz", ErrNone)
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// part reads a part of a blob that must lie inside.
func part(blob io.ReaderAt, at, length, size int64) ([]byte, error) {
	if at < 0 || length < 0 || length > maxTOCBlob || at > size-length {
		return nil, fmt.Errorf("%w: %d bytes at %d are not in the blob", ErrNone, length, at)
	}
	b := make([]byte, length)
	if _, err := blob.ReadAt(b, at); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return b, nil
}

func (t *Table) inflate(packed []byte) (raw []byte, err error) {
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
func (t *Table) decode(raw []byte) error {
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

// File is an entry of a table: what a tar archive would have.
type File struct {
	Header *tar.Header
	// Content is that of a regular file; nil for anything else, and for the table itself.
	Content *Content

	listed *estargz.TOCEntry
	raw    []byte
}

// xattrRecord begins the pax records of extended attributes.
const xattrRecord = "SCHILY.xattr."

// Each visits the entries in their order.
func (t *Table) Each(visit func(File) error) error {
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
		f := File{Header: h, listed: in}
		if kind == tar.TypeReg {
			end := i + 1
			for end < len(all) && all[end].Type == "chunk" && all[end].Name == in.Name {
				end++
			}
			f.Content, chunks = &Content{table: t, size: in.Size, chunks: all[i:end]}, end
		}
		if err := visit(f); err != nil {
			return err
		}
	}
	if t.raw == nil {
		return nil
	}
	// The table is a file of the layer that it does not list itself.
	return visit(File{
		Header: &tar.Header{Typeflag: tar.TypeReg, Name: estargz.TOCTarName, Size: int64(len(t.raw))}, raw: t.raw,
	})
}

// Sum returns the SHA-256 of a regular file's content, as the table has it.
func (f *File) Sum() (sum [sha256.Size]byte, err error) {
	if f.raw != nil {
		return sha256.Sum256(f.raw), nil
	}
	hexSum, ok := strings.CutPrefix(f.listed.Digest, "sha256:")
	if n, err := hex.Decode(sum[:], []byte(hexSum[:min(len(hexSum), 2*sha256.Size)])); ok && err == nil &&
		n == sha256.Size && len(hexSum) == 2*sha256.Size {
		return sum, nil
	}
	if f.listed.Size == 0 {
		return sha256.Sum256(nil), nil
	}
	return sum, fmt.Errorf("%q has the digest %q", f.listed.Name, f.listed.Digest)
}
