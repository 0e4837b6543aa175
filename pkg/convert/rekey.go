package convert

import (
	"context"
	"fmt"

	"github.com/cconvert/cconvert/pkg/encrypted"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/protectedfs"
	"github.com/cconvert/cconvert/pkg/rootfs"
)

// Reencrypted are the encrypted files of an image under another key.
type Reencrypted struct {
	Layer image.NewLayer
	// Index is that of the layer, as encrypted.List.Describe has it.
	Index *rootfs.Index
	List  *encrypted.List
	Key   protectedfs.Key
	// Close frees what the layer takes.
	Close func() error
}

// Rekey prepares an image with its encrypted files under another key. All else is as the recipe of the image has it,
// and the image that it was made from is not needed. Below are the indexes of the layers under the runtime's, the last
// being that of the encrypted files.
func Rekey(ctx context.Context, p Parts, below []*rootfs.Index, again Reencrypted) (*Prepared, error) {
	o, err := optionsOf(p.Recipe, p.Backend)
	if err != nil {
		return nil, err
	}
	source, err := p.source()
	if err != nil {
		return nil, err
	}
	last := len(source.Layers) - 1
	if last < 0 || len(below) != len(source.Layers) {
		return nil, fmt.Errorf("%w: there is no layer for encrypted files", encrypted.ErrList)
	}
	if source, err = source.Replace(map[int]image.NewLayer{last: again.Layer}, nil, again.Close); err != nil {
		return nil, err
	}
	indexes := append([]*rootfs.Index{}, below...)
	indexes[last] = again.Index
	if p.Tree, err = rootfs.Merge(indexes); err != nil {
		return nil, err
	}
	p.Encrypted, o.Launch.Encrypt.KeyID = again.List, again.List.KeyID
	p.Keys = map[string]protectedfs.Key{again.List.Key: again.Key}
	s, err := p.seal(ctx, o, source)
	if err != nil {
		return nil, err
	}
	watch := startWatch()
	out := &Prepared{
		Conversion: s.Conversion, result: s.result, watch: watch, observer: nobody{},
	}
	if out.SigStruct, out.packing, err = measure(ctx, s, nil, StoreOptions{}); err != nil {
		return nil, err
	}
	watch.lap("measure")
	return out, nil
}
