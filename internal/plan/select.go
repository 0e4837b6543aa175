package plan

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

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
				images = append(images, Image{
					Source: shortened(f.name), Line: e.Line, Found: e.Registry != "", Err: f.err,
				})
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
			if what := p.targetReserved(target); what != "" && err == nil {
				err = fmt.Errorf("the result of %s would replace %s, which is %s", img.Source, target, what)
				if !img.Found {
					return nil, &Error{file, img.Line, err}
				}
			}
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

// maxSource is how many bytes of a name are kept that is not an image's: a registry lists what it likes.
const maxSource = 1024

func shortened(s string) string {
	if len(s) <= maxSource {
		return s
	}
	return strings.ToValidUTF8(s[:maxSource], "") + "…"
}

// Reserve keeps results from replacing an image that has a runtime, for instance. What says what it is.
func (p *Plan) Reserve(ref image.Reference, what string) {
	if p.Reserved == nil {
		p.Reserved = map[string]string{}
	}
	p.Reserved[ref.Place()] = what
}

// ReserveRepository is Reserve of all images of a repository.
func (p *Plan) ReserveRepository(repo name.Repository, what string) {
	p.Reserve(image.InRegistry(repo.Tag(anyTag)), what)
}

// targetReserved is IsReserved of a target as it is written; empty if it cannot be read.
func (p *Plan) targetReserved(target string) (what string) {
	ref, err := image.ParseReference(target, p.Insecure)
	if err != nil {
		return ""
	}
	return p.IsReserved(ref)
}

// IsReserved returns what a target is that no result may replace; empty if it may be replaced.
func (p *Plan) IsReserved(ref image.Reference) (what string) {
	if what = p.Reserved[ref.Place()]; what == "" && ref.Transport == image.Registry {
		what = p.Reserved[place(ref.Name.Context().Tag(anyTag))]
	}
	return what
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
