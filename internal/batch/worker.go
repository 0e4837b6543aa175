package batch

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/cconvert/cconvert/internal/bug"
	"github.com/cconvert/cconvert/internal/plan"
	"github.com/cconvert/cconvert/internal/queue"
	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
	"github.com/cconvert/cconvert/pkg/image/store"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/recipe"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// Worker converts images, several at a time, with what is this machine's own.
type Worker struct {
	// Name of the worker in records.
	Name string
	// Own are the options that are no job's business: caches, credentials, what inflates, evidence's key.
	Own convert.Options
	// Backends are the runtimes that jobs can ask for.
	Backends []libos.Backend
	// Files says what of this machine jobs may name; the zero value: nothing.
	Files Files
	// Insecure lets jobs have registries spoken to over HTTP.
	Insecure bool
	// Signer signs; nil: only unsigned images can be made.
	Signer sgx.Signer
	// DefaultKey says that the signer's key is one that nobody has named: it takes no tag from another one.
	DefaultKey bool
	// Observe returns the observer of a conversion; nil: nobody is told.
	Observe func(queue.Job) convert.Observer

	once     sync.Once
	shared   registry.Shared
	mu       sync.Mutex
	runtimes map[runtimeKey]*loadedRuntime
	limits   map[string]*limit
}

// errNothing says that a job has a problem in place of an image.
var errNothing = errors.New("there is nothing to convert")

// unsuitable are errors of images that nobody could convert, whatever the options: results of conversions, charts,
// images of other platforms.
var unsuitable = []error{convert.ErrConverted, image.ErrUnsupported, image.ErrPlatform, errNothing}

// ErrInsecure says that a job wants registries spoken to over HTTP, and that the worker does not.
var ErrInsecure = errors.New("the job wants HTTP, which this worker was not started for (--insecure)")

// ErrDefaultKey says that a job is to replace what another key has signed, and that nobody has named this worker's.
var ErrDefaultKey = errors.New("what another key has signed is replaced only with a key that is named, by --key")

// notTheImage is an error of something else than the source image, whatever its kind: it does not make the image one
// that nobody could convert.
type notTheImage struct{ error }

func (e notTheImage) Unwrap() error { return e.error }

// Unsuitable reports whether an error of Convert says that nobody could convert the image.
func Unsuitable(err error) bool {
	var other notTheImage
	if errors.As(err, &other) || errors.Is(err, convert.ErrVersionUnknown) { // which is the target's
		return false
	}
	return slices.ContainsFunc(unsuitable, func(e error) bool { return errors.Is(err, e) })
}

// Outcome is what became of a job.
type Outcome struct {
	Status    queue.Status // Converted or Unchanged
	Identity  string
	Ref       string
	Digest    string
	MREnclave sgx.Measurement
	MRSigner  sgx.Measurement
	// Findings is how many there were, and Warnings are the codes of those that are warnings.
	Findings int
	Warnings []string
}

// found adds findings.
func (o *Outcome) found(list []finding.Finding) {
	o.Findings += len(list)
	for _, f := range list {
		if f.Severity == finding.Warning && !slices.Contains(o.Warnings, f.Code) {
			o.Warnings = append(o.Warnings, f.Code)
		}
	}
	slices.Sort(o.Warnings)
}

// Convert does a job. Its outcome is Unchanged if the target has, to the byte, what this worker remembers to have made,
// or what it makes now. What is written in an image is no proof: whoever can push to the target can put an old or a
// weaker enclave of the same key there, with the recipe and the labels of what is wanted now.
func (w *Worker) Convert(ctx context.Context, j queue.Job) (*Outcome, error) {
	always := func(context.Context) error { return nil }
	return w.convert(ctx, j, &meter{}, always, always)
}

// attempt is a job that is about to be done, with what is known of it before the image is read.
type attempt struct {
	convert.Options
	signer sgx.Signer // nil: the image is not signed
	out    Outcome    // with Identity and MRSigner, and whole if there is nothing to do
	key    string     // of what is remembered of the job
	before string     // digest of what the target has; empty: nothing, or it cannot be read, as unread says
	unread error
	done   bool // the target has what is remembered
}

