package rootfs_test

import (
	"bytes"
	"context"
	"io"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/rootfs"
	"github.com/cconvert/cconvert/pkg/rootfs/toc"
)

// counted counts the bytes that are read.
type counted struct {
	r io.ReaderAt
	n int64
}

func (c *counted) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.r.ReadAt(p, off)
	c.n += int64(n)
	return n, err
}

// chunked is the compression of zstd:chunked, for package estargz.
type chunked struct {
	*zstdchunked.Compressor
	*zstdchunked.Decompressor
}

func lazyLayer(t *testing.T, archive []byte, o ...estargz.Option) (blob []byte, tocDigest string) {
	t.Helper()
	b, err := estargz.Build(io.NewSectionReader(bytes.NewReader(archive), 0, int64(len(archive))), o...)
	require.NoError(t, err)
	blob, err = io.ReadAll(b)
	require.NoError(t, err)
	require.NoError(t, b.Close())
	return blob, b.TOCDigest().String()
}

// What a table of contents gives is what reading the layer gives, with a part of its bytes.
func TestScanTOC(t *testing.T) {
	long := strings.Repeat("0123456789abcdef", 5000)
	data := make([]byte, 8<<20)
	for i, x := 0, uint32(1); i < len(data); i++ {
		x = x*1664525 + 1013904223
		data[i] = byte(x >> 24)
	}
	archive := Tar(t, Dir("etc"), File("etc/passwd", "root\n"), File("keep/long", long), File("keep/empty", ""),
		Symlink("l", "etc/passwd"),
		Program("bin/app", ELF("/lib64/ld-linux-x86-64.so.2")+long), File("lib/libx.so.1", ELF("")),
		Program("run.sh", "#!/bin/sh\ntrue\n"), Program("tool", "#!/usr/bin/env python3\n"+long),
		Hardlink("bin/app2", "bin/app"), File("etc/.wh.gone", ""), File("data", string(data)))
	o := rootfs.Options{Keep: []string{"/etc/passwd", "/keep/*"}}
	metadata := map[string]string{}
	for name, c := range map[string]struct {
		options []estargz.Option
		vouch   func(table string) map[string]string
	}{
		"eStargz": {[]estargz.Option{estargz.WithChunkSize(20_000)}, func(table string) map[string]string {
			return map[string]string{estargz.TOCJSONDigestAnnotation: table}
		}},
		"eStargz, shared chunks": {[]estargz.Option{estargz.WithMinChunkSize(100_000)},
			func(table string) map[string]string {
				return map[string]string{estargz.TOCJSONDigestAnnotation: table}
			}},
		"zstd:chunked": {
			[]estargz.Option{
				estargz.WithChunkSize(20_000), estargz.WithCompression(chunked{
					&zstdchunked.Compressor{CompressionLevel: zstd.SpeedDefault, Metadata: metadata},
					&zstdchunked.Decompressor{},
				}),
			},
			func(string) map[string]string { return metadata },
		},
	} {
		t.Run(name, func(t *testing.T) {
			blob, table := lazyLayer(t, archive, c.options...)
			vouched := c.vouch(table)
			want, err := rootfs.Scan(context.Background(), bytes.NewReader(blob), digest(blob), o)
			require.NoError(t, err)
			r := &counted{r: bytes.NewReader(blob)}
			got, err := rootfs.ScanTOC(context.Background(), r, int64(len(blob)), digest(blob), vouched, o)
			require.NoError(t, err)
			assert.Less(t, r.n, int64(len(blob)/2), "the data was not read")
			byPath := func(list []rootfs.Entry) map[string]rootfs.Entry {
				m := map[string]rootfs.Entry{}
				for _, e := range list {
					m[e.Path] = e
				}
				return m
			}
			assert.Len(t, got.Entries, len(want.Entries))
			found := byPath(got.Entries)
			for p, e := range byPath(want.Entries) {
				assert.Equal(t, e, found[p], p)
			}

			_, err = rootfs.ScanTOC(context.Background(), r, int64(len(blob)), digest(blob), nil, o)
			require.ErrorIs(t, err, toc.ErrNone)
			for at := range vouched { // other values of the annotations
				wrong := map[string]string{}
				for k, v := range vouched {
					wrong[k] = v
				}
				wrong[at] = "sha256:" + strings.Repeat("0", 64)
				_, err = rootfs.ScanTOC(context.Background(), r, int64(len(blob)), digest(blob), wrong, o)
				require.Error(t, err)
			}
			for i := 1; i < len(blob); i += len(blob)/50 + 1 { // damage anywhere is an error, or was not read
				damaged := bytes.Clone(blob)
				damaged[i] ^= 0x40
				again, err := rootfs.ScanTOC(context.Background(), bytes.NewReader(damaged), int64(len(blob)),
					digest(blob), vouched, o)
				if err == nil {
					assert.Len(t, again.Entries, len(got.Entries))
				}
			}
			_, err = rootfs.ScanTOC(context.Background(), bytes.NewReader(blob[:100]), 100, digest(blob), vouched, o)
			require.Error(t, err)
		})
	}
}

func FuzzTOC(f *testing.F) {
	f.Add([]byte(
		`{"version":1,"entries":[{"name":"a","type":"reg","size":1,"digest":"sha256:0","offset":5,"mode":493},
		{"name":"a","type":"chunk","chunkOffset":-1}]}`))
	f.Fuzz(func(t *testing.T, table []byte) {
		z, err := zstd.NewWriter(nil)
		require.NoError(t, err)
		packed := z.EncodeAll(table, nil)
		vouched := map[string]string{
			"io.github.containers.zstd-chunked.manifest-position": "0:" + strconv.Itoa(len(packed)) + ":0:1",
			"io.github.containers.zstd-chunked.manifest-checksum": digest(packed),
		}
		// must not panic
		_, _ = rootfs.ScanTOC(context.Background(), bytes.NewReader(packed), int64(len(packed)), "sha256:0", vouched,
			rootfs.Options{})
		_, _ = rootfs.CheckTOC(context.Background(), bytes.NewReader(packed), int64(len(packed)), vouched,
			&rootfs.Index{Entries: []rootfs.Entry{{Path: "/a"}}}, rootfs.Limits{})
	})
}
