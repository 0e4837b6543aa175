// Package elf finds facts about programs and libraries, in files that are read from front to back.
package elf

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// Facts holds facts about a program or shared object, from its program headers and dynamic section
// (System V gABI, "Program Loading and Dynamic Linking"). Sections are not used: they may be stripped.
type Facts struct {
	Class   elf.Class   `json:"class"`
	Machine elf.Machine `json:"machine"`
	Type    elf.Type    `json:"type"`
	// Interp is the dynamic linker that the program asks for; empty in static programs and libraries.
	Interp  string   `json:"interp,omitempty"`
	SOName  string   `json:"soname,omitempty"`
	Needed  []string `json:"needed,omitempty"`
	RPath   string   `json:"rpath,omitempty"`
	RunPath string   `json:"runpath,omitempty"`
	// NeedsGLIBC is the highest version GLIBC_x.y that it needs, as "x.y"; empty if none.
	NeedsGLIBC string `json:"needs_glibc,omitempty"`
	// DefinesGLIBC is the highest version GLIBC_x.y that it provides, as libc.so.6 does.
	DefinesGLIBC string `json:"defines_glibc,omitempty"`
	// MemSize is the memory that its segments take, in bytes.
	MemSize uint64 `json:"mem_size"`
	// Go says that the Go linker made it.
	Go bool `json:"go,omitempty"`
	// Dynamic says that it has a dynamic section.
	Dynamic bool `json:"dynamic,omitempty"`
	// Imports are those functions of the list in imports.go that it takes from libraries, sorted.
	Imports []string `json:"imports,omitempty"`
	// SigStructs are those of SGX enclaves in the file, as found there, of 1808 bytes each: up to four.
	SigStructs []string `json:"-"`
}

// Bounds on what is read of one file.
const (
	maxELFHead    = 16 << 20 // program headers, string table and symbol versions lie before the code
	maxSegments   = 512
	maxDynamic    = 1 << 20
	maxELFString  = 4096
	maxELFName    = 256  // of libraries and symbol versions
	MaxEntries    = 256  // libraries that a file needs
	maxELFRecords = 8192 // of symbol versions, in all chains of a file
)

// NameBytes is how many bytes the file's strings have.
func (f *Facts) NameBytes() int64 {
	n := len(f.Interp) + len(f.SOName) + len(f.RPath) + len(f.RunPath)
	for _, s := range f.Needed {
		n += len(s)
	}
	return int64(n + sigSize*len(f.SigStructs))
}

var errNotELF = errors.New("not an ELF file")

// Capture keeps the parts of a file, seen front to back, that Parse reads: its beginning, and the
// dynamic section. It is an io.ReaderAt over them.
type Capture struct {
	head    []byte
	size    int64
	pos     int64
	dyn     []byte
	dynFrom int64
	dynTo   int64
	sigs    sigFinder
}

// NewCapture returns nil if the first bytes are not those of an ELF file.
func NewCapture(first []byte, size int64, buf []byte) *Capture {
	if !bytes.HasPrefix(first, []byte(elf.ELFMAG)) {
		return nil
	}
	c := &Capture{head: buf[:0], size: size}
	if h, err := readELFHeader(bytes.NewReader(first)); err == nil {
		for _, p := range h.segments {
			if p.Type == uint32(elf.PT_DYNAMIC) && p.Filesz <= maxDynamic && p.Off < uint64(size) {
				c.dynFrom, c.dynTo = int64(p.Off), int64(p.Off+p.Filesz)
			}
		}
	}
	return c
}

// Write takes the next part of the file.
func (c *Capture) Write(b []byte) (int, error) {
	from, to := c.pos, c.pos+int64(len(b))
	c.pos = to
	c.sigs.write(b)
	if room := maxELFHead - len(c.head); room > 0 {
		c.head = append(c.head, b[:min(room, len(b))]...)
	}
	if lo, hi := max(from, c.dynFrom), min(to, c.dynTo); lo < hi {
		c.dyn = append(c.dyn, b[lo-from:hi-from]...)
	}
	return len(b), nil
}

// Facts returns what is known of the file, once all of it was written; nil if it is not a program after all. An enclave
// is one, whatever its headers are.
func (c *Capture) Facts() *Facts {
	f, err := Parse(c)
	if err != nil {
		f = nil
	}
	if f == nil && len(c.sigs.found) > 0 {
		f = &Facts{Class: elf.ELFCLASS64}
	}
	if f != nil {
		f.SigStructs = c.sigs.found
	}
	return f
}

// Buffer returns the memory of a capture that is no longer needed, for the next one.
func (c *Capture) Buffer() []byte { return c.head[:0] }

