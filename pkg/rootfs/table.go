package rootfs

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/cconvert/cconvert/pkg/rootfs/elf"
	"github.com/cconvert/cconvert/pkg/rootfs/glob"
	"github.com/cconvert/cconvert/pkg/rootfs/toc"
)

// ScanTOC returns the Index of a layer whose blob has a table of contents with the digest of every file
// (eStargz, zstd:chunked), without reading all of it: only the files that later steps look into are read,
// which are programs, libraries, scripts and those to be kept. It believes the table, which need not say
// what is in the layer. The annotations are those of the layer in the image's manifest.
func ScanTOC(
	ctx context.Context, blob io.ReaderAt, size int64, digest string, annotations map[string]string, o Options,
) (*Index, error) {
	tables, err := toc.Find(ctx, toc.InBlocks(blob, size), size, annotations)
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", digest, err)
	}
	t, err := tables[0]()
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", digest, err)
	}
	s := &scanner{
		ctx: ctx, keep: glob.Compile(o.Keep).Matcher(), buf: make([]byte, 128<<10), sum: sha256.New(),
		room: room{limits: o.Limits.defaults()}, all: o.Kept,
	}
	if err := eachListed(t, s.listed); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("layer %s: %w", digest, err)
	}
	return &Index{Digest: digest, Entries: s.entries}, nil
}

// eachListed visits the entries that a scan of the layer would find, with what the table says of regular files'
// contents.
func eachListed(t *toc.Table, visit func(e *Entry, content *toc.Content) error) error {
	return t.Each(func(f toc.File) error {
		e, err := entryOf(f.Header)
		if e == nil || err != nil {
			return err
		}
		content := f.Content
		if e.Type != Regular {
			if content != nil && content.Parts() > 1 {
				return fmt.Errorf("a part of %q does not follow the file", f.Header.Name)
			}
			return visit(e, nil)
		}
		if e.SHA256, err = f.Sum(); err != nil {
			return err
		}
		return visit(e, content)
	})
}

// looksInto reports whether later steps want to know more of a file than its digest.
func (s *scanner) looksInto(e *Entry) bool {
	name := path.Base(e.Path)
	return e.Mode&0o111 != 0 || strings.HasSuffix(name, ".so") || strings.Contains(name, ".so.") ||
		strings.HasSuffix(name, ".node") ||
		strings.HasSuffix(name, ".sh") || strings.Contains(name, "passwd") || strings.Contains(name, "group") ||
		s.keep.Match(e.Path)
}

// listed notes an entry of a table, and what its content shows.
func (s *scanner) listed(e *Entry, content *toc.Content) error {
	if err := s.room.take(e); err != nil {
		return err
	}
	if content != nil && s.looksInto(e) {
		if err := s.lookInto(e, content); err != nil {
			return fmt.Errorf("reading %q: %w", e.Path, err)
		}
	}
	s.entries = append(s.entries, *e)
	return nil
}

// lookInto does what scanner.file does with a file that passes by.
func (s *scanner) lookInto(e *Entry, r io.ReaderAt) error {
	first := s.buf[:min(e.Size, int64(len(s.buf)))]
	if _, err := r.ReadAt(first, 0); err != nil {
		return err
	}
	e.Shebang = shebang(first)
	if e.ELF = elf.ParsePart(r, first, e.Size); e.ELF != nil {
		s.room.names += e.ELF.NameBytes()
	}
	kept := s.keeper(e)
	if kept == nil && (shellScript(e) || accounts(e, first)) {
		kept = s.text(e)
	}
	if kept == nil {
		return s.full
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
	tables, err := toc.Find(ctx, blob, size, annotations)
	if err != nil {
		return nil, err
	}
	for _, read := range tables {
		t, err := read()
		if err != nil {
			return nil, err
		}
		more, err := compare(ctx, t, index, limits)
		if err != nil {
			return nil, err
		}
		differences = append(differences, more...)
	}
	return differences, nil
}

// compare compares one table.
func compare(ctx context.Context, t *toc.Table, index *Index, limits Limits) (differences []string, err error) {
	space := room{limits: limits.defaults()}
	var entries []Entry
	var in []*toc.Content
	if err := eachListed(t, func(e *Entry, content *toc.Content) error {
		if err := space.take(e); err != nil {
			return err
		}
		entries, in = append(entries, *e), append(in, content)
		return nil
	}); err != nil {
		return nil, err
	}
	seen := map[string]Type{}
	for i := range index.Entries { // engines keep files by their names
		e := &index.Entries[i]
		if e.Type == Whiteout || e.Type == Opaque { // about lower layers
			continue
		}
		if before, twice := seen[e.Path]; twice && (e.Type != Dir || before != Dir) {
			differences = append(differences,
				fmt.Sprintf("the archive has %q twice, of which an engine may take either", e.Path))
			break
		}
		if e.Type == Hardlink && seen[e.Link] != Regular && seen[e.Link] != Hardlink {
			differences = append(differences,
				fmt.Sprintf("%q is a hard link to %q, which is no file before it", e.Path, e.Link))
			break
		}
		seen[e.Path] = e.Type
	}
	if len(entries) != len(index.Entries) {
		differences = append(differences,
			fmt.Sprintf("it has %d entries, the archive %d", len(entries), len(index.Entries)))
	}
	stream := t.NewStream(2 * space.limits.LayerBytes)
	defer stream.Close()
	for i := range min(len(entries), len(index.Entries)) {
		if len(differences) >= maxDifferences {
			return append(differences, "and so on"), nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		got, want := &entries[i], &index.Entries[i]
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
		if sum, err := stream.Sum(in[i]); err != nil {
			differences = append(differences, fmt.Sprintf("%q: %v", got.Path, err))
		} else if sum != want.SHA256 {
			differences = append(differences, fmt.Sprintf("%q has another content than the archive's", got.Path))
		}
	}
	return differences, nil
}
