package rootfs_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/rootfs"
)

// relist puts another table of contents into a zstd:chunked blob, and has the annotations vouch for it. The archive
// stays: a decoder skips the frame with the table.
func relist(
	t *testing.T, blob []byte, annotations map[string]string, change func([]estargz.TOCEntry) []estargz.TOCEntry,
) ([]byte, map[string]string) {
	t.Helper()
	return rewrite(t, blob, annotations, func(raw []byte) []byte {
		var table estargz.JTOC
		require.NoError(t, json.Unmarshal(raw, &table))
		entries := make([]estargz.TOCEntry, len(table.Entries))
		for i, e := range table.Entries {
			entries[i] = *e
		}
		raw, err := json.Marshal(map[string]any{"version": 1, "entries": change(entries)})
		require.NoError(t, err)
		return raw
	})
}

// rewrite is relist that changes the table's text.
func rewrite(
	t *testing.T, blob []byte, annotations map[string]string, change func([]byte) []byte,
) ([]byte, map[string]string) {
	t.Helper()
	const prefix = "io.containers.zstd-chunked."
	position := strings.Split(annotations[prefix+"manifest-position"], ":")
	at, err := strconv.Atoi(position[0])
	require.NoError(t, err)
	length, err := strconv.Atoi(position[1])
	require.NoError(t, err)
	d, err := zstd.NewReader(nil)
	require.NoError(t, err)
	raw, err := d.DecodeAll(blob[at:at+length], nil)
	require.NoError(t, err)
	raw = change(raw)
	z, err := zstd.NewWriter(nil)
	require.NoError(t, err)
	packed := z.EncodeAll(raw, nil)
	out := binary.LittleEndian.AppendUint32(bytes.Clone(blob), 0x184d2a50)
	out = binary.LittleEndian.AppendUint32(out, uint32(len(packed)))
	return append(out, packed...), map[string]string{
		prefix + "manifest-position": fmt.Sprintf("%d:%d:%d:1", len(out), len(packed), len(raw)),
		prefix + "manifest-checksum": fmt.Sprintf("sha256:%x", sha256.Sum256(packed)),
	}
}

// find is an entry of a table of contents.
func find(entries []estargz.TOCEntry, name string) *estargz.TOCEntry {
	for i := range entries {
		if entries[i].Name == name {
			return &entries[i]
		}
	}
	return nil
}

