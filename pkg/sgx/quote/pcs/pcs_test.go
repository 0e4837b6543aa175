package pcs

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/pkg/cache"
	"github.com/cconvert/cconvert/pkg/sgx/quote"
	"github.com/cconvert/cconvert/pkg/sgx/quote/simulated"
)

// fake answers as a PCCS does; what a test changes is done first.
type fake struct {
	*httptest.Server
	platform *simulated.Platform
	first    http.HandlerFunc // reports by writing that it has answered
	mu       sync.Mutex
	asked    []string
}

var now = time.Unix(1_790_000_000, 0).UTC()

func newFake(t *testing.T) *fake {
	t.Helper()
	p, err := simulated.New("a test", now.AddDate(0, 0, -10))
	require.NoError(t, err)
	f := &fake{platform: p}
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	return f
}

// written notes whether a handler has answered.
type written struct {
	http.ResponseWriter
	done bool
}

func (w *written) WriteHeader(code int) { w.done = true; w.ResponseWriter.WriteHeader(code) }

func (w *written) Write(b []byte) (int, error) { w.done = true; return w.ResponseWriter.Write(b) }

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, r.URL.String())
	if f.first != nil {
		own := &written{ResponseWriter: w}
		if f.first(own, r); own.done {
			return
		}
	}
	c, err := f.platform.Collateral()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	signed := func(header, name string, value, signature, chain []byte) {
		w.Header().Set(header, url.PathEscape(string(chain)))
		fmt.Fprintf(w, `{%q:%s,"signature":%q}`, name, value, hex.EncodeToString(signature))
	}
	switch r.URL.String() {
	case "/v4/tcb?fmspc=00906ea10000":
		signed("SGX-TCB-Info-Issuer-Chain", "tcbInfo", c.TCBInfo, c.TCBInfoSignature, c.TCBInfoChain)
	case "/v4/qe/identity":
		signed("SGX-Enclave-Identity-Issuer-Chain", "enclaveIdentity", c.QEIdentity, c.QEIdentitySignature,
			c.QEIdentityChain)
	case "/v4/pckcrl?ca=platform&encoding=der":
		_, _ = w.Write(c.PCKCRL)
	case "/v4/rootcacrl":
		_, _ = w.Write([]byte(hex.EncodeToString(c.RootCRL)))
	default:
		http.NotFound(w, r)
	}
}

func (f *fake) service(t *testing.T, store cache.Store) *Service {
	t.Helper()
	s, err := New(f.URL+"/v4/", store)
	require.NoError(t, err)
	s.pause = time.Millisecond
	return s
}

func (f *fake) quote(t *testing.T) *quote.Quote {
	t.Helper()
	b, err := f.platform.Quote()
	require.NoError(t, err)
	q, err := quote.Parse(b)
	require.NoError(t, err)
	return q
}

func (f *fake) at(later time.Duration) quote.Options {
	return quote.Options{At: now.Add(later), Root: f.platform.Root.Certificate}
}

func (f *fake) requests() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := len(f.asked)
	f.asked = nil
	return n
}

// What was fetched is kept until it expires, and no longer; what is kept need not be whole.
func TestKept(t *testing.T) {
	f, dir := newFake(t), t.TempDir()
	store := cache.Open(dir, cache.DefaultLimit)
	verify := func(later time.Duration) error {
		_, _, err := f.service(t, store).Verify(t.Context(), f.quote(t), f.at(later))
		return err
	}
	require.NoError(t, verify(0))
	assert.Equal(t, 4, f.requests())
	require.NoError(t, verify(19*24*time.Hour))
	assert.Zero(t, f.requests())

	assert.Error(t, verify(21*24*time.Hour), "what the service answers has expired, too")
	assert.Equal(t, 4, f.requests())
	f.platform.Issued = now.Add(20 * 24 * time.Hour)
	require.NoError(t, verify(21*24*time.Hour))
	assert.Equal(t, 4, f.requests())
	require.NoError(t, verify(22*24*time.Hour))
	assert.Zero(t, f.requests())

	entries, err := store.List()
	require.NoError(t, err)
	require.Len(t, entries, 1)
	require.NoError(t, store.Put(entries[0].Key, []byte(`{"tcb_info":"{}"}`)))
	require.NoError(t, verify(22*24*time.Hour))
	assert.Equal(t, 4, f.requests())

	// Nothing newer is fetched because a certificate is revoked.
	f.platform.Revoked = []*x509.Certificate{f.platform.PCK.Certificate}
	fresh := cache.Open(t.TempDir(), cache.DefaultLimit)
	for _, requests := range []int{4, 0} {
		_, _, err = f.service(t, fresh).Verify(t.Context(), f.quote(t), f.at(22*24*time.Hour))
		require.ErrorIs(t, err, quote.ErrRevoked)
		assert.Equal(t, requests, f.requests())
	}
}

// Nobody is asked about a quote that is not signed up to Intel's root: what would be asked is the host's to choose, and
// chains of others' platforms are public.
func TestStranger(t *testing.T) {
	f := newFake(t)
	for check, change := range map[string]func(*simulated.Platform){
		quote.CheckQEReport:  func(p *simulated.Platform) { p.SignQE = p.CA.Key },
		quote.CheckKey:       func(p *simulated.Platform) { p.QE[320] ^= 1 },
		quote.CheckSignature: func(p *simulated.Platform) { p.SignReport = p.CA.Key },
	} {
		f := newFake(t)
		change(f.platform)
		_, _, err := f.service(t, nil).Verify(t.Context(), f.quote(t), f.at(0))
		var failed *quote.Error
		require.ErrorAs(t, err, &failed)
		assert.Equal(t, check, failed.Check)
		assert.Zero(t, f.requests())
	}
	_, _, err := f.service(t, nil).Verify(t.Context(), f.quote(t), quote.Options{At: now})
	var failed *quote.Error
	require.ErrorAs(t, err, &failed)
	assert.Equal(t, quote.CheckChain, failed.Check)
	assert.Zero(t, f.requests())
}

