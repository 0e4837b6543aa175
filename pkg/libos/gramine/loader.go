package gramine

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
)

// The loader is the untrusted program that builds the enclave. It is linked to the libraries of the
// distribution that it was built on, which an image need not have: so they come along, and the loader
// is patched to use them and nothing of the image's. The loader is not measured: changing it is sound.
const (
	loaderInterp = "/cconvert/ld.so"
	// loaderRPath leads from the loader's own place to its libraries. It shares the 28 bytes of the
	// original interpreter's path ("/lib64/ld-linux-x86-64.so.2" and NUL) with loaderInterp.
	loaderRPath = "$ORIGIN/lib"
)

// steering are the paths by which a dynamic linker has others decide what it loads (ld.so(8)): a file of libraries to
// be loaded first, a cache of where libraries are, and directories of variants for newer processors. In the linker that
// comes with the runtime they lead below /dev/null, which is no directory in any container, and so to nothing. Each has
// the length of what it replaces.
var steering = map[string]string{
	"/etc/ld.so.preload": "/dev/null/.preload",
	"/etc/ld.so.cache":   "/dev/null/.cache",
}

// variants begins the name of the directories of variants for newer processors. Compilers put it into instructions, in
// pieces of eight bytes.
const variants, noVariants = "glibc-hw", "cconv-hw"

// loaderLibs is where the loader's libraries are, by loaderRPath.
const loaderLibs = Prefix + "/lib"

// variantDirs are the directories of variants below each of libraries (ld.so(8), "Hardware capabilities"), of old
// versions of glibc and, as patchLinker renames it, of new ones.
var variantDirs = []string{"tls", "x86_64", "haswell", "avx512_1", "xeon_phi", noVariants + "caps"}

// patchLinker has the runtime's dynamic linker ask nothing of the image what to load.
func patchLinker(file []byte) []byte {
	out := bytes.Clone(file)
	for from, to := range steering {
		copy(out, bytes.ReplaceAll(out, []byte("\x00"+from), []byte("\x00"+to)))
	}
	copy(out, bytes.ReplaceAll(out, []byte(variants), []byte(noVariants)))
	return out
}

// patchLoader sets the interpreter of a dynamic program, in place, and gives it a DT_RPATH. That
// is the older form of DT_RUNPATH, which an LD_LIBRARY_PATH in the image's environment cannot override
// (gABI, "Shared Object Dependencies"). The entry is put into the unused room at the end of .dynamic.
func patchLoader(file []byte) ([]byte, error) {
	f, err := elf.NewFile(bytes.NewReader(file))
	if err != nil {
		return nil, fmt.Errorf("reading the loader: %w", err)
	}
	if f.Class != elf.ELFCLASS64 || f.Data != elf.ELFDATA2LSB {
		return nil, errors.New("the loader is not a 64-bit program")
	}
	var interp, dynamic *elf.Prog
	for _, p := range f.Progs {
		switch p.Type {
		case elf.PT_INTERP:
			interp = p
		case elf.PT_DYNAMIC:
			dynamic = p
		}
	}
	if interp == nil || dynamic == nil {
		return nil, errors.New("the loader is not dynamically linked")
	}
	for _, p := range []*elf.Prog{interp, dynamic} {
		if p.Off > uint64(len(file)) || p.Filesz > uint64(len(file))-p.Off {
			return nil, errors.New("the loader's segments exceed the file")
		}
	}
	text := loaderInterp + "\x00" + loaderRPath + "\x00"
	if uint64(len(text)) > interp.Filesz {
		return nil,
			fmt.Errorf("the loader's interpreter path has room for %d bytes, %d are needed", interp.Filesz, len(text))
	}
	out := bytes.Clone(file)
	room := out[interp.Off : interp.Off+interp.Filesz]
	clear(room)
	copy(room, text)

	table := out[dynamic.Off : dynamic.Off+dynamic.Filesz]
	le := binary.LittleEndian
	var strtab uint64
	slot := -1
	for o := 0; o+16 <= len(table); o += 16 {
		tag := elf.DynTag(le.Uint64(table[o:]))
		if tag == elf.DT_STRTAB {
			strtab = le.Uint64(table[o+8:])
		}
		if tag == elf.DT_RUNPATH || tag == elf.DT_RPATH {
			slot = o
		}
		if tag == elf.DT_NULL {
			// The last entry must stay DT_NULL.
			if slot < 0 && o+32 <= len(table) {
				slot = o
			}
			break
		}
	}
	if slot < 0 || strtab == 0 {
		return nil, errors.New("the loader's dynamic section has no room for a library path")
	}
	// Strings are named by their distance from the string table; this one lies before it, and the
	// linker's addition wraps around.
	le.PutUint64(table[slot:], uint64(elf.DT_RPATH))
	le.PutUint64(table[slot+8:], interp.Vaddr+uint64(len(loaderInterp))+1-strtab)
	// The program header that names the interpreter keeps its size: the path ends at the first NUL.
	return out, nil
}
