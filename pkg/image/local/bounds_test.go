package local

import (
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/ulikunitz/xz"
)

// What a compressed archive holds is bounded, however it is compressed, and is not written first.
func TestCompressedArchivesAreBounded(t *testing.T) {
	const limit = 1 << 20
	for name, compress := range map[string]func(io.Writer) (io.WriteCloser, error){
		"gzip": func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil },
		"zstd": func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) },
		"xz":   func(w io.Writer) (io.WriteCloser, error) { return xz.NewWriter(w) },
	} {
		for size, ok := range map[int]bool{limit: true, limit + 1: false} {
			var b bytes.Buffer
			w, err := compress(&b)
			require.NoError(t, err)
			_, err = w.Write(make([]byte, size))
			require.NoError(t, err)
			require.NoError(t, w.Close())
			file := filepath.Join(t.TempDir(), "archive")
			require.NoError(t, os.WriteFile(file, b.Bytes(), 0o600))
			f, err := os.Open(file)
			require.NoError(t, err)
			plain, err := unpacked(context.Background(), f, limit)
			if !ok {
				assert.ErrorContains(t, err, "more than 1048576 bytes after decompression", name)
				continue
			}
			require.NoError(t, err, name)
			info, err := plain.Stat()
			require.NoError(t, err)
			assert.EqualValues(t, limit, info.Size(), name)
			plain.Close()
		}
	}
}
