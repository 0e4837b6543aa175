package document

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cconvert/cconvert/pkg/image"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// normal is a platform as container engines compare it: some write it otherwise (containerd's platforms.Normalize).
func normal(p v1.Platform) v1.Platform {
	p.OS, p.Architecture, p.Variant = strings.ToLower(p.OS), strings.ToLower(p.Architecture), strings.ToLower(p.Variant)
	switch p.Architecture {
	case "x86_64", "x86-64":
		p.Architecture = "amd64"
	case "i386", "i486", "i586", "i686", "x86":
		p.Architecture = "386"
	}
	if p.Architecture == "amd64" && p.Variant == "v1" {
		p.Variant = ""
	}
	return p
}

// isImageEntry reports whether an entry of an index is of an image. Attestations of BuildKit stand there as
// unknown/unknown.
func isImageEntry(d v1.Descriptor) bool {
	attestation := d.Platform != nil && d.Platform.OS == "unknown" && d.Platform.Architecture == "unknown"
	return !attestation && isDocument(d.MediaType)
}

// Elsewhere reports whether every engine knows that an entry of an index is not for linux/amd64. What an entry leaves
// out, engines take for their own, and some look at the platform alone and not at the media type.
func Elsewhere(d v1.Descriptor) bool {
	if d.Platform == nil {
		return false
	}
	p := normal(*d.Platform)
	return p.OS != "" && p.OS != "linux" || p.Architecture != "" && p.Architecture != "amd64"
}

// Choose picks the manifest for linux/amd64 from an index. Rivals are all others that an engine may run instead.
func Choose(manifests []v1.Descriptor) (chosen v1.Descriptor, rivals []string, err error) {
	var have []string
	var candidates, vague []v1.Descriptor
	for _, d := range manifests {
		if !isImageEntry(d) {
			continue
		}
		if d.Platform == nil {
			vague = append(vague, d)
			have = append(have, "one without a platform")
			continue
		}
		have = append(have, d.Platform.String())
		if n := normal(*d.Platform); n.OS == "linux" && n.Architecture == "amd64" {
			candidates = append(candidates, d)
		}
	}
	if len(have) == 1 {
		candidates = append(candidates, vague...) // its configuration says what it is for
	}
	if len(candidates) == 0 {
		return v1.Descriptor{}, nil, fmt.Errorf("%w: there is %s", image.ErrPlatform, strings.Join(have, ", "))
	}
	// An entry without a variant runs on every amd64.
	best := max(0, slices.IndexFunc(candidates, func(d v1.Descriptor) bool {
		return d.Platform == nil || normal(*d.Platform).Variant == ""
	}))
	chosen = candidates[best]
	// If the chosen image has a variant, or features or a version that its system is to have, containerd may find that
	// it does not fit, and take one for 386.
	fits := true
	if p := chosen.Platform; p != nil {
		fits = normal(*p).Variant == "" && len(p.OSFeatures)+len(p.Features) == 0 && p.OSVersion == ""
	}
	seen := map[v1.Hash]bool{chosen.Digest: true}
	for _, d := range manifests {
		if (!Elsewhere(d) || !fits && normal(*d.Platform).Architecture == "386") && !seen[d.Digest] {
			seen[d.Digest] = true
			rivals = append(rivals, d.Digest.String())
		}
	}
	return chosen, rivals, nil
}
