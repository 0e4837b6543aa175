package sdk

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"github.com/cconvert/cconvert/pkg/sgx"
)

// Config is what the signing tool was told of an enclave (linux-sgx, "Enclave Configuration File"), as its metadata
// shows it. Sizes are in bytes.
type Config struct {
	HeapSize           uint64 `json:"heap_size"`
	StackSize          uint64 `json:"stack_size"` // of each thread
	ReservedSize       uint64 `json:"reserved_size,omitempty"`
	ReservedExecutable bool   `json:"reserved_executable,omitempty"`
	// Threads is how many can be in the enclave at a time: TCSNum.
	Threads uint32 `json:"threads"`
	// Policy is TCSPolicy, and MinPool is TCSMinPool.
	Policy  uint32 `json:"tcs_policy"`
	MinPool uint32 `json:"tcs_min_pool"`

	Attributes sgx.Attributes `json:"-"`
	MiscSelect uint32         `json:"-"`
}

// version is that of the metadata that Metadata writes: without what SGX2 can do.
const version = 1<<32 | 4

// Sizes and places in the data of the metadata, which the signing tool writes in this order.
const (
	tcsAt     = headerSize
	globalAt  = tcsAt + tcsSize
	zerosAt   = globalAt + global
	patchesAt = zerosAt + 8
	layoutAt  = patchesAt + 4*entrySize

	global      = 1760 // global_data_t, of which the template is put over the program's g_global_data
	globalSlots = 43   // layout entries in it
	globalTCS   = 272
	globalCount = 344
	globalTable = 352
	globalSize  = 1744 // of the enclave
	gprSize     = 184  // sgx: GPRSGX, at the end of a state save area
)

// Identifiers and flags of layout entries that Metadata makes.
const (
	idHeap, idTD, idSSA, idStack, idGuard, idReserved = 1, 5, 6, 8, 10, 20
	idThreads                                         = idGroup | 9

	guardPages   = 16
	stackPattern = 0xcccccccc
)

// item is a layout entry.
type item struct {
	id, attr uint16
	pages    uint32
	rva      uint64
	size, at uint32 // of the content
	flags    sgx.PageFlags
	count    uint16 // of a group: how many entries before it are repeated
	times    uint32
	step     uint64
}

func (i item) append(b []byte) []byte {
	le := binary.LittleEndian
	if i.id&idGroup != 0 {
		b = le.AppendUint32(le.AppendUint16(le.AppendUint16(b, i.id), i.count), i.times)
		return append(le.AppendUint64(b, i.step), make([]byte, 16)...)
	}
	b = le.AppendUint64(le.AppendUint32(le.AppendUint16(le.AppendUint16(b, i.id), i.attr), i.pages), i.rva)
	return le.AppendUint64(le.AppendUint32(le.AppendUint32(b, i.size), i.at), uint64(i.flags))
}

// Metadata computes the metadata that the tool of SDK 2.20 writes for a program and a configuration, without what only
// SGX2 can do. The SIGSTRUCT in it stays zero. It is as long as the metadata; what follows in the note is zero.
func Metadata(file []byte, c Config) ([]byte, error) {
	f, err := elf.NewFile(bytes.NewReader(file))
	if err != nil {
		return nil, err
	}
	l, err := newLayout(f, c)
	if err != nil {
		return nil, err
	}
	at, err := l.globalData(f, len(file))
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	stored := l.table(true)
	b := make([]byte, layoutAt, layoutAt+len(stored)*entrySize)
	le.PutUint64(b, magic)
	le.PutUint64(b[offVersion:], version)
	le.PutUint32(b[16:], uint32(layoutAt+len(stored)*entrySize))
	le.PutUint32(b[20:], c.Policy)
	le.PutUint32(b[offSSAFrame:], l.frame)
	le.PutUint32(b[28:], l.xsave)
	le.PutUint32(b[offMiscSelect:], c.MiscSelect)
	le.PutUint32(b[36:], c.MinPool)
	le.PutUint64(b[offEnclaveSize:], l.size)
	le.PutUint64(b[offFlags:], c.Attributes.Flags)
	le.PutUint64(b[offXFRM:], c.Attributes.XFRM)
	for i, n := range []uint32{patchesAt, 4 * entrySize, layoutAt, uint32(len(stored) * entrySize)} {
		le.PutUint32(b[offPatches+4*i:], n)
	}
	copy(b[tcsAt:], l.tcs())
	copy(b[globalAt:], l.global())
	// The tool takes the section headers away, of which it and strip(1) may leave different ones.
	for i, p := range []struct {
		to         uint64
		from, size uint32
	}{{at, globalAt, global}, {60, zerosAt, 2}, {40, zerosAt, 8}, {62, zerosAt, 2}} {
		e := b[patchesAt+i*entrySize:]
		le.PutUint64(e, p.to)
		le.PutUint32(e[8:], p.from)
		le.PutUint32(e[12:], p.size)
	}
	for _, i := range stored {
		b = i.append(b)
	}
	return b, nil
}

