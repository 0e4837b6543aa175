// Package document reads the documents of images: manifests, indexes and configurations, wherever they are from.
package document

import (
	"bytes"
	"encoding/json"
	"fmt"
	"mime"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/cconvert/cconvert/internal/strictjson"
	"github.com/cconvert/cconvert/pkg/image"
)

// Rules are those of manifests and indexes (OCI image specification, "Image Manifest", "Image Index" and
// "Content Descriptors"), on whose keys readers must agree.
var Rules = strictjson.Rules{
	Named: []string{"annotations"}, MaxList: MaxElements,
	Known: []string{
		"schemaVersion", "mediaType", "artifactType", "config", "layers", "manifests", "subject", "annotations",
		"fsLayers", "history", "signatures", "digest", "size", "urls", "data",
		"platform", "architecture", "os", "os.version", "os.features", "variant", "features",
	},
}

// ConfigRules are those of configurations. Which keys of these count is not for all of them the same.
var ConfigRules = strictjson.Rules{
	Named: []string{"labels", "annotations", "volumes", "exposedports"}, MaxList: MaxElements,
}

// MaxElements is how many elements a list may have.
const MaxElements = 10_000

// Type is the media type of a manifest or index that came with a content type. A document that can be read as
// two things is refused: who looks at it, who signs it and who runs it would each see another one (CVE-2021-41190).
func Type(contentType string, raw []byte) (types.MediaType, error) {
	if err := strictjson.Check(raw, Rules); err != nil {
		return "", fmt.Errorf("reading the manifest: %w", err)
	}
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(raw, &keys); err != nil {
		return "", fmt.Errorf("reading the manifest: %w", err)
	}
	var said string
	if text, ok := keys["mediaType"]; ok {
		if err := json.Unmarshal(text, &said); err != nil {
			return "", fmt.Errorf("reading the manifest: its mediaType: %w", err)
		}
	}
	kind := Given(contentType)
	switch {
	case !isDocument(kind) && said != "":
		// A server that does not know what it serves: then the document says it.
		kind = types.MediaType(said)
	case !isDocument(kind):
		if kind = kindOf(keys); kind == "" { // as pages of proxies are
			return "", fmt.Errorf("reading the manifest: %w: it came as %q", image.ErrNoDocument, Given(contentType))
		}
	case said != "" && said != string(kind):
		return "", fmt.Errorf("reading the manifest: %w: it says that it is of the type %q, and came as %q",
			image.ErrAmbiguous, said, kind)
	}
	for _, k := range foreignKeys(kind) {
		if _, ok := keys[k]; ok {
			return "", fmt.Errorf("reading the manifest: %w: one of the type %q has no %q", image.ErrAmbiguous, kind, k)
		}
	}
	return kind, nil
}

// Given is the media type in a header, without its parameters.
func Given(contentType string) types.MediaType {
	kind, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		return types.MediaType(contentType)
	}
	return types.MediaType(kind)
}

// kindOf is the type of a document that does not say it (OCI image specification, "Image Manifest" and "Image Index");
// empty if it is neither.
func kindOf(keys map[string]json.RawMessage) types.MediaType {
	has := func(key string) bool { _, ok := keys[key]; return ok }
	switch {
	case !has("schemaVersion"):
		return ""
	case has("config") && has("layers"):
		return types.OCIManifestSchema1
	case has("manifests"):
		return types.OCIImageIndex
	}
	return ""
}

func isDocument(mt types.MediaType) bool { return mt.IsImage() || mt.IsIndex() || mt.IsSchema1() }

// foreignKeys are those that a document of a type has not.
func foreignKeys(mt types.MediaType) []string {
	switch {
	case mt.IsIndex():
		return []string{"config", "layers", "fsLayers"}
	case mt.IsImage():
		return []string{"manifests", "fsLayers"}
	}
	return nil
}

// ReadIndex reads an index, whose type was told by Type.
func ReadIndex(raw []byte) (*v1.IndexManifest, error) {
	var index v1.IndexManifest
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, fmt.Errorf("reading the index: %w", err)
	}
	return &index, nil
}

// ParseManifest reads an image's manifest, whose type was told by Type.
func ParseManifest(raw []byte) (*v1.Manifest, error) {
	m, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("reading the manifest: %w", err)
	}
	return m, nil
}

// ParseConfig reads an image's configuration, and refuses what readers disagree on.
func ParseConfig(raw []byte) (c v1.ConfigFile, err error) {
	if err = strictjson.Check(raw, ConfigRules); err == nil {
		err = json.Unmarshal(raw, &c)
	}
	return c, err
}

// vagueConfigs are what some builders and registries say of configurations.
var vagueConfigs = []types.MediaType{"", "application/octet-stream", "application/json", "text/plain", "text/html"}

// IsConfig reports whether a blob of a type may be an image's configuration.
func IsConfig(mt types.MediaType) bool {
	return mt.IsConfig() || slices.Contains(vagueConfigs, Given(string(mt)))
}
