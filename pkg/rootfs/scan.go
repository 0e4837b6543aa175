package rootfs

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"path"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/cconvert/cconvert/internal/ctxio"
	"github.com/cconvert/cconvert/pkg/rootfs/elf"
	"github.com/cconvert/cconvert/pkg/rootfs/glob"
	"github.com/cconvert/cconvert/pkg/rootfs/inflate"
	"github.com/cconvert/cconvert/pkg/rootfs/toc"
)

// Bounds on what one layer may hold.
const (
	maxPath      = 4096
	maxParts     = 256     // of a path: work goes with the directories above each file
	maxFileBytes = 1 << 40 // that any entry may claim, whatever the Limits
	maxKeepFile  = 64 << 20
	maxKeepLayer = 256 << 20
	maxShebang   = 256       // as Linux, BINPRM_BUF_SIZE
	maxScript    = 64 << 10  // of a script whose text is kept
	maxScripts   = 32 << 20  // of all of them in a layer
	maxNames     = 512 << 20 // bytes of all paths, links and names in programs
)

// ErrDigest says that a blob is not the one that its digest names.
var ErrDigest = toc.ErrDigest

// Options choose what Scan keeps.
type Options struct {
	// Keep lists the files whose content goes into the Index, by patterns over the absolute path.
	Keep []string
	// Inflate says what inflates gzip.
	Inflate inflate.Inflater
	// DiffID has the index say the digest of the layer's archive, which costs hashing it once more.
	DiffID bool
	// Limits bound what the layer may hold. They do not show in the Index.
	Limits Limits
	// Kept bounds what all layers that are read with it keep together; nil: each is bounded alone.
	Kept *Kept
}

// Kept is how much of files is kept by scans side by side. The zero value is ready for use.
type Kept struct{ bytes atomic.Int64 }

// take reports whether so many more bytes may be kept.
func (k *Kept) take(n int64) bool { return k == nil || k.bytes.Add(n) <= maxKept }

// Scan reads a layer from front to back: a tar stream, plain or compressed with gzip or zstd. The blob
// must have the given digest ("sha256:…"), else the error is ErrDigest.
func Scan(ctx context.Context, blob io.Reader, digest string, o Options) (*Index, error) {
	s := &scanner{
		ctx: ctx, inflate: o.Inflate, keep: glob.Compile(o.Keep).Matcher(), buf: make([]byte, 128<<10),
		sum: sha256.New(), room: room{limits: o.Limits.defaults()}, all: o.Kept,
	}
	if err := s.keep.Check(); err != nil {
		return nil, err
	}
	if o.DiffID {
		s.archive = sha256.New()
	}
	if err := checked(ctx, blob, digest, s.layer); err != nil {
		return nil, err
	}
	index := &Index{Digest: digest, Entries: s.entries}
	if s.archive != nil {
		index.DiffID = "sha256:" + hex.EncodeToString(s.archive.Sum(nil))
	}
	return index, nil
}

// checked reads a blob, ahead of what is made of it, and then compares its digest. The error of reading
// is told only of a blob that is the right one: after an error the digest tells a damaged transfer from a
// damaged image.
func checked(ctx context.Context, blob io.Reader, digest string, read func(io.Reader) error) error {
	sum := sha256.New()
	ahead := inflate.ReadAhead(ctxio.NewReader(ctx, io.TeeReader(blob, sum)))
	defer ahead.Close()
	err := read(ahead)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	// Whatever follows the archive's end belongs to the digest as well.
	if _, copyErr := io.Copy(io.Discard, ahead); copyErr != nil {
		return fmt.Errorf("layer %s: %w", digest, errors.Join(copyErr, err))
	}
	if got := "sha256:" + hex.EncodeToString(sum.Sum(nil)); got != digest {
		return fmt.Errorf("layer %s: %w: it is %s", digest, ErrDigest, got)
	}
	if errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, inflate.ErrInflater) {
		err = errors.New(err.Error()) // of the layer, which is the right one: reading it again would not help
	}
	if err != nil {
		return fmt.Errorf("layer %s: %w", digest, err)
	}
	return nil
}

type scanner struct {
	ctx     context.Context
	inflate inflate.Inflater
	keep    *glob.Matcher
	kept    int64
	all     *Kept
	full    error // more would be kept than may be
	scripts int64
	room    room
	entries []Entry
	buf     []byte
	elfHead []byte // reused between files
	sum     hash.Hash
	archive hash.Hash // of the whole archive; nil where nobody wants it
}