// ReadAt reads what was kept.
func (c *Capture) ReadAt(p []byte, off int64) (int, error) {
	switch {
	case off < 0:
	case off <= int64(len(c.head)) && int64(len(p)) <= int64(len(c.head))-off:
		return copy(p, c.head[off:]), nil
	case off >= c.dynFrom && off-c.dynFrom <= int64(len(c.dyn)) && int64(len(p)) <= int64(len(c.dyn))-(off-c.dynFrom):
		return copy(p, c.dyn[off-c.dynFrom:]), nil
	}
	return 0, io.ErrUnexpectedEOF
}

type elfHeader struct {
	elf.Header64
	segments []elf.Prog64
}

// readELFHeader reads the headers of a 64-bit little-endian file.
func readELFHeader(r io.ReaderAt) (*elfHeader, error) {
	h := &elfHeader{}
	if err := readStruct(r, 0, &h.Header64); err != nil {
		return nil, errNotELF
	}
	if !bytes.HasPrefix(h.Ident[:], []byte(elf.ELFMAG)) || h.Ident[elf.EI_CLASS] != byte(elf.ELFCLASS64) ||
		h.Ident[elf.EI_DATA] != byte(elf.ELFDATA2LSB) || h.Phnum > maxSegments {
		return nil, errNotELF
	}
	h.segments = make([]elf.Prog64, h.Phnum)
	if len(h.segments) > 0 {
		if err := readStruct(r, int64(h.Phoff), h.segments); err != nil {
			return nil, err
		}
	}
	return h, nil
}

func readStruct(r io.ReaderAt, off int64, v any) error {
	b := make([]byte, binary.Size(v))
	if _, err := r.ReadAt(b, off); err != nil && err != io.EOF {
		return err
	}
	_, err := binary.Decode(b, binary.LittleEndian, v)
	return err
}

// Parse reads the facts about a 64-bit little-endian ELF file; of others it returns the class and nothing
// else. A file that is damaged gives an error or fewer facts, never a panic.
func Parse(r io.ReaderAt) (*Facts, error) {
	var ident [20]byte
	if _, err := r.ReadAt(ident[:], 0); err != nil || !bytes.HasPrefix(ident[:], []byte(elf.ELFMAG)) {
		return nil, errNotELF
	}
	f := &Facts{Class: elf.Class(ident[elf.EI_CLASS])}
	if f.Class != elf.ELFCLASS64 || elf.Data(ident[elf.EI_DATA]) != elf.ELFDATA2LSB {
		return f, nil
	}
	h, err := readELFHeader(r)
	if err != nil {
		return nil, err
	}
	f.Machine, f.Type = elf.Machine(h.Machine), elf.Type(h.Type)
	d := &dynamic{r: r, segments: h.segments, values: map[elf.DynTag]uint64{}, records: maxELFRecords}
	for _, p := range h.segments {
		switch elf.ProgType(p.Type) {
		case elf.PT_LOAD:
			f.MemSize += p.Memsz
		case elf.PT_INTERP:
			b := make([]byte, min(p.Filesz, maxELFString))
			if _, err := r.ReadAt(b, int64(p.Off)); err == nil {
				b, _, _ = bytes.Cut(b, []byte{0})
				f.Interp = string(b)
			}
		case elf.PT_NOTE:
			// The Go linker's build id note: name "Go", type 4.
			b := make([]byte, 16)
			if _, err := r.ReadAt(b, int64(p.Off)); err == nil && string(b[12:]) == "Go\x00\x00" && b[8] == 4 {
				f.Go = true
			}
		case elf.PT_DYNAMIC:
			if f.Dynamic {
				continue // there is one, as for the dynamic linker
			}
			f.Dynamic = true
			if err := d.read(p); err != nil {
				return f, err
			}
		}
	}
	if !f.Dynamic {
		return f, nil
	}
	for _, off := range d.needed {
		f.Needed = append(f.Needed, d.str(off, maxELFName))
	}
	f.SOName, f.RPath, f.RunPath = d.tagged(elf.DT_SONAME), d.tagged(elf.DT_RPATH), d.tagged(elf.DT_RUNPATH)
	f.NeedsGLIBC, f.DefinesGLIBC = d.glibcNeeded(), d.glibcDefined()
	f.Imports = d.imports()
	return f, nil
}

// tagged returns the string of a tag; empty if there is none.
func (d *dynamic) tagged(tag elf.DynTag) string {
	off, ok := d.values[tag]
	if !ok {
		return ""
	}
	return d.str(off, maxELFString)
}

// dynamic is the dynamic section of a file.
type dynamic struct {
	r        io.ReaderAt
	segments []elf.Prog64
	values   map[elf.DynTag]uint64
	needed   []uint64 // offsets into the string table
	records  int      // of symbol versions that may still be read
}

func (d *dynamic) read(p elf.Prog64) error {
	b := make([]byte, min(p.Filesz, maxDynamic)&^15)
	if _, err := d.r.ReadAt(b, int64(p.Off)); err != nil {
		return fmt.Errorf("reading the dynamic section: %w", err)
	}
	for ; len(b) > 0; b = b[16:] {
		tag, value := elf.DynTag(binary.LittleEndian.Uint64(b)), binary.LittleEndian.Uint64(b[8:])
		switch tag {
		case elf.DT_NULL:
			return nil
		case elf.DT_NEEDED:
			if len(d.needed) < MaxEntries && !slices.Contains(d.needed, value) {
				d.needed = append(d.needed, value)
			}
		default:
			d.values[tag] = value
		}
	}
	return nil
}

