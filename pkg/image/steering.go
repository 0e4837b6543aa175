package image

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// describing begin the names of annotations that are for people: of the OCI image specification, of Docker's official
// images, and of Label Schema before them. Engines carry all others from an image's manifest to its containers, where
// some change how these are run: podman, CRI-O, containerd, crun, gVisor, Kata Containers and others each have theirs.
var describing = []string{
	"org.opencontainers.image.", "com.docker.official-images.", "vnd.docker.reference.", "org.label-schema.",
}

// Steers reports whether engines carry an annotation of an image to its containers.
func Steers(annotation string) bool {
	return !slices.ContainsFunc(describing, func(prefix string) bool { return strings.HasPrefix(annotation, prefix) })
}

// Steering returns the annotations of the image's manifest by which engines would run it otherwise, sorted. Append
// leaves them out.
func (img *Image) Steering() ([]string, error) {
	annotations, err := img.Annotations()
	if err != nil {
		return nil, err
	}
	maps.DeleteFunc(annotations, func(name, _ string) bool { return !Steers(name) })
	return slices.Sorted(maps.Keys(annotations)), nil
}

// lazy begin the names of annotations of a layer by which an engine may take its files from somewhere else than its
// archive: eStargz and zstd:chunked have a table of contents, other snapshotters of containerd (nydus, overlaybd and
// others) have files and indexes of their own.
var lazy = []string{"containerd.io/snapshot/", "io.github.containers.zstd-chunked.", "io.containers.zstd-chunked."}

func isLazy(annotation string) bool {
	return slices.ContainsFunc(lazy, func(prefix string) bool { return strings.HasPrefix(annotation, prefix) })
}

// Lazy returns those annotations of a layer by which an engine may take its files from somewhere else than its archive,
// sorted. Append leaves them out.
func Lazy(annotations map[string]string) []string {
	names := slices.DeleteFunc(slices.Collect(maps.Keys(annotations)), func(name string) bool { return !isLazy(name) })
	slices.Sort(names)
	return names
}

// withoutLazy returns a layer's descriptor without the annotations of Lazy.
func withoutLazy(descriptor json.RawMessage) (json.RawMessage, error) {
	var all, annotations map[string]json.RawMessage
	if err := json.Unmarshal(descriptor, &all); err != nil {
		return nil, fmt.Errorf("reading a layer's descriptor: %w", err)
	}
	if all["annotations"] == nil {
		return descriptor, nil
	}
	if err := json.Unmarshal(all["annotations"], &annotations); err != nil {
		return nil, fmt.Errorf("reading a layer's annotations: %w", err)
	}
	before := len(annotations)
	maps.DeleteFunc(annotations, func(name string, _ json.RawMessage) bool { return isLazy(name) })
	if len(annotations) == before {
		return descriptor, nil
	}
	if delete(all, "annotations"); len(annotations) > 0 {
		text, err := json.Marshal(annotations)
		if err != nil {
			return nil, err
		}
		all["annotations"] = text
	}
	return json.Marshal(all)
}

// ownKeys are those of an image's manifest that are about the image itself (OCI image specification, "Image Manifest").
// By others, registries list it as something that is attached to another one.
var ownKeys = []string{"schemaVersion", "mediaType", "config", "layers", "annotations"}

// OtherKeys returns the keys of the image's manifest that are not about the image itself, sorted. Append leaves them
// out.
func (img *Image) OtherKeys() ([]string, error) {
	var manifest map[string]json.RawMessage
	if err := img.readManifest(&manifest); err != nil {
		return nil, err
	}
	maps.DeleteFunc(manifest, func(key string, _ json.RawMessage) bool { return slices.Contains(ownKeys, key) })
	return slices.Sorted(maps.Keys(manifest)), nil
}

// Annotations returns those of the image's manifest.
func (img *Image) Annotations() (map[string]string, error) {
	var manifest struct {
		Annotations map[string]string `json:"annotations"`
	}
	err := img.readManifest(&manifest)
	return manifest.Annotations, err
}

// readManifest decodes the image's manifest, if it has one.
func (img *Image) readManifest(to any) error {
	if img.Manifest == nil { // it is one of nothing but a configuration
		return nil
	}
	raw, err := img.Manifest()
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, to); err != nil {
		return fmt.Errorf("reading the manifest: %w", err)
	}
	return nil
}

// withoutSteering returns annotations as they are but for those of Steering.
func withoutSteering(annotations json.RawMessage) (json.RawMessage, error) {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(annotations, &all); err != nil {
		return nil, fmt.Errorf("reading the manifest's annotations: %w", err)
	}
	before := len(all)
	maps.DeleteFunc(all, func(name string, _ json.RawMessage) bool { return Steers(name) })
	if len(all) == before {
		return annotations, nil
	}
	return json.Marshal(all)
}
