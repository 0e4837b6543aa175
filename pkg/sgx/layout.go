package sgx

import "fmt"

// PageSize is the size of an enclave page in bytes.
const PageSize = 4096

// PageFlags are the SECINFO.FLAGS of a page (SDM 3D, SECINFO).
type PageFlags uint64

// Page permissions and page types.
const (
	R   PageFlags = 0x1
	W   PageFlags = 0x2
	X   PageFlags = 0x4
	TCS PageFlags = 0x100 // thread control structure
	REG PageFlags = 0x200 // regular page
)

// String returns the permissions and the type in the notation "rwx reg".
func (f PageFlags) String() string {
	b := []byte("--- ")
	for i, p := range []PageFlags{R, W, X} {
		if f&p != 0 {
			b[i] = "rwx"[i]
		}
	}
	switch {
	case f&TCS != 0:
		return string(b) + "tcs"
	case f&REG != 0:
		return string(b) + "reg"
	}
	return string(b) + "?"
}

// Area is a run of enclave pages with the same flags.
type Area struct {
	// Name says what the area is for; it is not measured.
	Name string
	// Offset of the first page from the enclave's base, in bytes; a multiple of PageSize.
	Offset uint64
	// Size in bytes; a multiple of PageSize.
	Size  uint64
	Flags PageFlags
	// Data is the initial content, at most Size bytes; zeroes follow.
	Data []byte
	// Unmeasured pages are added without their content being hashed (EADD without EEXTEND).
	Unmeasured bool
}

// Layout is an enclave's initial memory, in the order in which it is added.
type Layout struct {
	// Size of the enclave's address range in bytes; a power of two (SDM 3D, SECS.SIZE).
	Size uint64
	// SSAFrameSize is the size of a state save area frame in pages (SECS.SSAFRAMESIZE).
	SSAFrameSize uint32
	Areas        []Area
}

// Check reports what would make the hardware refuse the layout: a size that is not a power of two,
// or areas that are unaligned, too large for their content, or outside the enclave.
func (l Layout) Check() error {
	if l.Size < 2*PageSize || l.Size&(l.Size-1) != 0 {
		return fmt.Errorf("enclave size %#x is not a power of two", l.Size)
	}
	for _, a := range l.Areas {
		switch {
		case a.Offset%PageSize != 0 || a.Size%PageSize != 0:
			return fmt.Errorf("area %s at %#x+%#x is not page aligned", a.Name, a.Offset, a.Size)
		case a.Offset >= l.Size || a.Size > l.Size-a.Offset:
			return fmt.Errorf("area %s at %#x+%#x is outside of the enclave of size %#x", a.Name, a.Offset, a.Size,
				l.Size)
		case uint64(len(a.Data)) > a.Size:
			return fmt.Errorf("area %s holds %d bytes but has room for %d", a.Name, len(a.Data), a.Size)
		}
	}
	return nil
}
