package plan

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Masterminds/semver/v3"
	"github.com/google/go-containerregistry/pkg/name"
	"golang.org/x/sync/errgroup"

	"github.com/cconvert/cconvert/pkg/image"
)

// chosen is what an entry chooses of a repository, or the name of what cannot be had, and why. There may be very many
// tags: references to them are made when they are needed.
type chosen struct {
	ref  name.Reference // of an image
	repo name.Repository
	tags []string
	name string
	err  error // about ref, or else repo; if both are zero, about all that the entry would choose
}

// found returns what was chosen, one image after the other.
func found(list []chosen) iter.Seq[chosen] {
	return func(yield func(chosen) bool) {
		for _, c := range list {
			if c.tags == nil && !yield(c) {
				return
			}
			for _, t := range c.tags {
				if !yield(chosen{ref: c.repo.Tag(t)}) {
					return
				}
			}
		}
	}
}

// ErrTooMany says that an entry of a plan chooses more images than can be converted at a time.
var ErrTooMany = errors.New("it chooses too many images: narrow it by allow, deny, semver or newest")

// perRegistry is how many repositories of a registry are looked into at a time.
const perRegistry = 8

// find finds the images of all entries. A registry that is slow or has no end of tags holds up no other one's entries.
func (p *Plan) find(ctx context.Context, file string, c Catalog) ([][]chosen, error) {
	lists := make([][]chosen, len(p.Convert))
	limit := cmp.Or(p.ListTime, DefaultListTime)
	few, dates := map[string]chan struct{}{}, map[string]chan struct{}{}
	g, ctx := errgroup.WithContext(ctx)
	for i := range p.Convert {
		e := &p.Convert[i]
		host, _, _ := strings.Cut(e.Registry+e.Repository, "/")
		if few[host] == nil {
			few[host] = make(chan struct{}, perRegistry)
			dates[host] = make(chan struct{}, perRegistry)
		}
		own := search{c, few[host], dates[host], p.maxImages() * 3 / 10, limit / 4, p.Insecure}
		g.Go(func() (err error) {
			ctx, cancel := context.WithTimeoutCause(ctx, limit,
				fmt.Errorf("finding the images took longer than %s", limit))
			defer cancel()
			if lists[i], err = e.find(ctx, own); err != nil {
				return &Error{file, e.Line, err}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	p.bound(lists)
	return lists, nil
}

// bound leaves out the entries that choose most, if all together choose too many.
func (p *Plan) bound(lists [][]chosen) {
	most := p.maxImages()
	counts, order := make([]int, len(lists)), make([]int, len(lists))
	for i, list := range lists {
		order[i] = i
		for _, c := range list {
			counts[i] += max(1, len(c.tags))
		}
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(counts[a], counts[b]) })
	left := most
	for _, i := range order {
		if counts[i] > left {
			e := &p.Convert[i]
			lists[i] = []chosen{{
				name: cmp.Or(e.Repository, e.Registry, e.Image),
				err:  fmt.Errorf("%w: %d, and with others more than %d", ErrTooMany, counts[i], most),
			}}
		}
		left -= min(left, counts[i])
	}
}

// search is how an entry's images are looked for.
type search struct {
	Catalog
	few      chan struct{} // has a place for each repository that is looked into
	dates    chan struct{} // and for each image that is asked for when it was made
	most     int           // images that may be found
	limit    time.Duration // for a repository among others
	insecure bool
}

// share divides what may be found among repositories: of those that take most one after the other has too many, so that
// whoever may write to some keeps nobody from the others.
type share struct {
	most int

	mu     sync.Mutex
	sum    int
	counts []int // by repository; -1: it has too many
}

// take counts an image of a repository. The error is ErrTooMany if the repository has too many.
func (s *share) take(repository int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.counts[repository] >= 0 {
		s.counts[repository]++
		s.sum++
	}
	for s.sum > s.most {
		largest := 0
		for i, n := range s.counts {
			if n > s.counts[largest] {
				largest = i
			}
		}
		if s.counts[largest] < s.most/100 {
			return fmt.Errorf("%w: more than %d, in many repositories", errAll, s.most)
		}
		s.sum -= s.counts[largest]
		s.counts[largest] = -1
	}
	return s.tooMany(repository)
}

func (s *share) tooMany(repository int) error {
	if s.counts[repository] >= 0 {
		return nil
	}
	return fmt.Errorf("%w: the entry's repositories have more than %d together, and this one has most", ErrTooMany,
		s.most)
}

// errAll says that all of an entry's repositories together have too many images.
var errAll = fmt.Errorf("%w", ErrTooMany)

func (e *Entry) find(ctx context.Context, s search) ([]chosen, error) {
	if e.Image != "" {
		ref, err := image.ParseName(e.Image, s.insecure)
		return []chosen{{ref: ref, name: e.Image, err: err}}, nil
	}
	names := []string{e.Repository}
	if e.Registry != "" {
		registry, err := image.ParseRegistry(e.Registry, s.insecure)
		if err != nil {
			return nil, err
		}
		names = nil
		listed := false
		for r, err := range s.Repositories(ctx, registry) {
			if err == nil && len(names) == s.most {
				err = fmt.Errorf("%w: more than %d repositories", ErrTooMany, s.most)
			}
			if err != nil {
				return problem(ctx, registry.Name(), err)
			}
			listed = true
			if matches(e.Repositories.Allow, e.Repositories.Deny, r) {
				names = append(names, registry.Name()+"/"+r)
			}
		}
		if !listed {
			return problem(ctx, registry.Name(), errors.New("the registry lists no repository"))
		}
		slices.Sort(names)
		names = slices.Compact(names)
	}
	lists := make([][]chosen, len(names))
	shared := &share{most: s.most, counts: make([]int, len(names))}
	g, inner := errgroup.WithContext(ctx)
	g.SetLimit(perRegistry)
	for i, n := range names {
		g.Go(func() error {
			select {
			case s.few <- struct{}{}:
				defer func() { <-s.few }()
			case <-inner.Done():
			}
			repo, err := image.ParseRepository(n, s.insecure)
			if err != nil { // a catalog lists what it likes
				lists[i] = []chosen{{name: n, err: fmt.Errorf("%w: %w", ErrNone, err)}}
				return nil
			}
			own := inner
			if e.Registry != "" { // none takes the time of the others
				limited, cancel := context.WithTimeoutCause(inner, s.limit,
					fmt.Errorf("finding its images took longer than %s", s.limit))
				defer cancel()
				own = limited
			}
			lists[i], err = e.tags(own, s, repo, func() error { return shared.take(i) })
			if err != nil && !errors.Is(err, errAll) {
				if own.Err() != nil && inner.Err() == nil {
					err = fmt.Errorf("%w: %w", context.Cause(own), err)
				}
				if lists[i], err = problem(inner, n, err); err == nil {
					lists[i][0].repo = repo
				}
			}
			return err
		})
	}
	err := g.Wait()
	if errors.Is(err, errAll) {
		return problem(ctx, cmp.Or(e.Repository, e.Registry), err)
	}
	for i, n := range names { // one that was read already can have too many since
		if err := shared.tooMany(i); err != nil {
			repo, _ := image.ParseRepository(n, s.insecure)
			lists[i] = []chosen{{repo: repo, name: n, err: err}}
		}
	}
	return slices.Concat(lists...), err
}

// problem keeps an error as that of a name, unless it is that somebody wants no answer any more.
func problem(ctx context.Context, of string, err error) ([]chosen, error) {
	if errors.Is(ctx.Err(), context.Canceled) {
		return nil, err
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
	}
	return []chosen{{name: of, err: err}}, nil
}

func matches(allow, deny []Expression, s string) bool {
	is := func(e Expression) bool { return e.MatchString(s) }
	return (len(allow) == 0 || slices.ContainsFunc(allow, is)) && !slices.ContainsFunc(deny, is)
}

// converted is how the tags end that DefaultTarget and "cconvert convert" give.
const converted = "-confidential"

const (
	// maxDated is how many images of a repository are asked for when they were made, which takes a request or two each.
	maxDated = 20_000
	// maxUndated is how many of them may fail for a reason that may pass before the repository does.
	maxUndated = 100
)

// tags chooses a repository's tags, the newest first if that is asked for. Take counts those of all repositories.
func (e *Entry) tags(ctx context.Context, in search, repo name.Repository, take func() error) ([]chosen, error) {
	type tag struct {
		name    string
		version *semver.Version
		created time.Time
		err     error // why it is not known when it was made
	}
	var tags []tag
	listed := false
	for s, err := range in.Tags(ctx, repo) {
		if err != nil {
			return nil, err
		}
		listed = true
		// Results beside their sources, and what cosign and referrers keep under tags, are no sources.
		version, covered := e.coversTag(s)
		if !image.IsTag(s) || !covered {
			continue
		}
		t := tag{name: s, version: version}
		if err := take(); err != nil {
			return nil, err
		}
		tags = append(tags, t)
	}
	if !listed && e.Repository != "" {
		return nil, fmt.Errorf("%w: the repository has no tags", ErrNone)
	}
	var undated []chosen
	since := e.Tags.UpdatedSince != Since{}
	if since || e.Tags.Newest > 0 && e.Tags.SemVer.Constraints == nil {
		if len(tags) > maxDated {
			return nil, fmt.Errorf("%w: %d would have to be asked for when they were made", ErrTooMany, len(tags))
		}
		var failed atomic.Int64
		g, ctx := errgroup.WithContext(ctx)
		g.SetLimit(8)
		for i := range tags {
			g.Go(func() error {
				t := &tags[i]
				select {
				case in.dates <- struct{}{}:
					defer func() { <-in.dates }()
				case <-ctx.Done():
					return ctx.Err()
				}
				t.created, t.err = in.Created(ctx, repo.Tag(t.name))
				if t.err != nil && (ctx.Err() != nil || image.Transient(t.err) && failed.Add(1) > maxUndated) {
					return t.err
				}
				return nil
			})
		}
		if err := g.Wait(); err != nil {
			return nil, err
		}
		for _, t := range tags { // one that is broken keeps no other one from being found
			if t.err != nil && !errors.Is(t.err, ErrNone) {
				ref := repo.Tag(t.name)
				err := fmt.Errorf("finding out when it was made: %w", t.err)
				undated = append(undated, chosen{ref: ref, name: ref.String(), err: err})
			}
		}
		tags = slices.DeleteFunc(tags, func(t tag) bool { return t.err != nil })
	}
	if since {
		now := time.Now()
		tags = slices.DeleteFunc(tags, func(t tag) bool { return e.Tags.UpdatedSince.before(t.created, now) })
	}
	slices.SortFunc(tags, func(a, b tag) int {
		switch {
		case a.version != nil:
			return cmp.Or(b.version.Compare(a.version), cmp.Compare(a.name, b.name))
		case e.Tags.Newest > 0:
			return cmp.Or(b.created.Compare(a.created), cmp.Compare(a.name, b.name))
		}
		return cmp.Compare(a.name, b.name)
	})
	if n := e.Tags.Newest; n > 0 && n < len(tags) {
		tags = tags[:n]
	}
	if len(tags) == 0 {
		return undated, nil
	}
	names := make([]string, len(tags))
	for i, t := range tags {
		names[i] = t.name
	}
	return append(undated, chosen{repo: repo, tags: names}), nil
}

// artifactTag reports whether a tag is that of an artifact rather than of an image: "sha256-…", with or without a
// suffix (cosign's, and the referrers tag schema of the OCI distribution specification). No rule allows it, nor one
// that stands for a digest in the name of a result: it could be the result's of another image.
func artifactTag(tag string) bool {
	return strings.HasPrefix(tag, "sha256-") || image.DigestOfTag(tag) != ""
}
