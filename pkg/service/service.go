// Package service converts images because somebody asks over HTTP: registries by their notifications, or anybody with
// the secret. It must not be made to sign what its owner does not want: a plan's entries are the rules of which images
// may be asked for, and whose signatures they must carry.
package service

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/sirupsen/logrus"

	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/batch"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/plan"
)

// Queue is where conversions are asked for.
type Queue interface {
	Request(ctx context.Context, j batch.Job) (*batch.Record, error)
	Watch(ctx context.Context, batch string, tell func(*batch.Record)) error
	Ready(ctx context.Context) error
}

// Options say what a service does.
type Options struct {
	Plan *plan.Plan
	// Keys gives the public keys that an entry of the plan names.
	Keys map[*plan.Entry][]*attest.PublicKey
	// Job makes the job for an image of the plan.
	Job   func(plan.Image) (batch.Job, error)
	Queue Queue
	Image image.Options
	// Secret must be in every request, as a bearer token or as the password of basic authentication, but where the
	// client has shown a certificate. Empty: only such clients are served.
	Secret string
}

// Bounds of what one asks for.
const (
	maxBody    = 1 << 20 // bytes
	maxImages  = 100     // that one notification names
	maxWaiting = 10_000  // conversions that are not done
	maxShown   = 1000    // in a list
	atOnce     = 64      // requests
	askFor     = 30 * time.Second

	// maxManifest is how many bytes a manifest may have: what is asked for is in anybody's hands, and many ask at a time.
	maxManifest = 4 << 20
)

// Service answers requests.
type Service struct {
	o       Options
	mux     *http.ServeMux
	handler http.Handler  // of requests that are allowed
	few     chan struct{} // requests that are being read or answered by what is known here
	places  places
	metrics *metrics

	mu      sync.Mutex
	records map[string]*batch.Record
}

// New makes a service. Run keeps it up to date.
func New(o Options) *Service {
	s := &Service{o: o, few: make(chan struct{}, atOnce), records: map[string]*batch.Record{}, mux: http.NewServeMux()}
	s.o.Image.OnlyRegistry, s.o.Image.MaxAnswer = true, maxManifest
	s.metrics = newMetrics(s)
	s.routes()
	// A browser sends the password of this page's user with whatever another page has it send.
	origin := http.NewCrossOriginProtection()
	origin.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		s.fail(w, http.StatusForbidden, errors.New("the request comes from another site's page"))
	}))
	s.handler = origin.Handler(s.mux)
	return s
}

// Run follows what becomes of conversions until the context ends.
func (s *Service) Run(ctx context.Context) error {
	return s.o.Queue.Watch(ctx, batch.Requests, func(r *batch.Record) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.records[r.ID] = r // in the queue's order: clocks differ
	})
}

// all gives the conversions, the latest first.
func (s *Service) all() []*batch.Record {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]*batch.Record, 0, len(s.records))
	for _, r := range s.records {
		list = append(list, r)
	}
	slices.SortFunc(list, func(a, b *batch.Record) int {
		if c := b.Updated.Compare(a.Updated); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return list
}

func (s *Service) waiting() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.records {
		if !r.Status.Final() {
			n++
		}
	}
	return n
}

// ServeHTTP answers a request, if whoever asks may, and not too many do at a time.
func (s *Service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	if r.URL.Path != "/healthz" && r.URL.Path != "/readyz" {
		if !s.allowed(r) {
			h.Set("WWW-Authenticate", `Basic realm="cconvert"`)
			s.fail(w, http.StatusUnauthorized, errors.New("the secret is missing or wrong"))
			return
		}
		select {
		case s.few <- struct{}{}:
			done := sync.OnceFunc(func() { <-s.few })
			defer done()
			r = r.WithContext(context.WithValue(r.Context(), hasBeenRead{}, done))
		default:
			h.Set("Retry-After", "1")
			s.fail(w, http.StatusServiceUnavailable, errors.New("too many requests at a time"))
			return
		}
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	s.handler.ServeHTTP(w, r)
}

// hasBeenRead is the key of a function that makes room for another request: what is left to do is wait for a registry,
// which has bounds of its own.
type hasBeenRead struct{}

// allowed says whether a client has shown a certificate, which the server has checked, or the secret.
func (s *Service) allowed(r *http.Request) bool {
	if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		return true
	}
	scheme, given, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		_, given, _ = r.BasicAuth()
	}
	a, b := sha256.Sum256([]byte(given)), sha256.Sum256([]byte(s.o.Secret))
	return s.o.Secret != "" && subtle.ConstantTimeCompare(a[:], b[:]) == 1
}

