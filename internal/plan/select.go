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

// Image is one that is to be converted.
type Image struct {
	Source, Target string
	Options        Options // of the entry, over the defaults
	Line           int     // of the entry that chose it
	// Found says that it was found in a repository or registry, and not named.
	Found bool
	// ResultsOnly says that the target may be replaced only if it is a result itself: the plan converts what it names,
	// too.
	ResultsOnly bool
	// Err says why there is nothing to convert under the name of Source, which may be a repository's; nil: there is. It
	// is ErrNone for what a registry lists and nobody could convert.
	Err error

	from string // the place of Source, if it is an image's
}

// ErrNone is the error of a Catalog if there is no such repository, or nothing that could be converted.
var ErrNone = errors.New("there is no image to convert")

// Catalog is what registries tell of themselves. An error is the last of a list.
type Catalog interface {
	Repositories(ctx context.Context, registry name.Registry) iter.Seq2[string, error]
	Tags(ctx context.Context, repo name.Repository) iter.Seq2[string, error]
	// Created is when an image was made.
	Created(ctx context.Context, ref name.Reference) (time.Time, error)
}

// Select finds the images of a plan. Their order goes around the registries that they are in, so that no registry is
// asked for all of its images at once while others wait. An entry that cannot be had, or a repository among others,
// does not keep the rest from being found: it is an Image with an error. What is returned are mistakes in the plan, and
// that ctx has ended.
func (p *Plan) Select(ctx context.Context, file string, c Catalog) ([]Image, error) {
	var images []Image
	owner := map[string]int{}    // of a target's place: the image whose result it is
	chosenBy := map[string]int{} // of a source's place: the entry
	sources := map[string]int{}  // of a source's place: the image, if it is to be converted
	lists, err := p.find(ctx, file, c)
	if err != nil {
		return nil, err
	}
	missed, options := make([]missing, len(lists)), make([]Options, len(lists)) // by entry
	for i := range p.Convert {
		e := &p.Convert[i]
		options[i] = e.Options.Over(p.Defaults.Options)
		for f := range found(lists[i]) {
			if f.err != nil {
				images = append(images, Image{Source: f.name, Line: e.Line, Found: e.Registry != "", Err: f.err})
				missed[i].add(f)
				continue
			}
			// What a registry lists, or does not, is no reason to go by a later entry, which may ask for less.
			k, unknown := p.decides(i, missed, f.ref)
			decides, source := &p.Convert[k], image.InRegistry(f.ref)
			if unknown {
				if e.Image != "" {
					err := fmt.Errorf("the entry in line %d decides on it, and could not find its images", decides.Line)
					images = append(images, Image{Source: source.String(), Line: e.Line, Err: err})
				}
				continue
			}
			target, err := decides.targetFor(f.ref)
			img := Image{
				Source: source.String(), Target: target, Options: options[k], Line: decides.Line, Found: e.Image == "",
				from: source.Place(),
			}
			if err != nil && !img.Found {
				return nil, &Error{file, img.Line, err}
			}
			if first, ok := chosenBy[img.from]; ok && first != i {
				continue // the first entry that chooses an image decides
			}
			chosenBy[img.from] = i
			to := p.targetPlace(target)
			if first, ok := owner[to]; ok && err == nil {
				before := &images[first]
				if before.from == img.from {
					continue // the first entry that chooses an image decides
				}
				// What registries list takes nothing from what is named, and of two that are listed neither is more to
				// be trusted: anybody may have pushed it.
				both := fmt.Errorf("%s and %s would both become %s", before.Source, img.Source, target)
				switch {
				case !img.Found && !before.Found:
					return nil, &Error{file, img.Line, both}
				case img.Found:
					err = both
				}
				if before.Found {
					before.Err = both
				}
			}
			img.Err = err
			images = append(images, img)
			if first, ok := owner[to]; err == nil && (!ok || images[first].Found) {
				owner[to] = len(images) - 1
			}
		}
	}
	for i, img := range images {
		if img.Err == nil {
			sources[img.from] = i
		}
	}
	for to, i := range owner {
		img := &images[i]
		if ref, err := image.ParseName(img.Target, p.Insecure); err == nil && img.Err == nil {
			if rule, _, err := p.Rule(ref); err != nil || rule != nil {
				img.ResultsOnly = true // an entry may convert what is there, whether it was found or not
			}
		}
		at, ok := sources[to]
		if !ok || img.Err != nil {
			continue
		}
		source := images[at]
		err := fmt.Errorf("the result of %s would replace %s, which is to be converted too", img.Source, source.Source)
		switch {
		case !img.Found && !source.Found, i == at && !img.Found:
			return nil, &Error{file, img.Line, err}
		case i == at:
			img.Err = err
		default:
			img.ResultsOnly = true // what was found may be a result of an earlier time
		}
	}
	return turns(images), nil
}

// missing is what an entry could not find, or not find out about.
type missing struct {
	all   bool            // of its images
	names map[string]bool // of repositories and images
}

func (m *missing) add(c chosen) {
	switch {
	case errors.Is(c.err, ErrNone):
		return // nothing is there
	case m.names == nil:
		m.names = map[string]bool{}
	}
	switch {
	case c.ref != nil:
		m.names[place(c.ref)] = true
	case c.repo != name.Repository{}:
		m.names[repositoryPlace(c.repo)] = true
	default:
		m.all = true
	}
}

func (m *missing) has(ref name.Reference) bool {
	return m.all || m.names[place(ref)] || m.names[repositoryPlace(ref.Context())]
}

// decides returns the entry that decides on an image that entry i has found: the first one that is about it. Of one
// that chooses the newest, or what was updated since, that is known only if it found all, else unknown is true. Missed
// is what entries could not find.
func (p *Plan) decides(i int, missed []missing, ref name.Reference) (entry int, unknown bool) {
	for k := range p.Convert[:i] {
		e := &p.Convert[k]
		switch dated := e.Tags.Newest > 0 || e.Tags.UpdatedSince != (Since{}); {
		case !p.covers(e, ref):
		case !dated:
			return k, false
		case missed[k].has(ref):
			return k, true
		}
	}
	return i, false
}

// targetPlace names where a result goes, whatever its spelling: a registry, a file or a daemon.
func (p *Plan) targetPlace(target string) string {
	ref, err := image.ParseReference(target, p.Insecure)
	if err != nil {
		return target
	}
	return ref.Place()
}

// turns orders images so that registries take turns.
func turns(images []Image) []Image {
	place := map[string]int{}
	order := make([]int, len(images))
	for i, img := range images {
		host, _, _ := strings.Cut(img.Source, "/")
		order[i] = place[host]
		place[host]++
	}
	index := make([]int, len(images))
	for i := range index {
		index[i] = i
	}
	slices.SortStableFunc(index, func(a, b int) int { return cmp.Compare(order[a], order[b]) })
	sorted := make([]Image, len(images))
	for i, at := range index {
		sorted[i] = images[at]
	}
	return sorted
}

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
// suffix (cosign's, and the referrers tag schema of the OCI distribution specification).
func artifactTag(tag string) bool { return strings.HasPrefix(tag, "sha256-") }