func (s *scanner) layer(blob io.Reader) error {
	return eachEntry(s.ctx, blob, s.inflate, s.room.limits, s.archive, func(e *Entry, content io.Reader) error {
		if err := s.room.take(e); err != nil {
			return err
		}
		if e.Type == Regular {
			if err := s.file(e, content); err != nil {
				return fmt.Errorf("reading %q: %w", e.Path, err)
			}
		}
		s.entries = append(s.entries, *e)
		return nil
	})
}

// eachEntry visits the entries of a layer in their order, with the content of regular files. The whole
// archive goes into the sum, unless that is nil.
func eachEntry(
	ctx context.Context, blob io.Reader, with inflate.Inflater, limits Limits, sum hash.Hash,
	visit func(e *Entry, content io.Reader) error,
) error {
	r, err := with.Open(ctx, blob)
	if err != nil {
		return err
	}
	defer r.Close()
	// Beside files an archive has headers, of a kilobyte each and seldom more.
	plain := &endNoter{Reader: r, left: limits.LayerBytes + int64(limits.Files)<<10}
	if sum != nil { // on another processor
		ahead := inflate.ReadAhead(io.TeeReader(r, sum))
		defer ahead.Close()
		plain.Reader = ahead
	}
	archive := tar.NewReader(plain)
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			if inflate.ByProgram(r) && plain.ended {
				// Archives say where they end. One that does not may have lost a part unnoticed.
				return fmt.Errorf("%w: the archive ends early", inflate.ErrInflater)
			}
			// Only its end shows that all was inflated well: checksums are there.
			if _, err := io.Copy(io.Discard, plain); err != nil {
				return fmt.Errorf("reading what follows the archive: %w", err)
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading the archive: %w", err)
		}
		e, err := entryOf(h)
		if err != nil {
			return err
		}
		if e == nil {
			continue
		}
		if err := visit(e, archive); err != nil {
			return err
		}
	}
}

// endNoter notes whether somebody wanted more than there is, and reads no more than so many bytes: a few can be
// decompressed to any number.
type endNoter struct {
	io.Reader
	ended bool
	left  int64
}

func (r *endNoter) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if r.left -= int64(n); r.left < 0 {
		return n, fmt.Errorf("the archive is %w", ErrLimit)
	}
	r.ended = r.ended || n == 0 && errors.Is(err, io.EOF)
	return n, err
}

// Whiteouts (OCI image specification, "Whiteouts"); the other names with the longer prefix belong to
// the bookkeeping of AUFS.
const (
	whiteoutPrefix = ".wh."
	whiteoutAUFS   = ".wh..wh."
	whiteoutOpaque = ".wh..wh..opq"
)

// cleanPath makes a tar entry's name absolute. A name that leads out of the layer is refused; ".." inside is taken away
// before links are followed, as container engines do.
func cleanPath(name string) (string, error) {
	if len(name) > maxPath {
		return "", fmt.Errorf("the path %.60q… has %d bytes, more than %d", name, len(name), maxPath)
	}
	depth := 0
	for part := range strings.SplitSeq(name, "/") {
		switch part {
		case "", ".":
		case "..":
			if depth--; depth < 0 {
				return "", fmt.Errorf("the path %q leads out of the layer", name)
			}
		default:
			if depth++; depth > maxParts {
				return "", fmt.Errorf("the path %.60q… has more than %d parts", name, maxParts)
			}
		}
	}
	if strings.ContainsRune(name, 0) {
		return "", fmt.Errorf("the path %q contains a NUL byte", name)
	}
	return path.Clean("/" + name), nil
}

// ErrOverlay says that a layer has attributes or headers by which engines show other files than those in it.
var ErrOverlay = errors.New("the layer would steer overlay file systems")

// checkGlobal refuses a global header (pax, "g") with a name that could be a file's: containerd removes what has it.
// Those that programs write have names of their own, which are in no standard.
func checkGlobal(name string) error {
	base := path.Base(name)
	if name == "" || base == "pax_global_header" || base == "@PaxHeader" || strings.HasPrefix(base, "GlobalHead.") {
		return nil
	}
	return fmt.Errorf("%w: a global header has the name %q, which some engines take for a file to remove", ErrOverlay,
		name)
}

// xattrRecord begins the pax records of extended attributes.
const xattrRecord = "SCHILY.xattr."

// aufsNames are what AUFS has at the root of each layer.
var aufsNames = []string{"/" + whiteoutAUFS + "aufs", "/" + whiteoutAUFS + "plnk", "/" + whiteoutAUFS + "orph"}

