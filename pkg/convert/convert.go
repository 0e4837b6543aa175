// Package convert turns a container image into one that runs inside an SGX enclave.
//
// It is two functions with the signature between them: [Prepare] does everything that needs no key, and
// gives the bytes to be signed; [Finish] takes the signature and stores the image. Who signs, and when,
// is nobody's business here.
package convert

import (
	"context"
	"crypto/rsa"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/rootfs"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// ErrConverted says that the source is the output of a conversion.
var ErrConverted = errors.New("the image is already converted")

// Prepared is a conversion that lacks nothing but the signature.
type Prepared struct {
	source *image.Image
	bundle *libos.Bundle
	sealed *libos.Sealed
	recipe []byte
	spec   *launch.Spec
	watch  *stopwatch
	opts   Options
}

// ToBeSigned gives the 256 bytes that the signature covers.
func (p *Prepared) ToBeSigned() []byte { return p.sealed.SigStruct.ToBeSigned() }

// Findings are what the user should know of the image, before anything is stored.
func (p *Prepared) Findings() []launch.Finding { return p.sealed.Findings }

// Close lets go of the source.
func (p *Prepared) Close() error { return p.source.Close() }

// Prepare reads the image and the runtime, works out how the program starts and measures the enclave.
func Prepare(ctx context.Context, o Options) (_ *Prepared, err error) {
	if o.Observer == nil {
		o.Observer = nobody{}
	}
	p := &Prepared{opts: o, watch: startWatch()}
	in, err := read(ctx, o, true)
	if err != nil {
		return nil, err
	}
	p.source, p.bundle = in.source, in.bundle
	tree := in.tree
	defer func() {
		if err != nil {
			p.source.Close()
		}
	}()
	p.watch.lap("scan")

	if tree.Lookup(libos.ManifestPath) != nil {
		return nil, fmt.Errorf("%s: %w", o.Source, ErrConverted)
	}
	if p.spec, err = launch.Build(ctx, tree, p.source.Config, o.Launch); err != nil {
		return nil, fmt.Errorf("%s: %w", o.Source, err)
	}
	date, err := p.date()
	if err != nil {
		return nil, err
	}
	p.sealed, err = o.Backend.Seal(libos.Input{Spec: p.spec, Bundle: p.bundle, Overlay: o.Overlay, Tree: tree, Date: date})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.Source, err)
	}
	if !p.bundle.Pinned {
		p.sealed.Findings = append(p.sealed.Findings, launch.NewFinding(launch.CodeRuntimeUnpinned, launch.Warning, p.bundle.Source,
			"the runtime was found by a tag, which can move: it is "+p.bundle.SourceDigest+" now"))
	}
	if p.recipe, err = p.writeRecipe(date); err != nil {
		return nil, err
	}
	p.watch.lap("launch")

	o.Observer.Stage("measuring the enclave")
	if p.sealed.SigStruct.MREnclave, err = sgx.Measure(ctx, p.sealed.Layout); err != nil {
		return nil, fmt.Errorf("measuring the enclave: %w", err)
	}
	p.watch.lap("measure")
	return p, nil
}

// Finish completes the image with a signature over ToBeSigned by the key, and stores it.
func Finish(ctx context.Context, p *Prepared, key *rsa.PublicKey, signature []byte, to image.Reference) (*Result, error) {
	if err := p.sealed.SigStruct.Attach(key, signature); err != nil {
		return nil, err
	}
	p.watch.lap("sign")
	enclave, err := p.enclaveLayer()
	if err != nil {
		return nil, err
	}
	config, err := p.config()
	if err != nil {
		return nil, err
	}
	p.opts.Observer.Stage("putting the image together")
	out, err := image.Append(p.source, config, []image.NewLayer{p.bundle.Layer, enclave})
	if err != nil {
		return nil, fmt.Errorf("putting the image together: %w", err)
	}
	p.opts.Observer.Stage("writing " + to.String())
	if err := image.Write(ctx, to, out, p.opts.Image); err != nil {
		return nil, err
	}
	p.watch.lap("write")
	return p.result(out, len(p.bundle.Layer.Blob)+len(enclave.Blob), to), nil
}

// Sign has a signer sign what Prepare gave.
func Sign(ctx context.Context, p *Prepared, s sgx.Signer) (*rsa.PublicKey, []byte, error) {
	key, err := s.Public(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the signing key: %w", err)
	}
	if err := sgx.CheckPublicKey(key); err != nil {
		return nil, nil, err
	}
	signature, err := s.Sign(ctx, p.ToBeSigned())
	if err != nil {
		return nil, nil, fmt.Errorf("signing: %w", err)
	}
	return key, signature, nil
}

// inputs are what a conversion begins with.
type inputs struct {
	source *image.Image
	tree   *rootfs.Tree
	bundle *libos.Bundle
	// unread says why there is no bundle.
	unread error
}

// read fetches the image's layers and the runtime. Without a runtime it fails only if there must be one.
func read(ctx context.Context, o Options, mustRun bool) (*inputs, error) {
	o.Observer.Stage("opening " + o.Source.String())
	source, err := image.Open(ctx, o.Source, o.Image)
	if err != nil {
		return nil, err
	}
	in := &inputs{source: source}
	o.Observer.Stage("reading the layers and the runtime")
	both, bothCtx := errgroup.WithContext(ctx)
	both.Go(func() (err error) {
		if in.tree, err = scan(bothCtx, source, o); err != nil {
			return fmt.Errorf("%s: %w", o.Source, err)
		}
		return nil
	})
	both.Go(func() error {
		in.bundle, in.unread = o.Backend.Load(bothCtx, o.Runtime)
		if mustRun {
			return in.unread
		}
		return nil
	})
	if err := both.Wait(); err != nil {
		source.Close()
		return nil, err
	}
	return in, nil
}

// scan reads the layers side by side.
func scan(ctx context.Context, img *image.Image, o Options) (*rootfs.Tree, error) {
	indexes := make([]*rootfs.Index, len(img.Layers))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(o.jobs())
	first := map[string]int{}
	for i, l := range img.Layers {
		if _, again := first[l.Digest]; again {
			continue // builders repeat layers, such as the empty one
		}
		first[l.Digest] = i
		g.Go(func() error {
			r, err := l.Open(ctx)
			if err != nil {
				return fmt.Errorf("fetching the layer %s: %w", l.Digest, err)
			}
			r = o.Observer.Layer(l.Digest, l.Size, r)
			defer r.Close()
			indexes[i], err = rootfs.Scan(ctx, r, l.Digest, rootfs.Options{Keep: launch.Keep})
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