func TestAnswers(t *testing.T) {
	once := func(h http.HandlerFunc) http.HandlerFunc {
		done := false
		return func(w http.ResponseWriter, r *http.Request) {
			if !done {
				done = true
				h(w, r)
			}
		}
	}
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	at := func(path string, h http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if strings.HasPrefix(r.URL.Path, path) {
				h(w, r)
			}
		}
	}
	text := func(s string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(s)) }
	}
	for what, c := range map[string]struct {
		first http.HandlerFunc
		want  string // empty: it is verified
	}{
		"a passing fault": {once(status(503)), ""},
		"too many":        {once(status(429)), ""},
		"down":            {status(503), "503 Service Unavailable"},
		"not there":       {at("/v4/rootcacrl", status(404)), "404 Not Found"},
		"elsewhere":       {http.RedirectHandler("https://x.example/", http.StatusFound).ServeHTTP, "302 Found"},
		"no chain":        {at("/v4/tcb", text(`{"tcbInfo":{},"signature":"00"}`)), "no header TCB-Info-Issuer-Chain"},
		"no JSON":         {at("/v4/qe/identity", text(`<html>`)), "not collateral"},
		"endless":         {at("/v4/pckcrl", text(strings.Repeat("x", maxAnswer+1))), "more than 1048576 bytes"},
		"an empty list":   {at("/v4/pckcrl", text("\n")), "crl: "},
		"nothing":         {at("/v4/pckcrl", status(200)), "crl: "},
	} {
		f := newFake(t)
		f.first = c.first
		r, _, err := f.service(t, nil).Verify(t.Context(), f.quote(t), f.at(0))
		if c.want == "" {
			require.NoError(t, err, what)
			assert.Equal(t, quote.UpToDate, r.Status)
			continue
		}
		assert.ErrorContains(t, err, c.want, what)
		assert.Equal(t, what == "down", errors.Is(err, ErrUnavailable), what)
	}
}

func TestSilence(t *testing.T) {
	f := newFake(t)
	end := make(chan struct{})
	defer close(end)
	silent := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-end }))
	t.Cleanup(silent.Close)
	t.Cleanup(silent.CloseClientConnections)
	s, err := New(silent.URL, nil)
	require.NoError(t, err)
	s.client.Timeout, s.pause = 50*time.Millisecond, time.Millisecond
	begin := time.Now()
	_, _, err = s.Verify(t.Context(), f.quote(t), f.at(0))
	require.ErrorIs(t, err, ErrUnavailable)
	assert.Less(t, time.Since(begin), 5*time.Second)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, err = f.service(t, nil).Verify(ctx, f.quote(t), f.at(0))
	require.ErrorIs(t, err, context.Canceled)
}

func TestNew(t *testing.T) {
	for _, bad := range []string{
		"", "pccs.example", "ftp://pccs.example/v4", "https:///v4", "https://h/v4?x=1", "https://h/#x", "/dir",
	} {
		_, err := New(bad, nil)
		assert.ErrorIs(t, err, ErrURL, bad)
	}
	s, err := New(Intel, nil)
	require.NoError(t, err)
	var asked []string
	s.client.Transport = roundTrip(func(r *http.Request) (*http.Response, error) {
		asked = append(asked, r.URL.String())
		rec := httptest.NewRecorder()
		rec.Header().Set("TCB-Info-Issuer-Chain", "x")
		rec.Header().Set("SGX-Enclave-Identity-Issuer-Chain", "x")
		rec.Body = bytes.NewBufferString(`{"tcbInfo":{},"enclaveIdentity":{},"signature":"00"}`)
		return rec.Result(), nil
	})
	_, err = s.Fetch(t.Context(), quote.Platform{FMSPC: [6]byte{1, 2, 3, 4, 5, 0xff}}, quote.Processor)
	require.NoError(t, err)
	const base = "https://api.trustedservices.intel.com/sgx/certification/v4"
	assert.ElementsMatch(t, []string{
		base + "/tcb?fmspc=0102030405ff", base + "/qe/identity", base + "/pckcrl?ca=processor&encoding=der",
		"https://certificates.trustedservices.intel.com/IntelSGXRootCA.der",
	}, asked)
}

// A quote whose collateral is kept is verified once.
func BenchmarkKept(b *testing.B) {
	p, err := simulated.New("a test", now.AddDate(0, 0, -10))
	require.NoError(b, err)
	raw, err := p.Quote()
	require.NoError(b, err)
	f := &fake{platform: p}
	f.Server = httptest.NewServer(f)
	defer f.Close()
	s, err := New(f.URL+"/v4", cache.Open(b.TempDir(), cache.DefaultLimit))
	require.NoError(b, err)
	for b.Loop() {
		q, err := quote.Parse(raw)
		require.NoError(b, err)
		_, _, err = s.Verify(b.Context(), q, f.at(0))
		require.NoError(b, err)
	}
	require.Equal(b, 4, f.requests())
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
