package sgx

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
)

// Measurement is an MRENCLAVE or an MRSIGNER: a SHA-256.
type Measurement [sha256.Size]byte

// String is the lower-case hexadecimal form.
func (m Measurement) String() string { return hex.EncodeToString(m[:]) }

// MarshalText makes a Measurement appear in hexadecimal in JSON.
func (m Measurement) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads the hexadecimal form.
func (m *Measurement) UnmarshalText(b []byte) error {
	if len(b) != hex.EncodedLen(len(m)) {
		return fmt.Errorf("measurement %q is not %d hexadecimal digits", b, hex.EncodedLen(len(m)))
	}
	_, err := hex.Decode(m[:], b)
	return err
}

// The measurement is a SHA-256 over 64-byte records (SDM 3D, ECREATE, EADD, EEXTEND).
const (
	recordSize = 64
	chunkSize  = 256 // bytes that one EEXTEND measures

	// A measured page is one EADD record and sixteen of EEXTEND with their bytes.
	measuredPage = recordSize + PageSize/chunkSize*(recordSize+chunkSize)

	// Records are hashed in batches: the hash runs at full speed only on large inputs.
	batchPages   = 16
	batchRecords = 1024
)

// Measure computes the MRENCLAVE of an enclave that is built as the layout says. It takes as long as
// SHA-256 over the records; it stops early only with the context's error.
func Measure(ctx context.Context, l Layout) (Measurement, error) {
	if err := l.Check(); err != nil {
		return Measurement{}, err
	}
	b := NewBuilder(l.Size, l.SSAFrameSize)
	for _, a := range l.Areas {
		if err := b.Add(ctx, a); err != nil {
			return Measurement{}, err
		}
	}
	return b.Measurement(), nil
}

// Builder measures an enclave while it is built, as the CPU does: from ECREATE to EINIT.
type Builder struct {
	hash hash.Hash
	// Batches of records, for areas of either kind, made when the first one comes: an enclave has two areas for each
	// thread.
	measured, unmeasured []byte
}

// NewBuilder begins an enclave (SDM 3D, ECREATE) of a size in bytes, with state save area frames of so many
// pages.
func NewBuilder(size uint64, ssaFrameSize uint32) *Builder {
	b := &Builder{hash: sha256.New()}
	var r [recordSize]byte
	copy(r[:], "ECREATE\x00")
	binary.LittleEndian.PutUint32(r[8:], ssaFrameSize)
	binary.LittleEndian.PutUint64(r[12:], size)
	b.hash.Write(r[:])
	return b
}

// Add adds an area's pages in ascending order (SDM 3D, EADD and EEXTEND). The area is not checked. The
// only error is the context's.
func (b *Builder) Add(ctx context.Context, a Area) error {
	if a.Unmeasured {
		return b.addUnmeasured(ctx, a)
	}
	return b.addMeasured(ctx, a)
}

// Measurement is the MRENCLAVE of what was added so far.
func (b *Builder) Measurement() (m Measurement) {
	b.hash.Sum(m[:0])
	return m
}

func eadd(r []byte, flags PageFlags) {
	copy(r, "EADD\x00\x00\x00\x00")
	binary.LittleEndian.PutUint64(r[16:], uint64(flags))
}

// addUnmeasured hashes the EADD records of the pages, which differ in the offset alone.
func (b *Builder) addUnmeasured(ctx context.Context, a Area) error {
	if b.unmeasured == nil {
		b.unmeasured = make([]byte, batchRecords*recordSize)
	}
	buf := b.unmeasured
	for o := 0; o < len(buf); o += recordSize {
		eadd(buf[o:], a.Flags)
	}
	for page, end := a.Offset, a.Offset+a.Size; page < end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := 0
		for ; n < len(buf) && page < end; n += recordSize {
			binary.LittleEndian.PutUint64(buf[n+8:], page)
			page += PageSize
		}
		b.hash.Write(buf[:n])
	}
	return nil
}

// addMeasured hashes the records and the content of the pages.
func (b *Builder) addMeasured(ctx context.Context, a Area) error {
	if b.measured == nil {
		b.measured = make([]byte, batchPages*measuredPage)
		for o := 0; o < len(b.measured); o += measuredPage {
			for c := o + recordSize; c < o+measuredPage; c += recordSize + chunkSize {
				copy(b.measured[c:], "EEXTEND\x00")
			}
		}
	}
	buf := b.measured
	for o := 0; o < len(buf); o += measuredPage {
		eadd(buf[o:], a.Flags)
	}
	data := a.Data
	for page, end := a.Offset, a.Offset+a.Size; page < end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := 0
		for ; n < len(buf) && page < end; n += measuredPage {
			binary.LittleEndian.PutUint64(buf[n+8:], page)
			for c := n + recordSize; c < n+measuredPage; c += recordSize + chunkSize {
				binary.LittleEndian.PutUint64(buf[c+8:], page)
				chunk := buf[c+recordSize : c+recordSize+chunkSize]
				got := copy(chunk, data)
				clear(chunk[got:])
				data = data[got:]
				page += chunkSize
			}
		}
		b.hash.Write(buf[:n])
	}
	return nil
}
