package convert

import (
	"context"
	"crypto/sha256"
	"fmt"
	"time"

	"github.com/cconvert/cconvert/pkg/encrypted"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/recipe"
	"github.com/cconvert/cconvert/pkg/rootfs"
	"github.com/cconvert/cconvert/pkg/sbom"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// maxAddedLayer is how many bytes a layer below the enclave's may have that is read for a bill.
const maxAddedLayer = 256 << 20

// listLayers describes the layers between a source and the enclave's.
func listLayers(bundle *libos.Bundle, agent *libos.Agent, others []image.NewLayer) []sbom.Layer {
	layers := []sbom.Layer{sbom.Runtime(bundle)}
	if agent != nil {
		layers = append(layers, sbom.Agent(agent))
	}
	for _, l := range others {
		layers = append(layers, sbom.Layer{Name: "files", Digest: l.Digest})
	}
	return layers
}

// readAdded describes the same layers of an image that was read back: the topmost ones of what is below the enclave's.
func readAdded(ctx context.Context, below *image.Image, r recipe.Recipe, added int) ([]sbom.Layer, error) {
	if added < 1 || added > len(below.Layers) {
		return nil, fmt.Errorf("the image has %d layers, and its recipe has added %d", len(below.Layers), added)
	}
	layers := below.Layers[len(below.Layers)-added:]
	blob, err := layers[0].Blob(ctx, maxAddedLayer)
	if err != nil {
		return nil, fmt.Errorf("the runtime: %w", err)
	}
	bundle, err := libos.ReadBundle(ctx, blob, layers[0].Digest)
	if err != nil {
		return nil, err
	}
	listed, layers := []sbom.Layer{sbom.Runtime(bundle)}, layers[1:]
	if r.Options.Secrets != nil && len(layers) > 0 {
		agent, err := readAgent(ctx, layers[0])
		if err != nil {
			return nil, err
		}
		listed, layers = append(listed, sbom.Agent(agent)), layers[1:]
	}
	for _, l := range layers {
		listed = append(listed, sbom.Layer{Name: "files", Digest: l.Digest})
	}
	return listed, nil
}

func readAgent(ctx context.Context, l *image.Layer) (*libos.Agent, error) {
	r, err := l.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	files, err := rootfs.Extract(ctx, r, l.Digest, map[string]bool{libos.AgentPath: true}, maxAddedLayer, nil)
	if err != nil {
		return nil, err
	}
	return libos.PackedAgent(files[libos.AgentPath], image.NewLayer{Digest: l.Digest}), nil
}

// bill lists what an output has more than its source.
func (p *Prepared) bill(ctx context.Context, s *sgx.SigStruct, out *image.Output, name string) (sbom.Bill, error) {
	top, err := out.Blobs[len(out.Blobs)-1].Digest()
	if err != nil {
		return sbom.Bill{}, err
	}
	return p.billOf(ctx, s, name, out.Digest, top.String())
}

// ReadBill lists what a converted image has more than its source, from what its topmost layers hold. The source is the
// one that the image names.
func ReadBill(ctx context.Context, img *image.Image, backends []libos.Backend) (sbom.Bill, error) {
	p, err := OpenEnclave(ctx, img, backends)
	if err != nil {
		return sbom.Bill{}, err
	}
	name := img.Ref.String()
	if img.Ref.Transport == image.Registry {
		name = img.Ref.Name.Context().Name()
	}
	return p.billOf(ctx, p.Now, name, img.Digest, img.Layers[len(img.Layers)-1].Digest)
}

// billOf lists what an image of a name and digest has more than its source, with an enclave's layer on top.
func (p *Prepared) billOf(
	ctx context.Context, s *sgx.SigStruct, name, digest, top string,
) (sbom.Bill, error) {
	layers, err := p.listed(ctx)
	if err != nil {
		return sbom.Bill{}, err
	}
	var files []sbom.File
	var list *encrypted.List
	for _, f := range p.EnclaveFiles(s) {
		if f.Path == libos.EncryptedPath {
			if list, err = encrypted.ParseList(f.Content); err != nil {
				return sbom.Bill{}, fmt.Errorf("reading %s: %w", f.Path, err)
			}
		}
		if !f.Dir && f.Link == "" {
			files = append(files, sbom.File{Path: f.Path, SHA256: sha256.Sum256(f.Content)})
		}
	}
	b := sbom.Bill{Name: name, Digest: digest, Source: p.Recipe.Source}
	if list != nil {
		at := len(p.base.Layers) - (len(layers) - len(p.below)) - 1 // right below the runtime's
		if at < 0 {
			return b, fmt.Errorf("%w: there is no layer for encrypted files", encrypted.ErrList)
		}
		b.Layers = append(b.Layers, sbom.Ciphertexts(p.base.Layers[at].Digest, list))
	}
	b.Layers = append(append(b.Layers, layers...), sbom.Enclave(top, files))
	if d := s.Date; d != (sgx.Date{}) {
		b.Created = time.Date(d.Year, time.Month(d.Month), d.Day, 0, 0, 0, 0, time.UTC)
	}
	return b, nil
}
