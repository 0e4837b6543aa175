package verify

import (
	"errors"
	"slices"
	"time"

	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/rootfs"
	"github.com/cconvert/cconvert/pkg/sbom"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// billProblems says in what a bill that a conversion has attached differs from the one of the image as it is. A bill by
// another program is about what it has looked at, and not compared.
func (v *verification) billProblems(said *attest.Statement) (problems []string, compared bool) {
	var want []byte
	b, err := v.bill(said)
	if err == nil {
		want, err = b.Document(sbom.KindOf(said.PredicateType), said.Predicate)
	}
	switch {
	case errors.Is(err, sbom.ErrNotOurs):
		return nil, false
	case err != nil:
		return []string{err.Error()}, true
	}
	return statedOtherwise(want, said.Predicate), true
}

// bill lists what the image has more than its source, under the name that a statement has for the image.
func (v *verification) bill(said *attest.Statement) (sbom.Bill, error) {
	if v.s.Bundle == nil || v.c.Recipe == nil {
		return sbom.Bill{}, errors.New("it is about a conversion, and the image has no runtime")
	}
	layers := v.s.Image.Layers
	top, added := len(layers)-1, v.s.Added()
	if added < 2 || added > len(layers) {
		return sbom.Bill{}, errors.New("it is about a conversion, and the image has not the layers of one")
	}
	b := sbom.Bill{Digest: v.c.Digest, Source: v.c.Recipe.Source}
	at := len(layers) - added
	if list := v.c.Encrypted; list != nil {
		if at == 0 {
			return sbom.Bill{}, errors.New("there is no layer for encrypted files")
		}
		b.Layers = append(b.Layers, sbom.Ciphertexts(layers[at-1].Digest, list))
	}
	b.Layers = append(b.Layers, sbom.Runtime(v.s.Bundle))
	at++
	if i := slices.IndexFunc(said.Subject, func(r attest.Resource) bool { return r.Is(v.c.Digest) }); i >= 0 {
		b.Name = said.Subject[i].Name
	}
	if v.starts != nil {
		b.Layers = append(b.Layers, sbom.Agent(v.starts))
		at++
	}
	for _, l := range layers[min(at, top):top] {
		b.Layers = append(b.Layers, sbom.Layer{Name: "files", Digest: l.Digest})
	}
	var files []sbom.File
	err := v.s.Tree.Walk(func(n *rootfs.Node) error {
		if n.Layer == top && n.Type == rootfs.Regular {
			files = append(files, sbom.File{Path: n.Path, SHA256: n.SHA256})
		}
		return nil
	})
	b.Layers = append(b.Layers, sbom.Enclave(layers[top].Digest, files))
	if d := v.c.SigStruct.Date; d != (sgx.Date{}) {
		b.Created = time.Date(d.Year, time.Month(d.Month), d.Day, 0, 0, 0, 0, time.UTC)
	}
	return b, err
}
