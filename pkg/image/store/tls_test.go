package store_test

import (
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
	"github.com/cconvert/cconvert/pkg/image/store"

	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/stretchr/testify/require"
)

// password is a keychain with one and the same for all registries.
// roundTrip answers in place of a network.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

type password struct{}

func (password) Resolve(authn.Resource) (authn.Authenticator, error) {
	return &authn.Basic{Username: "user", Password: "secret"}, nil
}

func TestCredentialsGoOverHTTPOnlyIfAllowed(t *testing.T) {
	// elsewhere is a network in which the registries answer over HTTP, and something refuses port 443.
	elsewhere := func(t *testing.T) (rt http.RoundTripper, plain func() []string) {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, _, ok := r.BasicAuth(); !ok {
				w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			http.NotFound(w, r)
		}))
		t.Cleanup(server.Close)
		at, err := url.Parse(server.URL)
		require.NoError(t, err)
		var mu sync.Mutex
		var seen []string
		return roundTrip(func(r *http.Request) (*http.Response, error) {
			if r.URL.Scheme == "https" {
				return nil, fmt.Errorf("dial tcp %s: %w", r.URL.Host, syscall.ECONNREFUSED)
			}
			mu.Lock()
			seen = append(seen, r.URL.Host+" "+r.Header.Get("Authorization"))
			mu.Unlock()
			there := r.Clone(r.Context())
			there.URL.Host = at.Host
			out, err := http.DefaultTransport.RoundTrip(there)
			if err == nil {
				out.Request = r
			}
			return out, err
		}), func() []string { mu.Lock(); defer mu.Unlock(); return seen }
	}
	for host, local := range map[string]bool{
		"127.0.0.1:5000": true, "[::1]:5000": true, "localhost:5000": true,
		"10.1.2.3:5000": false, "172.16.0.9": false, "192.168.1.1:5000": false, "registry.localhost:5000": false,
		"registry.local":        false,
		"127.0.0.1.example.com": false, "example.com": false, "localhost.example.com:5000": false,
		"169.254.1.1:5000": false,
	} {
		for _, insecure := range []bool{false, true} {
			t.Run(fmt.Sprint(host, " ", insecure), func(t *testing.T) {
				rt, plain := elsewhere(t)
				ref, err := image.ParseReference("docker://"+host+"/a:1", insecure)
				require.NoError(t, err)
				options := registry.Options{HTTP: rt, Keychain: password{}, FirstPause: 1}
				_, err = store.Open(context.Background(), ref, options)
				if local || insecure {
					require.ErrorIs(t, err, image.ErrNotFound)
					require.NotEmpty(t, plain())
					return
				}
				require.Error(t, err)
				require.NotErrorIs(t, err, image.ErrNotFound)
				require.Empty(t, plain())
			})
		}
	}
}

func TestRegistryMayNotLeadToHTTP(t *testing.T) {
	digest := "sha256:" + strings.Repeat("a", 64)
	answer := func(r *http.Request, status int, header ...string) *http.Response {
		rec := httptest.NewRecorder()
		for i := 0; i < len(header); i += 2 {
			rec.Header().Set(header[i], header[i+1])
		}
		rec.WriteHeader(status)
		out := rec.Result()
		out.Request = r
		return out
	}
	for name, first := range map[string]func(r *http.Request) *http.Response{
		"token": func(r *http.Request) *http.Response {
			return answer(r, 401, "WWW-Authenticate", `Bearer realm="http://auth.example.com/token",service="x"`)
		},
		"redirect": func(r *http.Request) *http.Response {
			if r.URL.Path == "/v2/" {
				return answer(r, 200)
			}
			return answer(r, 307, "Location", "http://store.example.com/a")
		},
		"ping": func(r *http.Request) *http.Response {
			return answer(r, 307, "Location", "http://registry.example.com/v2/")
		},
	} {
		t.Run(name, func(t *testing.T) {
			rt := roundTrip(func(r *http.Request) (*http.Response, error) {
				if r.URL.Scheme != "https" {
					t.Errorf("%s was asked over HTTP", r.URL)
					return nil, errors.New("no")
				}
				return first(r), nil
			})
			ref, err := image.ParseReference("docker://registry.example.com/a@"+digest, false)
			require.NoError(t, err)
			options := registry.Options{HTTP: rt, Keychain: password{}, FirstPause: 1}
			_, err = store.Open(context.Background(), ref, options)
			require.Error(t, err)
			require.NotErrorIs(t, err, image.ErrNotFound)
		})
	}
}
