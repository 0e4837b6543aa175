package convert

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/cconvert/cconvert/pkg/cache"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/rootfs"
)

// mergeLayers finds out what is in each layer, side by side, and lays them over each other.
func mergeLayers(ctx context.Context, img *image.Image, o Options) (*rootfs.Tree, error) {
	indexes := make([]*rootfs.Index, len(img.Layers))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(o.jobs())
	first := map[string]int{}
	for i, l := range img.Layers {
		if _, again := first[l.Digest]; again {
			continue // builders repeat layers, such as the empty one
		}
		first[l.Digest] = i
		g.Go(func() (err error) {
			indexes[i], err = layerIndex(ctx, l, o)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for i, l := range img.Layers {
		indexes[i] = indexes[first[l.Digest]]
	}
	return rootfs.Merge(indexes)
}

// layerIndex gives a layer's index: that which is known from an earlier run or, where there is none, what
// reading the layer shows.
func layerIndex(ctx context.Context, l *image.Layer, o Options) (*rootfs.Index, error) {
	scan := rootfs.Options{Keep: launch.Keep, Inflate: o.Inflate}
	key := rootfs.IndexKey(l.Digest, scan)
	if index := known(o.Cache, key, l.Digest); index != nil {
		return index, nil
	}
	index, err := scanLayer(ctx, l, o, scan)
	if errors.Is(err, rootfs.ErrInflater) { // what is in the layer decides, not how a program fares
		o.Observer.Stage("reading the layer again: " + err.Error())
		scan.Inflate = rootfs.Inflater{}
		index, err = scanLayer(ctx, l, o, scan)
	}
	if err != nil {
		return nil, err
	}
	if o.Cache != nil {
		if b, err := index.MarshalBinary(); err == nil {
			_ = o.Cache.Put("index/"+key, b) // a cache that cannot be written costs time, nothing else
		}
	}
	return index, nil
}

// known gives a layer's index from the cache, nil where there is none that is sound.
func known(c cache.Store, key, digest string) *rootfs.Index {
	if c == nil {
		return nil
	}
	b, ok := c.Get("index/" + key)
	if !ok {
		return nil
	}
	var index rootfs.Index
	if err := index.UnmarshalBinary(b); err != nil || index.Digest != digest {
		return nil
	}
	return &index
}

func scanLayer(ctx context.Context, l *image.Layer, o Options, scan rootfs.Options) (*rootfs.Index, error) {
	r, err := l.Open(ctx)
	if err != nil {
		return nil, fmt.Errorf("fetching the layer %s: %w", l.Digest, err)
	}
	r = o.Observer.Layer(l.Digest, l.Size, r)
	defer r.Close()
	return rootfs.Scan(ctx, r, l.Digest, scan)
}
