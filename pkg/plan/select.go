package plan

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
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
	// ResultsOnly says that the target may be replaced only if it is a result itself: the plan converts what it names, too.
	ResultsOnly bool
	// Err says why there is nothing to convert under the name of Source, which may be a repository's; nil: there is. It
	// is ErrNone for what a registry lists and nobody could convert.
	Err error
}

// ErrNone is the error of a Catalog if there is no such repository, or nothing that could be converted.
var ErrNone = errors.New("there is no image to convert")

// Catalog is what registries tell of themselves.
type Catalog interface {
	Repositories(ctx context.Context, registry name.Registry) ([]string, error)
	Tags(ctx context.Context, repo name.Repository) ([]string, error)
	// Created is when an image was made.
	Created(ctx context.Context, ref name.Reference) (time.Time, error)
}

// Select finds the images of a plan. Their order goes around the registries that they are in, so that no registry is
// asked for all of its images at once while others wait. An entry that cannot be had, or a repository among others, does
// not keep the rest from being found: it is an Image with an error. Only errors that may pass are returned.
func (p *Plan) Select(ctx context.Context, file string, c Catalog) ([]Image, error) {
	var images []Image
	chosen := map[string]Image{}  // by the place of the target
	sources := map[string]Image{} // by the place of the source
	from := func(img Image) string {
		ref, err := image.ParseReference(img.Source, p.Insecure)
		if err != nil {
			return img.Source
		}
		return ref.Place()
	}
	for i := range p.Convert {
		e := &p.Convert[i]
		found, err := e.find(ctx, c, p.Insecure)
		if err != nil {
			return nil, &Error{file, e.Line, err}
		}
		for _, f := range found {
			if f.err != nil {
				images = append(images, Image{Source: f.name, Line: e.Line, Found: e.Registry != "", Err: f.err})
				continue
			}
			ref := f.ref
			target, err := e.targetFor(ref)
			if err != nil {
				return nil, &Error{file, e.Line, err}
			}
			img := Image{Source: ref.String(), Target: target, Options: e.Options.Over(p.Defaults.Options), Line: e.Line, Found: e.Image == ""}
			to := target
			if place, err := image.ParseReference(target, p.Insecure); err == nil {
				to = place.Place()
			}
			if before, ok := chosen[to]; ok {
				if from(before) == from(img) {
					continue // the first entry that chooses an image decides
				}
				err := fmt.Errorf("%s and %s would both become %s", before.Source, img.Source, target)
				if !img.Found {
					return nil, &Error{file, e.Line, err}
				}
				img.Err = err // what registries list keeps nothing else from being converted
				images = append(images, img)
				continue
			}
			chosen[to], sources[from(img)] = img, img
			images = append(images, img)
		}
	}
	replacing := map[[2]string]bool{}
	for to, img := range chosen {
		source, ok := sources[to]
		if !ok {
			continue
		}
		if !img.Found && !source.Found || from(img) == to {
			return nil, &Error{file, img.Line, fmt.Errorf("the result of %s would replace %s, which is to be converted too", img.Source, source.Source)}
		}
		replacing[[2]string{img.Source, img.Target}] = true // what was found may be a result of an earlier time
	}
	for i := range images {
		images[i].ResultsOnly = replacing[[2]string{images[i].Source, images[i].Target}]
	}
	return turns(images), nil
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

// found is an image that an entry names, or the name of what cannot be had, and why.
type found struct {
	ref  name.Reference
	name string
	err  error
}

func (e *Entry) find(ctx context.Context, c Catalog, insecure bool) ([]found, error) {
	if e.Image != "" {
		ref, err := image.ParseName(e.Image, insecure)
		return []found{{ref, e.Image, err}}, nil
	}
	names := []string{e.Repository}
	if e.Registry != "" {
		registry, err := image.ParseRegistry(e.Registry, insecure)
		if err != nil {
			return nil, err
		}
		all, err := c.Repositories(ctx, registry)
		if err != nil {
			return lasting(registry.Name(), err)
		}
		slices.Sort(all)
		names = nil
		for _, r := range slices.Compact(all) {
			if matches(e.Repositories.Allow, e.Repositories.Deny, r) {
				names = append(names, registry.Name()+"/"+r)
			}
		}
	}
	lists := make([][]found, len(names))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for i, n := range names {
		g.Go(func() error {
			repo, err := image.ParseRepository(n, insecure)
			if err != nil { // a catalog lists what it likes
				lists[i] = []found{{name: n, err: fmt.Errorf("%w: %w", ErrNone, err)}}
				return nil
			}
			refs, err := e.tags(ctx, c, repo)
			if e.Registry != "" && errors.Is(err, ErrNone) {
				return nil // registries list repositories that are empty
			}
			if err != nil {
				lists[i], err = lasting(n, err)
				return err
			}
			for _, ref := range refs {
				lists[i] = append(lists[i], found{ref: ref})
			}
			return nil
		})
	}
	err := g.Wait()
	return slices.Concat(lists...), err
}

// lasting keeps an error as that of a name, unless it may pass.
func lasting(of string, err error) ([]found, error) {
	if image.Transient(err) || errors.Is(err, context.Canceled) {
		return nil, err
	}
	return []found{{name: of, err: err}}, nil
}

func matches(allow, deny []Expression, s string) bool {
	is := func(e Expression) bool { return e.MatchString(s) }
	return (len(allow) == 0 || slices.ContainsFunc(allow, is)) && !slices.ContainsFunc(deny, is)
}

// converted is how the tags end that DefaultTarget and "cconvert convert" give.
const converted = "-confidential"

// tags chooses a repository's tags, the newest first where that is asked for.
func (e *Entry) tags(ctx context.Context, c Catalog, repo name.Repository) ([]name.Reference, error) {
	list, err := c.Tags(ctx, repo)
	if err != nil {
		return nil, err
	}
	type tag struct {
		name.Tag
		version *semver.Version
		created time.Time
		none    bool
	}
	var tags []tag
	for _, s := range list {
		// Results beside their sources, and what cosign and referrers keep under tags, are no sources.
		if !image.IsTag(s) || strings.HasSuffix(s, converted) || artifactTag(s) || !matches(e.Tags.Allow, e.Tags.Deny, s) {
			continue
		}
		t := tag{Tag: repo.Tag(s)}
		if e.Tags.SemVer.Constraints != nil {
			if t.version, err = semver.NewVersion(s); err != nil || !e.Tags.SemVer.Check(t.version) {
				continue
			}
		}
		tags = append(tags, t)
	}
	since := e.Tags.UpdatedSince != Since{}
	if since || e.Tags.Newest > 0 && e.Tags.SemVer.Constraints == nil {
		g, ctx := errgroup.WithContext(ctx)
		g.SetLimit(8)
		for i := range tags {
			g.Go(func() (err error) {
				tags[i].created, err = c.Created(ctx, tags[i].Tag)
				if tags[i].none = errors.Is(err, ErrNone); tags[i].none {
					return nil
				}
				return err
			})
		}
		if err := g.Wait(); err != nil {
			return nil, err
		}
		tags = slices.DeleteFunc(tags, func(t tag) bool { return t.none })
	}
	if since {
		now := time.Now()
		tags = slices.DeleteFunc(tags, func(t tag) bool { return e.Tags.UpdatedSince.before(t.created, now) })
	}
	slices.SortFunc(tags, func(a, b tag) int {
		switch {
		case a.version != nil:
			return cmp.Or(b.version.Compare(a.version), cmp.Compare(a.TagStr(), b.TagStr()))
		case e.Tags.Newest > 0:
			return cmp.Or(b.created.Compare(a.created), cmp.Compare(a.TagStr(), b.TagStr()))
		}
		return cmp.Compare(a.TagStr(), b.TagStr())
	})
	if n := e.Tags.Newest; n > 0 && n < len(tags) {
		tags = tags[:n]
	}
	refs := make([]name.Reference, len(tags))
	for i, t := range tags {
		refs[i] = t.Tag
	}
	return refs, nil
}

// artifactTag says whether a tag is that of an artifact rather than of an image: "sha256-…", with or without a suffix
// (cosign's, and the referrers tag schema of the OCI distribution specification).
func artifactTag(tag string) bool { return strings.HasPrefix(tag, "sha256-") }

// Rule gives the first entry that an image falls under, when somebody asks for it to be converted, and the target; nil
// where there is none. Newest and UpdatedSince, which are about many images, are not looked at.
func (p *Plan) Rule(ref name.Reference) (*Entry, Image, error) {
	for i := range p.Convert {
		e := &p.Convert[i]
		if !e.covers(ref) {
			continue
		}
		target, err := e.targetFor(ref)
		return e, Image{Source: ref.String(), Target: target, Options: e.Options.Over(p.Defaults.Options), Line: e.Line, Found: e.Image == ""}, err
	}
	return nil, Image{}, nil
}

func (e *Entry) covers(ref name.Reference) bool {
	if e.Image != "" {
		own, err := image.ParseName(e.Image, false)
		return err == nil && own.Name() == ref.Name()
	}
	repo := ref.Context()
	if e.Repository != "" {
		own, err := image.ParseRepository(e.Repository, false)
		if err != nil || own.Name() != repo.Name() {
			return false
		}
	} else {
		own, err := image.ParseRegistry(e.Registry, false)
		if err != nil || own.Name() != repo.RegistryStr() || !matches(e.Repositories.Allow, e.Repositories.Deny, repo.RepositoryStr()) {
			return false
		}
	}
	t, ok := ref.(name.Tag)
	if !ok {
		return reflect.DeepEqual(e.Tags, Tags{}) // a digest says nothing of the tags that are allowed
	}
	tag := t.TagStr()
	if strings.HasSuffix(tag, converted) || artifactTag(tag) || !matches(e.Tags.Allow, e.Tags.Deny, tag) {
		return false
	}
	if e.Tags.SemVer.Constraints == nil {
		return true
	}
	v, err := semver.NewVersion(tag)
	return err == nil && e.Tags.SemVer.Check(v)
}
