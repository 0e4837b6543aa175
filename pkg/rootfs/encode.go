package rootfs

import (
	"crypto/sha256"
	debugelf "debug/elf"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"path"
	"slices"
	"strings"
	"unsafe"

	"github.com/cconvert/cconvert/pkg/rootfs/elf"
)

// ExtractorVersion rises whenever Scan notes something else of the same layer, or writes it otherwise.
const ExtractorVersion = 5

// ErrIndex says that bytes are no index, or one of another version.
var ErrIndex = errors.New("not an index of a layer")

// IndexKey names what Scan gives for a layer: it differs with the layer, the version of the extractor and
// the patterns of the files that are kept. It has two parts, with a slash between them.
func IndexKey(digest string, o Options) string {
	h := sha256.New()
	for _, pattern := range slices.Sorted(slices.Values(o.Keep)) {
		fmt.Fprintf(h, "%s\x00", pattern)
	}
	return fmt.Sprintf("v%d-%s/%s", ExtractorVersion, hex.EncodeToString(h.Sum(nil)[:8]),
		strings.ReplaceAll(digest, ":", "-"))
}

// What an encoded entry has besides its path, mode and owner.
const (
	typeMask   = 0x0f
	hasELF     = 0x10
	hasShebang = 0x20
	hasContent = 0x40
	hasXattrs  = 0x80
)

var indexMagic = fmt.Sprintf("cconvert index %d\n", ExtractorVersion)

// MarshalBinary writes the index: numbers as in encoding/binary's Varint, strings after their length.
func (i *Index) MarshalBinary() ([]byte, error) {
	size := len(indexMagic) + len(i.Digest) + 16
	for k := range i.Entries {
		e := &i.Entries[k]
		size += len(e.Path) + len(e.Link) + len(e.Shebang) + len(e.Content) + 64
	}
	w := encoder{make([]byte, 0, size)}
	w.b = append(w.b, indexMagic...)
	w.str(i.Digest)
	w.uint(uint64(len(i.Entries)))
	for k := range i.Entries {
		w.entry(&i.Entries[k])
	}
	return w.b, nil
}

type encoder struct{ b []byte }

func (w *encoder) uint(n uint64) { w.b = binary.AppendUvarint(w.b, n) }
func (w *encoder) str(s string)  { w.uint(uint64(len(s))); w.b = append(w.b, s...) }

func (w *encoder) entry(e *Entry) {
	flags := byte(e.Type)
	if e.ELF != nil {
		flags |= hasELF
	}
	if e.Shebang != "" {
		flags |= hasShebang
	}
	if e.Content != nil {
		flags |= hasContent
	}
	if e.Attributes != "" {
		flags |= hasXattrs
	}
	w.b = append(w.b, flags)
	w.str(e.Path)
	w.uint(uint64(e.Mode))
	w.b = binary.AppendVarint(w.b, int64(e.UID))
	w.b = binary.AppendVarint(w.b, int64(e.GID))
	switch e.Type {
	case Regular:
		w.uint(uint64(e.Size))
		w.b = append(w.b, e.SHA256[:]...)
	case Symlink, Hardlink:
		w.str(e.Link)
	}
	if e.Attributes != "" {
		w.str(e.Attributes)
	}
	if e.ELF != nil {
		w.elf(e.ELF)
	}
	if e.Shebang != "" {
		w.str(e.Shebang)
	}
	if e.Content != nil {
		w.uint(uint64(len(e.Content)))
		w.b = append(w.b, e.Content...)
	}
}

func (w *encoder) elf(f *elf.Facts) {
	flags := byte(0)
	if f.Go {
		flags |= 1
	}
	if f.Dynamic {
		flags |= 2
	}
	w.b = append(w.b, byte(f.Class), flags)
	w.uint(uint64(f.Machine))
	w.uint(uint64(f.Type))
	w.uint(f.MemSize)
	for _, s := range []string{f.Interp, f.SOName, f.RPath, f.RunPath, f.NeedsGLIBC, f.DefinesGLIBC} {
		w.str(s)
	}
	for _, list := range [][]string{f.Needed, f.Imports, f.SigStructs} {
		w.uint(uint64(len(list)))
		for _, s := range list {
			w.str(s)
		}
	}
}

