package sbom

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/CycloneDX/cyclonedx-go"
)

// CycloneDX returns the bill in CycloneDX's JSON, version 1.6.
func (b Bill) CycloneDX() ([]byte, error) {
	image := cyclonedxImage(b.Name, b.Digest)
	if b.Source != "" {
		image.Pedigree = &cyclonedx.Pedigree{
			Ancestors: &[]cyclonedx.Component{cyclonedxImage("source", b.Source)}, Notes: incomplete,
		}
	}
	var layers []cyclonedx.Component
	for _, l := range b.Layers {
		layer := cyclonedx.Component{
			BOMRef: l.Digest, Type: cyclonedx.ComponentTypePlatform, Name: l.Name, Version: l.Version,
			Description: "a layer of the image", Hashes: cyclonedxSum(l.Digest),
		}
		var parts []cyclonedx.Component
		for _, f := range l.Files {
			parts = append(parts, cyclonedx.Component{
				BOMRef: f.Path, Type: cyclonedx.ComponentTypeFile, Name: f.Path,
				Hashes: cyclonedxSum("sha256:" + hex.EncodeToString(f.SHA256[:])),
			})
		}
		for _, lib := range l.Libraries {
			parts = append(parts, cyclonedx.Component{
				BOMRef: lib.PURL, Type: cyclonedx.ComponentTypeLibrary, Name: lib.Name, Version: lib.Version,
				PackageURL: lib.PURL, CPE: lib.CPE,
			})
		}
		if len(parts) > 0 {
			layer.Components = &parts
		}
		layers = append(layers, layer)
	}
	bom := cyclonedx.NewBOM()
	bom.Metadata = &cyclonedx.Metadata{
		Component: &image,
		Tools: &cyclonedx.ToolsChoice{
			Components: &[]cyclonedx.Component{{Type: cyclonedx.ComponentTypeApplication, Name: tool}},
		},
	}
	if !b.Created.IsZero() {
		bom.Metadata.Timestamp = b.created()
	}
	bom.Components = &layers
	bom.Compositions = &[]cyclonedx.Composition{{
		Aggregate:  cyclonedx.CompositionAggregateIncomplete,
		Assemblies: &[]cyclonedx.BOMReference{cyclonedx.BOMReference(image.BOMRef)},
	}}
	var out bytes.Buffer
	err := cyclonedx.NewBOMEncoder(&out, cyclonedx.BOMFileFormatJSON).EncodeVersion(bom, cyclonedx.SpecVersion1_6)
	return bytes.TrimSpace(out.Bytes()), err
}

func cyclonedxImage(name, digest string) cyclonedx.Component {
	return cyclonedx.Component{
		BOMRef: digest, Type: cyclonedx.ComponentTypeContainer, Name: name, Version: digest,
		PackageURL: purl(name, digest), Hashes: cyclonedxSum(digest),
	}
}

func cyclonedxSum(digest string) *[]cyclonedx.Hash {
	_, sum, _ := strings.Cut(digest, ":")
	return &[]cyclonedx.Hash{{Algorithm: cyclonedx.HashAlgoSHA256, Value: sum}}
}

// oursInCycloneDX reports by ErrNotOurs that a document does not say that this program has made it.
func oursInCycloneDX(document []byte) error {
	var bom cyclonedx.BOM
	if err := cyclonedx.NewBOMDecoder(bytes.NewReader(document), cyclonedx.BOMFileFormatJSON).Decode(&bom); err != nil {
		return fmt.Errorf("reading the CycloneDX document: %w", err)
	}
	if bom.Metadata == nil || bom.Metadata.Tools == nil {
		return ErrNotOurs
	}
	var makers []string
	for _, c := range some(bom.Metadata.Tools.Components) {
		makers = append(makers, c.Name)
	}
	for _, s := range some(bom.Metadata.Tools.Services) {
		makers = append(makers, s.Name)
	}
	for _, t := range some(bom.Metadata.Tools.Tools) { // of version 1.4 and before
		makers = append(makers, t.Name)
	}
	if !slices.Contains(makers, tool) {
		return ErrNotOurs
	}
	return nil
}

// some are the elements of a list, if there is one.
func some[T any](list *[]T) []T {
	if list == nil {
		return nil
	}
	return *list
}
