package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/sirupsen/logrus"
	"github.com/spf13/pflag"

	"github.com/cconvert/cconvert/internal/plan"
	"github.com/cconvert/cconvert/internal/queue"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
	"github.com/cconvert/cconvert/pkg/image/store"
	"github.com/cconvert/cconvert/pkg/libos/all"
)

// jobFlags are the options that a plan can set for its images: all of "cconvert convert" that are not about the machine
// which converts, or about where things go.
type jobFlags struct {
	start                      launchFlags
	library                    runtimeFlags
	gate                       convert.Gate
	rollback, unsigned, attest bool
	another                    bool // signer
	toc, referrers             bool
}

func (j *jobFlags) add(f *pflag.FlagSet) {
	j.start.add(f)
	j.library.add(f)
	addGate(f, &j.gate)
	addReplace(f, &j.rollback, &j.another)
	f.BoolVar(&j.unsigned, "unsigned", false, "")
	f.BoolVar(&j.attest, "attest", true, "")
	f.BoolVar(&j.toc, "trust-toc", false, "")
	f.BoolVar(&j.referrers, "copy-referrers", false, "")
}

// planJob makes the job for an image of a plan.
func planJob(file string, img plan.Image, p *plan.Plan, insecure bool) (queue.Job, error) {
	var j jobFlags
	f := pflag.NewFlagSet("", pflag.ContinueOnError)
	j.add(f)
	for _, o := range img.Options {
		if f.Lookup(o.Name) == nil {
			var known []string
			f.VisitAll(func(f *pflag.Flag) { known = append(known, f.Name) })
			return queue.Job{}, &plan.Error{
				File: file, Line: o.Line,
				Err: fmt.Errorf("there is no option %q for an image%s", o.Name, plan.Nearest(o.Name, known)),
			}
		}
		for _, v := range o.Values {
			if err := f.Set(o.Name, besides(file, o.Name, v)); err != nil {
				return queue.Job{}, &plan.Error{File: file, Line: o.Line, Err: err}
			}
		}
	}
	asked := f.Changed("attest")
	err := fromEnvironment(f)
	if err != nil {
		return queue.Job{}, err
	}
	o, err := j.options(img, insecure)
	if err == nil {
		err = checkGate(j.gate)
	}
	if err != nil {
		return queue.Job{}, &plan.Error{File: file, Line: img.Line, Err: err}
	}
	o.AllowRollback, o.ReplaceSigner, o.TrustTOC, o.CopyReferrers = j.rollback, j.another, j.toc, j.referrers
	if o.Gate = j.gate; j.attest {
		o.Evidence = &convert.Evidence{Required: asked}
	}
	if err := o.Check(o.Source, *o.Target); err != nil {
		return queue.Job{}, &plan.Error{File: file, Line: img.Line, Err: err}
	}
	job := queue.NewJob(o, insecure)
	job.Unsigned, job.Limits, job.Found, job.ResultsOnly = j.unsigned, p.Limits, img.Found, img.ResultsOnly
	return job, nil
}

// besides returns the value of an option that names a file, which is beside the plan where its path is not absolute.
func besides(planFile, option, value string) string {
	beside := func(p string) string {
		if p == "" || filepath.IsAbs(p) {
			return p
		}
		return filepath.Join(filepath.Dir(planFile), p)
	}
	switch {
	case option == "manifest", option == "lock", option == "profile" && strings.ContainsAny(value, "/."):
		return beside(value)
	case option == "secrets":
		fields := strings.Split(value, ",")
		for i, f := range fields {
			if ca, ok := strings.CutPrefix(f, "ca="); ok {
				fields[i] = "ca=" + beside(ca)
			}
		}
		return strings.Join(fields, ",")
	case option == "trust" && strings.HasPrefix(value, "list:"):
		return "list:" + beside(strings.TrimPrefix(value, "list:"))
	}
	return value
}

