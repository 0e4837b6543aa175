// Package ctxio ends reading when a context ends.
package ctxio

import (
	"context"
	"io"
)

// NewReader returns a reader of r whose error, once the context has ended, is that of the context. A call of Read that
// waits is not ended.
func NewReader(ctx context.Context, r io.Reader) io.Reader { return &reader{ctx, r} }

type reader struct {
	ctx context.Context
	r   io.Reader
}

func (r *reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
