package image

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/cenkalti/backoff/v5"
)

const (
	attempts      = 5
	maxRetryAfter = 2 * time.Minute
	maxAnswer     = 4 << 20 // of answers that are read whole: manifests, tokens, pages of lists
)

// pause waits between attempts; false when the context ended.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func newBackoff(first time.Duration) *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval, b.Multiplier = first, 30*first, 2
	return b
}

type contextKey int

const (
	// streamed answers are not read into memory, so that their breaking off is the reader's to mend.
	streamed contextKey = iota
	// unrepeated requests are part of a sequence that is repeated as a whole.
	unrepeated
	// unpaced requests have waited for their turn already.
	unpaced
)

// retryTransport repeats requests whose answer was transient, did not come, or broke off. It waits as
// long as the server says in Retry-After (RFC 9110, 10.2.3).
type retryTransport struct {
	inner http.RoundTripper
	first time.Duration
	limit int64 // bytes of an answer that is read whole
}

func (t *retryTransport) RoundTrip(in *http.Request) (*http.Response, error) {
	ctx := in.Context()
	once := ctx.Value(unrepeated) != nil || (in.Body != nil && in.Body != http.NoBody && in.GetBody == nil)
	b := newBackoff(t.first)
	for i := 1; ; i++ {
		out, err := t.inner.RoundTrip(in)
		if err == nil && ctx.Value(streamed) == nil {
			out, err = readWhole(out, t.limit)
		}
		if err != nil && ctx.Err() == nil && !lasting(err) {
			err = fmt.Errorf("%w: %w", errBroken, err)
		}
		again := err != nil && Transient(err) || err == nil && slices.Contains(transientStatus, out.StatusCode)
		if !again || once || i == attempts {
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
		if !pause(ctx, wait) {
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
	var dns *net.DNSError
	var certificate *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	return errors.As(err, &dns) && dns.IsNotFound || errors.As(err, &certificate) || errors.As(err, &record) ||
		errors.Is(err, errTooLarge) || errors.Is(err, ErrRedirect) || errors.Is(err, ErrHTTP)
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
