// Package service converts images because somebody asks over HTTP: registries by their notifications, or anybody with
// the secret. It must not be made to sign what its owner does not want: a plan's entries are the rules of which images
// may be asked for, and whose signatures they must carry.
package service

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/sirupsen/logrus"
	"golang.org/x/time/rate"

	"github.com/cconvert/cconvert/internal/cosign"
	"github.com/cconvert/cconvert/internal/plan"
	"github.com/cconvert/cconvert/internal/queue"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
)

// Queue is where conversions are asked for.
type Queue interface {
	Last(ctx context.Context, target string, insecure bool) (queue.Last, error)
	Request(ctx context.Context, j queue.Job, last queue.Last) (r *queue.Record, now queue.Last, err error)
	Watch(ctx context.Context, batch string, tell func(*queue.Record)) error
	Ready(ctx context.Context) error
}

// Options say what a service does.
type Options struct {
	Plan *plan.Plan
	// Trust says whose signatures count for an entry of the plan, see ReadTrust.
	Trust map[*plan.Entry]cosign.Trust
	// Job makes the job for an image of the plan.
	Job   func(plan.Image) (queue.Job, error)
	Queue Queue
	Image registry.Options
	// Secrets are those of which one must be in every request, as a bearer token or as the password of basic
	// authentication, but where the client has shown a certificate. Nil: only such clients are served.
	Secrets Secrets
	// AnswerIn is how long a notification waits for what comes of it; 0: DefaultAnswerIn. After that it is to be sent
	// again, and meanwhile it is looked at on.
	AnswerIn time.Duration
}

// DefaultAnswerIn is less than Distribution waits for an answer by default, which is a second.
const DefaultAnswerIn = 700 * time.Millisecond

// Bounds of what one asks for.
const (
	maxBody    = 1 << 20 // bytes
	maxNotice  = 8 << 20 // of a notification: Distribution repeats what a client says of itself, escaped
	maxImages  = 100     // that one notification names
	maxListed  = 1000    // elements of a list in a request
	maxWaiting = 10_000  // conversions of a registry's images that are not done
	maxOfOne   = 1000    // of a repository's
	maxKept    = 10_000  // conversions that are done and remembered
	maxShown   = 1000    // in a list
	atOnce     = 64      // requests
	askFor     = 30 * time.Second

	// maxManifest is how many bytes a manifest may have: what is asked for is in anybody's hands, and many ask at a
	// time.
	maxManifest = 2 << 20
)

// Service answers requests.
type Service struct {
	o       Options
	mux     *http.ServeMux
	handler http.Handler  // of requests that are allowed
	few     chan struct{} // requests that are being read or answered by what is known here
	sources places        // by registry
	targets places
	metrics *metrics

	mu      sync.Mutex
	records map[string]*queue.Record
	final   []*queue.Record // that were done, in their order

	notices notices
	later   later
	pushes  atomic.Uint64 // that were told of without a digest
	arrived atomic.Uint64 // images that were asked for or told of

	strangers *rate.Limiter // requests without the secret that are logged
}

// strangersBurst is how many requests without the secret are logged at once, and then one a second.
const strangersBurst = 20

// New makes a service. Run keeps it up to date.
func New(o Options) *Service {
	s := &Service{
		o: o, few: make(chan struct{}, atOnce), sources: places{most: perRegistry}, targets: places{most: 1},
		records: map[string]*queue.Record{}, mux: http.NewServeMux(), strangers: rate.NewLimiter(1, strangersBurst),
	}
	s.o.Image.OnlyRegistry, s.o.Image.StrictNames, s.o.Image.MaxAnswer = true, true, maxManifest
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
	go s.askLater(ctx)
	began := time.Now()
	return s.o.Queue.Watch(ctx, queue.Requests, func(r *queue.Record) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if known := s.records[r.ID]; known != nil && known.Request > r.Request {
			return // it was asked for again, and this is news of before
		}
		s.records[r.ID] = r // in the queue's order: clocks differ
		if !r.Status.Final() {
			return
		}
		if r.Updated.After(began) { // what was done before is told, too
			r.Log()
		}
		for s.final = append(s.final, r); len(s.final) > maxKept; s.final = s.final[1:] {
			if old := s.final[0]; s.records[old.ID] == old { // it was not asked for again since
				delete(s.records, old.ID)
			}
		}
	})
}

