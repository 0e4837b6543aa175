package libos_test

import (
	"bytes"
	"context"
	"testing"

	"github.com/klauspost/compress/gzip"

	"github.com/cconvert/cconvert/pkg/libos"
)

// The layers that a conversion adds come back from registries, where others can write. What Unpack takes, Pack gives
// again.
func FuzzUnpack(f *testing.F) {
	archive, err := libos.PackRuntime(libos.Meta{Kind: "sim", Version: "1", Layout: 1},
		[]libos.File{
			{Path: "/cconvert/sim/loader", Mode: 0o755, Content: []byte("x")},
			{Path: "/cconvert/sim/link", Link: "loader"},
		})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(archive)
	f.Add(archive[:1024])
	f.Fuzz(func(t *testing.T, archive []byte) {
		files, err := libos.Unpack(archive)
		if err == nil {
			var again bytes.Buffer
			if err := libos.Pack(&again, files); err != nil || !bytes.Equal(again.Bytes(), archive) {
				t.Fatal("another archive")
			}
		}
		var blob bytes.Buffer
		z := gzip.NewWriter(&blob)
		_, _ = z.Write(archive)
		_ = z.Close()
		b, readErr := libos.ReadBundle(context.Background(), blob.Bytes(), "")
		if readErr == nil && (b.Foreign == nil) != (err == nil) {
			t.Fatal(b.Foreign, err)
		}
		_, _ = libos.ReadBundle(context.Background(), archive, "")
	})
}
