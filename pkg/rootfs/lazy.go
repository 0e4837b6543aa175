package rootfs

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// Lazy returns an annotation of a layer by which an engine may take the files from somewhere else than the layer's
// archive, empty if there is none: eStargz and zstd:chunked have a table of contents, other snapshotters of containerd
// (nydus, overlaybd and others) have files and indexes of their own.
func Lazy(annotations map[string]string) string {
	for _, k := range slices.Sorted(maps.Keys(annotations)) {
		if k == tocDigest || strings.HasPrefix(k, snapshotters) ||
			slices.ContainsFunc(chunkedPrefixes, func(p string) bool {
				return strings.HasPrefix(k, p)
			}) {
			return k
		}
	}
	return ""
}

// snapshotters begin the names of annotations for those of containerd.
const snapshotters = "containerd.io/snapshot/"

// maxDifferences is how many of them CheckTOC tells.
const maxDifferences = 10

// CheckTOC compares a layer's table of contents, from which engines that load lazily take the files, with what Scan has
// found in the archive: each entry, and each file's content as the table has it put together. The differences are for
// people. A table that cannot be read is one. The error is of reading the blob.
func CheckTOC(
	ctx context.Context, blob io.ReaderAt, size int64, annotations map[string]string, index *Index, limits Limits,
) (differences []string, err error) {
	r := &noted{ReaderAt: blob}
	differences, err = checkTOC(ctx, r, size, annotations, index, limits)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case r.err != nil:
		return nil, r.err
	case err != nil:
		differences = append(differences, err.Error())
	}
	return differences, nil
}

// noted remembers an error of reading, which is not the table's fault.
type noted struct {
	io.ReaderAt
	err error
}

func (r *noted) ReadAt(p []byte, off int64) (int, error) {
	n, err := r.ReaderAt.ReadAt(p, off)
	if err != nil && !errors.Is(err, io.EOF) {
		r.err = err
	}
	return n, err
}

func checkTOC(
	ctx context.Context, blob io.ReaderAt, size int64, annotations map[string]string, index *Index, limits Limits,
) (differences []string, err error) {
	tables, err := tocsOf(blob, size, annotations)
	if err != nil {
		return nil, err
	}
	for _, read := range tables {
		t, err := read()
		if err != nil {
			return nil, err
		}
		more, err := t.compare(ctx, index, limits)
		if err != nil {
			return nil, err
		}
		differences = append(differences, more...)
	}
	return differences, nil
}

// compare compares one table.
func (t *toc) compare(ctx context.Context, index *Index, limits Limits) (differences []string, err error) {
	t.scanner = scanner{ctx: ctx, keep: CompilePatterns(nil).Matcher(), room: room{limits: limits.defaults()}}
	var in []*tocFile
	t.each = func(e *Entry, content *tocFile) error {
		if err := t.room.take(e); err != nil {
			return err
		}
		t.entries, in = append(t.entries, *e), append(in, content)
		return nil
	}
	if err := t.index(); err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for i := range index.Entries { // engines keep files by their names
		e := &index.Entries[i]
		if e.Type == Regular && seen[e.Path] {
			differences = append(differences,
				fmt.Sprintf("the archive has %q twice, of which an engine may take either", e.Path))
			break
		}
		seen[e.Path] = true
	}
	if len(t.entries) != len(index.Entries) {
		differences = append(differences,
			fmt.Sprintf("it has %d entries, the archive %d", len(t.entries), len(index.Entries)))
	}
	stream := &chunkStream{toc: t, left: 2 * t.room.limits.LayerBytes}
	defer stream.close()
	for i := range min(len(t.entries), len(index.Entries)) {
		if len(differences) >= maxDifferences {
			return append(differences, "and so on"), nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		got, want := &t.entries[i], &index.Entries[i]
		if got.Path != want.Path || got.Type != want.Type || got.Mode != want.Mode || got.UID != want.UID ||
			got.GID != want.GID ||
			got.Size != want.Size || got.SHA256 != want.SHA256 || got.Link != want.Link ||
			got.Attributes != want.Attributes {
			differences = append(differences,
				fmt.Sprintf("%q is another entry than the archive's %q", got.Path, want.Path))
			continue
		}
		if in[i] == nil {
			continue
		}
		if sum, err := stream.sum(in[i]); err != nil {
			differences = append(differences, fmt.Sprintf("%q: %v", got.Path, err))
		} else if sum != want.SHA256 {
			differences = append(differences, fmt.Sprintf("%q has another content than the archive's", got.Path))
		}
	}
	return differences, nil
}

// chunkStream reads chunks one after the other, of which several can be in one compressed piece.
type chunkStream struct {
	toc    *toc
	left   int64 // bytes that may still be inflated
	offset int64 // of the piece in the blob
	r      io.ReadCloser
	at     int64 // in the piece, inflated
}

func (s *chunkStream) close() {
	if s.r != nil {
		s.r.Close()
		s.r = nil
	}
}

// sum is the digest of a file, put together from its chunks as an engine would.
func (s *chunkStream) sum(f *tocFile) (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	var done int64
	for i, c := range f.chunks {
		from, to := f.extent(i)
		// Engines go by the chunk's own size, which only the last one may leave out.
		if from != done || to <= from || to > f.size || to-from > maxChunk || c.ChunkSize != to-from &&
			(c.ChunkSize != 0 || i+1 < len(f.chunks)) {
			if f.size == 0 && len(f.chunks) == 1 && c.ChunkSize == 0 {
				break
			}
			return sum, fmt.Errorf("a chunk of %d bytes from %d to %d follows %d bytes", c.ChunkSize, from, to, done)
		}
		done = to
		if err := s.seek(c.Offset, c.InnerOffset); err != nil {
			return sum, err
		}
		if s.left -= to - from; s.left < 0 {
			return sum, ErrLimit
		}
		b := make([]byte, to-from)
		if _, err := io.ReadFull(s.r, b); err != nil {
			return sum, err
		}
		s.at += to - from
		if got, want := digestOf(b), f.digest(i); got != want {
			return sum, fmt.Errorf("%w: a part is %s, the table of contents says %q", ErrDigest, got, want)
		}
		h.Write(b)
	}
	if done != f.size {
		return sum, fmt.Errorf("its chunks have %d bytes of %d", done, f.size)
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// seek goes to a place in a piece that begins at an offset of the blob.
func (s *chunkStream) seek(offset, inner int64) error {
	if s.r == nil || s.offset != offset || s.at > inner {
		s.close()
		r, err := s.toc.piece(offset, inner)
		if err != nil {
			return err
		}
		s.r, s.offset, s.at = r, offset, 0
	}
	skip := inner - s.at
	if s.left -= skip; s.left < 0 {
		return ErrLimit
	}
	n, err := io.CopyN(io.Discard, s.r, skip)
	s.at += n
	return err
}