// An engine that loads lazily sees what the table of contents says.
func TestCheckTOC(t *testing.T) {
	ctx := context.Background()
	archive := Tar(t, Dir("etc"), File("etc/passwd", strings.Repeat("root\n", 100)),
		File("etc/evil__", strings.Repeat("evil\n", 100)), Symlink("l", "etc/passwd"),
		Program("bin/app", strings.Repeat("app", 50_000)), File("empty", ""), Hardlink("bin/app2", "bin/app"),
		File("etc/.wh.gone", ""), Special("dev", '3'),
		Dir("srv"), File("srv/.wh..wh..opq", ""), File("etc/.wh.anew", ""), File("etc/anew", "x"))
	metadata := map[string]string{}
	pack := estargz.WithCompression(chunked{
		&zstdchunked.Compressor{CompressionLevel: zstd.SpeedDefault, Metadata: metadata}, &zstdchunked.Decompressor{},
	})
	for name, o := range map[string][]estargz.Option{
		"eStargz":                {estargz.WithChunkSize(20_000)},
		"eStargz, shared chunks": {estargz.WithMinChunkSize(100_000)},
		"zstd:chunked":           {estargz.WithChunkSize(20_000), pack},
	} {
		blob, table := lazyLayer(t, archive, o...)
		annotations := metadata
		if name != "zstd:chunked" {
			annotations = map[string]string{estargz.TOCJSONDigestAnnotation: table}
		}
		index, err := rootfs.Scan(ctx, bytes.NewReader(blob), digest(blob), rootfs.Options{})
		require.NoError(t, err)
		differences, err := rootfs.CheckTOC(ctx, bytes.NewReader(blob), int64(len(blob)), annotations, index,
			rootfs.Limits{})
		require.NoError(t, err)
		assert.Empty(t, differences, name)
		assert.NotEmpty(t, image.Lazy(annotations))

		// A sound table is no reason to pass over another snapshotter's annotation.
		with := maps.Clone(annotations)
		with["containerd.io/snapshot/overlaybd/blob-digest"] = digest(blob)
		differences, err = rootfs.CheckTOC(ctx, bytes.NewReader(blob), int64(len(blob)), with, index, rootfs.Limits{})
		require.NoError(t, err)
		assert.Contains(t, strings.Join(differences, " "), "overlaybd", name)
	}

	blob, _ := lazyLayer(t, archive, estargz.WithChunkSize(20_000), pack)
	for what, change := range map[string]func([]estargz.TOCEntry) []estargz.TOCEntry{
		"": func(l []estargz.TOCEntry) []estargz.TOCEntry { return l },
		"\"/etc/evil__\"": func(l []estargz.TOCEntry) []estargz.TOCEntry {
			find(l, "etc/passwd").Name = "etc/evil__"
			return l
		},
		// all but the last say their size
		"a chunk of 0 bytes from 0 to 20000": func(l []estargz.TOCEntry) []estargz.TOCEntry {
			find(l, "bin/app").ChunkSize = 0
			return l
		},
		"\"bin/other\" does not follow": func(l []estargz.TOCEntry) []estargz.TOCEntry {
			for i := range l {
				if l[i].Type == "chunk" {
					l[i].Name = "bin/other"
					break
				}
			}
			return l
		},
		"15 entries": func(l []estargz.TOCEntry) []estargz.TOCEntry {
			return append(l, estargz.TOCEntry{Name: "cconvert", Type: "dir"})
		},
		"\"/l\"": func(l []estargz.TOCEntry) []estargz.TOCEntry {
			find(l, "l").LinkName = "etc/evil__"
			return l
		},
		"\"/bin/app\"": func(l []estargz.TOCEntry) []estargz.TOCEntry { find(l, "bin/app").Mode = 0o644; return l },
		"\"/etc/passwd\"": func(l []estargz.TOCEntry) []estargz.TOCEntry {
			find(l, "etc/passwd").Digest = find(l, "etc/evil__").Digest
			return l
		},
		"has another content": func(l []estargz.TOCEntry) []estargz.TOCEntry { // the digest of the whole stays
			p, evil := find(l, "etc/passwd"), find(l, "etc/evil__")
			p.Offset, p.InnerOffset, p.ChunkDigest = evil.Offset, evil.InnerOffset, evil.ChunkDigest
			return l
		},
		"a part is": func(l []estargz.TOCEntry) []estargz.TOCEntry {
			find(l, "etc/passwd").ChunkDigest = digest(nil)
			return l
		},
		"\"/bin/app\": a chunk of": func(l []estargz.TOCEntry) []estargz.TOCEntry {
			for i := range l {
				if l[i].Type == "chunk" {
					l[i].ChunkOffset++
				}
			}
			return l
		},
		"\"/etc/passwd\" is another entry": func(l []estargz.TOCEntry) []estargz.TOCEntry {
			find(l, "etc/passwd").Xattrs = map[string][]byte{"security.capability": []byte("\x01\x00\x00\x02")}
			return l
		},
		"\"/dev\" is another entry": func(l []estargz.TOCEntry) []estargz.TOCEntry {
			find(l, "dev").DevMajor = 8
			return l
		},
		"overlay": func(l []estargz.TOCEntry) []estargz.TOCEntry {
			find(l, "etc/").Xattrs = map[string][]byte{"trusted.overlay.opaque": []byte("y")}
			return l
		},
	} {
		lie, annotations := relist(t, blob, metadata, change)
		index, err := rootfs.Scan(ctx, bytes.NewReader(lie), digest(lie), rootfs.Options{})
		require.NoError(t, err)
		differences, err := rootfs.CheckTOC(ctx, bytes.NewReader(lie), int64(len(lie)), annotations, index,
			rootfs.Limits{})
		require.NoError(t, err)
		if what == "" {
			assert.Empty(t, differences)
			continue
		}
		assert.Contains(t, strings.Join(differences, "\n"), what)
	}

	// What some readers take for another table than others do.
	for old, changed := range map[string]string{
		`"entries":`: `"entries":[],"entries":`,
		`"offset":`:  `"offſet":1,"offset":`,
		`"digest":`:  `"digeſt":`,
		`"name":`:    `"Name":`,
		`"type":`:    `"type":"reg","type":`,
		`"size":`:    "\"x\":\"\xff\",\"size\":",
	} {
		lie, annotations := rewrite(t, blob, metadata, func(raw []byte) []byte {
			require.Contains(t, string(raw), old)
			return bytes.Replace(raw, []byte(old), []byte(changed), 1)
		})
		index, err := rootfs.Scan(ctx, bytes.NewReader(lie), digest(lie), rootfs.Options{})
		require.NoError(t, err)
		differences, err := rootfs.CheckTOC(ctx, bytes.NewReader(lie), int64(len(lie)), annotations, index,
			rootfs.Limits{})
		require.NoError(t, err)
		require.Len(t, differences, 1, changed)
		assert.Contains(t, differences[0], "reading the table of contents", changed)
	}

	// Of a path that is twice in an archive, readers of the table take another entry than whoever unpacks it.
	var twice bytes.Buffer
	w := estargz.NewWriter(&twice)
	require.NoError(t, w.AppendTar(bytes.NewReader(Tar(t, File("etc/passwd", "evil\n"), File("etc/passwd", "root\n")))))
	table, err := w.Close()
	require.NoError(t, err)
	index, err := rootfs.Scan(ctx, bytes.NewReader(twice.Bytes()), digest(twice.Bytes()), rootfs.Options{})
	require.NoError(t, err)
	differences, err := rootfs.CheckTOC(ctx, bytes.NewReader(twice.Bytes()), int64(twice.Len()),
		map[string]string{estargz.TOCJSONDigestAnnotation: table.String()}, index, rootfs.Limits{})
	require.NoError(t, err)
	assert.Contains(t, strings.Join(differences, "\n"), "\"/etc/passwd\"")

	for annotation, lazy := range map[string]bool{
		"containerd.io/snapshot/nydus-bootstrap": true, "containerd.io/snapshot/overlaybd/blob-digest": true,
		"org.opencontainers.image.title": false,
	} {
		assert.Equal(t, lazy, len(image.Lazy(map[string]string{annotation: "x"})) > 0, annotation)
	}
}