// offset translates an address into a place in the file.
func (d *dynamic) offset(addr uint64) (int64, bool) {
	for _, p := range d.segments {
		if elf.ProgType(p.Type) == elf.PT_LOAD && addr >= p.Vaddr && addr-p.Vaddr < p.Filesz {
			return int64(p.Off + addr - p.Vaddr), true
		}
	}
	return 0, false
}

// str reads a string of the string table, or the empty string.
func (d *dynamic) str(off uint64, limit uint64) string {
	base, ok := d.offset(d.values[elf.DT_STRTAB])
	if size := d.values[elf.DT_STRSZ]; !ok || off >= size {
		return ""
	}
	size := min(d.values[elf.DT_STRSZ]-off, limit)
	b := make([]byte, size)
	for len(b) > 0 {
		if _, err := d.r.ReadAt(b, base+int64(off)); err == nil {
			break
		}
		b = b[:len(b)/2] // near the end of what was captured
	}
	b, _, _ = bytes.Cut(b, []byte{0})
	return string(b)
}

// glibcNeeded is the highest version GLIBC_x.y in the chain of needed symbol versions (GNU extension of
// the gABI, Elf64_Verneed and Elf64_Vernaux).
func (d *dynamic) glibcNeeded() (best string) {
	d.chain(elf.DT_VERNEED, 16, 12, func(at int64, b []byte) {
		d.list(at+int64(binary.LittleEndian.Uint32(b[8:])), 16, 12, func(_ int64, aux []byte) bool {
			best = higherGLIBC(best, d.str(uint64(binary.LittleEndian.Uint32(aux[8:])), maxELFName))
			return true
		})
	})
	return best
}

// glibcDefined is the highest one in the chain of definitions (Elf64_Verdef and Elf64_Verdaux).
func (d *dynamic) glibcDefined() (best string) {
	d.chain(elf.DT_VERDEF, 20, 16, func(at int64, b []byte) {
		d.list(at+int64(binary.LittleEndian.Uint32(b[12:])), 8, 4, func(_ int64, aux []byte) bool {
			best = higherGLIBC(best, d.str(uint64(binary.LittleEndian.Uint32(aux)), maxELFName))
			return false // the first name is the version's own, the others are its parents'
		})
	})
	return best
}

func (d *dynamic) chain(table elf.DynTag, size, next int, visit func(at int64, record []byte)) {
	if at, ok := d.offset(d.values[table]); ok && d.values[table] != 0 {
		d.list(at, size, next, func(at int64, record []byte) bool {
			visit(at, bytes.Clone(record))
			return true
		})
	}
}

// list visits records that are chained by a relative offset in their bytes [next, next+4), until the
// visitor has enough.
func (d *dynamic) list(at int64, size, next int, visit func(at int64, record []byte) bool) {
	b := make([]byte, size)
	for ; d.records > 0; d.records-- {
		if _, err := d.r.ReadAt(b, at); err != nil {
			return
		}
		step := binary.LittleEndian.Uint32(b[next:])
		if !visit(at, b) || step == 0 {
			return
		}
		at += int64(step)
	}
}

// higherGLIBC returns the higher of a version and that in a name GLIBC_x.y; GLIBC_PRIVATE and GLIBC_ABI_*
// are no versions.
func higherGLIBC(best, name string) string {
	if v, ok := strings.CutPrefix(name, "GLIBC_"); ok && isVersion(v) && CompareVersions(v, best) > 0 {
		return v
	}
	return best
}

func isVersion(v string) bool {
	for part := range strings.SplitSeq(v, ".") {
		if _, err := strconv.ParseUint(part, 10, 16); err != nil {
			return false
		}
	}
	return true
}

// CompareVersions compares versions of glibc such as "2.4" and "2.36" by their numbers.
func CompareVersions(a, b string) int {
	for a != "" || b != "" {
		var x, y string
		x, a, _ = strings.Cut(a, ".")
		y, b, _ = strings.Cut(b, ".")
		m, _ := strconv.Atoi(x)
		n, _ := strconv.Atoi(y)
		if m != n {
			return m - n
		}
	}
	return 0
}

// ParsePart returns what a capture would know of a file that begins with some bytes; nil if it is not a program.
func ParsePart(r io.ReaderAt, first []byte, size int64) *Facts {
	c := NewCapture(first, size, nil)
	if c == nil {
		return nil
	}
	f, err := Parse(&elfWindow{r, size, c.dynFrom, c.dynTo})
	if err != nil {
		return nil
	}
	return f
}

// elfWindow lets Parse read what it can read in a scan, so that it finds the same.
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
