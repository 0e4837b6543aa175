package sdk

import (
	"context"
	"debug/elf"
	"encoding/binary"
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/pkg/sgx"
)

// Areas filled with a pattern are held in memory: all stacks are one of them, and no file has many.
func TestPatternsAreFew(t *testing.T) {
	p := patterns{}
	for range 1000 {
		assert.Len(t, p.get(1, 8), 8)
		assert.Len(t, p.get(2, 8), 8)
	}
	for _, other := range []uint64{4, 12, maxPattern} {
		assert.Nil(t, p.get(1, other))
	}
	assert.Nil(t, p.get(3, 8))
}

func TestSegmentsAreFew(t *testing.T) {
	signed, err := os.ReadFile("../../../testdata/vectors/sgx-sdk/default.signed.so")
	require.NoError(t, err)
	for n, ok := range map[int]bool{60: true, 65: false} {
		file := append([]byte(nil), signed...)
		at := uint64(len(file))
		binary.LittleEndian.PutUint64(file[32:], at)        // e_phoff
		binary.LittleEndian.PutUint16(file[56:], uint16(n)) // e_phnum
		for i := range n {
			file, err = binary.Append(file, binary.LittleEndian, elf.Prog64{
				Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R), Vaddr: uint64(i) << 12, Off: uint64(i) << 12,
				Filesz: 1, Memsz: 1, Align: 4096,
			})
			require.NoError(t, err)
		}
		_, err = Open(file)
		if ok {
			assert.NotContains(t, errorText(err), "segments")
		} else {
			assert.ErrorContains(t, err, "more than 64 segments")
		}
	}
}

// There is one enclave in a file, wherever a second note would be: readers do not agree on the names of sections.
func TestTwoNotes(t *testing.T) {
	signed, err := os.ReadFile("../../../testdata/vectors/sgx-sdk/default.signed.so")
	require.NoError(t, err)
	_, err = Open(append(signed, binary.LittleEndian.AppendUint64([]byte("x"), magic)...))
	assert.ErrorContains(t, err, "several")
}

// Patches and segments are no more than the file is.
func TestPatchesAreFew(t *testing.T) {
	signed, err := os.ReadFile("../../../testdata/vectors/sgx-sdk/default.signed.so")
	require.NoError(t, err)
	meta, err := metadata(signed)
	require.NoError(t, err)
	patches, err := table(meta, offPatches)
	require.NoError(t, err)
	require.Greater(t, len(patches), 1)
	file := make([]byte, len(meta)+len(patches)*20)
	for _, p := range patches {
		binary.LittleEndian.PutUint64(p, 0)
		binary.LittleEndian.PutUint32(p[8:], 0)
		binary.LittleEndian.PutUint32(p[12:], uint32(len(meta)))
	}
	_, err = patched(file, meta)
	assert.ErrorContains(t, err, "patches more than the file has")

	at := uint64(len(signed))
	binary.LittleEndian.PutUint64(signed[32:], at)
	binary.LittleEndian.PutUint16(signed[56:], 60)
	for range 60 {
		signed, err = binary.Append(signed, binary.LittleEndian,
			elf.Prog64{Type: uint32(elf.PT_LOAD), Filesz: at, Memsz: at, Align: 4096})
		require.NoError(t, err)
	}
	_, err = Open(signed)
	assert.ErrorContains(t, err, "more than the file has")
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// What is to be hashed is bounded, however few bytes say how much that is.
func TestMeasuredBytesAreBounded(t *testing.T) {
	for _, a := range []sgx.Area{{Size: 512 << 30}, {Size: 1 << 40, Unmeasured: true}} {
		e := Enclave{Layout: sgx.Layout{Size: 2 << 40, Areas: []sgx.Area{a}}}
		_, err := e.Measure(context.Background())
		assert.ErrorIs(t, err, ErrMetadata)
	}
}

// A group repeats the entries before it as often as it says, those of no page too.
func TestGroupsAreBounded(t *testing.T) {
	for _, attributes := range []uint16{0, attrAdd} {
		file, err := os.ReadFile("../../../testdata/vectors/sgx-sdk/default.signed.so")
		require.NoError(t, err)
		meta, err := metadata(file)
		require.NoError(t, err)
		entries, err := table(meta, offLayout)
		require.NoError(t, err)
		for _, e := range entries {
			clear(e)
			binary.LittleEndian.PutUint16(e, 1)
			binary.LittleEndian.PutUint16(e[2:], attributes)
		}
		group := entries[len(entries)-1]
		binary.LittleEndian.PutUint16(group, idGroup|9)
		binary.LittleEndian.PutUint16(group[2:], uint16(len(entries)-1))
		binary.LittleEndian.PutUint32(group[4:], 1<<31)
		binary.LittleEndian.PutUint64(group[8:], 1)
		binary.LittleEndian.PutUint64(meta[offEnclaveSize:], 1<<40)
		_, err = Open(file)
		assert.ErrorContains(t, err, "more than 1048576 areas")
	}
}
