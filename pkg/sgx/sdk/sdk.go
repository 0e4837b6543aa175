// Package sdk reads enclaves that were signed with Intel's SGX SDK: shared objects with a note in which its tool,
// sgx_sign, has put a SIGSTRUCT and how the enclave is laid out. [Open] finds them, and [Enclave.Measure] computes the
// MRENCLAVE that a CPU would, so that it is known whether an enclave is what its SIGSTRUCT says.
//
// The format is that of psw/urts and common/inc/metadata.h in Intel's linux-sgx, metadata of major version 2; what
// comes for SGX2 alone, memory that is added while the enclave runs, is no part of the measurement.
package sdk

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cconvert/cconvert/pkg/sgx"
)

// Errors of Open.
var (
	// ErrNone says that a file is no enclave of this kind.
	ErrNone = errors.New("not an enclave of Intel's SGX SDK")
	// ErrMetadata says that an enclave's metadata cannot be right.
	ErrMetadata = errors.New("the enclave's metadata is not right")
)

// MaxFile is how long a file may be that is looked into, in bytes.
const MaxFile = 256 << 20

const (
	section  = ".note.sgxmeta"
	noteName = "sgx_metadata\x00"
	magic    = 0x86A80294635D0E4C

	// Offsets in the metadata (linux-sgx, metadata_t).
	offVersion     = 8
	offSSAFrame    = 24
	offMiscSelect  = 32
	offEnclaveSize = 40
	offFlags       = 48
	offXFRM        = 56
	offSigStruct   = 64
	offPatches     = offSigStruct + sgx.SigStructSize
	offLayout      = offPatches + 8
	headerSize     = offLayout + 8

	entrySize = 32 // of patches and layout entries
	tcsSize   = 72 // of the template of a TCS (SDM 3D, TCS)

	maxEntries  = 4096
	maxSegments = 64
	maxEnclave  = 1 << 40 // bytes, as Gramine has it
	maxAreas    = 1 << 20 // for 65,536 threads of more areas than the SDK makes
)

// MaxMeasured is how many bytes are hashed of one enclave: ten seconds' worth.
const MaxMeasured = 8 << 30

// Attributes of a layout entry.
const (
	attrAdd    = 1 // EADD
	attrExtend = 2 // EEXTEND
)

// Identifiers of layout entries that are treated differently.
const (
	idTCS   = 4
	idGroup = 1 << 12 // repeats the entries before it
)

// Enclave is a signed enclave in a file.
type Enclave struct {
	// SigStruct is the signature structure, as stored. It need not be sound: see sgx.ParseSigStruct.
	SigStruct []byte
	// Version of the metadata, the major one in the upper half.
	Version uint64
	// Layout is the enclave's initial memory.
	Layout sgx.Layout
	// Attributes and MiscSelect are those that the enclave is created with.
	Attributes sgx.Attributes
	MiscSelect uint32

	file, meta []byte
}

// Open reads an enclave from the bytes of a file. The error is ErrNone or ErrMetadata.
func Open(file []byte) (*Enclave, error) {
	meta, err := metadata(file)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	e := &Enclave{
		file: file, meta: meta,
		SigStruct: meta[offSigStruct : offSigStruct+sgx.SigStructSize], Version: le.Uint64(meta[offVersion:]),
		Attributes: sgx.Attributes{Flags: le.Uint64(meta[offFlags:]), XFRM: le.Uint64(meta[offXFRM:])},
		MiscSelect: le.Uint32(meta[offMiscSelect:]),
		Layout:     sgx.Layout{Size: le.Uint64(meta[offEnclaveSize:]), SSAFrameSize: le.Uint32(meta[offSSAFrame:])},
	}
	if e.Layout.Size > maxEnclave {
		return nil, fmt.Errorf("%w: the enclave has %d bytes", ErrMetadata, e.Layout.Size)
	}
	image, err := patched(file, meta)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMetadata, err)
	}
	if err := e.program(image); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMetadata, err)
	}
	if err := e.rest(meta); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMetadata, err)
	}
	if err := e.Layout.Check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMetadata, err)
	}
	return e, nil
}