// layout is where everything is in an enclave.
type layout struct {
	c            Config
	program      uint64 // bytes, in whole pages
	entry        uint64
	tls          uint64 // bytes of a thread's static data, aligned
	frame, xsave uint32 // pages, bytes of a state save area
	size         uint64 // of the enclave
	first        []item // heap and the first thread
	thread       []item // the second one
	last         []item // reserved memory
}

func newLayout(f *elf.File, c Config) (*layout, error) {
	l := &layout{c: c, entry: f.Entry, xsave: xsaveSize(c.Attributes.XFRM)}
	if symbols, err := dynamicSymbols(f); err == nil {
		for _, s := range symbols {
			if s.Name == "enclave_entry" {
				l.entry = s.Value
			}
		}
	}
	for _, p := range f.Progs {
		switch p.Type {
		case elf.PT_LOAD:
			if p.Vaddr > maxProgram || p.Memsz > maxProgram {
				return nil, errors.New("a segment is out of all bounds")
			}
			l.program = max(l.program, roundUp(p.Vaddr+p.Memsz, sgx.PageSize))
		case elf.PT_TLS:
			if p.Memsz > maxProgram || p.Align > maxProgram {
				return nil, errors.New("the threads' data are out of all bounds")
			}
			l.tls = roundUp(p.Memsz, max(p.Align, 1))
		}
	}
	if c.HeapSize|c.StackSize|c.ReservedSize > maxArea || c.Threads == 0 || c.Threads > maxThreads {
		return nil, errors.New("the configuration is out of all bounds")
	}
	l.frame = uint32(roundUp(uint64(l.xsave)+gprSize, sgx.PageSize) / sgx.PageSize)
	at := l.program
	place := func(i item) item {
		i.rva = at
		at += uint64(i.pages) * sgx.PageSize
		return i
	}
	pages := func(bytes uint64) uint32 { return uint32(roundUp(bytes, sgx.PageSize) / sgx.PageSize) }
	guard := item{id: idGuard, pages: guardPages}
	thread := func() []item {
		const rw = sgx.REG | sgx.R | sgx.W
		return []item{
			place(guard), place(item{
				id: idStack, attr: attrAdd | attrExtend, pages: pages(c.StackSize), size: stackPattern, flags: rw,
			}),
			place(guard),
			place(item{id: idTCS, attr: attrAdd | attrExtend, pages: 1, size: tcsSize, at: tcsAt, flags: sgx.TCS}),
			place(item{id: idSSA, attr: attrAdd | attrExtend, pages: 2 * l.frame, flags: rw}),
			place(guard), place(item{id: idTD, attr: attrAdd | attrExtend, pages: 1 + pages(l.tls), flags: rw}),
		}
	}
	l.first = append(l.first,
		place(item{id: idHeap, attr: attrAdd, pages: pages(c.HeapSize), flags: sgx.REG | sgx.R | sgx.W}))
	l.first = append(l.first, thread()...)
	if c.Threads > 1 {
		begin := at
		l.thread = thread()
		at += uint64(c.Threads-2) * (at - begin)
	}
	if c.ReservedSize > 0 {
		flags := sgx.REG | sgx.R | sgx.W
		if c.ReservedExecutable {
			flags |= sgx.X
		}
		l.last = append(l.last, place(item{id: idReserved, attr: attrAdd, pages: pages(c.ReservedSize), flags: flags}))
	}
	l.size = 1 << bits.Len64(at-1)
	if rest := l.size - at; rest > 0 {
		l.last = append(l.last, item{id: idGuard, pages: uint32(rest / sgx.PageSize), rva: at})
	}
	return l, nil
}

