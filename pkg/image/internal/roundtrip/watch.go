package roundtrip

import (
	"io"
	"net/http"
	"sync"

	"github.com/cconvert/cconvert/pkg/image"
)

// watched tells a watcher of all requests, their repetitions and pauses included.
type watched struct {
	inner    http.RoundTripper
	by       image.Watcher
	registry string
}

func (t *watched) RoundTrip(in *http.Request) (*http.Response, error) {
	w := &waiting{by: t.by, registry: t.registry}
	req := in
	if in.Body != nil && in.Body != http.NoBody {
		req = in.Clone(in.Context())
		req.Body = &sent{in.Body, w}
		if in.GetBody != nil {
			req.GetBody = func() (io.ReadCloser, error) {
				b, err := in.GetBody()
				return &sent{b, w}, err
			}
		}
	}
	w.begin()
	out, err := t.inner.RoundTrip(req)
	w.end(true)
	if err != nil {
		return nil, err
	}
	out.Request = in
	out.Body = &received{out.Body, &waiting{by: t.by, registry: t.registry}}
	return out, nil
}

// waiting is one span of waiting after the other.
type waiting struct {
	by       image.Watcher
	registry string

	mu   sync.Mutex
	over func()
	last bool // none follows: a body can be read still if its request was answered already
}

func (w *waiting) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over == nil && !w.last {
		w.over = w.by.Waiting(w.registry)
	}
}

func (w *waiting) end(last bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over != nil {
		w.over()
	}
	w.over, w.last = nil, w.last || last
}

// sent is the body of a request: while it is read, it is not its receiver that is waited for.
type sent struct {
	io.ReadCloser
	w *waiting
}

func (b *sent) Read(p []byte) (int, error) {
	b.w.end(false)
	defer b.w.begin()
	n, err := b.ReadCloser.Read(p)
	b.w.by.Moved(n)
	return n, err
}

// received is the body of an answer.
type received struct {
	io.ReadCloser
	w *waiting
}

func (b *received) Read(p []byte) (int, error) {
	b.w.begin()
	defer b.w.end(false)
	n, err := b.ReadCloser.Read(p)
	b.w.by.Moved(n)
	return n, err
}
