package image

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// LayerType returns the media type of one of the image's layers, as its manifest says.
func (img *Image) LayerType(i int) (types.MediaType, error) { return img.Layers[i].Push.MediaType() }

// Replace returns the image with other layers in the place of some, and new ones on top of all. Its Digest stays that
// of the image that it is made from, and so does its history: what it says besides is for the caller to add. The layers
// are closed by the given function, which is added to OnClose.
func (img *Image) Replace(layers map[int]NewLayer, top []NewLayer, onClose func() error) (*Image, error) {
	ids, err := img.DiffIDs()
	if err != nil {
		return nil, err
	}
	if len(ids) != len(img.Layers) {
		return nil, fmt.Errorf("the configuration lists %d layers, the manifest %d", len(ids), len(img.Layers))
	}
	ids = slices.Clone(ids)
	out := *img
	out.Layers = slices.Clone(img.Layers)
	descriptors := map[int]v1.Descriptor{}
	put := func(i int, l NewLayer) error {
		pushed, described, err := NewLayers(img.MediaType, []NewLayer{l})
		if err != nil {
			return err
		}
		out.Layers[i], ids[i], descriptors[i] = layerOf(l, pushed[0]), l.DiffID, described[0]
		return nil
	}
	for i, l := range layers {
		if err := put(i, l); err != nil {
			return nil, err
		}
	}
	for _, l := range top {
		out.Layers, ids = append(out.Layers, nil), append(ids, "")
		if err := put(len(out.Layers)-1, l); err != nil {
			return nil, err
		}
	}
	out.Manifest = func() ([]byte, error) { return replaceDescriptors(img, descriptors, len(out.Layers)) }
	if out.Config, err = replaceDiffIDs(img.Config, ids); err != nil {
		return nil, err
	}
	out.OnClose = func() error {
		err := onClose()
		if closing := img.Close(); closing != nil {
			err = closing
		}
		return err
	}
	return &out, nil
}

// replaceDescriptors is an image's manifest with other layers.
func replaceDescriptors(img *Image, other map[int]v1.Descriptor, layers int) ([]byte, error) {
	manifest, list, err := img.descriptors()
	if err != nil {
		return nil, err
	}
	if len(list) != len(img.Layers) {
		return nil, fmt.Errorf("the manifest lists %d layers, %d were read", len(list), len(img.Layers))
	}
	list = append(list, make([]json.RawMessage, layers-len(list))...)
	for i, d := range other {
		if list[i], err = json.Marshal(d); err != nil {
			return nil, err
		}
	}
	if manifest["layers"], err = json.Marshal(list); err != nil {
		return nil, err
	}
	return json.Marshal(manifest)
}

// replaceDiffIDs is a configuration with other layers.
func replaceDiffIDs(text []byte, ids []string) ([]byte, error) {
	var config map[string]json.RawMessage
	if err := json.Unmarshal(text, &config); err != nil {
		return nil, fmt.Errorf("reading the image's configuration: %w", err)
	}
	var err error
	if config["rootfs"], err = json.Marshal(map[string]any{"type": "layers", "diff_ids": ids}); err != nil {
		return nil, err
	}
	return json.Marshal(config)
}

// layerOf is a new layer as one of an image.
func layerOf(l NewLayer, pushed v1.Layer) *Layer {
	return &Layer{
		Digest: l.Digest, Size: int64(l.Size), Push: pushed,
		Open: func(context.Context) (io.ReadCloser, error) { return l.Open() },
	}
}
