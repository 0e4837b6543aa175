//go:build linux && amd64

package startcheck

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cconvert/cconvert/pkg/sgx"
)

// Numbers of the driver's requests (Linux, arch/x86/include/uapi/asm/sgx.h). The size of the argument, in the
// other bits of the request, is not looked at.
const (
	sgxMagic    = 0xa4
	sgxCreate   = 0
	sgxAddPages = 1
	sgxInit     = 2

	secsSize     = 4096
	pageMeasure  = 1 // SGX_PAGE_MEASURE
	batch        = 256 * sgx.PageSize
	maxSize      = 1 << 46
	maxAreaPages = 1 << 34
)

// memory reads the loader's memory.
type memory interface {
	read(at uint64, to []byte) error
	write(at uint64, from []byte) error
}

// driver stands in for the kernel's SGX driver and for the CPU.
type driver struct {
	result  *Result
	builder *sgx.Builder
	attr    sgx.Attributes
	misc    uint32
	added   [][2]uint64 // offsets of pages, from and to
	// resize gives the device's file the size of the enclave.
	resize func(uint64) error
}

var errDriver = errors.New("the loader's request to the SGX driver is not valid")

// request answers an ioctl. Done says that it was EINIT.
func (d *driver) request(ctx context.Context, m memory, number byte, arg uint64) (done bool, err error) {
	switch number {
	case sgxCreate:
		return false, d.create(m, arg)
	case sgxAddPages:
		return false, d.addPages(ctx, m, arg)
	case sgxInit:
		return true, d.init(m, arg)
	}
	return false, nil
}

// words reads 64-bit numbers.
func words(m memory, at uint64, n int) ([]uint64, error) {
	b := make([]byte, 8*n)
	if err := m.read(at, b); err != nil {
		return nil, err
	}
	w := make([]uint64, n)
	for i := range w {
		w[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
	return w, nil
}

// create begins an enclave by its SECS (SDM 3D, SECS).
func (d *driver) create(m memory, arg uint64) error {
	w, err := words(m, arg, 1)
	if err != nil {
		return err
	}
	secs := make([]byte, secsSize)
	if err := m.read(w[0], secs); err != nil {
		return err
	}
	le := binary.LittleEndian
	size := le.Uint64(secs)
	if size == 0 || size&(size-1) != 0 || size > maxSize {
		return fmt.Errorf("%w: an enclave of %#x bytes", errDriver, size)
	}
	d.builder = sgx.NewBuilder(size, le.Uint32(secs[16:]))
	d.misc = le.Uint32(secs[20:])
	d.attr = sgx.Attributes{Flags: le.Uint64(secs[48:]), XFRM: le.Uint64(secs[56:])}
	*d.result, d.added = Result{Size: size}, nil
	return d.resize(size)
}

// addPages adds pages to the enclave (struct sgx_enclave_add_pages).
func (d *driver) addPages(ctx context.Context, m memory, arg uint64) error {
	if d.builder == nil {
		return fmt.Errorf("%w: pages are added to no enclave", errDriver)
	}
	w, err := words(m, arg, 5)
	if err != nil {
		return err
	}
	src, offset, length, secinfo, flags := w[0], w[1], w[2], w[3], w[4]
	info, err := words(m, secinfo, 1)
	if err != nil {
		return err
	}
	if length%sgx.PageSize != 0 || offset%sgx.PageSize != 0 || offset > d.result.Size || length > d.result.Size-offset {
		return fmt.Errorf("%w: pages at %#x+%#x", errDriver, offset, length)
	}
	if err := d.occupy(offset, offset+length); err != nil {
		return err
	}
	if d.result.Pages += length / sgx.PageSize; d.result.Pages > maxAreaPages {
		return fmt.Errorf("%w: more pages than an enclave has", errDriver)
	}
	area := sgx.Area{Offset: offset, Size: length, Flags: sgx.PageFlags(info[0]), Unmeasured: flags&pageMeasure == 0}
	if area.Unmeasured {
		err = d.builder.Add(ctx, area)
	} else {
		d.result.MeasuredPages += length / sgx.PageSize
		buf := make([]byte, min(length, batch))
		for done := uint64(0); done < length && err == nil; done += area.Size {
			area.Offset, area.Size = offset+done, min(batch, length-done)
			area.Data = buf[:area.Size]
			if err = m.read(src+done, area.Data); err == nil {
				err = d.builder.Add(ctx, area)
			}
		}
	}
	if err != nil {
		return err
	}
	return m.write(arg+40, binary.LittleEndian.AppendUint64(nil, length)) // how many bytes were added
}

// occupy notes the pages from one offset to another. None can be added twice (SDM 3D, EADD).
func (d *driver) occupy(from, to uint64) error {
	for _, r := range d.added {
		if from < r[1] && to > r[0] {
			return fmt.Errorf("%w: pages at %#x are there already", errDriver, max(from, r[0]))
		}
	}
	if n := len(d.added); n > 0 && d.added[n-1][1] == from { // as a rule it goes on where it was
		d.added[n-1][1] = to
		return nil
	}
	d.added = append(d.added, [2]uint64{from, to})
	return nil
}

// init does what the CPU does with a SIGSTRUCT (SDM 3D, EINIT). What depends on the machine's own features, which
// parts of the extended state the loader asked for, is compared under the masks as well.
func (d *driver) init(m memory, arg uint64) error {
	if d.builder == nil {
		return fmt.Errorf("%w: EINIT of no enclave", errDriver)
	}
	w, err := words(m, arg, 1)
	if err != nil {
		return err
	}
	b := make([]byte, sgx.SigStructSize)
	if err := m.read(w[0], b); err != nil {
		return err
	}
	r := d.result
	r.Reached, r.MREnclave, r.Refused = true, d.builder.Measurement(), []string{}
	s, err := sgx.ParseSigStruct(b)
	var check *sgx.CheckError
	if errors.As(err, &check) {
		r.Refused = append(r.Refused, check.Failed...)
	}
	r.Signed, r.SigStruct = s.MREnclave, b
	attr := d.attr
	attr.Flags |= sgx.FlagMode64 // the CPU sets it itself for a 64-bit enclave
	// The extended state is the machine's on which the enclave will run, not this one's.
	attr.XFRM = attr.XFRM&^s.AttributesMask.XFRM | s.Attributes.XFRM&s.AttributesMask.XFRM
	if err := s.CheckEnclave(r.MREnclave, attr, d.misc); err != nil {
		r.Refused = append(r.Refused, err.Error())
	}
	return nil
}
