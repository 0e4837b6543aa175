// Package enclave lays out enclaves as Gramine's loader does, so that they can be measured without it: from an enclave
// image (libpal.so), the bytes of a manifest, and the settings in its sgx table. It imports nothing that knows images.
package enclave

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"math/bits"

	"github.com/cconvert/cconvert/pkg/sgx"
)

// Geometry holds the numbers by which one version of Gramine lays out an enclave. They are compiled
// into its loader; sources of a full installation carry them in _graminelibos_offsets.py.
type Geometry struct {
	ssaFrames    uint64 // frames in a thread's state save area
	ssaFrameSize uint64 // bytes
	gprSize      uint64 // the general registers at a frame's end
	stackSize    uint64
	sigStackSize uint64
	heapMin      uint64 // lowest address of the heap
	canary       uint64 // stack protector value before the first random one
	xfrmMask     uint64
	features     []feature
	// Offsets in the page of thread-local data that the loader prepares.
	tls tlsOffsets
}

type tlsOffsets struct {
	self, canary, enclaveSize, tcs, stack, sigStackLow, sigStackHigh, ssa, gpr, manifestSize, heapMin, heapMax int
}

// feature is a CPU feature that a manifest can require or disable, in the order of evaluation.
type feature struct {
	name string
	xfrm uint64
}

// layouts are the known layout versions. Version 1 is that of Gramine v1.7 to v1.9.
var layouts = map[int]Geometry{
	1: {
		ssaFrames: 2, ssaFrameSize: 0x4000, gprSize: 0xb8,
		stackSize: 0x40000, sigStackSize: 0x10000, heapMin: 0x10000,
		canary:   0xbadbadbadbad,
		xfrmMask: 0xfffffffffff9ff1b,
		features: []feature{{"avx", 0x4}, {"avx512", 0xe4}, {"amx", 0x60000}, {"mpx", 0x18}, {"pkru", 0x200}},
		tls: tlsOffsets{
			self: 0x0, canary: 0x8, enclaveSize: 0x110, tcs: 0x118, stack: 0x120, sigStackLow: 0x130,
			sigStackHigh: 0x138,
			ssa:          0x148, gpr: 0x150, manifestSize: 0x1a0, heapMin: 0x1a8, heapMax: 0x1b0,
		},
	},
}

// GeometryOf returns the geometry of a layout version. A version that is unknown is an error.
func GeometryOf(version int) (Geometry, error) {
	g, ok := layouts[version]
	if !ok {
		return g, fmt.Errorf("enclave layout version %d is unknown", version)
	}
	return g, nil
}

// Version is the newest known layout version.
const Version = 1

// Fields of a thread control structure (SDM 3D, TCS).
const (
	tcsOSSA     = 0x10
	tcsNSSA     = 0x1c
	tcsOEntry   = 0x20
	tcsOGSBase  = 0x38
	tcsOFSLimit = 0x40
	tcsOGSLimit = 0x44
)

const (
	pageMask    = sgx.PageSize - 1
	maxPALBytes = 1 << 30 // of memory that a loader image may ask for
	maxSegments = 64
	maxEnclave  = 1 << 40 // bytes: every page is hashed
)

func roundUp(n uint64) uint64 { return (n + pageMask) &^ uint64(pageMask) }

// TooSmallError says that an enclave has no room for what must be in it.
type TooSmallError struct {
	Size   uint64 // bytes, as asked for
	Needed uint64 // bytes, the smallest that does, a power of two
}

func (e *TooSmallError) Error() string {
	return fmt.Sprintf("enclave size %s is too small: at least %s is needed",
		FormatSize(e.Size), FormatSize(e.Needed))
}

// Enclave is how Gramine builds an enclave: its memory, and what the signature says of it.
type Enclave struct {
	Layout sgx.Layout
	SGX    sgx.Settings

	geometry Geometry
}

// New lays out the enclave that the loader builds from an enclave image (libpal.so) and a manifest, byte for byte. Of
// the manifest only the sgx table is read. Its bytes are referred to, not copied.
func New(version int, pal, manifestText []byte) (*Enclave, error) {
	g, err := GeometryOf(version)
	if err != nil {
		return nil, err
	}
	settings, err := ReadSettings(manifestText)
	if err != nil {
		return nil, err
	}
	return g.Enclave(pal, manifestText, settings)
}

// Enclave lays out an enclave as New does, with settings that were read before.
func (g Geometry) Enclave(pal, manifestText []byte, m sgx.Settings) (*Enclave, error) {
	image, err := readPAL(pal)
	if err != nil {
		return nil, fmt.Errorf("reading the enclave image: %w", err)
	}
	l, err := g.layout(image, manifestText, m)
	if err != nil {
		return nil, err
	}
	return &Enclave{l, m, g}, nil
}

