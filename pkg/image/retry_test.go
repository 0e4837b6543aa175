package image

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// roundTrip is a transport whose faults cannot be had from a server of this process: HTTP/2 resets
// streams with an error type of its own.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

var errStream = errors.New("stream error: stream ID 7; INTERNAL_ERROR; received from peer")

type resetting struct{ content io.Reader }

func (r resetting) Read(p []byte) (int, error) {
	n, err := r.content.Read(p)
	if errors.Is(err, io.EOF) {
		err = errStream
	}
	return n, err
}
func (resetting) Close() error { return nil }

func TestStreamResetsAreRepeated(t *testing.T) {
	const content = "0123456789"
	calls := 0
	inner := roundTrip(func(r *http.Request) (*http.Response, error) {
		calls++
		if calls == 1 {
			return nil, errStream
		}
		resp := &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Request: r}
		from := 0
		if r.Header.Get("Range") == "bytes=4-" {
			from, resp.StatusCode = 4, http.StatusPartialContent
		}
		if from == 0 {
			resp.Body = resetting{strings.NewReader(content[:4])}
		} else {
			resp.Body = io.NopCloser(strings.NewReader(content[from:]))
		}
		return resp, nil
	})
	r := &blobReader{
		ctx: context.WithValue(context.Background(), streamed, true),
		s:   &registrySession{first: time.Millisecond, idle: DefaultIdle},
		rt:  &retryTransport{inner, time.Millisecond, maxAnswer}, url: "http://registry.test/blob",
	}
	require.NoError(t, r.open())
	b, err := io.ReadAll(r)
	require.NoError(t, err)
	assert.Equal(t, content, string(b))
	assert.Equal(t, 3, calls)
}

func TestLastingFailuresAreNotRepeated(t *testing.T) {
	calls := 0
	inner := roundTrip(func(*http.Request) (*http.Response, error) {
		calls++
		return nil, &net.DNSError{IsNotFound: true}
	})
	req, err := http.NewRequest(http.MethodGet, "http://registry.test/", nil)
	require.NoError(t, err)
	resp, err := (&http.Client{Transport: &retryTransport{inner, time.Millisecond, maxAnswer}}).Do(req)
	if err == nil {
		resp.Body.Close()
	}
	require.Error(t, err)
	assert.False(t, Transient(err))
	assert.Equal(t, 1, calls)
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 2, 28, 12, 0, 0, 0, time.UTC)
	for header, want := range map[string]time.Duration{
		"": 0, "soon": 0, "7": 7 * time.Second, "-1": -time.Second, "99999999999999": 4 * time.Minute,
		"600": 4 * time.Minute,
		now.Add(90 * time.Second).Format(http.TimeFormat): 90 * time.Second,
		now.Add(-time.Hour).Format(http.TimeFormat):       -time.Hour,
		"Saturday, 28-Feb-26 12:00:05 GMT":                5 * time.Second,
	} {
		assert.Equal(t, want, retryAfter(header, now), header)
	}
}
