package roundtrip

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/cconvert/cconvert/pkg/image"
)

const (
	// Attempts is how often a request is sent at most.
	Attempts = 5
	// MaxAnswer is how many bytes answers have that are read whole: manifests, tokens, pages of lists.
	MaxAnswer = 4 << 20

	maxRetryAfter = 2 * time.Minute
)

// Pause waits between attempts; false when the context ended.
func Pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// NewBackoff returns the pauses between repetitions, of which each is twice the one before.
func NewBackoff(first time.Duration) *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval, b.Multiplier = first, 30*first, 2
	return b
}

// blobRequest is that of requests for blobs (OCI distribution specification, "Endpoints").
var blobRequest = regexp.MustCompile(`^/v2/.+/blobs/[^/]+$`)

// isStream reports whether the answer to a request is not read into memory, so that its breaking off is the reader's to
// mend: that of a blob, wherever the registry leads to.
func isStream(r *http.Request) bool {
	return r.Method == http.MethodGet && blobRequest.MatchString(first(r).URL.Path)
}

// first is the request that led to another one by redirects. Of more than maxRedirects, it is one that was led itself.
func first(r *http.Request) *http.Request {
	for n := 0; r.Response != nil && r.Response.Request != nil && n < maxRedirects; n++ {
		r = r.Response.Request
	}
	return r
}

// isStep reports whether a request is part of a sequence that its sender repeats as a whole: it writes.
func isStep(r *http.Request) bool {
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		return false
	case http.MethodPost: // others are for tokens
		return strings.HasSuffix(r.URL.Path, "/blobs/uploads/")
	}
	return true
}

// retryTransport repeats requests whose answer was transient, did not come, or broke off. It waits as
// long as the server says in Retry-After (RFC 9110, 10.2.3).
type retryTransport struct {
	inner   http.RoundTripper
	first   time.Duration
	limit   int64 // bytes of an answer that is read whole
	streams bool  // no answer is
}

func (t *retryTransport) RoundTrip(in *http.Request) (*http.Response, error) {
	ctx := in.Context()
	once := isStep(in) || (in.Body != nil && in.Body != http.NoBody && in.GetBody == nil)
	b := NewBackoff(t.first)
	for i := 1; ; i++ {
		out, err := t.inner.RoundTrip(in)
		if err == nil && !t.streams && !isStream(in) {
			out, err = readWhole(out, t.limit)
		}
		if err != nil && ctx.Err() == nil && !lasting(err) {
			err = fmt.Errorf("%w: %w", image.ErrBroken, err)
		}
		again := err != nil && image.Transient(err) ||
			err == nil && slices.Contains(image.TransientStatus, out.StatusCode)
		if !again || once || i == Attempts {
			return out, err
		}
		wait := b.NextBackOff()
		if err == nil {
			if said := retryAfter(out.Header.Get("Retry-After"), time.Now()); said > maxRetryAfter {
				return out, nil
			} else if said > 0 {
				wait = said
			}
			out.Body.Close()
		}
		if !Pause(ctx, wait) {
			return nil, ctx.Err()
		}
		if in.GetBody != nil {
			body, err := in.GetBody()
			if err != nil {
				return nil, err
			}
			in = in.Clone(ctx)
			in.Body = body
		}
	}
}

// retryAfter reads the header of that name: seconds, or a date (RFC 9110, 10.2.3). What is neither is zero.
func retryAfter(header string, now time.Time) time.Duration {
	if s, err := strconv.Atoi(header); err == nil {
		return time.Duration(min(s, int(2*maxRetryAfter/time.Second))) * time.Second
	}
	if t, err := http.ParseTime(header); err == nil {
		return t.Sub(now)
	}
	return 0
}

// lasting reports whether a request failed for a reason that stays: no such host, or no trust in it. Every
// other failure below HTTP is the network's, in more forms than could be listed.
func lasting(err error) bool {
	return image.Unreachable(err) && !image.Transient(err) || errors.Is(err, errTooLarge) ||
		errors.Is(err, image.ErrRedirect) || errors.Is(err, image.ErrHTTP)
}

var errTooLarge = errors.New("answer too large")

// readWhole replaces an answer's body by its content in memory.
func readWhole(out *http.Response, limit int64) (*http.Response, error) {
	b, err := io.ReadAll(io.LimitReader(out.Body, limit+1))
	out.Body.Close()
	if err != nil {
		return nil, fmt.Errorf("reading the answer to %s %s: %w", out.Request.Method, out.Request.URL.Path, err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%w: that to %s %s has more than %d bytes", errTooLarge, out.Request.Method,
			out.Request.URL.Path, limit)
	}
	out.Body = io.NopCloser(bytes.NewReader(b))
	return out, nil
}
