package verify

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/rootfs"
	"github.com/cconvert/cconvert/pkg/sbom"
)

// billProblems says in what a bill that a conversion has attached differs from what the image has more than its source.
// A bill by another program is about what it has looked at.
func (v *verification) billProblems(said *attest.Statement) []string {
	read := sbom.SPDXLines
	if said.PredicateType == sbom.CycloneDXType {
		read = sbom.CycloneDXLines
	}
	lines, err := read(said.Predicate)
	switch {
	case errors.Is(err, sbom.ErrNotOurs):
		return nil
	case err != nil:
		return []string{err.Error()}
	case v.s.Bundle == nil:
		return []string{"it is about a conversion, and the image has no runtime"}
	}
	have, err := v.addedLines()
	if err != nil {
		return []string{err.Error()}
	}
	var problems []string
	for _, l := range lines {
		if !slices.Contains(have, l) {
			problems = append(problems, fmt.Sprintf("it lists %q, which was not added", l))
		}
	}
	for _, l := range have {
		if !slices.Contains(lines, l) {
			problems = append(problems, fmt.Sprintf("it does not list %q", l))
		}
	}
	return problems
}

// addedLines are those of the bill of the image as it is.
func (v *verification) addedLines() ([]string, error) {
	b := sbom.Bill{Layers: []sbom.Layer{sbom.Runtime(v.s.Bundle)}}
	if v.starts != nil {
		b.Layers = append(b.Layers, sbom.Agent(v.starts))
	}
	top := len(v.s.Image.Layers) - 1
	for range v.s.Places.Backend.Layers() - 2 {
		b.Layers = append(b.Layers, sbom.Layer{Name: "files"})
	}
	var files []sbom.File
	err := v.s.Tree.Walk(func(n *rootfs.Node) error {
		if n.Layer == top && n.Type == rootfs.Regular {
			files = append(files, sbom.File{Path: n.Path, SHA256: n.SHA256})
		}
		return nil
	})
	b.Layers = append(b.Layers, sbom.Enclave("", files))
	return b.Lines(), err
}