// UnmarshalBinary reads what MarshalBinary wrote. The bytes may come from anywhere: what is none of its
// own is ErrIndex. They must not change afterwards, since the index refers to them.
func (i *Index) UnmarshalBinary(b []byte) error {
	r := decoder{b: b}
	if string(r.take(uint64(len(indexMagic)))) != indexMagic {
		return fmt.Errorf("%w of version %d", ErrIndex, ExtractorVersion)
	}
	i.Digest = r.str()
	n := r.uint()
	if n > math.MaxInt32 || n > uint64(len(r.b)) {
		return fmt.Errorf("%w: it claims %d entries", ErrIndex, n)
	}
	i.Entries = make([]Entry, n)
	for k := range i.Entries {
		if r.entry(&i.Entries[k]); r.failed {
			return fmt.Errorf("%w: entry %d is damaged", ErrIndex, k)
		}
	}
	if r.failed || len(r.b) > 0 {
		return ErrIndex
	}
	return nil
}

// decoder reads from the front of b. After a failure it gives zeroes.
type decoder struct {
	b      []byte
	failed bool
}

func (r *decoder) take(n uint64) []byte {
	if n > uint64(len(r.b)) {
		r.failed, r.b = true, nil
		return nil
	}
	b := r.b[:n:n]
	r.b = r.b[n:]
	return b
}

func (r *decoder) byte() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *decoder) uint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.failed, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *decoder) int() int {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.failed, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return int(v)
}

// str does not copy: an index consists of hundreds of thousands of strings, and the bytes stay.
func (r *decoder) str() string {
	b := r.take(r.uint())
	return unsafe.String(unsafe.SliceData(b), len(b))
}

func (r *decoder) list() []string {
	n := r.uint()
	if n == 0 || n > elf.MaxEntries {
		r.failed = r.failed || n > 0
		return nil
	}
	list := make([]string, n)
	for k := range list {
		list[k] = r.str()
	}
	return list
}

func (r *decoder) entry(e *Entry) {
	flags := r.byte()
	e.Type = Type(flags & typeMask)
	e.Path = r.str()
	e.Mode = uint32(r.uint()) & 0o7777
	e.UID, e.GID = r.int(), r.int()
	switch {
	case e.Type > Opaque || len(e.Path) > maxPath || !clean(e.Path):
		r.failed = true
	case e.Type == Regular:
		size := r.uint()
		r.failed = r.failed || size > maxFileBytes
		e.Size = int64(size)
		copy(e.SHA256[:], r.take(sha256.Size))
	case e.Type == Symlink, e.Type == Hardlink:
		e.Link = r.str()
		r.failed = r.failed || e.Link == "" || len(e.Link) > maxPath || e.Type == Hardlink && !clean(e.Link)
	}
	if flags&hasXattrs != 0 {
		e.Attributes = r.str()
		r.failed = r.failed || len(e.Attributes) != sha256.Size
	}
	if flags&hasELF != 0 {
		e.ELF = r.elf()
	}
	if flags&hasShebang != 0 {
		e.Shebang = r.str()
	}
	if flags&hasContent != 0 {
		e.Content = r.take(r.uint())
	}
}

// clean reports whether a path is absolute and as path.Clean leaves it.
func clean(p string) bool {
	if !path.IsAbs(p) {
		return false
	}
	if !strings.Contains(p, "/.") && !strings.Contains(p, "//") && !strings.HasSuffix(p, "/") {
		return true // as most are, without a closer look
	}
	return path.Clean(p) == p
}

func (r *decoder) elf() *elf.Facts {
	f := &elf.Facts{Class: debugelf.Class(r.byte())}
	flags := r.byte()
	f.Go, f.Dynamic = flags&1 != 0, flags&2 != 0
	f.Machine, f.Type, f.MemSize = debugelf.Machine(r.uint()), debugelf.Type(r.uint()), r.uint()
	for _, s := range []*string{&f.Interp, &f.SOName, &f.RPath, &f.RunPath, &f.NeedsGLIBC, &f.DefinesGLIBC} {
		*s = r.str()
	}
	f.Needed, f.Imports, f.SigStructs = r.list(), r.list(), r.list()
	return f
}