// Hashed is how many bytes Measure hashes.
func (e *Enclave) Hashed() uint64 {
	var pages, measured uint64
	for _, a := range e.Layout.Areas {
		pages += a.Size / sgx.PageSize
		if !a.Unmeasured {
			measured += a.Size
		}
	}
	// 64 bytes are hashed for each page that is added (SDM 3D, EADD), and all of those that are measured.
	return measured + 64*pages
}

// Measure computes the MRENCLAVE. The error is ErrMetadata if more than MaxMeasured bytes would be hashed.
func (e *Enclave) Measure(ctx context.Context) (sgx.Measurement, error) {
	if e.Hashed() > MaxMeasured {
		return sgx.Measurement{},
			fmt.Errorf("%w: measuring it means hashing more than %d bytes", ErrMetadata, uint64(MaxMeasured))
	}
	return sgx.Measure(ctx, e.Layout)
}

// metadata finds the note. Its name has 13 bytes and no padding, so what follows lies at any offset.
func metadata(file []byte) ([]byte, error) {
	if len(file) > MaxFile {
		return nil, fmt.Errorf("%w: it has more than %d bytes", ErrNone, MaxFile)
	}
	f, err := elf.NewFile(bytes.NewReader(file))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNone, err)
	}
	if f.Class != elf.ELFCLASS64 || f.Machine != elf.EM_X86_64 {
		return nil, fmt.Errorf("%w: it is not for x86-64", ErrNone)
	}
	var s *elf.Section
	for _, other := range f.Sections {
		switch {
		case other.Name != section:
		case s != nil:
			return nil, fmt.Errorf("%w: it has the section %s twice", ErrMetadata, section)
		default:
			s = other
		}
	}
	if s == nil {
		return nil, fmt.Errorf("%w: it has no section %s", ErrNone, section)
	}
	if s.Type != elf.SHT_NOTE { // the SDK's loader looks at the name alone
		return nil, fmt.Errorf("%w: its section %s is no note", ErrMetadata, section)
	}
	if s.Offset > uint64(len(file)) || s.FileSize > uint64(len(file))-s.Offset {
		return nil, fmt.Errorf("%w: its section %s is not in the file", ErrMetadata, section)
	}
	note := file[s.Offset : s.Offset+s.FileSize]
	const at = 12 + len(noteName)
	if len(note) < at+headerSize || binary.LittleEndian.Uint32(note) != uint32(len(noteName)) ||
		string(note[12:at]) != noteName {
		return nil, fmt.Errorf("%w: its note is another one", ErrNone)
	}
	meta := note[at:]
	if size := binary.LittleEndian.Uint32(note[4:]); uint64(size) < uint64(len(meta)) {
		meta = meta[:size]
	}
	if len(meta) < headerSize || binary.LittleEndian.Uint64(meta) != magic {
		return nil, fmt.Errorf("%w: it was not signed", ErrNone)
	}
	if v := binary.LittleEndian.Uint64(meta[offVersion:]) >> 32; v != 1 && v != 2 {
		return nil, fmt.Errorf("%w: version %d is not known", ErrMetadata, v)
	}
	// What runs on a processor decides which of several is loaded: with SGX2, another one (linux-sgx, urts).
	// Nor do readers agree on which section has the name.
	if bytes.Count(file, binary.LittleEndian.AppendUint64(nil, magic)) > 1 {
		return nil, fmt.Errorf("%w: it has several of them, of which the loader chooses one", ErrMetadata)
	}
	return meta, nil
}

// table returns the entries of a directory of the metadata.
func table(meta []byte, directory int) ([][]byte, error) {
	at, size := uint64(binary.LittleEndian.Uint32(meta[directory:])),
		uint64(binary.LittleEndian.Uint32(meta[directory+4:]))
	if at > uint64(len(meta)) || size > uint64(len(meta))-at || size%entrySize != 0 || size/entrySize > maxEntries {
		return nil, fmt.Errorf("it has a table of %d bytes at %d", size, at)
	}
	var entries [][]byte
	for rest := meta[at : at+size]; len(rest) > 0; rest = rest[entrySize:] {
		entries = append(entries, rest[:entrySize])
	}
	return entries, nil
}