const (
	maxProgram = 1 << 32
	maxArea    = 1 << 40
	maxThreads = 1 << 16
)

func roundUp(n, to uint64) uint64 { return (n + to - 1) / to * to }

// group repeats a thread's entries.
func (l *layout) group(times uint32) item {
	begin, end := l.first[1].rva, l.first[len(l.first)-1]
	step := end.rva + uint64(end.pages)*sgx.PageSize - begin
	return item{id: idThreads, count: uint16(len(l.first) - 1), times: times, step: step}
}

// table is the list of layout entries: as measured, or as it is stored, where the threads after the first are one group
// and the last guard is left out with them.
func (l *layout) table(stored bool) []item {
	list := append([]item{}, l.first...)
	last := l.last
	switch {
	case l.c.Threads == 1:
	case stored:
		list = append(list, l.group(l.c.Threads-1))
		if n := len(last); n > 0 && last[n-1].id == idGuard {
			last = last[:n-1]
		}
	default:
		list = append(list, l.thread...)
		if l.c.Threads > 2 {
			list = append(list, l.group(l.c.Threads-2))
		}
	}
	return append(list, last...)
}

// base is the TCS of the first thread, to which what threads find is relative.
func (l *layout) base() uint64 { return l.first[4].rva }

// self is where a thread's data begin, behind its static data.
func (l *layout) self() uint64 {
	td := l.first[len(l.first)-1]
	return td.rva + uint64(td.pages-1)*sgx.PageSize - l.base()
}

// tcs is the template of a TCS (SDM 3D, TCS): what is relative to it is relocated at each one's place.
func (l *layout) tcs() []byte {
	b := make([]byte, tcsSize)
	le := binary.LittleEndian
	le.PutUint64(b[16:], l.first[5].rva-l.base()) // OSSA
	le.PutUint32(b[28:], 2)                       // NSSA
	le.PutUint64(b[32:], l.entry)
	le.PutUint64(b[48:], l.self()) // OFSBASE
	le.PutUint64(b[56:], l.self()) // OGSBASE
	le.PutUint64(b[64:], ^uint64(0))
	return b
}

// global is the template of g_global_data (linux-sgx, global_data_t).
func (l *layout) global() []byte {
	b := make([]byte, global)
	put := func(at int, n uint64) { binary.LittleEndian.PutUint64(b[at:], n) }
	stack, ssa := l.first[2], l.first[5].rva-l.base()
	put(8, l.size)
	put(16, l.first[0].rva)
	put(24, l.c.HeapSize)
	for _, i := range l.last {
		if i.id == idReserved {
			put(32, i.rva)
			put(40, l.c.ReservedSize)
		}
	}
	if l.c.ReservedExecutable {
		put(48, 1)
	}
	put(56, uint64(l.c.Policy))
	put(64, uint64(l.c.Threads))
	put(72, uint64(l.c.Threads))
	// thread_data_t of the first thread
	top := stack.rva + uint64(stack.pages)*sgx.PageSize - l.base()
	put(80, l.self())
	put(88, top)
	put(96, top)
	put(104, stack.rva-l.base())
	put(112, ssa+uint64(l.frame)*sgx.PageSize-gprSize)
	put(136, uint64(l.xsave))
	put(168, ssa)
	put(184, l.self()-l.tls)
	put(192, l.self()+104)
	copy(b[globalTCS:], l.tcs())
	table := l.table(false)
	binary.LittleEndian.PutUint32(b[globalCount:], uint32(len(table)))
	at := b[globalTable:globalTable]
	for _, i := range table[:min(len(table), globalSlots)] {
		at = i.append(at)
	}
	put(globalSize, l.size)
	return b
}

