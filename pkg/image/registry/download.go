package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/internal/roundtrip"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// blob streams a blob and, when the connection breaks, goes on where it was.
func (s *session) blob(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	u := url.URL{
		Scheme: s.repo.Scheme(), Host: s.repo.RegistryStr(),
		Path: fmt.Sprintf("/v2/%s/blobs/%s", s.repo.RepositoryStr(), d.Digest),
	}
	r := &blobReader{ctx: ctx, s: s, rt: s.rt, url: u.String()}
	err := r.open()
	if err == nil {
		return r, nil
	}
	// A foreign layer need not be in the registry (OCI image specification, descriptor "urls").
	for _, foreign := range d.URLs[:min(len(d.URLs), maxPlaces)] {
		f, parseErr := url.Parse(foreign)
		if parseErr != nil || f.Scheme != "https" && f.Scheme != s.repo.Scheme() {
			continue
		}
		r.rt, r.url = s.stack.Others, foreign
		if r.open() == nil {
			return r, nil
		}
	}
	return nil, roundtrip.Explain(err)
}

// maxPlaces is how many other places of a blob are tried.
const maxPlaces = 4

type blobReader struct {
	ctx    context.Context
	s      *session
	rt     http.RoundTripper
	url    string
	body   io.ReadCloser
	offset int64
	broken int // times in a row without a byte
	slow   int // times that it was too slow, with bytes or without

	waited time.Duration // for the bytes since the rate was looked at, over all connections
	got    int64
	failed error // for good
}

func (r *blobReader) open() error {
	req, err := http.NewRequestWithContext(r.ctx, http.MethodGet, r.url, nil)
	if err != nil {
		return err
	}
	if r.offset > 0 {
		req.Header.Set("Range", "bytes="+strconv.FormatInt(r.offset, 10)+"-")
	}
	resp, err := roundtrip.Send(r.rt, req)
	if err != nil {
		return err
	}
	if err := transport.CheckError(resp, http.StatusOK, http.StatusPartialContent); err != nil {
		resp.Body.Close()
		return err
	}
	if r.offset > 0 && resp.StatusCode == http.StatusOK { // the server knows no ranges
		if _, err := io.CopyN(io.Discard, resp.Body, r.offset); err != nil {
			resp.Body.Close()
			return fmt.Errorf("%w: %w", image.ErrBroken, err)
		}
	}
	r.body = resp.Body
	return nil
}

// Read gives up a registry that sends less than the least rate over all connections, however often it begins anew.
func (r *blobReader) Read(p []byte) (int, error) {
	if r.failed != nil {
		return 0, r.failed
	}
	begin := time.Now()
	n, err := r.read(p)
	r.waited, r.got = r.waited+time.Since(begin), r.got+int64(n)
	if r.waited < r.s.idle {
		return n, err
	}
	if least := int64(r.s.idle.Seconds() * roundtrip.LeastRate); err == nil && r.got < least {
		r.failed = fmt.Errorf("downloading: %w: %d bytes came in %s", image.ErrSlow, r.got, r.waited.Round(time.Second))
		return n, r.failed
	}
	r.waited, r.got = 0, 0
	return n, err
}

func (r *blobReader) read(p []byte) (int, error) {
	b := roundtrip.NewBackoff(r.s.first)
	for {
		var err error
		if r.body == nil {
			err = r.open()
		} else {
			var n int
			n, err = r.body.Read(p)
			r.offset += int64(n)
			if n > 0 {
				r.broken = 0
				return n, nil // an error comes again
			}
			if err == nil || errors.Is(err, io.EOF) {
				return n, err
			}
			r.body.Close()
			r.body = nil
			if errors.Is(err, image.ErrSlow) {
				r.slow++
			}
			err = fmt.Errorf("%w: %w", image.ErrBroken, err)
		}
		if err == nil {
			continue
		}
		if r.ctx.Err() != nil {
			return 0, r.ctx.Err()
		}
		r.broken++
		tried := max(r.broken, r.slow)
		if !image.Transient(err) || tried >= roundtrip.Attempts || !r.s.pause(r.ctx, b.NextBackOff()) {
			return 0, fmt.Errorf("downloading: %w", err)
		}
	}
}

func (r *blobReader) Close() error {
	if r.body == nil {
		return nil
	}
	return r.body.Close()
}