func (j *jobFlags) options(img plan.Image, insecure bool) (o convert.Options, err error) {
	if o.Source, err = image.ParseReference(img.Source, insecure); err != nil {
		return o, err
	}
	target, err := image.ParseReference(img.Target, insecure)
	if err != nil {
		return o, err
	}
	o.Target = &target
	if err := checkTarget(o.Source, target); err != nil {
		return o, err
	}
	if err := j.start.choose(&o); err != nil {
		return o, err
	}
	if err := o.Launch.Check(); err != nil {
		return o, usagef("--%w", err)
	}
	if o.AgentFile != "" {
		return o, usagef("--agent is for one image: workers have agents of their own")
	}
	o.Backend, o.Runtime, err = j.library.choose(registryFlags{insecure: insecure},
		cacheFlags{off: true})
	return o, err
}

// findRuntime is how long it may take to find out which runtime a tag names.
const findRuntime = 5 * time.Minute

// pinRuntimes finds out once which runtimes the tags in jobs name now, so that all images of a batch get the same. A
// runtime that cannot be found is a problem of the jobs that want it, and an error if no job wants another one.
func pinRuntimes(ctx context.Context, jobs []queue.Job, o registry.Options) error {
	known, missing := map[queue.Runtime]string{}, map[queue.Runtime]error{}
	for i := range jobs {
		r := jobs[i].Runtime
		if jobs[i].Problem != "" {
			continue
		}
		ref, inImage, err := queue.ImageOf(r, jobs[i].Insecure, all.Backends())
		if err != nil {
			return err
		}
		if r.Digest != "" || r.Layer != "" || !inImage || ref.Transport != image.Registry {
			continue
		}
		digest, ok := known[r]
		if !ok {
			limited, cancel := context.WithTimeout(ctx, findRuntime)
			digest, err = registry.ResolveTag(limited, ref, o)
			cancel()
			if err != nil {
				missing[r] = fmt.Errorf("finding the runtime %s: %w", r.Source, err)
			}
			if ctx.Err() != nil {
				return missing[r]
			}
			known[r] = digest
		}
		if err := missing[r]; err != nil {
			// It is not the image that nobody could convert.
			jobs[i].Problem, jobs[i].Passing, jobs[i].Found = err.Error(), image.Transient(err), false
			continue
		}
		jobs[i].Runtime.Digest = digest
	}
	if slices.ContainsFunc(jobs, func(j queue.Job) bool { return j.Problem == "" }) {
		return nil
	}
	for _, err := range missing {
		return err
	}
	return nil
}

// readPlan reads a plan, with the credentials that it names, and others beside them; nil: the usual ones.
func readPlan(file string, others authn.Keychain) (*plan.Plan, authn.Keychain, error) {
	info, err := os.Stat(file)
	if err == nil && info.Size() > plan.MaxSize {
		return nil, nil, usagef("%s: it has more than %d bytes", file, plan.MaxSize)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, nil, &usageError{err}
	}
	p, err := plan.Parse(file, text)
	if err != nil {
		return nil, nil, err
	}
	keychain := planKeychain{}
	for _, c := range p.Creds {
		password := os.Getenv(c.PassEnv)
		if c.PassFile != "" {
			passFile := c.PassFile
			if !filepath.IsAbs(passFile) {
				passFile = filepath.Join(filepath.Dir(file), passFile)
			}
			b, err := os.ReadFile(passFile)
			if err != nil {
				return nil, nil, &usageError{fmt.Errorf("%s: creds: %w", file, err)}
			}
			password = strings.TrimRight(string(b), "\r\n")
		}
		if password == "" {
			return nil, nil, usagef("%s: creds: the password of %s at %s is empty", file, c.User, c.Registry)
		}
		keychain[c.Registry] = authn.FromConfig(authn.AuthConfig{Username: c.User, Password: password})
	}
	if others == nil {
		others = authn.DefaultKeychain
	}
	return p, authn.NewMultiKeychain(keychain, others), nil
}

// planKeychain has a plan's credentials, by registry.
type planKeychain map[string]authn.Authenticator

func (k planKeychain) Resolve(of authn.Resource) (authn.Authenticator, error) {
	if a, ok := k[of.RegistryStr()]; ok {
		return a, nil
	}
	return authn.Anonymous, nil
}

