package plan

import (
	"cmp"
	"errors"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"text/template/parse"

	"github.com/Masterminds/semver/v3"
	"github.com/google/go-containerregistry/pkg/name"

	"github.com/cconvert/cconvert/pkg/image"
)

// Rule returns the first entry that an image falls under, when somebody asks for it to be converted, and the target;
// nil if there is none. Newest and UpdatedSince, which are about many images, are not looked at.
func (p *Plan) Rule(ref name.Reference) (*Entry, Image, error) {
	for i := range p.Convert {
		e := &p.Convert[i]
		if !p.covers(e, ref) {
			continue
		}
		target, err := e.targetFor(ref)
		return e, Image{
			Source: image.InRegistry(ref).String(), Target: target, Options: e.Options.Over(p.Defaults.Options),
			Line:  e.Line,
			Found: e.Image == "",
		}, err
	}
	return nil, Image{}, nil
}

// CheckRules returns an Error if it could not be told of which images the entries make a target: if entries that want
// different signatures have templates that do more than to name fields.
func (p *Plan) CheckRules(file string) error {
	for i := range p.Convert {
		e := &p.Convert[i]
		differs := func(o Entry) bool { return o.AllowUnsigned != e.AllowUnsigned || !sameSigners(&o, e) }
		if _, plain := e.parts(); !plain && slices.ContainsFunc(p.Convert, differs) {
			return &Error{
				file, e.Line, errors.New("beside entries that want other signatures, a target has {{.Registry}}, " +
					"{{.Repository}} and {{.Tag}}, and nothing else in braces"),
			}
		}
	}
	return nil
}

// sameSigners reports whether two rules name the same signers.
func sameSigners(a, b *Entry) bool {
	return slices.Equal(a.Keys, b.Keys) && slices.Equal(a.Identities, b.Identities)
}

// Rival returns an image that falls under another rule, and would become the same target, or nil. A field
// that the target does not tell, such as a repository that is not in the template, is taken for one that the rule
// allows. Line is that of the other rule. Rules that want the same signatures are no rivals, nor one that wants none:
// what it allows is refused for its part.
func (p *Plan) Rival(rule *Entry, target name.Reference) (other name.Reference, line int) {
	for i := range p.Convert {
		e := &p.Convert[i]
		if e == rule || e.AllowUnsigned || !rule.AllowUnsigned && sameSigners(e, rule) {
			continue
		}
		if ref := p.sourceOf(e, target); ref != nil {
			return ref, e.Line
		}
	}
	return nil, 0
}

// part is a piece of a target's template: text, or the name of a field.
type part struct{ text, field string }

// parts returns the pieces of the target's template. Plain is false if it does more than to name fields.
func (e *Entry) parts() (list []part, plain bool) {
	for _, n := range e.target.Root.Nodes {
		switch n := n.(type) {
		case *parse.TextNode:
			list = append(list, part{text: string(n.Text)})
		case *parse.ActionNode:
			if len(n.Pipe.Decl) > 0 || len(n.Pipe.Cmds) != 1 || len(n.Pipe.Cmds[0].Args) != 1 {
				return nil, false
			}
			field, ok := n.Pipe.Cmds[0].Args[0].(*parse.FieldNode)
			if !ok || len(field.Ident) != 1 {
				return nil, false
			}
			list = append(list, part{field: field.Ident[0]})
		default:
			return nil, false
		}
	}
	return list, true
}

// Names that stand for any.
const (
	anyRepository = "any-repository"
	anyTag        = "any-tag"
)

// A marker is in a target where a field is that is not known. A repository of one word has another place on Docker Hub
// than one of two, which cannot be in a tag.
var (
	markers = []map[string]string{
		{"Repository": "cconvert-" + anyRepository, "Tag": "cconvert-" + anyTag},
		{"Repository": "cconvert/" + anyRepository, "Tag": "cconvert-" + anyTag},
	}
	marker = regexp.MustCompile("cconvert[-/]" + anyRepository + "|cconvert-" + anyTag)
)

// maxSources is how many images are looked at of which one could become a target: more are taken for one that does.
const maxSources = 10_000

// sourceOf returns an image of which an entry makes a target, or nil.
func (p *Plan) sourceOf(e *Entry, target name.Reference) name.Reference {
	becomes := func(ref name.Reference, err error) bool {
		if err != nil {
			return false
		}
		if first, _, err := p.Rule(ref); err != nil || first != e {
			return false // another rule decides on it
		}
		text, err := e.targetFor(ref)
		if err != nil {
			return false
		}
		made, err := image.ParseName(text, p.Insecure)
		return err == nil && place(made) == place(target)
	}
	if e.Image != "" {
		ref, err := image.ParseName(e.Image, p.Insecure)
		if err != nil {
			return nil
		}
		// NAME:TAG@DIGEST is asked for as NAME@DIGEST.
		for _, ref := range []name.Reference{ref, ref.Context().Digest(ref.Identifier())} {
			if becomes(ref, nil) {
				return ref
			}
		}
		return nil
	}
	known := map[string]string{}
	if e.Repository != "" {
		repo, err := image.ParseRepository(e.Repository, p.Insecure)
		if err != nil {
			return nil
		}
		known["Registry"], known["Repository"] = repo.RegistryStr(), repo.RepositoryStr()
	} else if registry, err := image.ParseRegistry(e.Registry, p.Insecure); err == nil {
		known["Registry"] = registry.RegistryStr()
	}
	source := func(found map[string]string) (name.Reference, error) {
		repository := known["Registry"] + "/" + cmp.Or(known["Repository"], found["Repository"], anyRepository)
		if digest := image.DigestOfTag(found["Tag"]); digest != "" {
			return image.ParseName(repository+"@"+digest, p.Insecure) // no rule allows such a tag
		}
		return image.ParseName(repository+":"+cmp.Or(found["Tag"], anyTag), p.Insecure)
	}
	parts, plain := e.parts()
	if !plain {
		ref, _ := source(nil)
		return ref
	}
	told := false
	for _, marks := range markers {
		pattern, ok := p.pattern(parts, known, marks)
		if !ok {
			continue
		}
		told = true
		var rival name.Reference
		tries := 0
		assign(pattern, place(target), map[string]string{}, func(found map[string]string) (more bool) {
			ref, err := source(found)
			tries++
			tagTold, repositoryTold := found["Tag"] != "", found["Repository"] != "" || e.Repository != ""
			switch {
			case err != nil:
				return true
			case tries > maxSources, !tagTold && !repositoryTold,
				!tagTold && p.coversRepository(e, ref.Context()), !repositoryTold && e.coversName(ref),
				becomes(ref, nil):
				rival = ref
			}
			return rival == nil
		})
		if rival != nil {
			return rival
		}
	}
	if !told { // with names that stand for any the target is too long, or is not a name
		ref, _ := source(nil)
		return ref
	}
	return nil
}

