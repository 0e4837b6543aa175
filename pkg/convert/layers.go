package convert

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"github.com/cconvert/cconvert/internal/bug"
	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/indexrepo"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/recipe"
	"github.com/cconvert/cconvert/pkg/rootfs"
	"github.com/cconvert/cconvert/pkg/rootfs/engines"
	"github.com/cconvert/cconvert/pkg/rootfs/inflate"
	"github.com/cconvert/cconvert/pkg/rootfs/toc"
)

// LayerCounts say from where it is known what is in the layers.
type LayerCounts struct {
	Read   int `json:"read"`   // by this conversion
	Cached int `json:"cached"` // by an earlier one
	Shared int `json:"shared"` // by somebody else, see Options.Shared
	TOC    int `json:"toc"`    // from the layer's own table of contents, see Options.TrustTOC
}

// maxDockerLayers is how many layers an image may have for Docker (moby, layer store, "max depth exceeded").
const maxDockerLayers = 125

// layers finds out what is in an image's layers.
type layers struct {
	o    Options
	scan rootfs.Options

	mu       sync.Mutex
	counts   LayerCounts
	findings []finding.Finding
	reserved error // ErrReserved and where, if a layer has something where the enclave goes
	// What is to be kept of layers, by digest, once it is known which have files that are encrypted: no digest of these
	// is kept, nor told to others.
	later map[string]func() error
	// indexes are those of all layers.
	indexes []*rootfs.Index
}

func newLayers(o Options) *layers {
	return &layers{o: o, scan: rootfs.Options{
		Keep: o.Launch.Keep(), Inflate: o.Inflate, Limits: o.Limits, Kept: new(rootfs.Kept),
	}}
}

// merge reads the layers side by side, and lays them over each other.
func (ls *layers) merge(ctx context.Context, img *image.Image) (*rootfs.Tree, error) {
	made := recipe.Recipe{Options: ls.o.Recorded()}
	if n := len(img.Layers) + made.Added(ls.o.Backend); n > maxDockerLayers {
		ls.find(finding.ManyLayers, finding.Warning, "",
			fmt.Sprintf("the result has %d layers, and Docker runs images of at most %d", n, maxDockerLayers))
	}
	index := func(ctx context.Context, i int) (_ *rootfs.Index, err error) {
		defer bug.Catch(&err)
		return ls.index(ctx, img.Layers[i])
	}
	indexes, err := rootfs.Gather(ctx, img.LayerDigests(), ls.o.jobs(), ls.o.Limits, index)
	if err != nil {
		return nil, err
	}
	ls.indexes = indexes
	if i, entry := engines.Within(indexes, libos.Root); entry != "" {
		ls.reserved = fmt.Errorf("%w: layer %d has %q", ErrReserved, i+1, entry)
	}
	return rootfs.Merge(indexes)
}

// index returns a layer's index: that which is known, or what reading the layer shows.
func (ls *layers) index(ctx context.Context, l *image.Layer) (*rootfs.Index, error) {
	key := rootfs.IndexKey(l.Digest, ls.scan)
	// A table of contents says less than the layer: what it is used for must not depend on what is cached.
	if index := ls.contents(ctx, key, l); index != nil {
		return index, nil
	}
	if index := ls.kept("index/"+key, l.Digest); index != nil {
		ls.count(&ls.counts.Cached)
		return index, ls.keep(l.Digest, func() error { return ls.publish(ctx, key, index) })
	}
	if index := ls.shared(ctx, key, l.Digest); index != nil {
		return index, nil
	}
	index, err := ls.read(ctx, l, ls.scan)
	if errors.Is(err, inflate.ErrInflater) { // what is in the layer decides, not how a program fares
		ls.o.Observer.Stage("reading the layer again: " + err.Error())
		index, err = ls.read(ctx, l, rootfs.Options{Keep: ls.scan.Keep, Limits: ls.o.Limits})
	}
	if err != nil {
		return nil, err
	}
	ls.count(&ls.counts.Read)
	return index, ls.keep(l.Digest, func() error { return ls.share(ctx, key, index) })
}

// keep has what is known of a layer kept, or shared: at once, unless files of the image are encrypted.
func (ls *layers) keep(digest string, how func() error) error {
	if len(ls.o.Launch.Encrypt.Paths) == 0 {
		return how()
	}
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if ls.later == nil {
		ls.later = map[string]func() error{}
	}
	ls.later[digest] = how
	return nil
}

// keepOthers is keep of the layers that have no files which are encrypted.
func (ls *layers) keepOthers(img *image.Image, without []int) error {
	for _, i := range without {
		delete(ls.later, img.Layers[i].Digest)
	}
	for _, how := range ls.later {
		if err := how(); err != nil {
			return err
		}
	}
	return nil
}

func (ls *layers) read(ctx context.Context, l *image.Layer, o rootfs.Options) (*rootfs.Index, error) {
	r, err := l.Open(ctx)
	if err != nil {
		return nil, fmt.Errorf("fetching the layer %s: %w", l.Digest, err)
	}
	r = ls.o.Observer.Layer(l.Digest, l.Size, r)
	defer r.Close()
	return rootfs.Scan(ctx, r, l.Digest, o)
}

