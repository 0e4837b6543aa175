package roundtrip

import (
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/cconvert/cconvert/pkg/image"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// answers is a transport whose faults cannot be had from a server of this process.
type answers func(*http.Request) (*http.Response, error)

func (f answers) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestLastingFailuresAreNotRepeated(t *testing.T) {
	calls := 0
	inner := answers(func(*http.Request) (*http.Response, error) {
		calls++
		return nil, &net.DNSError{IsNotFound: true}
	})
	req, err := http.NewRequest(http.MethodGet, "http://registry.test/", nil)
	require.NoError(t, err)
	repeated := &retryTransport{inner: inner, first: time.Millisecond, limit: 1 << 20}
	resp, err := (&http.Client{Transport: repeated}).Do(req)
	if err == nil {
		resp.Body.Close()
	}
	require.Error(t, err)
	assert.False(t, image.Transient(err))
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
