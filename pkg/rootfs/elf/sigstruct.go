package elf

import "bytes"

// A SIGSTRUCT in a file is known by its two headers, 16 bytes each (SDM 3D, SIGSTRUCT).
var (
	sigHeader  = []byte{6, 0, 0, 0, 0xe1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0}
	sigHeader2 = []byte{1, 1, 0, 0, 0x60, 0, 0, 0, 0x60, 0, 0, 0, 1, 0, 0, 0}
)

const (
	sigSize      = 1808
	sigHeader2At = 24
	maxSigs      = 4 // in a file
)

// sigFinder finds the SIGSTRUCTs in a file that passes by: enclaves of Intel's SDK, Open Enclave and EGo are ELF files
// with one of them in a section, wherever that is, and at any offset in it. Whoever wants to know more of an enclave
// reads the file by its sections.
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

// search notes the complete ones that begin before a place.
func (s *sigFinder) search(b []byte, before int) {
	for at := 0; len(s.found) < maxSigs; at++ {
		next := bytes.Index(b[at:min(len(b), before+len(sigHeader)-1)], sigHeader)
		if next < 0 {
			return
		}
		at += next
		if at+sigSize > len(b) {
			return
		}
		if one := b[at : at+sigSize]; bytes.HasPrefix(one[sigHeader2At:], sigHeader2) && !s.has(one) {
			s.found = append(s.found, string(one))
		}
	}
}

// has reports whether one was found before: at the end of a piece it is seen twice.
func (s *sigFinder) has(one []byte) bool {
	for _, f := range s.found {
		if f == string(one) {
			return true
		}
	}
	return false
}