// begin finds out what a job is about, and whether its target has what this worker remembers to have made.
func (w *Worker) begin(
	ctx context.Context, j queue.Job, m *meter, moving func(context.Context) error,
) (*attempt, error) {
	if j.Problem != "" {
		return nil, fmt.Errorf("%w: %s", errNothing, j.Problem)
	}
	if j.Insecure && !w.Insecure {
		return nil, ErrInsecure
	}
	if err := w.Files.check(j, w.Backends); err != nil {
		return nil, err
	}
	w.once.Do(func() { w.runtimes, w.limits = map[runtimeKey]*loadedRuntime{}, map[string]*limit{} })
	own := w.Own
	own.Image.Shared, own.Image.Pace = &w.shared, w.pace(j.Limits)
	if w.Observe != nil {
		own.Observer = w.Observe(j)
	}
	// Other places of layers are whatever a stranger writes: a worker is sent nowhere.
	own.Image.OnlyRegistry, own.Image.StrictNames, own.Image.Watch, own.Image.BeforeTag = true, j.StrictNames, m, moving
	o, err := j.Conversion(own, w.Backends)
	if err != nil {
		return nil, err
	}
	if err := o.Check(o.Source, *o.Target); err != nil {
		return nil, notTheImage{err}
	}
	if o.Target.Same(o.Source) {
		return nil, fmt.Errorf("%w: %s", ErrSource, o.Target)
	}
	a := &attempt{Options: o, out: Outcome{Status: queue.Unchanged}}
	if !j.Unsigned {
		if a.signer = w.Signer; a.signer == nil {
			return nil, fmt.Errorf("%w: this worker has none, and the image is to be signed", sgx.ErrNoKey)
		}
		if j.ReplaceSigner && w.DefaultKey {
			return nil, ErrDefaultKey
		}
		key, err := a.signer.Public(ctx)
		if err != nil {
			return nil, fmt.Errorf("reading the signing key: %w", err)
		}
		a.out.MRSigner = sgx.MRSigner(key)
	}
	runtime := w.runtime(runtimeKey{j.Runtime, j.Insecure})
	a.Backend = &onceLoaded{o.Backend, runtime}
	over := m.Waiting(queue.RegistryOf(j.Runtime.Source)) // another job may be loading it
	bundle, err := a.Backend.Load(ctx, o.Runtime)
	over()
	if err != nil {
		return nil, err
	}
	a.Backend = &loaded{a.Backend, bundle} // what the identity says is what is used, however long it takes
	if a.Found, err = store.Find(ctx, o.Source, o.Image); err != nil {
		return nil, err
	}
	if a.out.Identity, err = a.Identity(a.Found.Digest, bundle.Layer.Digest, a.out.MRSigner); err != nil {
		return nil, err
	}
	a.key = w.outputKey(a.out.Identity, j, bundle.Pinned, a.Target.Place())
	if a.Target.Transport != image.Registry {
		return a, nil // it is cheaper to do than to find out
	}
	a.before, a.unread = registry.At(ctx, *a.Target, a.Image) // writing shows what is wrong
	known := w.remembered(a.key)
	if !j.Force && known != nil && known.Digest == a.before && a.attached(ctx, known.Attached) {
		a.done = true
		a.out.Digest, a.out.MREnclave = known.Digest, known.MREnclave
		a.out.Findings, a.out.Warnings = known.Findings, known.Warnings
		a.out.Ref = a.Target.Name.Context().Name() + "@" + known.Digest
	}
	return a, nil
}

// copyReferrers copies what refers to the source of a result that is there already: it can be more than it was then.
// If look is set, it only reports whether something is to be copied.
func (a *attempt) copyReferrers(ctx context.Context, look bool) (missing bool, err error) {
	if !a.CopyReferrers {
		return false, nil
	}
	img, err := a.Found.Open(ctx)
	if err != nil {
		return false, err
	}
	defer img.Close()
	to, withImage := a.Target.Name.Context(), a.Launch.Encrypt.Paths == nil
	var list []registry.Carried
	if look {
		list, missing, err = registry.LookAtReferrers(ctx, img, to, withImage, a.Image)
	} else {
		list, err = registry.CopyReferrers(ctx, img, to, withImage, a.Image)
	}
	if err == nil {
		kept := convert.KeptTags(list)
		a.out.found(kept)
		err = a.Gate.Pass(kept)
	}
	if err != nil {
		return false, notTheImage{err}
	}
	return missing, nil
}

// convert is Convert that asks before it signs whether the image is still wanted, and before it moves the tag whether
// it may.
func (w *Worker) convert(
	ctx context.Context, j queue.Job, m *meter, wanted, moving func(context.Context) error,
) (_ *Outcome, err error) {
	defer bug.Catch(&err)
	a, err := w.begin(ctx, j, m, moving)
	if err != nil {
		return nil, err
	}
	out := &a.out
	if a.done {
		_, err := a.copyReferrers(ctx, false)
		return out, err
	}
	p, err := convert.Prepare(ctx, a.Options)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	if p.Recipe.Identity(out.MRSigner) != out.Identity {
		return nil, notTheImage{fmt.Errorf("%w: %s", image.ErrMoved, a.Source)}
	}
	if j.Unsigned && !j.Force {
		signed := w.signedSince(ctx, p, a.Options, *out)
		if signed != nil && signed.Digest == a.before {
			a.out = *signed
			_, err := a.copyReferrers(ctx, false)
			return &a.out, err // not remembered: another one may sign it tomorrow
		}
	}
	if err := w.mayReplace(ctx, j, a.Options); err != nil {
		return nil, notTheImage{err}
	}
	if err := wanted(ctx); err != nil {
		return nil, notTheImage{err}
	}
	r, err := p.SignAndFinish(ctx, a.signer)
	if err != nil {
		return nil, notTheImage{err}
	}
	out.Ref, out.Digest, out.MREnclave = r.Output.Ref, r.Output.Digest, r.MREnclave
	if j.Force || out.Digest != a.before {
		out.Status = queue.Converted
	}
	kept := convert.KeptTags(r.Referrers) // which is looked at anew each time
	out.found(r.Findings[:len(r.Findings)-len(kept)])
	w.remember(a.key, out, r.Output.Attached)
	out.found(kept)
	return out, nil
}