// kept returns a layer's index from the cache, or nil if none is sound.
func (ls *layers) kept(key, digest string) *rootfs.Index {
	if ls.o.Cache == nil {
		return nil
	}
	b, ok := ls.o.Cache.Get(key)
	if !ok {
		return nil
	}
	return parse(b, digest)
}

func parse(b []byte, digest string) *rootfs.Index {
	var index rootfs.Index
	if err := index.UnmarshalBinary(b); err != nil || index.Digest != digest {
		return nil
	}
	return &index
}

// shared returns a layer's index as somebody else has read it, or nil if none is to be trusted. It is
// kept apart from what was read here: another conversion may trust in others.
func (ls *layers) shared(ctx context.Context, key, digest string) *rootfs.Index {
	repo := ls.o.Shared
	if repo == nil || !repo.Reads() {
		return nil
	}
	apart := "index-by/" + repo.Trust() + "/" + key
	index := ls.kept(apart, digest)
	if index == nil {
		b, err := repo.Get(ctx, key)
		switch {
		case errors.Is(err, indexrepo.ErrNone) || ctx.Err() != nil:
			return nil
		case err != nil:
			code, severity := finding.IndexUnreachable, finding.Info
			if errors.Is(err, indexrepo.ErrUntrusted) {
				code, severity = finding.IndexRejected, finding.Warning
			}
			ls.find(code, severity, digest,
				fmt.Sprintf("what %s says of this layer is not used, and the layer was read: %v", repo.Artifacts, err))
			return nil
		}
		if index = parse(b, digest); index == nil {
			ls.find(finding.IndexRejected, finding.Warning, digest,
				fmt.Sprintf("what %s says of this layer is damaged, and the layer was read", repo.Artifacts))
			return nil
		}
		if ls.o.Cache != nil {
			_ = ls.o.Cache.Put(apart, b) // a cache that cannot be written costs time, nothing else
		}
	}
	if repo.Insecure {
		ls.find(finding.IndexInsecure, finding.Warning, digest, fmt.Sprintf("what is in this layer was taken from "+
			"%s unverified: whoever writes there decides what the enclave trusts", repo.Artifacts))
	}
	ls.count(&ls.counts.Shared)
	return index
}

// contents returns a layer's index by its own table of contents, or nil if none is to be used.
func (ls *layers) contents(ctx context.Context, key string, l *image.Layer) *rootfs.Index {
	if !ls.o.TrustTOC || l.At == nil || len(ls.o.Launch.Encrypt.Paths) > 0 { // files leave layers, not tables
		return nil
	}
	// Others may say otherwise of the same layer: a registry of its parts, an image of its table.
	by, err := json.Marshal([]any{l.From, l.Annotations})
	if err != nil {
		return nil
	}
	sum := sha256.Sum256(by)
	apart := "index-by/toc/" + hex.EncodeToString(sum[:]) + "/" + key
	index := ls.kept(apart, l.Digest)
	if index == nil {
		index, err = rootfs.ScanTOC(ctx, l.At(ctx), l.Size, l.Digest, l.Annotations, ls.scan)
		switch {
		case errors.Is(err, toc.ErrNone) || ctx.Err() != nil:
			return nil
		case err != nil:
			ls.find(finding.TOCRejected, finding.Warning, l.Digest,
				fmt.Sprintf("the layer's table of contents is not used, and the layer was read: %v", err))
			return nil
		}
		if b, err := index.MarshalBinary(); err == nil && ls.o.Cache != nil {
			_ = ls.o.Cache.Put(apart, b) // a cache that cannot be written costs time, nothing else
		}
	}
	ls.find(finding.TOCTrusted, finding.Warning, l.Digest,
		"what is in this layer was taken from its table of contents, which need not say the truth")
	ls.count(&ls.counts.TOC)
	return index
}

// share keeps an index for later runs and, if that is wanted, for others.
func (ls *layers) share(ctx context.Context, key string, index *rootfs.Index) error {
	repo := ls.o.Shared
	if ls.o.Cache == nil && (repo == nil || !repo.Writes()) {
		return nil
	}
	b, err := index.MarshalBinary()
	if err != nil {
		return err
	}
	if ls.o.Cache != nil {
		_ = ls.o.Cache.Put("index/"+key, b) // as above
	}
	if repo != nil && repo.Writes() {
		ls.put(ctx, key, index, b)
	}
	return nil
}

// publish tells others what was known here, if they do not know it.
func (ls *layers) publish(ctx context.Context, key string, index *rootfs.Index) error {
	repo := ls.o.Shared
	if repo == nil || !repo.Writes() || repo.Has(ctx, key) {
		return nil
	}
	b, err := index.MarshalBinary()
	if err != nil {
		return err
	}
	ls.put(ctx, key, index, b)
	return nil
}

func (ls *layers) put(ctx context.Context, key string, index *rootfs.Index, b []byte) {
	if err := ls.o.Shared.Put(ctx, key, b); err != nil && ctx.Err() == nil {
		ls.find(finding.IndexNotShared, finding.Warning, index.Digest,
			fmt.Sprintf("what is in this layer could not be shared: %v", err))
	}
}

func (ls *layers) count(n *int) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	*n++
}

func (ls *layers) find(code string, severity finding.Severity, digest, message string) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	ls.findings = append(ls.findings, finding.New(code, severity, digest, message))
}
