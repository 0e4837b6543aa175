package toc

import (
	"errors"
	"io"
)

// InBlocks returns a reader that reads a blob of so many bytes in large pieces, of which it keeps the last few:
// neighbouring files are read one after the other.
func InBlocks(blob io.ReaderAt, size int64) io.ReaderAt { return &blocks{blob: blob, size: size} }

type blocks struct {
	blob io.ReaderAt
	size int64
	kept [4]struct {
		at int64
		b  []byte
	}
	next int
}

const blockSize = 1 << 20

func (b *blocks) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		at := off + int64(n)
		if at < 0 || at >= b.size {
			return n, io.EOF
		}
		block, err := b.block(at / blockSize * blockSize)
		if err != nil {
			return n, err
		}
		n += copy(p[n:], block[at%blockSize:])
	}
	return n, nil
}

func (b *blocks) block(at int64) ([]byte, error) {
	for _, k := range b.kept {
		if k.b != nil && k.at == at {
			return k.b, nil
		}
	}
	block := make([]byte, min(blockSize, b.size-at))
	if n, err := b.blob.ReadAt(block, at); err != nil && (n < len(block) || !errors.Is(err, io.EOF)) {
		return nil, err
	}
	b.kept[b.next].at, b.kept[b.next].b = at, block
	b.next = (b.next + 1) % len(b.kept)
	return block, nil
}