// all returns the conversions, the latest first.
func (s *Service) all() []*queue.Record {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]*queue.Record, 0, len(s.records))
	for _, r := range s.records {
		list = append(list, r)
	}
	slices.SortFunc(list, func(a, b *queue.Record) int {
		if c := b.Updated.Compare(a.Updated); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return list
}

// waiting counts the conversions of images of a registry, and of one of its repositories, that are not done.
func (s *Service) waiting(repo name.Repository) (ofRegistry, ofRepository int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.records {
		if r.Status.Final() || !strings.HasPrefix(r.Job.Source, repo.RegistryStr()+"/") {
			continue
		}
		ofRegistry++
		if strings.HasPrefix(r.Job.Source, repo.Name()+"@") {
			ofRepository++
		}
	}
	return ofRegistry, ofRepository
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
			if s.strangers.Allow() {
				logrus.WithField("address", r.RemoteAddr).Warnf("refused: %s %.200q without the secret", r.Method,
					r.URL.Path)
			}
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
	limit := int64(maxBody)
	if strings.HasPrefix(r.URL.Path, notifications) {
		limit = maxNotice
	}
	r.Body = http.MaxBytesReader(w, r.Body, limit)
	s.handler.ServeHTTP(w, r)
}

// hasBeenRead is the key of a function that makes room for another request: what is left to do is wait for a registry,
// which has bounds of its own.
type hasBeenRead struct{}

// allowed reports whether a client has shown a certificate, which the server has checked, or the secret.
func (s *Service) allowed(r *http.Request) bool {
	if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		return true
	}
	scheme, given, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		_, given, _ = r.BasicAuth()
	}
	return s.o.Secrets != nil && s.o.Secrets.has(given)
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

// errMany says that too many conversions of images of a repository, or of a registry, are waiting.
var errMany = errors.New("too many conversions are waiting")

// ask queues the conversion of an image, if a rule allows it. Digest is what its tag has been moved to; empty: whatever
// it has. Since is when it was asked for. If something else was requested for its target since, nil is returned.
func (s *Service) ask(
	ctx context.Context, named, digest string, since moment, was *postponed,
) (r *queue.Record, err error) {
	for range 5 {
		if r, err = s.askOnce(ctx, named, digest, since, was); !errors.Is(err, queue.ErrOvertaken) {
			break
		}
	}
	return r, err
}

