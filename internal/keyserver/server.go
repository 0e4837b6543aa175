package keyserver

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sirupsen/logrus"
	"golang.org/x/time/rate"

	"github.com/cconvert/cconvert/internal/health"
	"github.com/cconvert/cconvert/pkg/release"
	"github.com/cconvert/cconvert/pkg/sgx/quote"
)

// Options say how a server decides, and on what.
type Options struct {
	Store Store
	Log   *Log
	// Policies reads the policies, now and when they are to be read again.
	Policies func() ([]*Policy, error)
	// Verify verifies a quote by Intel's root, with collateral from wherever it is.
	Verify func(context.Context, *quote.Quote, quote.Options) (*quote.Result, error)
	// AllowSimulated releases to simulated enclaves, if a policy says so: to anybody who has read the policy.
	AllowSimulated bool
	// Certificate is the server's; nil: its own, which it keeps in the store.
	Certificate *tls.Certificate
	Now         func() time.Time // nil: time.Now

	root *x509.Certificate // for tests; nil: Intel's
}

// Server releases secrets to enclaves.
type Server struct {
	o           Options
	certificate tls.Certificate
	authority   *authority
	nonces      *nonces
	policies    atomic.Pointer[[]*Policy]
	// refusals are those that are written: of enclaves, and of anybody.
	refusals, strangers *rate.Limiter
	unwritten           atomic.Int64
	metrics             *metrics
	busy                chan struct{}
	connections         *connections
}

// Bounds. A connection is one request of an enclave that starts.
const (
	maxConnections  = 256
	maxPerAddress   = 16 // or of one network, of IPv6
	maxBusy         = 8  // verifications at a time
	headerTimeout   = 10 * time.Second
	requestTimeout  = 75 * time.Second // collateral may have to be fetched
	maxHeader       = 8 << 10
	refusalsPerSec  = 20
	refusalsBurst   = 1000
	strangersPerSec = 1
	strangersBurst  = 200
)

// New makes a server, and reads its policies.
func New(ctx context.Context, o Options) (*Server, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &Server{
		o: o, nonces: newNonces(o.Now), refusals: rate.NewLimiter(refusalsPerSec, refusalsBurst),
		strangers: rate.NewLimiter(strangersPerSec, strangersBurst), metrics: newMetrics(),
		busy: make(chan struct{}, maxBusy), connections: &connections{open: map[string]int{}},
	}
	var err error
	if s.authority, err = openAuthority(ctx, o.Store, o.Now()); err != nil {
		return nil, err
	}
	if o.Certificate != nil {
		s.certificate = *o.Certificate
	} else if s.certificate, err = Identity(ctx, o.Store, o.Now()); err != nil {
		return nil, err
	}
	return s, s.Reload()
}

// Pin is what enclaves know the server by.
func (s *Server) Pin() (release.Pin, error) { return pinOf(s.certificate) }

// Pin is that of a server with the key in a store, which is made the first time.
func Pin(ctx context.Context, s Store, now time.Time) (release.Pin, error) {
	c, err := Identity(ctx, s, now)
	if err != nil {
		return release.Pin{}, err
	}
	return pinOf(c)
}

func pinOf(pair tls.Certificate) (release.Pin, error) {
	c, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		return release.Pin{}, err
	}
	return release.PinOf(c), nil
}

// Reload reads the policies again. If that fails, the ones that were read before stay in force.
func (s *Server) Reload() error {
	list, err := s.o.Policies()
	if err != nil {
		return fmt.Errorf("reading the policies: %w", err)
	}
	s.policies.Store(&list)
	return nil
}

// Serve answers on a listener until the context ends.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+release.PathChallenge, s.challenge)
	mux.HandleFunc("POST "+release.PathRelease, s.release)
	server := &http.Server{
		Handler: mux, ReadHeaderTimeout: headerTimeout, ReadTimeout: headerTimeout, WriteTimeout: requestTimeout,
		IdleTimeout: headerTimeout, MaxHeaderBytes: maxHeader, ErrorLog: log.New(io.Discard, "", 0),
		TLSConfig: &tls.Config{
			MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{s.certificate},
			ClientAuth: tls.RequestClientCert, // what it is worth, its quote says
			// A session that is resumed shows no quote.
			SessionTicketsDisabled: true,
		},
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){}, // a connection is one request at a time
	}
	server.SetKeepAlivesEnabled(false)
	answered := make(chan struct{})
	defer context.AfterFunc(ctx, func() {
		defer close(answered)
		last, cancel := context.WithTimeout(context.Background(), headerTimeout)
		defer cancel()
		_ = server.Shutdown(last)
	})()
	err := server.ServeTLS(&limited{Listener: l, connections: s.connections}, "", "")
	if errors.Is(err, http.ErrServerClosed) {
		<-answered // what is released arrives
		return nil
	}
	return err
}