// SigStruct is the signature structure to be signed for the enclave with the given measurement.
func (e *Enclave) SigStruct(m sgx.Measurement, date sgx.Date) *sgx.SigStruct {
	return e.geometry.SigStruct(e.SGX, m, date)
}

// SigStruct is the signature structure to be signed for an enclave with these settings and this measurement.
func (g Geometry) SigStruct(settings sgx.Settings, m sgx.Measurement, date sgx.Date) *sgx.SigStruct {
	s := &sgx.SigStruct{
		Date: date, MREnclave: m, ISVProdID: settings.ISVProdID, ISVSVN: settings.ISVSVN,
		MiscMask: sgx.MiscMaskAll, Attributes: sgx.Attributes{Flags: sgx.FlagMode64, XFRM: sgx.XFRMLegacy},
	}
	s.AttributesMask = sgx.Attributes{Flags: sgx.FlagsMaskAll, XFRM: g.xfrmMask}
	if settings.Debug {
		s.Attributes.Flags |= sgx.FlagDebug
	}
	if settings.UseExInfo {
		s.MiscSelect |= sgx.MiscExInfo
	}
	for _, f := range g.features {
		switch settings.CPUFeatures[f.name] {
		case "required":
			s.Attributes.XFRM |= f.xfrm
			s.AttributesMask.XFRM |= f.xfrm
		case "disabled":
			s.Attributes.XFRM &^= f.xfrm
			s.AttributesMask.XFRM |= f.xfrm
		}
	}
	return s
}

// palImage is an enclave image's loadable part, as if linked at address 0.
type palImage struct {
	size     uint64 // of the memory it spans, whole pages
	entry    uint64
	segments []sgx.Area
}

func readPAL(file []byte) (*palImage, error) {
	f, err := elf.NewFile(bytes.NewReader(file))
	if err != nil {
		return nil, err
	}
	if f.Class != elf.ELFCLASS64 || f.Machine != elf.EM_X86_64 {
		return nil, fmt.Errorf("it is %v for %v, not a 64-bit program for x86-64", f.Class, f.Machine)
	}
	low, high := ^uint64(0), uint64(0)
	var segments int
	var inFile, inMemory uint64
	for _, p := range f.Progs {
		if p.Type != elf.PT_LOAD || p.Memsz == 0 {
			continue
		}
		if segments++; segments > maxSegments {
			return nil, fmt.Errorf("it has more than %d segments to load", maxSegments)
		}
		if p.Vaddr+p.Memsz < p.Vaddr || p.Vaddr+p.Memsz > 1<<47 || p.Filesz > p.Memsz ||
			p.Off+p.Filesz > uint64(len(file)) || p.Off > p.Off+p.Filesz {
			return nil, fmt.Errorf("segment at %#x does not fit", p.Vaddr)
		}
		if segments > 1 && p.Vaddr&^pageMask < high {
			return nil, fmt.Errorf("segment at %#x is not behind the one before: no page can be added twice", p.Vaddr)
		}
		low = min(low, p.Vaddr&^pageMask)
		high = max(high, roundUp(p.Vaddr+p.Memsz))
		inFile += p.Filesz
		inMemory += roundUp(p.Vaddr+p.Memsz) - p.Vaddr&^pageMask
	}
	if inFile > uint64(len(file)) || inMemory > maxPALBytes {
		return nil,
			fmt.Errorf("its segments take %d bytes of a file of %d, and %d of memory", inFile, len(file), inMemory)
	}
	if low >= high {
		return nil, fmt.Errorf("it has nothing to load")
	}
	if high-low > maxPALBytes {
		return nil, fmt.Errorf("it spans %d bytes, more than %d", high-low, maxPALBytes)
	}
	image := &palImage{size: high - low, entry: f.Entry - low}
	for _, p := range f.Progs {
		if p.Type != elf.PT_LOAD || p.Memsz == 0 {
			continue
		}
		start := p.Vaddr &^ pageMask
		flags := sgx.REG
		if p.Flags&elf.PF_R != 0 {
			flags |= sgx.R
		}
		if p.Flags&elf.PF_W != 0 {
			flags |= sgx.W
		}
		if p.Flags&elf.PF_X != 0 {
			flags |= sgx.X
		}
		data := append(make([]byte, p.Vaddr-start), file[p.Off:p.Off+p.Filesz]...)
		image.segments = append(image.segments, sgx.Area{
			Name: "pal", Offset: start - low, Size: roundUp(p.Vaddr+p.Memsz) - start, Flags: flags, Data: data,
		})
	}
	return image, nil
}

