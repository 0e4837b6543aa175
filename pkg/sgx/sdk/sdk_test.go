package sdk_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/pkg/sgx"
	"github.com/cconvert/cconvert/pkg/sgx/sdk"
)

const vectors = "../../../testdata/vectors/sgx-sdk"

type vector struct {
	Name      string
	MREnclave sgx.Measurement `json:"mr_enclave"`
	MRSigner  sgx.Measurement `json:"mr_signer"`
	At        int             `json:"sigstruct_offset"`
	Config    struct {
		ProdID, ISVSVN                                  uint16
		StackMaxSize, HeapInitSize, ReservedMemInitSize uint64
		TCSNum, TCSMinPool, TCSPolicy                   uint32
		ReservedMemExecutable, EnableKSS                int
	}
}

func load(t testing.TB) (list []vector) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(vectors, "index.json"))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, &list))
	require.NotEmpty(t, list)
	return list
}

func read(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(vectors, name))
	require.NoError(t, err)
	return b
}

// What Intel's own tool has signed is measured to the bit.
func TestVectors(t *testing.T) {
	for _, v := range load(t) {
		file := read(t, v.Name+".signed.so")
		e, err := sdk.Open(file)
		require.NoError(t, err, v.Name)
		assert.Equal(t, file[v.At:v.At+sgx.SigStructSize], e.SigStruct, v.Name)
		s, err := sgx.ParseSigStruct(e.SigStruct)
		require.NoError(t, err, v.Name)
		m, err := e.Measure(context.Background())
		require.NoError(t, err, v.Name)
		assert.Equal(t, v.MREnclave, m, v.Name)
		assert.Equal(t, v.MREnclave, s.MREnclave, v.Name)
		assert.Equal(t, v.MRSigner, s.MRSigner(), v.Name)
		assert.Equal(t, v.Config.ProdID, s.ISVProdID, v.Name)
		assert.NoError(t, s.CheckEnclave(m, e.Attributes, e.MiscSelect), v.Name)
	}
}

// What Intel's own tool has written is written again, byte for byte, from the program that it was given and the
// configuration in the vectors.
func TestWholeMetadata(t *testing.T) {
	for _, v := range load(t) {
		e, err := sdk.Open(read(t, v.Name+".signed.so"))
		require.NoError(t, err)
		require.NoError(t, e.CheckMetadata(), v.Name)

		s, err := sgx.ParseSigStruct(e.SigStruct)
		require.NoError(t, err)
		flags := sgx.FlagMode64
		if v.Config.EnableKSS == 1 {
			flags |= sgx.FlagKSS
		}
		mask := ^s.AttributesMask.XFRM
		config := sdk.Config{
			HeapSize: v.Config.HeapInitSize, StackSize: v.Config.StackMaxSize,
			ReservedSize:       v.Config.ReservedMemInitSize,
			ReservedExecutable: v.Config.ReservedMemExecutable == 1, Threads: v.Config.TCSNum,
			Policy: v.Config.TCSPolicy, MinPool: v.Config.TCSMinPool,
			Attributes: sgx.Attributes{Flags: flags, XFRM: mask | s.Attributes.XFRM},
		}
		assert.Equal(t, config, e.Config(), v.Name)
		block, err := sdk.Metadata(read(t, "enclave.so"), config)
		require.NoError(t, err, v.Name)
		copy(block[64:], s.Bytes())
		signed := read(t, v.Name+".signed.so")
		const note = 0x5000 // bytes of the metadata's room, which is zero behind it
		assert.True(t, bytes.Equal(append(block, make([]byte, note-len(block))...), signed[v.At-64:v.At-64+note]),
			v.Name)
	}
}

// Metadata that differ anywhere are seen to, behind their end as well; of two, a processor would choose one.
func TestOtherMetadata(t *testing.T) {
	file, at := read(t, "default.signed.so"), load(t)[0].At-64
	for _, i := range []int{20, 36, 1000, 1890, 2000, 3700, 3725, 3990, 4200, 0x4fff} {
		changed := bytes.Clone(file)
		changed[at+i] ^= 1
		e, err := sdk.Open(changed)
		if err == nil {
			// That of the SIGSTRUCT is what its signature is for, and it is the configuration that says some of it.
			assert.Equal(t, i == 36 || i == 1000, e.CheckMetadata() == nil, i)
		}
	}
	two := bytes.Clone(file)
	copy(two[at+4176:], file[at:at+4176])
	_, err := sdk.Open(two)
	assert.ErrorIs(t, err, sdk.ErrMetadata)
}

// A byte that is measured, changed, gives another measurement; one of the metadata's tables is no longer an enclave, or
// another one.
func TestChanges(t *testing.T) {
	file := read(t, "default.signed.so")
	want := load(t)[0].MREnclave
	for _, at := range []int{0x1000, 0x2010, 0x3004} {
		changed := bytes.Clone(file)
		changed[at] ^= 1
		e, err := sdk.Open(changed)
		require.NoError(t, err)
		m, err := e.Measure(context.Background())
		require.NoError(t, err)
		assert.NotEqual(t, want, m, "%#x", at)
	}
	for _, bad := range [][]byte{nil, []byte("x"), file[:5000], read(t, "enclave.so"), read(t, "encl.c")} {
		_, err := sdk.Open(bad)
		assert.ErrorIs(t, err, sdk.ErrNone)
	}
}

// Files are anybody's: none of them ends in a panic, or takes more than its enclave may have. Changes are of two bytes
// that say where, in the headers or the metadata, and eight to be put there: a change anywhere in a file seldom meets
// either.
func FuzzMetadata(f *testing.F) {
	file := read(f, "default.signed.so")
	metadata := load(f)[0].At - 64
	for _, change := range []string{
		"\x28\x80\x00\x00\x00\x40\x00\x00\x00\x00", "\x58\x87\x00\x00\x00\x00\x00\x00\x00\x00",
		"\x38\x00\x01\x00\x01\x00\x01\x00\x01\x00",
	} {
		f.Add([]byte(change))
	}
	f.Fuzz(func(t *testing.T, changes []byte) {
		changed := bytes.Clone(file)
		for ; len(changes) >= 10; changes = changes[10:] {
			at := int(binary.LittleEndian.Uint16(changes))
			if at >= 0x8000 {
				at += metadata - 0x8000
			}
			copy(changed[min(at, len(changed)):], changes[2:10])
		}
		e, err := sdk.Open(changed)
		if err != nil {
			return
		}
		_ = e.CheckMetadata()
		size := uint64(0)
		for _, a := range e.Layout.Areas {
			size += a.Size
		}
		if size > 3*e.Layout.Size {
			t.Fatal(size, e.Layout.Size)
		}
	})
}