// Status answers /healthz, /readyz and /metrics. It is for those who run the server: the metrics show what a client
// must not learn.
func (s *Server) Status() http.Handler {
	return health.Handler(s.metrics.registry, func(context.Context) error {
		if len(*s.policies.Load()) == 0 {
			return errors.New("there are no policies")
		}
		return nil
	})
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_ = json.NewEncoder(w).Encode(v)
}

func (s *Server) challenge(w http.ResponseWriter, _ *http.Request) {
	answer(w, release.Challenge{Nonce: s.nonces.next()})
}

// release answers a request. Whoever gets nothing learns nothing else.
func (s *Server) release(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
	defer cancel()
	host, _, _ := net.SplitHostPort(r.RemoteAddr)
	d := Decision{Time: s.o.Now().UTC(), Address: host}
	secrets := s.decided(ctx, r, &d)
	defer func() {
		for _, v := range secrets {
			clear(v.Value)
		}
	}()
	if secrets == nil {
		s.refused(d)
		code := http.StatusForbidden
		if d.passing {
			code = http.StatusServiceUnavailable // others may be asked, or this server again
		}
		http.Error(w, release.Refusal, code)
		return
	}
	if !s.released(d) {
		http.Error(w, release.Refusal, http.StatusServiceUnavailable)
		return
	}
	answer(w, release.Answer{Version: release.Version, Secrets: secrets})
}

// released notes that secrets are released. What is not written down does not happen: then it returns false.
func (s *Server) released(d Decision) bool {
	d.Released = true
	if err := s.write(d); err != nil {
		logrus.Errorf("nothing is released: %v", err)
		s.metrics.decisions.WithLabelValues("refused").Inc()
		return false
	}
	s.metrics.decisions.WithLabelValues("released").Inc()
	if !d.Simulated {
		s.metrics.expires.WithLabelValues(d.FMSPC).Set(float64(d.expires.Unix()))
	}
	logrus.Infof("released %d secrets to %s by the policy %s", len(d.Want), d.MREnclave, d.Policy)
	return true
}

// decided returns what is released; nil, with the reason in the decision, if nothing is.
func (s *Server) decided(ctx context.Context, r *http.Request, d *Decision) map[string]release.Secret {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		d.Reason = "it has no certificate"
		return nil
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, release.MaxRequest+1))
	if err != nil {
		d.Reason = "reading the request: " + err.Error()
		return nil
	}
	c, secrets := r.TLS.PeerCertificates[0], map[string]release.Secret(nil)
	err = s.inTurn(ctx, d, func() error {
		p, err := s.decide(ctx, c, body, d)
		if err == nil {
			secrets, err = s.fill(ctx, p, c, d.Want)
			d.passing = d.passing || errors.Is(err, ErrUnavailable)
		}
		return err
	})
	if err != nil {
		d.Reason = err.Error()
		return nil
	}
	return secrets
}

// inTurn bounds how many verifications there are at a time.
func (s *Server) inTurn(ctx context.Context, d *Decision, decide func() error) error {
	select {
	case s.busy <- struct{}{}:
		defer func() { <-s.busy }()
		return decide()
	case <-ctx.Done():
		d.passing = true
		return errors.New("too many ask at a time")
	}
}

// refused notes a refusal. There can be many of them: anybody can ask.
func (s *Server) refused(d Decision) {
	s.metrics.decisions.WithLabelValues("refused").Inc()
	if len(d.Reason) > maxReason {
		d.Reason = d.Reason[:maxReason] + "…"
	}
	limit := s.refusals
	if d.MREnclave == nil {
		limit = s.strangers
	}
	if !limit.Allow() {
		s.unwritten.Add(1)
		return
	}
	if err := s.write(d); err != nil {
		logrus.Error(err)
	}
	logrus.Warnf("refused %s: %q", d.Address, d.Reason)
}

// write writes a decision, with how many were not written before it.
func (s *Server) write(d Decision) error {
	n := s.unwritten.Swap(0)
	d.Unwritten = int(n)
	err := s.o.Log.Append(d)
	if err != nil {
		s.unwritten.Add(n + 1)
	}
	return err
}

const maxReason = 1000

// metrics are what Prometheus asks for.
type metrics struct {
	registry  *prometheus.Registry
	decisions *prometheus.CounterVec
	expires   *prometheus.GaugeVec
}

func newMetrics() *metrics {
	m := &metrics{registry: prometheus.NewRegistry(), decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "cconvert_release_decisions_total", Help: "Requests for secrets, by what became of them.",
	}, []string{"decision"}), expires: prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "cconvert_release_collateral_expires_timestamp_seconds",
		Help: "When the first part of what Intel says of platforms expires, by their kind (FMSPC).",
	}, []string{"fmspc"})}
	m.registry.MustRegister(m.decisions, m.expires)
	return m
}
