package elf

import (
	"debug/elf"
	"encoding/binary"
	"slices"
)

// watched are the functions whose use says what a program will ask of the system it runs on.
var watched = map[string]bool{
	"flock": true, "getifaddrs": true, "if_nameindex": true, "iconv_open": true, "shmget": true, "setlocale": true,
	"fork": true, "vfork": true, "posix_spawn": true, "posix_spawnp": true,
}

// maxSymbols is how many entries of a symbol table are looked at.
const maxSymbols = 1 << 18

// imports lists the watched functions among the undefined symbols. How many symbols there are is not
// written anywhere: DT_HASH counts all of them (gABI, "Hash Table"), and of DT_GNU_HASH the second word is
// the first symbol that can be found by it, before which the undefined ones stand.
func (d *dynamic) imports() []string {
	table, ok := d.offset(d.values[elf.DT_SYMTAB])
	if !ok {
		return nil
	}
	count := uint32(0)
	word := func(tag elf.DynTag) uint32 {
		var b [4]byte
		if at, ok := d.offset(d.values[tag]); ok && d.values[tag] != 0 {
			if _, err := d.r.ReadAt(b[:], at+4); err == nil {
				return binary.LittleEndian.Uint32(b[:])
			}
		}
		return 0
	}
	if count = word(elf.DT_HASH); count == 0 {
		count = word(elf.DT_GNU_HASH)
	}
	symbols := make([]byte, min(count, maxSymbols)*elf.Sym64Size)
	for len(symbols) > 0 {
		if _, err := d.r.ReadAt(symbols, table); err == nil {
			break
		}
		symbols = symbols[:len(symbols)/2/elf.Sym64Size*elf.Sym64Size] // near the end of what was captured
	}
	var found []string
	for ; len(symbols) > 0; symbols = symbols[elf.Sym64Size:] {
		// Elf64_Sym: st_name at 0, st_shndx at 6.
		if elf.SectionIndex(binary.LittleEndian.Uint16(symbols[6:])) != elf.SHN_UNDEF {
			continue
		}
		name := d.str(uint64(binary.LittleEndian.Uint32(symbols)), 16)
		if watched[name] && !slices.Contains(found, name) {
			found = append(found, name)
		}
	}
	slices.Sort(found)
	return found
}
