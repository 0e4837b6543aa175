package inflate

import (
	"io"
	"sync"

	"github.com/klauspost/readahead"
)

// chunks are the buffers of readers that read ahead, used again by the next.
var chunks = sync.Pool{New: func() any {
	var c [4][]byte
	for i := range c {
		c[i] = make([]byte, 256<<10)
	}
	return &c
}}

// aheadReader reads in a goroutine of its own, up to 1 MiB ahead.
type aheadReader struct {
	io.ReadCloser
	buffers *[4][]byte
}

// ReadAhead returns a reader that reads ahead, in a goroutine of its own. It is to be closed.
func ReadAhead(r io.Reader) io.ReadCloser {
	buffers := chunks.Get().(*[4][]byte)
	c, ok := r.(io.ReadCloser)
	if !ok {
		c = io.NopCloser(r)
	}
	ahead, err := readahead.NewReadCloserBuffer(c, buffers[:])
	if err != nil {
		panic(err) // only buffers of different sizes are refused
	}
	return &aheadReader{ahead, buffers}
}

// Close ends the goroutine, as soon as the read that it is in returns.
func (r *aheadReader) Close() error {
	if r.buffers == nil {
		return nil
	}
	err := r.ReadCloser.Close()
	chunks.Put(r.buffers)
	r.buffers = nil
	return err
}
