package roundtrip

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/cconvert/cconvert/pkg/image"
)

// LeastRate is how many bytes a second a registry must send on average over the idle time.
const LeastRate = 1 << 10

// patient ends requests whose answer does not come, or comes too slowly. Only the time counts in which the registry is
// waited for: whoever reads an answer may take as long as it likes.
type patient struct {
	inner http.RoundTripper
	idle  time.Duration
}

func (t *patient) RoundTrip(in *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(in.Context())
	w := &watchdog{ctx: ctx, idle: t.idle, timer: time.AfterFunc(t.idle, func() {
		cancel(fmt.Errorf("%w: nothing came from %s in %s", image.ErrSlow, in.URL.Host, t.idle))
	})}
	req := in.WithContext(ctx)
	if in.Body != nil && in.Body != http.NoBody {
		req.Body = &sending{in.Body, w}
	}
	out, err := t.inner.RoundTrip(req)
	w.timer.Stop()
	if err != nil {
		err = w.cause(err)
		cancel(nil)
		return nil, err
	}
	out.Request = in // whoever looks at it compares contexts
	out.Body = &receiving{ReadCloser: out.Body, watchdog: w, host: in.URL.Host, cancel: cancel}
	return out, nil
}

// paced sends requests as slowly as somebody wants it.
type paced struct {
	inner http.RoundTripper
	wait  func(*http.Request) (done func(), err error)

	mu    sync.Mutex
	taken map[string]int // turns of requests that will come, by turnOf
}

// turnOf is what a request whose turn was taken before is known by.
func turnOf(r *http.Request) string { return r.Method + " " + r.URL.String() }

// add changes how many turns of a request are taken, and returns how many there were.
func (t *paced) add(turn string, n int) (before int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	before = t.taken[turn]
	if t.taken[turn] = max(0, before+n); t.taken[turn] == 0 {
		delete(t.taken, turn)
	}
	return before
}

// takeTurns is Stack.TakeTurns.
func (t *paced) takeTurns(requests []*http.Request) (over func(), err error) {
	var done []func()
	over = func() {
		for i, d := range done {
			t.add(turnOf(requests[i]), -1)
			d()
		}
	}
	for _, r := range requests {
		d, err := t.wait(r)
		if err != nil {
			over()
			return nil, err
		}
		t.add(turnOf(r), 1)
		done = append(done, d)
	}
	return over, nil
}

func (t *paced) RoundTrip(r *http.Request) (*http.Response, error) {
	if t.add(turnOf(r), -1) > 0 {
		return t.inner.RoundTrip(r)
	}
	done, err := t.wait(r)
	if err != nil {
		return nil, err
	}
	defer done()
	return t.inner.RoundTrip(r)
}

// watchdog cancels a request when its timer runs out.
type watchdog struct {
	ctx   context.Context
	idle  time.Duration
	timer *time.Timer
}

// cause is why a request failed: the watchdog's reason, if it was the watchdog.
func (w *watchdog) cause(err error) error {
	if cause := context.Cause(w.ctx); errors.Is(cause, image.ErrSlow) {
		return cause
	}
	return err
}

// sending is the body of a request: as long as it is being taken, the answer is not waited for.
type sending struct {
	io.ReadCloser
	*watchdog
}

func (b *sending) Read(p []byte) (int, error) {
	b.timer.Stop()
	defer b.timer.Reset(b.idle)
	return b.ReadCloser.Read(p)
}

// receiving is the body of an answer.
type receiving struct {
	io.ReadCloser
	*watchdog
	host   string
	cancel context.CancelCauseFunc
	waited time.Duration // for the bytes since the rate was looked at
	got    int64
	failed error // for good
}

func (b *receiving) Read(p []byte) (int, error) {
	if b.failed != nil {
		return 0, b.failed
	}
	begin := time.Now()
	b.timer.Reset(b.idle)
	n, err := b.ReadCloser.Read(p)
	b.timer.Stop()
	if err != nil && !errors.Is(err, io.EOF) {
		return n, b.cause(err)
	}
	b.waited, b.got = b.waited+time.Since(begin), b.got+int64(n)
	if b.waited < b.idle {
		return n, err
	}
	if least := int64(b.idle.Seconds() * LeastRate); err == nil && b.got < least {
		b.failed = fmt.Errorf("%w: %s sent %d bytes in %s", image.ErrSlow, b.host, b.got, b.waited.Round(time.Second))
		return n, b.failed
	}
	b.waited, b.got = 0, 0
	return n, err
}

func (b *receiving) Close() error {
	err := b.ReadCloser.Close()
	b.timer.Stop()
	b.cancel(nil)
	return err
}