// patched is the file as it is loaded: with what the signing tool knew only at the end.
func patched(file, meta []byte) ([]byte, error) {
	patches, err := table(meta, offPatches)
	if err != nil {
		return nil, err
	}
	out := bytes.Clone(file)
	sum := uint64(0)
	for _, p := range patches {
		to, from, size := binary.LittleEndian.Uint64(p), uint64(binary.LittleEndian.Uint32(p[8:])),
			uint64(binary.LittleEndian.Uint32(p[12:]))
		if from > uint64(len(meta)) || size > uint64(len(meta))-from || to > uint64(len(out)) ||
			size > uint64(len(out))-to {
			return nil, fmt.Errorf("it patches %d bytes at %#x, from %#x", size, to, from)
		}
		if sum += size; sum > uint64(len(file)) {
			return nil, errors.New("it patches more than the file has")
		}
		copy(out[to:], meta[from:from+size])
	}
	return out, nil
}

// program lays out the segments, in the order of the program headers.
func (e *Enclave) program(image []byte) error {
	// The patches take the section headers away, which the reader of ELF files would miss.
	progs, err := segments(image)
	if err != nil {
		return err
	}
	sum := uint64(0)
	for _, p := range progs {
		if p.Filesz > p.Memsz || p.Off > uint64(len(image)) || p.Filesz > uint64(len(image))-p.Off ||
			p.Memsz > e.Layout.Size || p.Vaddr > e.Layout.Size {
			return fmt.Errorf("a segment of %d bytes at %#x does not fit", p.Memsz, p.Vaddr)
		}
		if sum += p.Filesz; sum > uint64(len(image))+maxSegments*sgx.PageSize { // they can share pages
			return errors.New("its segments are more than the file has")
		}
		begin := p.Vaddr &^ (sgx.PageSize - 1)
		end := (p.Vaddr + p.Memsz + sgx.PageSize - 1) &^ (sgx.PageSize - 1)
		a := sgx.Area{Name: "program", Offset: begin, Size: end - begin, Flags: sgx.REG}
		a.Data = append(make([]byte, p.Vaddr-begin, p.Vaddr-begin+p.Filesz), image[p.Off:p.Off+p.Filesz]...)
		if elf.ProgFlag(p.Flags)&elf.PF_R != 0 {
			a.Flags |= sgx.R
		}
		if elf.ProgFlag(p.Flags)&elf.PF_W != 0 {
			a.Flags |= sgx.W
		}
		if elf.ProgFlag(p.Flags)&elf.PF_X != 0 {
			a.Flags |= sgx.X
		}
		e.Layout.Areas = append(e.Layout.Areas, a)
	}
	return nil
}

// segments are the PT_LOADs of an ELF file of 64 bits (gABI, "Program Header").
func segments(image []byte) ([]elf.Prog64, error) {
	var h elf.Header64
	if err := binary.Read(bytes.NewReader(image), binary.LittleEndian, &h); err != nil {
		return nil, err
	}
	if h.Phoff > uint64(len(image)) {
		return nil, errors.New("its program headers are not in the file")
	}
	var progs []elf.Prog64
	for r := bytes.NewReader(image[h.Phoff:]); h.Phnum > 0; h.Phnum-- {
		var p elf.Prog64
		if err := binary.Read(r, binary.LittleEndian, &p); err != nil {
			return nil, err
		}
		if elf.ProgType(p.Type) == elf.PT_LOAD && p.Memsz > 0 {
			if progs = append(progs, p); len(progs) > maxSegments {
				return nil, fmt.Errorf("it has more than %d segments", maxSegments)
			}
		}
	}
	if len(progs) == 0 {
		return nil, errors.New("it has no segments")
	}
	return progs, nil
}