// catalog asks registries what they have.
type catalog struct {
	o        registry.Options
	insecure bool
	created  *sync.Map // of an image's digest: when it was made; many tags have one image
}

func (c catalog) Repositories(ctx context.Context, of name.Registry) iter.Seq2[string, error] {
	return registry.Repositories(ctx, of, c.o)
}

func (c catalog) Tags(ctx context.Context, repo name.Repository) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for tag, err := range registry.Tags(ctx, repo, c.o) {
			if !yield(tag, none(err)) {
				return
			}
		}
	}
}

// none makes an error about what cannot be converted the one by which a plan leaves it out.
func none(err error) error {
	if errors.Is(err, image.ErrNotFound) || errors.Is(err, image.ErrPlatform) || errors.Is(err, image.ErrUnsupported) {
		return fmt.Errorf("%w: %w", plan.ErrNone, err)
	}
	return err
}

func (c catalog) Created(ctx context.Context, n name.Reference) (time.Time, error) {
	ref, err := image.ParseReference(n.String(), c.insecure)
	if err != nil {
		return time.Time{}, err
	}
	img, err := store.Find(ctx, ref, c.o)
	if err != nil {
		return time.Time{}, undated(err)
	}
	if at, ok := c.created.Load(img.Digest); ok {
		return at.(time.Time), nil
	}
	opened, err := img.Open(ctx)
	if err != nil {
		return time.Time{}, undated(err)
	}
	defer opened.Close()
	at, err := opened.Created()
	if err == nil {
		c.created.Store(opened.Digest, at)
	}
	return at, err
}

// undated is none for an image that a registry lists: what is gone of it may be the newest of all.
func undated(err error) error {
	if errors.Is(err, image.ErrNotFound) {
		return err
	}
	return none(err)
}

// planDigest is the digest of a plan with all that it leads to: files that its options name, and settings in variables.
// It reserves the runtimes that the options name.
// The error is a mistake in the options, whatever images there are.
func planDigest(file string, p *plan.Plan, insecure bool) (string, error) {
	of := []any{p.Digest}
	for _, e := range p.Convert {
		img := plan.Image{
			Source: "registry.example/source:1", Target: "registry.example/target:1",
			Options: e.Options.Over(p.Defaults.Options), Line: e.Line,
		}
		j, err := planJob(file, img, p, insecure)
		if err != nil {
			return "", err
		}
		of = append(of, j)
		ref, ok, err := queue.ImageOf(j.Runtime, insecure, all.Backends())
		if err != nil {
			return "", err
		}
		if ok {
			p.Reserve(ref, "the runtime of images")
		}
	}
	b, err := json.Marshal(of)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:]), nil
}

// planJobs finds a plan's images, and makes a job of each. The plan's options were checked, as planDigest does.
func planJobs(ctx context.Context, file string, p *plan.Plan, o registry.Options, insecure bool) ([]queue.Job, error) {
	p.Insecure = insecure
	o.OnlyRegistry = true // whoever may push to a repository sends nobody elsewhere
	images, err := p.Select(ctx, file, catalog{o, insecure, new(sync.Map)})
	if err != nil {
		return nil, err
	}
	if len(images) == 0 {
		logrus.Warnf("%s chooses no image", file)
	}
	jobs := make([]queue.Job, 0, len(images))
	for _, img := range images {
		if img.Err != nil {
			jobs = append(jobs, queue.Job{
				Source: img.Source, Problem: img.Err.Error(), Passing: image.Transient(img.Err),
				Found: img.Found && errors.Is(img.Err, plan.ErrNone),
			})
			continue
		}
		j, err := planJob(file, img, p, insecure)
		if err != nil && !img.Found {
			return nil, err
		}
		if err != nil { // the options are right: it is a name of the registry's
			j = queue.Job{Source: img.Source, Problem: err.Error()}
		}
		jobs = append(jobs, j)
	}
	for i := range jobs {
		jobs[i].Problem = strings.ToValidUTF8(jobs[i].Problem[:min(len(jobs[i].Problem), maxProblem)], "")
	}
	return slices.Clip(jobs), nil
}

// maxProblem is how many bytes of what is wrong with an image are kept.
const maxProblem = 4 << 10
