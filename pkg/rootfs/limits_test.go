package rootfs_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/rootfs"
)

// What a layer claims is bounded before it is read: a few bytes can claim anything.
func TestLimits(t *testing.T) {
	scan := func(l rootfs.Limits, archive []byte) error {
		_, err := rootfs.Scan(context.Background(), bytes.NewReader(archive), digest(archive),
			rootfs.Options{Limits: l})
		return err
	}
	sparse := func(size int64) []byte {
		// A file of holes alone, in the form of GNU tar's version 0.1 (its manual, "Storing Sparse Files").
		return rawPAX(pax("GNU.sparse.major", "0") + pax("GNU.sparse.minor", "1") + pax("GNU.sparse.size",
			fmt.Sprint(size)) +
			pax("GNU.sparse.numblocks", "1") + pax("GNU.sparse.map", fmt.Sprintf("%d,0", size)))
	}
	err := scan(rootfs.Limits{}, sparse(1<<40))
	assert.ErrorIs(t, err, rootfs.ErrLimit)
	assert.NoError(t, scan(rootfs.Limits{}, sparse(1<<20)))
	assert.ErrorIs(t, scan(rootfs.Limits{FileBytes: 1 << 19}, sparse(1<<20)), rootfs.ErrLimit)
	two := Tar(t, File("a", strings.Repeat("x", 1000)), File("b", strings.Repeat("x", 1000)))
	assert.NoError(t, scan(rootfs.Limits{LayerBytes: 2000}, two))
	assert.ErrorIs(t, scan(rootfs.Limits{LayerBytes: 1999}, two), rootfs.ErrLimit)
	assert.ErrorIs(t, scan(rootfs.Limits{Files: 1}, two), rootfs.ErrLimit)
	index, err := rootfs.Scan(context.Background(), bytes.NewReader(two), digest(two), rootfs.Options{})
	require.NoError(t, err)
	for _, l := range []rootfs.Limits{{FileBytes: 999}, {LayerBytes: 1999}, {ImageBytes: 3999}, {Files: 3}} {
		room := rootfs.Room{Limits: l}
		err := room.Take(index)
		if err == nil {
			err = room.Take(index)
		}
		assert.ErrorIs(t, err, rootfs.ErrLimit, "%+v", l)
	}
	// What follows an archive is read for its digest, and not for ever.
	bomb := func(zeros int64) []byte {
		var b bytes.Buffer
		z, err := zstd.NewWriter(&b)
		require.NoError(t, err)
		_, err = z.Write(two)
		require.NoError(t, err)
		_, err = io.CopyN(z, zeroes{}, zeros)
		require.NoError(t, err)
		require.NoError(t, z.Close())
		return b.Bytes()
	}
	assert.ErrorIs(t, scan(rootfs.Limits{LayerBytes: 1 << 20, Files: 100}, bomb(64<<20)), rootfs.ErrLimit)
}

type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// pax is a record of an extended header (POSIX, pax).
func pax(key, value string) string {
	for n := len(key) + len(value) + 4; ; n++ {
		if r := fmt.Sprintf("%d %s=%s\n", n, key, value); len(r) == n {
			return r
		}
	}
}

// rawPAX is an archive of one file that has no content, with the records in its extended header.
func rawPAX(records string) []byte {
	var b bytes.Buffer
	header := func(name string, kind byte, size int) {
		h := make([]byte, 512)
		copy(h, name)
		copy(h[100:], "0000644\x000000000\x000000000\x00")
		copy(h[124:], fmt.Sprintf("%011o\x0000000000000\x00", size))
		h[156] = kind
		copy(h[257:], "ustar\x0000")
		copy(h[148:], "        ")
		sum := 0
		for _, c := range h {
			sum += int(c)
		}
		copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
		b.Write(h)
	}
	header("pax", 'x', len(records))
	b.WriteString(records + strings.Repeat("\x00", (512-len(records)%512)%512))
	header("big", '0', 0)
	b.Write(make([]byte, 1024))
	return b.Bytes()
}

// Paths that speak of thousands of directories do not fill the memory.
func TestImpliedDirectories(t *testing.T) {
	index := &rootfs.Index{}
	for i := range 2000 {
		index.Entries = append(index.Entries,
			rootfs.Entry{Path: fmt.Sprintf("/%d%s/f", i, strings.Repeat("/d", 2000)), Type: rootfs.Regular})
	}
	_, err := rootfs.Merge([]*rootfs.Index{index})
	assert.ErrorContains(t, err, "that are no entries")
	index.Entries = index.Entries[:10]
	_, err = rootfs.Merge([]*rootfs.Index{index})
	assert.NoError(t, err)
}