func place(ref name.Reference) string { return image.InRegistry(ref).Place() }

// pattern returns the place of a target whose unknown fields are marked, which has one spelling; false if no name comes
// out with these marks.
func (p *Plan) pattern(parts []part, known, marks map[string]string) (pattern []part, ok bool) {
	var text strings.Builder
	for _, part := range parts {
		text.WriteString(cmp.Or(part.text, known[part.field], marks[part.field]))
	}
	made, err := image.ParseName(text.String(), p.Insecure)
	if err != nil {
		return nil, false
	}
	rest := place(made)
	for at := marker.FindStringIndex(rest); at != nil; at = marker.FindStringIndex(rest) {
		field := "Repository"
		if rest[at[0]:at[1]] == marks["Tag"] {
			field = "Tag"
		}
		pattern = append(pattern, part{text: rest[:at[0]]}, part{field: field})
		rest = rest[at[1]:]
	}
	return append(pattern, part{text: rest}), true
}

// assign calls visit with all values of the fields that make a pattern a text, until it returns false.
func assign(
	pattern []part, text string, found map[string]string, visit func(map[string]string) (more bool),
) (more bool) {
	if len(pattern) == 0 {
		return text != "" || visit(found)
	}
	first, rest := pattern[0], pattern[1:]
	value := first.text
	if first.field != "" {
		value = found[first.field]
	}
	if first.field == "" || value != "" {
		after, ok := strings.CutPrefix(text, value)
		return !ok || assign(rest, after, found, visit)
	}
	defer delete(found, first.field)
	for n := 1; n <= len(text) && text[n-1] != ':' && (first.field != "Tag" || text[n-1] != '/'); n++ {
		found[first.field] = text[:n]
		if !assign(rest, text[n:], found, visit) {
			return false
		}
	}
	return true
}

// covers reports whether an entry is about an image.
func (p *Plan) covers(e *Entry, ref name.Reference) bool {
	if e.Image != "" {
		return e.own(p.Insecure) == place(ref)
	}
	return p.coversRepository(e, ref.Context()) && e.coversName(ref)
}

// coversName reports whether a tag is allowed, or a digest: it says nothing of the tags that are.
func (e *Entry) coversName(ref name.Reference) bool {
	t, ok := ref.(name.Tag)
	if !ok {
		return reflect.DeepEqual(e.Tags, Tags{})
	}
	_, covered := e.coversTag(t.TagStr())
	return covered
}

// coversTag reports whether a tag is allowed, and returns its version if the entry has a range of versions.
func (e *Entry) coversTag(tag string) (v *semver.Version, ok bool) {
	if strings.HasSuffix(tag, converted) || artifactTag(tag) || !matches(e.Tags.Allow, e.Tags.Deny, tag) {
		return nil, false
	}
	if e.Tags.SemVer.Constraints == nil {
		return nil, true
	}
	v, err := semver.NewVersion(tag)
	return v, err == nil && e.Tags.SemVer.Check(v)
}

func (p *Plan) coversRepository(e *Entry, repo name.Repository) bool {
	if e.Repository != "" {
		return e.own(p.Insecure) == repositoryPlace(repo)
	}
	return e.own(p.Insecure) == registryPlace(repo.Registry) &&
		matches(e.Repositories.Allow, e.Repositories.Deny, repo.RepositoryStr())
}

// own is the place of what the entry names; empty if that cannot be read.
func (e *Entry) own(insecure bool) string {
	if insecure {
		return e.places[1]
	}
	return e.places[0]
}

// locate finds the places of what the entry names, with and without HTTP, by which the ports differ that go without
// saying.
func (e *Entry) locate() {
	for i, insecure := range []bool{false, true} {
		if ref, err := image.ParseName(e.Image, insecure); e.Image != "" && err == nil {
			e.places[i] = place(ref)
		} else if repo, err := image.ParseRepository(e.Repository, insecure); e.Repository != "" && err == nil {
			e.places[i] = repositoryPlace(repo)
		} else if registry, err := image.ParseRegistry(e.Registry, insecure); e.Registry != "" && err == nil {
			e.places[i] = registryPlace(registry)
		}
	}
}

func repositoryPlace(repo name.Repository) string { return place(repo.Tag("x")) }

func registryPlace(registry name.Registry) string { return place(registry.Repo("x").Tag("x")) }