// layout places the areas from the enclave's top downwards and lists them in the order in which they
// are added.
func (g Geometry) layout(pal *palImage, manifestText []byte, m sgx.Settings) (sgx.Layout, error) {
	l := sgx.Layout{Size: m.EnclaveSize, SSAFrameSize: uint32(g.ssaFrameSize / sgx.PageSize)}
	threads := uint64(m.MaxThreads)
	ssaPerThread := g.ssaFrames * g.ssaFrameSize
	manifestArea := roundUp(uint64(len(manifestText)) + 1) // the NUL belongs to it

	needed := manifestArea + threads*(ssaPerThread+2*sgx.PageSize+g.stackSize+g.sigStackSize) + pal.size + g.heapMin
	if l.Size&(l.Size-1) != 0 || l.Size == 0 {
		return l,
			fmt.Errorf("enclave size %s is not a power of two: the nearest are %s and %s", FormatSize(l.Size),
				FormatSize(1<<max(bits.Len64(l.Size)-1, 12)),
				FormatSize(1<<max(bits.Len64(l.Size), 13)))
	}
	if l.Size > maxEnclave {
		return l, fmt.Errorf("enclave size %s is more than any CPU has memory for: at most %s is laid out",
			FormatSize(l.Size), FormatSize(maxEnclave))
	}
	if needed > l.Size {
		return l, &TooSmallError{l.Size, 1 << bits.Len64(needed-1)}
	}

	top := l.Size
	place := func(name string, size uint64, flags sgx.PageFlags) *sgx.Area {
		top -= size
		l.Areas = append(l.Areas, sgx.Area{Name: name, Offset: top, Size: size, Flags: flags})
		return &l.Areas[len(l.Areas)-1]
	}
	place("manifest", manifestArea, sgx.R|sgx.REG).Data = manifestText
	ssa := place("ssa", threads*ssaPerThread, sgx.R|sgx.W|sgx.REG).Offset
	tcs := place("tcs", threads*sgx.PageSize, sgx.TCS).Offset
	tls := place("tls", threads*sgx.PageSize, sgx.R|sgx.W|sgx.REG).Offset
	const tcsIndex, tlsIndex = 2, 3
	stacks := make([]uint64, threads)
	for t := range stacks {
		stacks[t] = place("stack", g.stackSize, sgx.R|sgx.W|sgx.REG).Offset
	}
	sigStacks := make([]uint64, threads)
	for t := range sigStacks {
		sigStacks[t] = place("sig_stack", g.sigStackSize, sgx.R|sgx.W|sgx.REG).Offset
	}
	top -= pal.size
	palBase := top
	for _, s := range pal.segments {
		s.Offset += palBase
		l.Areas = append(l.Areas, s)
	}
	if !m.EDMM && palBase > g.heapMin {
		l.Areas = append(l.Areas, sgx.Area{
			Name: "heap", Offset: g.heapMin, Size: palBase - g.heapMin,
			Flags: sgx.R | sgx.W | sgx.X | sgx.REG, Unmeasured: true,
		})
	}

	le := binary.LittleEndian
	tcsData, tlsData := make([]byte, threads*sgx.PageSize), make([]byte, threads*sgx.PageSize)
	for t := range threads {
		frame := ssa + t*ssaPerThread
		c := tcsData[t*sgx.PageSize:]
		le.PutUint64(c[tcsOSSA:], frame)
		le.PutUint32(c[tcsNSSA:], uint32(g.ssaFrames))
		le.PutUint64(c[tcsOEntry:], palBase+pal.entry)
		le.PutUint64(c[tcsOGSBase:], tls+t*sgx.PageSize)
		le.PutUint32(c[tcsOFSLimit:], pageMask)
		le.PutUint32(c[tcsOGSLimit:], pageMask)

		d, o := tlsData[t*sgx.PageSize:], g.tls
		le.PutUint64(d[o.self:], tls+t*sgx.PageSize)
		le.PutUint64(d[o.canary:], g.canary)
		le.PutUint64(d[o.enclaveSize:], l.Size)
		le.PutUint64(d[o.tcs:], tcs+t*sgx.PageSize)
		le.PutUint64(d[o.stack:], stacks[t]+g.stackSize)
		le.PutUint64(d[o.sigStackLow:], sigStacks[t])
		le.PutUint64(d[o.sigStackHigh:], sigStacks[t]+g.sigStackSize)
		le.PutUint64(d[o.ssa:], frame)
		le.PutUint64(d[o.gpr:], frame+g.ssaFrameSize-g.gprSize)
		le.PutUint64(d[o.manifestSize:], uint64(len(manifestText))+1)
		le.PutUint64(d[o.heapMin:], g.heapMin)
		le.PutUint64(d[o.heapMax:], palBase)
	}
	l.Areas[tcsIndex].Data, l.Areas[tlsIndex].Data = tcsData, tlsData
	return l, nil
}
