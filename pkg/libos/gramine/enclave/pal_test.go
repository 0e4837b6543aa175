package enclave

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// An enclave image is a stranger's as well: its segments take no more than the file has, and no page twice.
func TestEnclaveImagesAreBounded(t *testing.T) {
	const page = 4096
	segment := func(i int, off, size, memory uint64) elf.Prog64 {
		return elf.Prog64{
			Type: uint32(elf.PT_LOAD), Flags: 5, Off: off, Vaddr: uint64(i) * page, Filesz: size, Memsz: memory,
			Align: page,
		}
	}
	for want, of := range map[string]func(i int) elf.Prog64{
		"":                              func(i int) elf.Prog64 { return segment(i, uint64(i)*page, page, page) },
		"segments take":                 func(i int) elf.Prog64 { return segment(i, 0, page, page) },
		"is not behind the one before":  func(i int) elf.Prog64 { return segment(0, uint64(i)*page, page, page) },
		"more than 64 segments to load": func(i int) elf.Prog64 { return segment(i, 0, 0, page) },
		"it spans":                      func(i int) elf.Prog64 { return segment(i*(1<<19), 0, 0, page) },
	} {
		segments := 8
		if want == "more than 64 segments to load" {
			segments = 65
		}
		var b bytes.Buffer
		h := elf.Header64{
			Type: uint16(elf.ET_DYN), Machine: uint16(elf.EM_X86_64), Version: 1, Phoff: 64, Ehsize: 64, Phentsize: 56,
			Phnum: uint16(segments),
		}
		copy(h.Ident[:], "\x7fELF\x02\x01\x01")
		require.NoError(t, binary.Write(&b, binary.LittleEndian, h))
		for i := range segments {
			require.NoError(t, binary.Write(&b, binary.LittleEndian, of(i)))
		}
		size := 8 * page
		if want == "segments take" {
			size = 2 * page
		}
		b.Write(make([]byte, max(0, size-b.Len())))
		_, err := readPAL(b.Bytes())
		if want == "" {
			assert.NoError(t, err)
			continue
		}
		assert.ErrorContains(t, err, want)
	}
}