// maxSymbols is how many bytes an enclave's dynamic symbols may have, and their names. Those of the SDK have a few.
const maxSymbols = 4 << 20

func dynamicSymbols(f *elf.File) ([]elf.Symbol, error) {
	for _, s := range f.Sections {
		if s.Type != elf.SHT_DYNSYM {
			continue
		}
		if s.Size > maxSymbols || int(s.Link) < len(f.Sections) && f.Sections[s.Link].Size > maxSymbols {
			return nil, fmt.Errorf("its dynamic symbols have more than %d bytes", maxSymbols)
		}
	}
	return f.DynamicSymbols()
}

// globalData is the place of g_global_data in the file, which the template is put over.
func (l *layout) globalData(f *elf.File, size int) (uint64, error) {
	symbols, err := dynamicSymbols(f)
	if err != nil {
		return 0, err
	}
	for _, s := range symbols {
		if s.Name != "g_global_data" {
			continue
		}
		for _, p := range f.Progs {
			if p.Type == elf.PT_LOAD && s.Value >= p.Vaddr && s.Value-p.Vaddr <= p.Filesz &&
				p.Filesz-(s.Value-p.Vaddr) >= global {
				if at := s.Value - p.Vaddr + p.Off; at <= uint64(size) {
					return at, nil
				}
			}
		}
	}
	return 0, errors.New("it has no g_global_data")
}

// xsaveSize is how many bytes XSAVE needs for the highest feature (linux-sgx, and SDM 1, "XSAVE Area").
func xsaveSize(xfrm uint64) uint32 {
	for _, f := range []struct {
		mask uint64
		size uint32
	}{{0x60000, 11008}, {0x200, 2752}, {0xe0, 2688}, {0x18, 1088}, {0x4, 832}} {
		if xfrm&f.mask != 0 {
			return f.size
		}
	}
	return 576
}

// Config reads the configuration from the metadata.
func (e *Enclave) Config() Config {
	le := binary.LittleEndian
	c := Config{
		Threads: 1, Policy: le.Uint32(e.meta[20:]), MinPool: le.Uint32(e.meta[36:]), Attributes: e.Attributes,
		MiscSelect: e.MiscSelect,
	}
	entries, _ := table(e.meta, offLayout) // Open has read it
	for _, entry := range entries {
		size := uint64(le.Uint32(entry[4:])) * sgx.PageSize
		switch le.Uint16(entry) {
		case idHeap:
			c.HeapSize = size
		case idStack:
			c.StackSize = size
		case idReserved:
			c.ReservedSize, c.ReservedExecutable = size, sgx.PageFlags(le.Uint64(entry[24:]))&sgx.X != 0
		case idThreads:
			c.Threads += le.Uint32(entry[4:])
		}
	}
	return c
}

// CheckMetadata compares the metadata with what the tool of SDK 2.20 would have written for the program, byte for byte,
// by the configuration that it shows. Other versions of the tool write other metadata, so that an error is no proof of
// a change: what is loaded is measured in any case.
func (e *Enclave) CheckMetadata() error {
	want, err := Metadata(e.file, e.Config())
	if err != nil {
		return err
	}
	copy(want[offSigStruct:], e.SigStruct)
	if len(e.meta) < len(want) || !bytes.Equal(e.meta[:len(want)], want) {
		for i := range want {
			if i >= len(e.meta) || e.meta[i] != want[i] {
				return fmt.Errorf("from byte %d it is not what the tool of SDK 2.20 writes", i)
			}
		}
	}
	for i, b := range e.meta[len(want):] {
		if b != 0 {
			return fmt.Errorf("byte %d, after its end, is not zero", len(want)+i)
		}
	}
	return nil
}
