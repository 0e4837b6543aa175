package rootfs

import (
	"bytes"
	"encoding/binary"
)

// A SIGSTRUCT in a file is known by its two headers, 16 bytes each (SDM 3D, SIGSTRUCT).
var (
	sigHeader  = []byte{6, 0, 0, 0, 0xe1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0}
	sigHeader2 = []byte{1, 1, 0, 0, 0x60, 0, 0, 0, 0x60, 0, 0, 0, 1, 0, 0, 0}
	sigBegin   = binary.LittleEndian.Uint64(sigHeader)
)

const (
	sigSize      = 1808
	sigHeader2At = 24
	sigAlign     = 4 // of the sections that hold one
	maxSigs      = 4 // in a file
)

// sigFinder finds the SIGSTRUCTs in a file that passes by: enclaves of Intel's SDK, Open Enclave and EGo are ELF
// files with one of them in a section, wherever that is. All pieces but the last are of a multiple of sigAlign bytes.
type sigFinder struct {
	tail  []byte // the end of what passed
	found []string
}

func (s *sigFinder) write(b []byte) {
	if len(s.tail) > 0 {
		// What begins in the tail ends in b, or is not complete yet.
		s.search(append(s.tail, b[:min(len(b), sigSize)]...), len(s.tail))
	}
	s.search(b, len(b))
	if len(b) >= sigSize {
		s.tail = append(s.tail[:0], b[len(b)-sigSize:]...)
		return
	}
	s.tail = append(s.tail, b...)
	s.tail = s.tail[max(0, len(s.tail)-sigSize):]
}

// search notes the complete ones that begin before a place. Every program of every image passes here, so it looks at
// aligned places only, and at eight bytes first.
func (s *sigFinder) search(b []byte, before int) {
	for at := 0; at < before && at+sigSize <= len(b); at += sigAlign {
		if binary.LittleEndian.Uint64(b[at:]) != sigBegin || len(s.found) == maxSigs {
			continue
		}
		if one := b[at : at+sigSize]; bytes.HasPrefix(one, sigHeader) && bytes.HasPrefix(one[sigHeader2At:], sigHeader2) && !s.has(one) {
			s.found = append(s.found, string(one))
		}
	}
}

// has says whether one was found before: at the end of a piece it is seen twice.
func (s *sigFinder) has(one []byte) bool {
	for _, f := range s.found {
		if f == string(one) {
			return true
		}
	}
	return false
}