// refusal says why a request is refused, with HTTP's code for it.
type refusal struct {
	code int
	err  error
}

func (e *refusal) Error() string { return e.err.Error() }
func (e *refusal) Unwrap() error { return e.err }

func refuse(code int, format string, args ...any) error {
	return &refusal{code, fmt.Errorf(format, args...)}
}

// ask queues the conversion of an image, if a rule allows it.
func (s *Service) ask(ctx context.Context, named string) (*batch.Record, error) {
	ref, err := image.ParseName(named, s.o.Plan.Insecure)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "%w", err)
	}
	// The tag would choose the target and the rule, though the digest alone says what is converted.
	if image.HasTagAndDigest(ref) {
		return nil, refuse(http.StatusBadRequest, "%s has a tag and a digest: ask for one of them", named)
	}
	rule, img, err := s.o.Plan.Rule(ref)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "%w", err)
	}
	if rule == nil {
		return nil, refuse(http.StatusForbidden, "no rule allows %s", ref)
	}
	if target, err := image.ParseName(img.Target, s.o.Plan.Insecure); err != nil || target.Name() == ref.Name() {
		return nil, refuse(http.StatusForbidden, "the rule would replace %s by what comes of it", ref)
	}
	if s.waiting() >= maxWaiting {
		return nil, refuse(http.StatusTooManyRequests, "%d conversions are waiting", maxWaiting)
	}
	leave, err := s.places.enter(ctx, ref.Context().RegistryStr())
	if err != nil {
		return nil, err
	}
	defer leave()
	// What was signed is what is converted, wherever the tag moves: from here on the image is known by its digest.
	digest, err := image.ResolveTag(ctx, image.Reference{Transport: image.Registry, Name: ref}, s.o.Image)
	if err != nil {
		if codeOf(err) == http.StatusNotFound {
			return nil, refuse(http.StatusNotFound, "%s does not exist", ref)
		}
		return nil, refuse(codeOf(err), "finding %s: %w", ref, err)
	}
	pinned := ref.Context().Digest(digest)
	if !rule.AllowUnsigned {
		switch err := signed(ctx, pinned, s.o.Keys[rule], s.o.Image); {
		case errors.Is(err, ErrUnsigned):
			return nil, refuse(http.StatusForbidden, "%s: %w", ref, err)
		case err != nil:
			return nil, refuse(codeOf(err), "%w", err)
		}
	}
	img.Source = pinned.String()
	job, err := s.o.Job(img)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "%w", err)
	}
	job.OnlyRegistry = true
	r, err := s.o.Queue.Request(ctx, job)
	if err != nil {
		return nil, refuse(http.StatusServiceUnavailable, "queueing %s: %w", ref, err)
	}
	s.mu.Lock()
	if s.records[r.ID] == nil { // else what the queue has told of it is newer
		s.records[r.ID] = r
	}
	s.mu.Unlock()
	logrus.Infof("%s is queued as %s", ref, r.ID)
	return r, nil
}

// codeOf is the code for what went wrong at a registry. A registry sends a notification again, and holds back all later
// ones, until it is taken: only for what may pass, which nothing that is wrong with an image is.
func codeOf(err error) int {
	var answer *transport.Error
	if errors.As(err, &answer) {
		switch answer.StatusCode {
		case http.StatusNotFound:
			return http.StatusNotFound
		case http.StatusUnauthorized, http.StatusForbidden:
			return http.StatusForbidden
		}
	}
	var certificate *tls.CertificateVerificationError
	if image.Transient(err) || errors.Is(err, context.DeadlineExceeded) || errors.As(err, &certificate) {
		return http.StatusBadGateway
	}
	return http.StatusBadRequest
}

func (s *Service) fail(w http.ResponseWriter, code int, err error) {
	s.metrics.refused.WithLabelValues(fmt.Sprint(code)).Inc()
	answer(w, code, map[string]string{"error": err.Error()})
}

func answer(w http.ResponseWriter, code int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // records and strings
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(append(b, '\n')) // who asked has gone
}

// body reads JSON that is all of a request.
func body(r *http.Request, to any) error {
	if read, ok := r.Context().Value(hasBeenRead{}).(func()); ok {
		defer read()
	}
	d := json.NewDecoder(r.Body)
	if err := d.Decode(to); err != nil {
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			return refuse(http.StatusRequestEntityTooLarge, "the request has more than %d bytes", maxBody)
		}
		return refuse(http.StatusBadRequest, "reading the request: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return refuse(http.StatusBadRequest, "something follows the JSON")
	}
	return nil
}
