package local

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/internal/document"
)

// Annotations of an image's name in a layout's index: of the OCI image specification ("Pre-Defined Annotation Keys"),
// which is a tag, and of containerd, which is a whole name.
const (
	annotationRefName    = "org.opencontainers.image.ref.name"
	annotationContainerd = "io.containerd.image.name"
)

// choose finds the image that a reference names: by its name, its ID, its place as "@1", or because it is alone.
func (a *archive) choose(ctx context.Context, images []savedImage, ref image.Reference) (*savedImage, error) {
	named := ref.Transport == image.DockerArchive && (ref.Name != nil || ref.Inside != "")
	var known []string
	for i := range images {
		saved := &images[i]
		known = append(append(known, saved.RepoTags...), fmt.Sprintf("@%d", i))
		switch {
		case !named:
		case ref.Inside == "@"+strconv.Itoa(i), ref.Inside != "" && ref.Inside == a.id(ctx, *saved):
			return saved, nil
		case ref.Name != nil && slices.ContainsFunc(saved.RepoTags, func(s string) bool {
			return sameName(s, ref.Name.Name())
		}):
			return saved, nil
		}
	}
	if len(images) == 1 && !named {
		return &images[0], nil
	}
	return nil, fmt.Errorf("%w: name one of %q as docker-archive:%s:NAME", image.ErrNotFound, known, ref.Path)
}

// sameName reports whether two names are those of one tag, however much of it they write.
func sameName(a, b string) bool {
	x, errX := name.NewTag(a)
	y, errY := name.NewTag(b)
	return errX == nil && errY == nil && x.Name() == y.Name()
}

// id is the digest of a saved image's configuration, empty if it cannot be read.
func (a *archive) id(ctx context.Context, saved savedImage) string {
	if id, ok := a.ids[saved.Config]; ok {
		return id
	}
	id := ""
	if config, err := a.read(ctx, saved.Config, document.MaxConfig); err == nil {
		id = image.DigestOf(config)
	}
	a.ids[saved.Config] = id
	return id
}

// maxInArchive is how many images an archive's index may list, those of indexes in it with them.
const maxInArchive = 1000

// listed is an image as a list in an archive has it. Engines that go by another list must find the same.
type listed struct {
	id     string // the digest of its configuration, or of what is not understood
	layers []part // where they are; at is -1 if they are not there
	extra  string // annotations by which an engine runs it, or reads its layers, otherwise
	odd    bool   // it is not understood, or not there: an engine may know better
}

// sameImage reports whether two images of an archive are one, whichever list an engine goes by.
func (a *archive) sameImage(ctx context.Context, x, y listed) bool {
	return !x.odd && !y.odd && x.id == y.id && x.extra == y.extra &&
		slices.EqualFunc(x.layers, y.layers, func(x, y part) bool {
			return x == y || x.at >= 0 && y.at >= 0 && a.same(ctx, x, y)
		})
}

// places returns where entries of the archive are.
func (a *archive) places(names []string) []part {
	list := make([]part, len(names))
	for i, n := range names {
		if p, err := a.find(n); err == nil {
			list[i] = p
		} else {
			list[i] = part{at: -1}
		}
	}
	return list
}

// rivals are other images that an engine may find in the archive in place of one with some names. Archives have a list
// of Docker's, a list of OCI's, or both, and readers take the one or the other. Without names every other image is one.
func (a *archive) rivals(ctx context.Context, chosen listed, names []string) (rivals []string, err error) {
	add := func(other listed, same bool) {
		if same && !slices.Contains(rivals, other.id) && !a.sameImage(ctx, chosen, other) {
			rivals = append(rivals, other.id)
		}
	}
	shares := func(theirs []string) bool {
		return len(names) == 0 || len(theirs) == 0 || slices.ContainsFunc(theirs, func(t string) bool {
			return slices.ContainsFunc(names, func(n string) bool {
				return sameLocalName(n, t) || isTagged(n, t) || isTagged(t, n)
			})
		})
	}
	_, oldest := a.parts["repositories"]
	_, saved := a.parts["manifest.json"]
	if oldest && !saved { // Docker would take what this list names (Docker image specification v1.0)
		return nil,
			fmt.Errorf("%w: it has Docker's oldest list of images, \"repositories\", beside another one",
				image.ErrAmbiguous)
	}
	if saved {
		images, err := a.saved(ctx)
		if err != nil {
			return nil, err
		}
		if len(images) > maxInArchive {
			return nil, fmt.Errorf("manifest.json lists more than %d images", maxInArchive)
		}
		for _, saved := range images {
			// What has no name is asked for by its ID or place.
			other := listed{id: a.id(ctx, saved), layers: a.places(saved.Layers)}
			add(other, len(saved.RepoTags) > 0 && shares(saved.RepoTags) || len(images) == 1)
		}
	}
	if _, ok := a.parts["index.json"]; !ok {
		return rivals, nil
	}
	b, err := a.read(ctx, "index.json", maxIndex)
	if err != nil {
		return nil, err
	}
	index, err := parseLayoutIndex(b)
	if err != nil {
		return nil, err
	}
	count := 0
	for _, d := range index.Manifests {
		var theirs []string
		if n := cmp.Or(d.Annotations[annotationContainerd], d.Annotations[annotationRefName]); n != "" {
			theirs = []string{n} // containerd takes the second only without the first
		}
		others, err := a.listed(ctx, d, &count, 0)
		if err != nil {
			return nil, fmt.Errorf("index.json: %w", err)
		}
		for _, other := range others {
			add(other, shares(theirs))
		}
	}
	return rivals, nil
}