// overlayAttributes begin the names of attributes by which file systems of engines hide files or show others: the
// kernel's overlay and fuse-overlayfs.
var overlayAttributes = []string{
	"trusted.overlay.", "user.overlay.", "trusted.fuseoverlayfs.", "user.fuseoverlayfs.", "security.fuseoverlayfs.",
	"user.containers.", // override_stat, by which storage of containers/storage shows other types and owners
}

// attributes is Entry.Attributes of a header.
func attributes(h *tar.Header) string {
	device := h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock
	var records []string
	for record, value := range h.PAXRecords {
		if strings.HasPrefix(record, xattrRecord) {
			records = append(records, fmt.Sprintf("%q=%q", record, value))
		}
	}
	if device {
		records = append(records, fmt.Sprintf("%d:%d", h.Devmajor, h.Devminor))
	}
	if len(records) == 0 {
		return ""
	}
	slices.Sort(records)
	sum := sha256.Sum256([]byte(strings.Join(records, "\n")))
	return string(sum[:])
}

// entryOf translates a tar header; nil for what is no entry.
func entryOf(h *tar.Header) (*Entry, error) {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil, checkGlobal(h.Name)
	}
	p, err := cleanPath(h.Name)
	if err != nil {
		return nil, err
	}
	for record := range h.PAXRecords {
		name, ok := strings.CutPrefix(record, xattrRecord)
		if ok && slices.ContainsFunc(overlayAttributes, func(prefix string) bool {
			return strings.HasPrefix(name, prefix)
		}) {
			return nil, fmt.Errorf("%w: %q has the attribute %q", ErrOverlay, p, name)
		}
	}
	e := &Entry{Path: p, Mode: uint32(h.Mode) & 0o7777, UID: h.Uid, GID: h.Gid, Attributes: attributes(h)}
	dir, base := path.Split(p)
	switch {
	case base == whiteoutOpaque:
		e.Type, e.Path = Opaque, path.Clean(dir)
		return e, nil
	case slices.Contains(aufsNames, p) && (h.Typeflag == tar.TypeDir || h.Typeflag == tar.TypeReg && h.Size == 0):
		return nil, nil // as AUFS leaves at its root: engines pass over it or unpack it, and nothing is in it
	case strings.Contains(p, "/"+whiteoutAUFS):
		// Engines differ in which of these they unpack.
		return nil, fmt.Errorf("%w: %q has a name of the bookkeeping of AUFS", ErrOverlay, p)
	case strings.HasPrefix(base, whiteoutPrefix):
		e.Type, e.Path = Whiteout, path.Join(dir, base[len(whiteoutPrefix):])
		if e.Path == path.Clean(dir) || base == whiteoutPrefix+".." {
			return nil, fmt.Errorf("the whiteout %q names nothing", p)
		}
		return e, nil
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		e.Type, e.Size = Regular, h.Size
		if h.Size < 0 || h.Size > maxFileBytes {
			return nil, fmt.Errorf("%q claims %d bytes, more than %d", p, h.Size, int64(maxFileBytes))
		}
	case tar.TypeDir:
		e.Type = Dir
	case tar.TypeSymlink:
		e.Type, e.Link = Symlink, h.Linkname
		if len(h.Linkname) > maxPath || h.Linkname == "" {
			return nil, fmt.Errorf("the symbolic link %q has a target of %d bytes", p, len(h.Linkname))
		}
	case tar.TypeLink:
		e.Type = Hardlink
		if e.Link, err = cleanPath(h.Linkname); err != nil {
			return nil, fmt.Errorf("hard link %q: %w", p, err)
		}
	case tar.TypeChar:
		e.Type = CharDevice
	case tar.TypeBlock:
		e.Type = BlockDevice
	case tar.TypeFifo:
		e.Type = FIFO
	default:
		return nil, fmt.Errorf("%q has the unknown entry type %q", p, h.Typeflag)
	}
	return e, nil
}

// file hashes a regular file and notes what it is.
func (s *scanner) file(e *Entry, r io.Reader) error {
	s.sum.Reset()
	content := s.keeper(e)
	var program *elf.Capture
	for first, left := true, e.Size; left > 0; first = false {
		if err := s.ctx.Err(); err != nil { // the holes of a sparse file are read from nowhere
			return err
		}
		n, err := io.ReadFull(r, s.buf[:min(left, int64(len(s.buf)))])
		if err != nil {
			return err
		}
		chunk := s.buf[:n]
		left -= int64(n)
		s.sum.Write(chunk)
		if first {
			e.Shebang = shebang(chunk)
			program = elf.NewCapture(chunk, e.Size, s.elfHead)
		}
		if program != nil {
			_, _ = program.Write(chunk)
		}
		if first && content == nil && (shellScript(e) || accounts(e, chunk)) {
			content = s.text(e)
		}
		if content != nil {
			content.Write(chunk)
		}
	}
	s.sum.Sum(e.SHA256[:0])
	if s.full != nil {
		return s.full
	}
	if program != nil {
		if e.ELF = program.Facts(); e.ELF != nil {
			s.room.names += e.ELF.NameBytes()
		}
		s.elfHead = program.Buffer()
	}
	if content != nil {
		e.Content = content.Bytes()
	}
	return nil
}