// rest lays out what follows the program: heap, and for each thread stack, TCS, state save areas and data.
func (e *Enclave) rest(meta []byte) error {
	entries, err := table(meta, offLayout)
	if err != nil {
		return err
	}
	pages, areas := uint64(0), 0
	filled := patterns{}
	add := func(entry []byte, shift uint64) error {
		if areas++; areas > maxAreas { // those of no page, and that are not loaded, among them
			return fmt.Errorf("it lays out more than %d areas", maxAreas)
		}
		a, ok, err := area(meta, entry, shift, filled)
		if err != nil || !ok {
			return err
		}
		if pages += a.Size / sgx.PageSize; pages > e.Layout.Size/sgx.PageSize {
			return errors.New("it lays out more pages than there are")
		}
		e.Layout.Areas = append(e.Layout.Areas, a)
		return nil
	}
	le := binary.LittleEndian
	for i, entry := range entries {
		if le.Uint16(entry)&idGroup == 0 {
			if err := add(entry, 0); err != nil {
				return err
			}
			continue
		}
		count, times, step := int(le.Uint16(entry[2:])), uint64(le.Uint32(entry[4:])), le.Uint64(entry[8:])
		if count == 0 || count > i || step == 0 || times > e.Layout.Size/step {
			return fmt.Errorf("it repeats %d entries %d times", count, times)
		}
		for n := range times {
			for _, again := range entries[i-count : i] {
				if err := add(again, (n+1)*step); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// names of areas by the identifiers of layout entries (linux-sgx, arch_layout_id).
var names = map[uint16]string{1: "heap", 4: "tcs", 5: "thread data", 6: "ssa", 8: "stack", 20: "reserved"}

// area is what a layout entry describes, moved by some bytes; false for one that is not loaded.
func area(meta, entry []byte, shift uint64, filled patterns) (sgx.Area, bool, error) {
	le := binary.LittleEndian
	id, attr := le.Uint16(entry), le.Uint16(entry[2:])
	if id&idGroup != 0 {
		return sgx.Area{}, false, errors.New("it repeats repetitions")
	}
	if attr&attrAdd == 0 {
		return sgx.Area{}, false, nil
	}
	a := sgx.Area{
		Name: names[id], Offset: le.Uint64(entry[8:]) + shift, Size: uint64(le.Uint32(entry[4:])) * sgx.PageSize,
		Flags: sgx.PageFlags(le.Uint64(entry[24:])), Unmeasured: attr&attrExtend == 0,
	}
	if a.Name == "" {
		a.Name = fmt.Sprintf("layout %d", id)
	}
	size, at := uint64(le.Uint32(entry[16:])), uint64(le.Uint32(entry[20:]))
	switch {
	case at != 0:
		if at > uint64(len(meta)) || size > uint64(len(meta))-at || size > a.Size {
			return a, false, fmt.Errorf("it has %d bytes of content at %d", size, at)
		}
		a.Data = meta[at : at+size]
		if id == idTCS {
			if size != tcsSize {
				return a, false, fmt.Errorf("it has a TCS of %d bytes", size)
			}
			a.Data = relocated(a.Data, a.Offset)
		}
	case size != 0 && !a.Unmeasured: // a pattern of four bytes
		if a.Size > maxPattern {
			return a, false, fmt.Errorf("it fills %d bytes", a.Size)
		}
		if a.Data = filled.get(uint32(size), a.Size); a.Data == nil {
			return a, false, errors.New("it fills areas in too many ways")
		}
	}
	return a, true, nil
}

// maxPatterns is how many kinds of filled areas there may be: all stacks are one.
const maxPatterns = 2

// maxPattern is how large an area may be that is filled with a pattern: the stack of a thread.
const maxPattern = 256 << 20

// patterns are areas filled with one, of which the threads' stacks are all the same.
type patterns map[[2]uint64][]byte

func (p patterns) get(pattern uint32, size uint64) []byte {
	key := [2]uint64{uint64(pattern), size}
	if p[key] == nil && len(p) < maxPatterns {
		p[key] = bytes.Repeat(binary.LittleEndian.AppendUint32(nil, pattern), int(size/4))
	}
	return p[key]
}

// relocated is a TCS at its place: OSSA, OFSBASE and OGSBASE are relative to it in the template (SDM 3D, TCS).
func relocated(template []byte, at uint64) []byte {
	out := bytes.Clone(template)
	for _, field := range []int{16, 48, 56} {
		binary.LittleEndian.PutUint64(out[field:], binary.LittleEndian.Uint64(out[field:])+at)
	}
	return out
}