// sameLocalName is sameName for engines that look for a short name as localhost/NAME first, as podman does.
func sameLocalName(a, b string) bool {
	return sameName(strings.TrimPrefix(a, "localhost/"), strings.TrimPrefix(b, "localhost/"))
}

// listed are the images for linux/amd64 that an entry of the archive's index leads to. Of an index the archive may hold
// those for some platforms only, as Docker saves them.
func (a *archive) listed(ctx context.Context, d v1.Descriptor, count *int, depth int) ([]listed, error) {
	if *count++; *count > maxInArchive || depth > 2 {
		return nil, fmt.Errorf("it leads to more than %d images, or indexes more than 2 deep", maxInArchive)
	}
	if depth > 0 && document.Elsewhere(d) { // of those in the list itself some readers take the first
		return nil, nil
	}
	odd := []listed{{id: d.Digest.String(), odd: true}}
	raw, err := a.read(ctx, blobPath("", d.Digest), document.MaxConfig)
	if errors.Is(err, image.ErrNotFound) {
		return odd, nil
	}
	if err != nil {
		return nil, err
	}
	mt, err := document.Type(string(d.MediaType), raw)
	if err != nil {
		return nil, err
	}
	if !mt.IsIndex() {
		one, ok := a.ofManifest(mt, raw)
		if !ok {
			return odd, nil
		}
		named := d.Annotations[annotationContainerd] != "" || d.Annotations[annotationRefName] != ""
		if !named && document.Elsewhere(d) && a.isElsewhere(ctx, one.id) { // by a name some take it all the same
			return nil, nil
		}
		return []listed{one}, nil
	}
	inner, err := document.ReadIndex(raw)
	if err != nil {
		return nil, err
	}
	var list []listed
	for _, d := range inner.Manifests {
		more, err := a.listed(ctx, d, count, depth+1)
		if err != nil {
			return nil, err
		}
		list = append(list, more...)
	}
	return list, nil
}

// ofManifest is the image that a manifest describes; false if it is not one of an image.
func (a *archive) ofManifest(mt types.MediaType, raw []byte) (one listed, ok bool) {
	if !mt.IsImage() {
		return one, false
	}
	m, err := document.ParseManifest(raw)
	if err != nil || !document.IsConfig(m.Config.MediaType) {
		return one, false
	}
	var names []string
	var extra []string
	for name, value := range m.Annotations {
		if image.Steers(name) {
			extra = append(extra, fmt.Sprintf("%q=%q", name, value))
		}
	}
	for i, l := range m.Layers {
		names = append(names, blobPath("", l.Digest))
		if lazy := image.Lazy(l.Annotations); len(lazy) > 0 {
			extra = append(extra, fmt.Sprintf("layer %d is of %s: %q", i, lazy, l.Annotations))
		}
	}
	slices.Sort(extra)
	return listed{id: m.Config.Digest.String(), layers: a.places(names), extra: strings.Join(extra, " ")}, true
}

// isElsewhere reports whether a configuration in the archive says that it is of another platform's image.
func (a *archive) isElsewhere(ctx context.Context, digest string) bool {
	h, err := v1.NewHash(digest)
	if err != nil {
		return false
	}
	config, err := a.read(ctx, blobPath("", h), document.MaxConfig)
	if err != nil {
		return false
	}
	c, err := document.ParseConfig(config)
	platform := &v1.Platform{OS: c.OS, Architecture: c.Architecture}
	return err == nil && document.Elsewhere(v1.Descriptor{Platform: platform})
}
