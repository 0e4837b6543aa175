package rootfs

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"

	"github.com/cconvert/cconvert/pkg/rootfs/glob"
)

// Describe returns what Scan finds of a regular file of a path and a content of this size, but for its mode and owner.
func Describe(ctx context.Context, path string, size int64, content io.Reader) (*Entry, error) {
	s := &scanner{ctx: ctx, keep: glob.Compile(nil).Matcher(), buf: make([]byte, 128<<10), sum: sha256.New()}
	e := &Entry{Path: path, Type: Regular, Size: size}
	if err := s.file(e, content); err != nil {
		return nil, err
	}
	switch n, err := io.Copy(io.Discard, content); {
	case err != nil:
		return nil, err
	case n > 0:
		return nil, fmt.Errorf("it has more than %d bytes", size)
	}
	return e, nil
}
