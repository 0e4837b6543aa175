package registry

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cconvert/cconvert/pkg/image/internal/roundtrip"
	"github.com/google/go-containerregistry/pkg/name"
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
	registry, err := name.NewRegistry("registry.test", name.Insecure)
	require.NoError(t, err)
	r := &blobReader{
		ctx: context.Background(),
		s:   &session{first: time.Millisecond, idle: DefaultIdle},
		rt: roundtrip.New(registry, roundtrip.Options{
			HTTP: inner, FirstPause: time.Millisecond, Idle: DefaultIdle, MaxAnswer: 1 << 20, Ping: &roundtrip.Ping{},
		}).Registry,
		url: "http://registry.test/v2/app/blobs/sha256:1",
	}
	require.NoError(t, r.open())
	b, err := io.ReadAll(r)
	require.NoError(t, err)
	assert.Equal(t, content, string(b))
	assert.Equal(t, 3, calls)
}
