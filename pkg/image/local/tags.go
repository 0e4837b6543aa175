package local

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/internal/document"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// chooseTag finds a tag or digest in a layout's index; without either, the only image there is. Rivals are as those
// of choose.
func chooseTag(manifests []v1.Descriptor, ref image.Reference) (_ v1.Descriptor, rivals []string, err error) {
	var tags []string
	var found, named []v1.Descriptor
	for _, d := range manifests {
		t := d.Annotations[annotationRefName]
		if t != "" {
			tags = append(tags, t)
		}
		switch {
		case ref.Digest != "" && d.Digest.String() != ref.Digest:
		case ref.Tag == "" || t == ref.Tag:
			found = append(found, d)
		case isTagged(d.Annotations[annotationContainerd], ref.Tag):
			named = append(named, d)
		}
	}
	switch {
	case len(found) == 0:
		return v1.Descriptor{}, nil, fmt.Errorf("%w: the layout holds the tags %q", image.ErrNotFound, tags)
	case ref.Digest != "":
		return found[0], nil, nil
	case len(found) > 1 && ref.Tag == "" && len(tags) > 0:
		return v1.Descriptor{}, nil,
			fmt.Errorf("%w: the layout holds several images, name one of the tags %q", image.ErrNotFound, tags)
	}
	chosen := found[0]
	if len(found) > 1 {
		if chosen, rivals, err = document.Choose(found); err != nil {
			return v1.Descriptor{}, nil, err
		}
	}
	if ref.Tag == "" {
		return chosen, rivals, nil
	}
	// By a name some take the first entry, whatever platform it claims to be for.
	for _, d := range append(found, named...) {
		if d.Digest != chosen.Digest && !slices.Contains(rivals, d.Digest.String()) {
			rivals = append(rivals, d.Digest.String())
		}
	}
	return chosen, rivals, nil
}

// isTagged reports whether a name, or a tag alone, has a tag.
func isTagged(s, tag string) bool { return s == tag || strings.HasSuffix(s, ":"+tag) }