// shellScript reports whether a file is text for a shell, of which later steps read which programs it
// starts. What a script includes has no first line to tell it by, only its name.
func shellScript(e *Entry) bool {
	for _, word := range strings.Fields(e.Shebang) { // the interpreter itself, or what env(1) starts
		switch path.Base(word) {
		case "sh", "bash", "dash", "ash", "ksh", "zsh", "busybox":
			return true
		}
	}
	return strings.HasSuffix(e.Path, ".sh")
}

// keeper returns a buffer for the file's content where it is to be kept. Who needs a file that is too large
// finds one with a size and no content.
func (s *scanner) keeper(e *Entry) *bytes.Buffer {
	if e.Size > maxKeepFile || s.kept+e.Size > maxKeepLayer || !s.keep.Match(e.Path) {
		return nil
	}
	s.kept += e.Size
	return s.buffer(e)
}

// accounts reports whether a file is one of users or groups (passwd(5), group(5)), wherever it is: /etc/passwd can be a
// link to anywhere.
func accounts(e *Entry, head []byte) bool {
	name := path.Base(e.Path)
	if !strings.Contains(name, "passwd") && !strings.Contains(name, "group") {
		return false
	}
	line, _, _ := bytes.Cut(bytes.TrimSpace(head), []byte("\n"))
	fields := bytes.Split(line, []byte(":"))
	return len(fields) >= 3 && len(fields[2]) > 0 && len(bytes.Trim(fields[2], "0123456789")) == 0
}

// text returns a buffer for a short text.
func (s *scanner) text(e *Entry) *bytes.Buffer {
	if e.Size > maxScript || s.scripts+e.Size > maxScripts {
		return nil
	}
	s.scripts += e.Size
	return s.buffer(e)
}

// buffer returns a buffer for a file's content.
func (s *scanner) buffer(e *Entry) *bytes.Buffer {
	if !s.all.take(e.Size) {
		s.full = fmt.Errorf("the image's databases and scripts have more than %d bytes", maxKept)
		return nil
	}
	return bytes.NewBuffer(make([]byte, 0, e.Size))
}

func shebang(head []byte) string {
	line, ok := bytes.CutPrefix(head[:min(len(head), maxShebang)], []byte("#!"))
	if !ok {
		return ""
	}
	line, _, _ = bytes.Cut(line, []byte("\n"))
	return strings.Trim(string(line), " \t\r")
}

// Extract reads the contents of the wanted regular files from a layer, by the path of their entry. Files
// of more than limit bytes are an error, and so is a blob that is not the one that its digest names. Sum, if it is not
// nil, gets the archive, as it is without compression.
func Extract(
	ctx context.Context, blob io.Reader, digest string, want map[string]bool, limit int64, sum hash.Hash,
) (map[string][]byte, error) {
	found := map[string][]byte{}
	err := visit(ctx, blob, digest, Options{}, sum, func(e *Entry, content io.Reader) (err error) {
		if !want[e.Path] {
			return nil
		}
		if e.Size > limit {
			return fmt.Errorf("%q has %d bytes, more than %d", e.Path, e.Size, limit)
		}
		if found[e.Path], err = io.ReadAll(content); err != nil {
			return fmt.Errorf("reading %q: %w", e.Path, err)
		}
		return nil
	})
	return found, err
}

// Visit reads a layer, and shows each regular file of it with its content. A blob that is not the one that its digest
// names is an error.
func Visit(
	ctx context.Context, blob io.Reader, digest string, o Options, show func(e *Entry, content io.Reader) error,
) error {
	return visit(ctx, blob, digest, o, nil, show)
}

func visit(
	ctx context.Context, blob io.Reader, digest string, o Options, sum hash.Hash,
	show func(e *Entry, content io.Reader) error,
) error {
	return checked(ctx, blob, digest, func(blob io.Reader) error {
		return eachEntry(ctx, blob, o.Inflate, o.Limits.defaults(), sum, func(e *Entry, content io.Reader) error {
			if e.Type != Regular {
				return nil
			}
			return show(e, content)
		})
	})
}