// askOnce is ask, with ErrOvertaken if another service was asked about the same target meanwhile.
func (s *Service) askOnce(
	ctx context.Context, named, digest string, since moment, was *postponed,
) (*queue.Record, error) {
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
	target, err := image.ParseName(img.Target, s.o.Plan.Insecure)
	if err != nil || targetPlace(target) == image.InRegistry(ref).Place() {
		return nil, refuse(http.StatusForbidden, "the rule would replace %s by what comes of it", ref)
	}
	if what := s.o.Plan.IsReserved(image.InRegistry(target)); what != "" {
		return nil, refuse(http.StatusForbidden, "the result would replace %s, which is %s", target, what)
	}
	if other, line := s.o.Plan.Rival(rule, target); other != nil {
		return nil, refuse(http.StatusForbidden, "the result would be %s, as that of %s, of which the rule in line %d "+
			"wants other signatures", target, other, line)
	}
	registry := ref.Context().RegistryStr()
	switch ofRegistry, ofRepository := s.waiting(ref.Context()); {
	case ofRepository >= maxOfOne:
		return nil, refuse(http.StatusTooManyRequests, "%w: %d from %s", errMany, maxOfOne, ref.Context())
	case ofRegistry >= maxWaiting:
		return nil, refuse(http.StatusTooManyRequests, "%w: %d from %s", errMany, maxWaiting, registry)
	}
	place := targetPlace(target)
	// Where a tag leads is asked in the order in which requests are queued: the last one has the image that it has
	// last.
	next, err := s.targets.enter(ctx, place)
	if err != nil {
		return nil, err
	}
	defer next()
	if was == nil && s.later.overtaken(place, ref, since.order) || was != nil && s.later.at(place) != was {
		return nil, nil
	}
	leave, err := s.sources.enter(ctx, registry)
	if err != nil {
		return nil, err
	}
	defer leave()
	// Other services may be asked too. What they queue meanwhile is seen by this.
	last, err := s.o.Queue.Last(ctx, img.Target, s.o.Plan.Insecure)
	if err != nil {
		return nil, refuse(http.StatusServiceUnavailable, "asking the queue: %w", err)
	}
	// Another service was told of something newer. If it is of the same tag, the tag decides.
	elsewhere := was != nil && last != was.last
	if was == nil && since.last != nil {
		elsewhere = last != *since.last && !s.later.follows(place, *since.last, last)
	}
	if elsewhere && !s.isOf(last, ref.Context()) {
		return nil, nil
	}
	// What was signed is what is converted, wherever the tag moves: from here on the image is known by its digest.
	digest, err = s.resolve(ctx, ref, digest)
	if err != nil {
		var refused *refusal
		if errors.As(err, &refused) {
			return nil, err
		}
		if codeOf(err) == http.StatusNotFound {
			return nil, refuse(http.StatusNotFound, "%s does not exist", ref)
		}
		return nil, refuse(codeOf(err), "finding %s: %w", ref, err)
	}
	pinned := ref.Context().Digest(digest)
	if !rule.AllowUnsigned {
		switch err := cosign.Signed(ctx, pinned, s.o.Trust[rule], s.o.Image); {
		case errors.Is(err, cosign.ErrUnsigned):
			return nil, refuse(http.StatusForbidden, "%s: %w", ref, err)
		case err != nil:
			return nil, refuse(codeOf(err), "%w", err)
		}
	}
	img.Source = image.InRegistry(pinned).String()
	job, err := s.o.Job(img)
	if err != nil {
		code := http.StatusBadRequest
		if absent := (*fs.PathError)(nil); errors.As(err, &absent) { // a file that an option names
			code = http.StatusServiceUnavailable
		}
		return nil, refuse(code, "%w", err)
	}
	job.StrictNames = true
	if source, _, err := s.o.Plan.Rule(target); err != nil || source != nil { // what comes of it would be a source, too
		job.ResultsOnly = true
	}
	r, now, err := s.o.Queue.Request(ctx, job, last)
	if err == nil || now != last { // it is the last one, though it may not be queued
		s.later.requested(place, ref, since.order, last, now)
	}
	if err != nil {
		return nil, refuse(http.StatusServiceUnavailable, "queueing %s: %w", ref, err)
	}
	s.mu.Lock()
	// else what the queue has told of it is newer
	if known := s.records[r.ID]; known == nil || known.Request < r.Request {
		s.records[r.ID] = r
	}
	s.mu.Unlock()
	logrus.Infof("%s is queued as %s", ref, r.ID)
	return r, nil
}

// isOf reports whether a request is known to be about an image of a repository.
func (s *Service) isOf(last queue.Last, repo name.Repository) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.records {
		if last.Is(r) {
			return strings.HasPrefix(r.Job.Source, repo.Name()+"@")
		}
	}
	return false
}

// resolve finds out which digest a tag has. A registry may tell of a push before the tag has moved: it is given a
// second and a half.
func (s *Service) resolve(ctx context.Context, ref name.Reference, pushed string) (digest string, err error) {
	for wait := 50 * time.Millisecond; ; wait *= 2 {
		digest, err = registry.ResolveTag(ctx, image.InRegistry(ref), s.o.Image)
		missing := err != nil && codeOf(err) == http.StatusNotFound
		if pushed == "" || digest == pushed || err != nil && !missing {
			return digest, err
		}
		if wait > time.Second {
			if err == nil {
				err = refuse(http.StatusConflict, "%s was moved on: it has %s, and not %s", ref, digest, pushed)
			}
			return "", err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}
