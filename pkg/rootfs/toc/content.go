package toc

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/stargz-snapshotter/estargz"

	"github.com/cconvert/cconvert/internal/ctxio"
)

// Content is that of a file, which is read chunk by chunk. The last chunk stays unpacked.
type Content struct {
	table  *Table
	size   int64
	chunks []*estargz.TOCEntry

	at    int // which chunk is unpacked
	chunk []byte
}

// extent returns the place of a chunk in the file.
func (f *Content) extent(i int) (from, to int64) {
	to = f.size
	if i+1 < len(f.chunks) {
		to = f.chunks[i+1].ChunkOffset
	}
	return f.chunks[i].ChunkOffset, to
}

// Parts returns of how many parts the table has the file made.
func (f *Content) Parts() int { return len(f.chunks) }

// ReadAt reads a part of the file.
func (f *Content) ReadAt(p []byte, off int64) (n int, err error) {
	for i := range f.chunks {
		from, to := f.extent(i)
		if from > to || to > f.size || to-from > maxChunk {
			return n, fmt.Errorf("the table of contents has a chunk from %d to %d", from, to)
		}
		for at := off + int64(n); n < len(p) && at >= from && at < to; at = off + int64(n) {
			b, err := f.unpack(i, to-from)
			if err != nil {
				return n, err
			}
			n += copy(p[n:], b[at-from:])
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *Content) unpack(i int, size int64) ([]byte, error) {
	if f.chunk != nil && f.at == i {
		return f.chunk, nil
	}
	c := f.chunks[i]
	r, err := f.table.piece(c.Offset, c.InnerOffset)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if _, err := io.CopyN(io.Discard, r, c.InnerOffset); err != nil {
		return nil, err
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	// The registry chooses what it sends: only the table is the builder's.
	if got, want := digestOf(b), f.digest(i); got != want {
		return nil, fmt.Errorf("%w: a part is %s, the table of contents says %q", ErrDigest, got, want)
	}
	f.chunk, f.at = b, i
	return b, nil
}

// digest is what the table says of a chunk.
func (f *Content) digest(i int) string {
	c := f.chunks[i]
	if c.ChunkDigest == "" && len(f.chunks) == 1 {
		return c.Digest
	}
	return c.ChunkDigest
}

// piece inflates what begins at an offset of the blob, and has a chunk at a place in it.
func (t *Table) piece(offset, inner int64) (io.ReadCloser, error) {
	if offset < 0 || offset >= t.end || inner < 0 {
		return nil, fmt.Errorf("the table of contents has a chunk at %d", offset)
	}
	return t.format.Reader(ctxio.NewReader(t.ctx, io.NewSectionReader(t.blob, offset, t.end-offset)))
}

// Stream reads files one after the other, of which several can be in one compressed piece.
type Stream struct {
	table  *Table
	left   int64 // bytes that may still be inflated
	offset int64 // of the piece in the blob
	r      io.ReadCloser
	at     int64 // in the piece, inflated
}

var errLimit = errors.New("larger than the limit")

// NewStream begins to read files of the table in their order, of which so many bytes may be inflated. It is to be
// closed.
func (t *Table) NewStream(limit int64) *Stream { return &Stream{table: t, left: limit} }

// Close lets go of what is open.
func (s *Stream) Close() {
	if s.r != nil {
		s.r.Close()
		s.r = nil
	}
}

// Sum returns the SHA-256 of a file, put together from its chunks as an engine would.
func (s *Stream) Sum(f *Content) (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	var done int64
	for i, c := range f.chunks {
		from, to := f.extent(i)
		// Engines go by the chunk's own size, which only the last one may leave out.
		if from != done || to <= from || to > f.size || to-from > maxChunk || c.ChunkSize != to-from &&
			(c.ChunkSize != 0 || i+1 < len(f.chunks)) {
			if f.size == 0 && len(f.chunks) == 1 && c.ChunkSize == 0 {
				break
			}
			return sum, fmt.Errorf("a chunk of %d bytes from %d to %d follows %d bytes", c.ChunkSize, from, to, done)
		}
		done = to
		if err := s.seek(c.Offset, c.InnerOffset); err != nil {
			return sum, err
		}
		if s.left -= to - from; s.left < 0 {
			return sum, errLimit
		}
		b := make([]byte, to-from)
		if _, err := io.ReadFull(s.r, b); err != nil {
			return sum, err
		}
		s.at += to - from
		if got, want := digestOf(b), f.digest(i); got != want {
			return sum, fmt.Errorf("%w: a part is %s, the table of contents says %q", ErrDigest, got, want)
		}
		h.Write(b)
	}
	if done != f.size {
		return sum, fmt.Errorf("its chunks have %d bytes of %d", done, f.size)
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// seek goes to a place in a piece that begins at an offset of the blob.
func (s *Stream) seek(offset, inner int64) error {
	if s.r == nil || s.offset != offset || s.at > inner {
		s.Close()
		r, err := s.table.piece(offset, inner)
		if err != nil {
			return err
		}
		s.r, s.offset, s.at = r, offset, 0
	}
	skip := inner - s.at
	if s.left -= skip; s.left < 0 {
		return errLimit
	}
	n, err := io.CopyN(io.Discard, s.r, skip)
	s.at += n
	return err
}