// signedSince returns the outcome of a conversion that is not signed, if the target has it signed by somebody since:
// all but the signature is what was just made. Otherwise it is nil.
func (w *Worker) signedSince(ctx context.Context, p *convert.Prepared, o convert.Options, out Outcome) *Outcome {
	if o.Target.Transport != image.Registry {
		return nil
	}
	img, err := store.Open(ctx, *o.Target, o.Image)
	if err != nil {
		return nil // writing shows what is wrong
	}
	defer img.Close()
	e, err := convert.OpenEnclave(ctx, img, w.Backends)
	if err != nil {
		return nil
	}
	made, err := p.Complete(e.Now.Signature())
	if err != nil || made.Digest != img.Digest {
		return nil
	}
	if o.EvidenceNeeded() && !stated(ctx, img, o.Evidence, p.EvidenceKinds(e.Now.MRSigner())) {
		return nil
	}
	out.found(p.Findings())
	out.Digest, out.Ref = img.Digest, o.Target.Name.Context().Name()+"@"+img.Digest
	out.MREnclave, out.MRSigner = e.Now.MREnclave, e.Now.MRSigner()
	return &out
}

// ErrSource says that a result would replace an image that is to be converted too.
var ErrSource = errors.New("the result would replace an image that is to be converted too")

// mayReplace reports why a job must not write its target.
func (w *Worker) mayReplace(ctx context.Context, j queue.Job, o convert.Options) error {
	if !j.ResultsOnly {
		return nil
	}
	img, err := store.Open(ctx, *o.Target, o.Image)
	if errors.Is(err, image.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer img.Close()
	if !recipe.IsResult(img) {
		return fmt.Errorf("%w: %s", ErrSource, o.Target)
	}
	return nil
}

// output is what is remembered of a job.
type output struct {
	Digest    string          `json:"digest"`
	MREnclave sgx.Measurement `json:"mr_enclave"`
	Findings  int             `json:"findings"`
	Warnings  []string        `json:"warnings,omitempty"`
	// Attached are the digests of the statements and reference values that were attached.
	Attached []string `json:"attached,omitempty"`
}

// attached reports whether the statements that a conversion needs are still attached to what its target has: a copy of
// an image comes without them, and whoever may write there may replace them with others.
func (a *attempt) attached(ctx context.Context, digests []string) bool {
	if !a.EvidenceNeeded() {
		return true
	}
	list, err := registry.ListReferrers(ctx, a.Target.Name.Context().Digest(a.before), a.Image, attest.Kinds...)
	return err == nil && len(digests) > 0 && list.Have(ctx, digests)
}

// stated reports whether statements of certain kinds are attached to an image that somebody has signed since. What they
// are to the byte is the signer's.
func stated(ctx context.Context, img *image.Image, by *convert.Evidence, kinds []string) bool {
	artifacts, err := registry.Referrers(ctx, img, attest.Kinds...)
	if err != nil {
		return false
	}
	var key *attest.PublicKey
	if by.Key != nil {
		key = &by.Key.PublicKey
	}
	found := map[string]bool{}
	for _, f := range attest.Read(ctx, artifacts, key) {
		switch {
		case f.CoRIM != nil:
			found[attest.CoRIMMediaType] = true
		case f.Statement == nil || key != nil && !f.Verified:
		case slices.ContainsFunc(f.Statement.Subject, func(r attest.Resource) bool { return r.Is(img.Digest) }):
			found[f.Statement.PredicateType] = true
		}
	}
	return !slices.ContainsFunc(kinds, func(kind string) bool { return !found[kind] })
}

// outputKey names what is remembered: the identity, where it goes, what else a job wants of its outcome, whether the
// runtime was pinned, whom was believed about what is in layers, and whose statements are attached. Some findings are
// about the target.
func (w *Worker) outputKey(identity string, j queue.Job, pinned bool, target string) string {
	believed, stated := "", ""
	if w.Own.Shared != nil && w.Own.Shared.Reads() {
		believed = w.Own.Shared.Trust()
	}
	if e := w.Own.Evidence; e != nil && e.Key != nil && !j.NoEvidence {
		stated, _ = e.Key.KeyID()
	}
	b, err := json.Marshal([]any{
		identity, target, pinned, j.Gate, j.NoEvidence, j.NeedsEvidence, j.TrustTOC, believed, stated,
	})
	if err != nil {
		panic(err) // strings and booleans
	}
	sum := sha256.Sum256(b)
	return "output/" + hex.EncodeToString(sum[:])
}

func (w *Worker) remember(key string, out *Outcome, attached []string) {
	if w.Own.Cache == nil {
		return
	}
	b, err := json.Marshal(output{out.Digest, out.MREnclave, out.Findings, out.Warnings, attached})
	if err == nil {
		_ = w.Own.Cache.Put(key, b) // a cache that cannot be written costs time, nothing else
	}
}

func (w *Worker) remembered(key string) *output {
	if w.Own.Cache == nil {
		return nil
	}
	b, ok := w.Own.Cache.Get(key)
	var o output
	if !ok || json.Unmarshal(b, &o) != nil {
		return nil
	}
	return &o
}

// A worker remembers so many runtimes and limits. Jobs name them, and jobs are strangers'.
const (
	maxRuntimes = 32
	maxLimits   = 10_000
)

// freshFor is how long a runtime that was found by a tag is used before the tag is asked for again.
const freshFor = 10 * time.Minute

// loadedRuntime is a runtime that is loaded once for many images.
type loadedRuntime struct {
	mu     sync.Mutex
	bundle *libos.Bundle
	at     time.Time
}

// runtimeKey is all that decides on which runtime is loaded, and from where.
type runtimeKey struct {
	queue.Runtime
	insecure bool
}

func (w *Worker) runtime(r runtimeKey) *loadedRuntime {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.runtimes[r] == nil {
		if len(w.runtimes) >= maxRuntimes {
			w.runtimes = map[runtimeKey]*loadedRuntime{} // whoever uses one keeps it
		}
		w.runtimes[r] = &loadedRuntime{}
	}
	return w.runtimes[r]
}

// onceLoaded is a backend whose runtime is loaded once.
type onceLoaded struct {
	libos.Backend
	runtime *loadedRuntime
}

func (b *onceLoaded) Load(ctx context.Context, o libos.LoadOptions) (*libos.Bundle, error) {
	b.runtime.mu.Lock()
	defer b.runtime.mu.Unlock()
	if b.runtime.bundle == nil || time.Since(b.runtime.at) > freshFor {
		bundle, err := b.Backend.Load(ctx, o)
		if err != nil {
			return nil, notTheImage{err}
		}
		b.runtime.bundle, b.runtime.at = bundle, time.Now()
	}
	copied := *b.runtime.bundle
	return &copied, nil
}

// loaded is a backend whose runtime is a given one.
type loaded struct {
	libos.Backend
	bundle *libos.Bundle
}

func (b *loaded) Load(context.Context, libos.LoadOptions) (*libos.Bundle, error) {
	copied := *b.bundle
	return &copied, nil
}

// limit keeps to the limits of a registry.
type limit struct {
	pace *rate.Limiter
	few  chan struct{} // nil: as many as it likes
}

// pace keeps to the limits of registries, by their name.
func (w *Worker) pace(limits map[string]plan.Limits) func(*http.Request) (done func(), err error) {
	return func(r *http.Request) (done func(), err error) {
		l := w.limit(r.URL.Host, limits)
		if l == nil {
			return func() {}, nil
		}
		if err := l.pace.Wait(r.Context()); err != nil {
			return nil, err
		}
		// what is sent can come from the same registry, by another request
		if l.few == nil || r.Method == http.MethodPut {
			return func() {}, nil
		}
		select {
		case l.few <- struct{}{}:
			return func() { <-l.few }, nil
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
	}
}

func (w *Worker) limit(host string, limits map[string]plan.Limits) *limit {
	wanted, ok := limits[host]
	if !ok {
		return nil
	}
	key := fmt.Sprint(host, wanted)
	w.mu.Lock()
	defer w.mu.Unlock()
	if l := w.limits[key]; l != nil {
		return l
	}
	if len(w.limits) >= maxLimits {
		w.limits = map[string]*limit{}
	}
	l := &limit{pace: rate.NewLimiter(rate.Inf, 1)}
	if wanted.PerSecond > 0 {
		l.pace = rate.NewLimiter(rate.Limit(wanted.PerSecond), max(1, int(wanted.PerSecond)))
	}
	if wanted.AtOnce > 0 {
		l.few = make(chan struct{}, wanted.AtOnce)
	}
	w.limits[key] = l
	return l
}
