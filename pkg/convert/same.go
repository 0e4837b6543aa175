package convert

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"

	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/libos"
)

// ErrOther says that an image is not the one that its recipe gives.
var ErrOther = errors.New("the image is not what its conversion gives")

// Check reports by ErrOther whether the image of the enclave is, to the byte, what its recipe gives of this source and
// runtime: each of the source's layers, the runtime's, nothing on top, the recipe, the configuration, and the MRENCLAVE
// of the manifest, which it computes. Which files the manifest lists is not worked out again: the signer has vouched for
// them, so the caller must know the signature. Nor is why they are listed, which nothing depends on. No layer but the one
// on top is read.
func (e *Enclave) Check(ctx context.Context, source *image.Image, runtime *libos.Bundle) error {
	other := func(format string, args ...any) error {
		return fmt.Errorf("%w: %w", ErrOther, fmt.Errorf(format, args...))
	}
	o, err := e.Recipe.options(e.backend)
	if err != nil {
		return other("reading the recipe: %w", err)
	}
	p := &Prepared{source: source, bundle: runtime, opts: o, spec: &launch.Spec{HostArgs: o.Launch.HostArgs}, sealed: &libos.Sealed{Entrypoint: libos.Start(e.backend)}}
	if o.Launch.HostArgs {
		return other("the host chooses the arguments, and those that it may leave out are not known without reading the image")
	}
	if p.recipe, err = p.writeRecipe(e.SigStruct.Date); err != nil {
		return err
	}
	manifest, reasons := e.file(libos.ManifestPath), e.file(libos.ReasonsPath)
	recipe, err := recipeFile(p.recipe)
	if err != nil {
		return err
	}
	if !e.explained(reasons) {
		return other("%s does not explain the manifest's files", libos.ReasonsPath)
	}
	files := append(e.backend.Files(manifest), ours(reasons, recipe)...)
	if archive := sha256.New(); libos.Pack(archive, append(files, signatureFile(e.SigStruct))) != nil || digestOf(archive) != e.diffID {
		return other("its layer on top has another recipe than that of this source and runtime, or other files")
	}
	m, err := e.backend.Measure(ctx, runtime, manifest)
	if err != nil {
		return err
	}
	if m != e.SigStruct.MREnclave {
		return other("the enclave would be %s, signed is %s", m, e.SigStruct.MREnclave)
	}
	config, err := p.Config(e.SigStruct)
	if err != nil {
		return err
	}
	top := e.source.Layers[len(e.source.Layers)-1]
	out, err := image.Append(source, config, []image.NewLayer{runtime.Layer, {Digest: top.Digest, DiffID: e.diffID, Size: int(top.Size)}})
	if err != nil {
		return fmt.Errorf("putting the image together: %w", err)
	}
	if out.Digest != e.source.Digest {
		return other("its layers or its configuration are others: %s would come out", out.Digest)
	}
	return nil
}

// explained reports whether the reasons are as many as the manifest's files, written as a conversion does.
func (e *Enclave) explained(text []byte) bool {
	var runs []FileRun
	if json.Unmarshal(text, &runs) != nil {
		return false
	}
	files := 0
	for _, r := range runs {
		files += r.Count
	}
	again, err := reasonsFile(runs)
	return err == nil && bytes.Equal(again, text) && files == e.trusted
}

func reasonsFile(runs []FileRun) ([]byte, error) {
	b, err := json.Marshal(runs)
	return append(b, '\n'), err
}

func recipeFile(r Recipe) ([]byte, error) {
	b, err := json.MarshalIndent(r, "", "  ")
	return append(b, '\n'), err
}

func digestOf(h hash.Hash) string { return "sha256:" + hex.EncodeToString(h.Sum(nil)) }
