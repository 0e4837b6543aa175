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
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/cconvert/cconvert/internal/bug"
	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// ErrConverted says that the source is the output of a conversion.
var ErrConverted = errors.New("the image is already converted")

// ErrReserved says that a layer of the source has, or may lead to, files where the enclave goes, which the loader could
// take for its own. That a later layer removes them does not count, see [rootfs.Within].
var ErrReserved = errors.New("the image has files at " + libos.Root + ", where the enclave goes")

// Prepared is a conversion that lacks nothing but the signature.
type Prepared struct {
	source *image.Image
	bundle *libos.Bundle
	sealed *libos.Sealed
	signed *sgx.SigStruct // of the image as it was completed last, signed or not
	recipe Recipe
	spec   *launch.Spec
	// trusted are the manifest's files. The lists of them, which can be very long, are not kept.
	trusted []FileRun
	files   []libos.File  // of the enclave layer, but for the signature
	layer   *enclaveLayer // in which they are being packed; nil: not yet
	layers  LayerCounts
	added   int           // bytes, compressed, of the new layers
	upload  *image.Upload // begun, if the target is known
	// present is the enclave that the target has now, nil if none.
	present func() (*sgx.SigStruct, error)
	watch   *stopwatch
	opts    Options
}

// ToBeSigned returns the 256 bytes that the signature covers.
func (p *Prepared) ToBeSigned() []byte { return p.sealed.SigStruct.ToBeSigned() }

// ConversionIdentity is Options.Identity of what was read: a source that has no digest can have changed since it was
// found.
func (p *Prepared) ConversionIdentity(signer sgx.Measurement) string {
	return p.recipe.Identity(signer)
}

// Findings are what the user should know of the image.
func (p *Prepared) Findings() []finding.Finding { return p.sealed.Findings }

// SourceDigest is the digest of the image that is converted.
func (p *Prepared) SourceDigest() string { return p.source.Digest }

// Manifest is the library OS's, as it is measured.
func (p *Prepared) Manifest() []byte { return p.sealed.Manifest }

// MREnclave is the measurement.
func (p *Prepared) MREnclave() sgx.Measurement { return p.sealed.SigStruct.MREnclave }

// Close lets go of the source, and of an upload that was not finished.
func (p *Prepared) Close() error {
	if p.upload != nil {
		p.upload.Close()
	}
	return p.source.Close()
}

// Prepare reads the image and the runtime, works out how the program starts and measures the enclave.
func Prepare(ctx context.Context, o Options) (_ *Prepared, err error) {
	if err := o.Launch.Check(); err != nil {
		return nil, err
	}
	if o.Observer == nil {
		o.Observer = nobody{}
	}
	if o.Image.Shared == nil {
		o.Image.Shared = &image.Shared{}
	}
	p := &Prepared{opts: o, watch: startWatch()}
	if o.Target != nil {
		p.upload = image.NewUpload(ctx, *o.Target, o.Image)
		upload := p.upload
		p.present = sync.OnceValues(func() (_ *sgx.SigStruct, err error) {
			defer bug.Catch(&err)
			return present(upload)
		})
		go p.present() //nolint:errcheck // checkReplaced sees what comes of it
	}
	in, err := read(ctx, o)
	if err != nil {
		if p.upload != nil {
			p.upload.Close()
		}
		return nil, err
	}
	defer in.stop()
	p.source, p.layers = in.source, in.layers.counts
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	p.watch.lap("scan")

	if in.contents.Tree.Lookup(libos.ManifestPath) != nil {
		return nil, fmt.Errorf("%s: %w", o.Source, ErrConverted)
	}
	if err := in.layers.reserved; err != nil {
		return nil, fmt.Errorf("%s: %w", o.Source, err)
	}
	if err := p.seal(ctx, in.contents, in.runtime); err != nil {
		return nil, err
	}
	p.sealed.Findings = append(p.sealed.Findings, in.layers.findings...)
	if o.Accept != nil {
		if err := o.Accept(p.sealed.Findings); err != nil {
			return nil, err
		}
	}
	if o.Target != nil {
		p.upload.Begin(p.source, p.bundle.Layer)
	}
	p.watch.lap("launch")

	o.Observer.Stage("measuring the enclave")
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		defer bug.Catch(&err)
		if p.sealed.SigStruct.MREnclave, err = sgx.Measure(gctx, p.sealed.Layout); err != nil {
			return fmt.Errorf("measuring the enclave: %w", err)
		}
		return nil
	})
	g.Go(func() (err error) {
		p.layer, err = packEnclave(p.files)
		return err
	})
	if o.Target != nil {
		g.Go(p.checkRollback)
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	p.watch.lap("measure")
	return p, nil
}

// seal works out how the program starts, and what the enclave consists of.
func (p *Prepared) seal(
	ctx context.Context, contents *launch.Contents, runtime func() (*libos.Bundle, error),
) (err error) {
	o := p.opts
	if p.spec, err = contents.Build(ctx, p.source.Config, o.Launch); err != nil {
		return fmt.Errorf("%s: %w", o.Source, err)
	}
	date, err := p.date()
	if err != nil {
		return err
	}
	if p.bundle, err = runtime(); err != nil {
		return err
	}
	p.sealed, err = o.Backend.Seal(libos.Input{
		Spec: p.spec, Bundle: p.bundle, Overlay: o.Overlay, Tree: contents.Tree, Date: date,
	})
	if err != nil {
		return fmt.Errorf("%s: %w", o.Source, err)
	}
	if err := contents.Tree.Err(); err != nil {
		return fmt.Errorf("%s: %w", o.Source, err)
	}
	p.trusted = fileRuns(p.sealed.Trusted)
	p.sealed.Trusted, p.spec.Trusted = nil, nil
	if !p.bundle.Pinned {
		p.sealed.Findings = append(p.sealed.Findings,
			finding.New(finding.RuntimeUnpinned, finding.Warning, p.bundle.Source,
				"the runtime was found by a tag, which can move: it is "+p.bundle.SourceDigest+" now"))
	}
	steering, err := p.source.Steering()
	if err != nil {
		return err
	}
	for _, name := range steering {
		p.sealed.Findings = append(p.sealed.Findings, finding.New(finding.Annotation, finding.Info, name,
			"by this annotation of the manifest engines would run the image otherwise: it is left out"))
	}
	if p.recipe, err = p.writeRecipe(date); err != nil {
		return err
	}
	return p.writeFiles()
}

// Finish completes the image with a signature over ToBeSigned by the key, and stores it. Without a key the image
// is one to be signed later, see OpenEnclave.
func Finish(
	ctx context.Context, p *Prepared, key *rsa.PublicKey, signature []byte, to image.Reference,
) (*Result, error) {
	p.watch.lap("sign")
	p.opts.Observer.Stage("putting the image together")
	out, err := p.Complete(key, signature)
	if err != nil {
		return nil, err
	}
	if p.opts.Evidence != nil && to.Transport == image.Registry {
		identity, err := p.identity()
		if err != nil {
			return nil, err
		}
		if out.Evidence, err = p.opts.Evidence.about(ctx, identity, out, to.Name.Context().Name()); err != nil {
			return nil, err
		}
		out.EvidenceOptional = !p.opts.Evidence.Required
	}
	p.opts.Observer.Stage("writing " + to.String())
	if p.upload == nil || !p.opts.Target.Same(to) {
		if p.upload != nil {
			p.upload.Close()
		}
		p.upload = image.NewUpload(ctx, to, p.opts.Image)
		defer p.upload.Close()
		p.present = func() (*sgx.SigStruct, error) { return present(p.upload) }
	}
	if err := p.checkReplaced(); err != nil {
		return nil, err
	}
	err = p.upload.Write(out)
	if errors.Is(err, image.ErrEvidence) {
		p.sealed.Findings = append(p.sealed.Findings,
			finding.New(finding.EvidenceRefused, finding.Warning, to.String(), err.Error()))
		err = nil
	}
	if err != nil {
		return nil, err
	}
	p.watch.lap("write")
	return p.result(out, to), nil
}

// Complete puts the image together with a signature over ToBeSigned by the key, without storing it. Without a key
// it lacks the signature.
func (p *Prepared) Complete(key *rsa.PublicKey, signature []byte) (*image.Output, error) {
	signed := *p.sealed.SigStruct
	s := &signed
	if key != nil {
		if err := s.Attach(key, signature); err != nil {
			return nil, err
		}
	}
	p.signed = s
	layer := p.layer
	p.layer = nil
	if layer == nil { // it was completed before, or never begun
		var err error
		if layer, err = packEnclave(p.files); err != nil {
			return nil, err
		}
	}
	enclave, err := layer.complete(s)
	if err != nil {
		return nil, err
	}
	config, err := p.Config(s)
	if err != nil {
		return nil, err
	}
	p.added = p.bundle.Layer.Size + enclave.Size
	out, err := image.Append(p.source, config, []image.NewLayer{p.bundle.Layer, enclave})
	if err != nil {
		return nil, fmt.Errorf("putting the image together: %w", err)
	}
	return out, nil
}

// checkRollback reports a RollbackError if the upload would replace an image of a higher security version: early, for
// it needs no signature.
func (p *Prepared) checkRollback() error {
	if p.opts.AllowRollback {
		return nil
	}
	now, err := p.present()
	if p.opts.ReplaceSigner && errors.Is(err, ErrVersionUnknown) {
		return nil
	}
	if err != nil {
		return err
	}
	return checkReplaced(now, p.sealed.SigStruct.ISVSVN, sgx.Measurement{}, false, true)
}

// checkReplaced is what must be so before the target gets another image.
func (p *Prepared) checkReplaced() error {
	now, err := p.present() // also if nothing of it matters: the upload then sees whether the tag is moved meanwhile
	if (p.opts.AllowRollback || p.opts.ReplaceSigner) && errors.Is(err, ErrVersionUnknown) {
		return nil // it is not known by whom it is signed, either
	}
	if err != nil {
		return err
	}
	signer := sgx.Measurement{}
	if key, _ := p.signed.Signature(); key != nil {
		signer = p.signed.MRSigner()
	}
	return checkReplaced(now, p.signed.ISVSVN, signer, p.opts.AllowRollback, p.opts.ReplaceSigner)
}

// inputs are what a conversion begins with.
type inputs struct {
	source *image.Image
	layers *layers
	// contents are the image's files.
	contents *launch.Contents
	// runtime waits for the library OS, which is needed last.
	runtime func() (*libos.Bundle, error)
	// stop ends loading it if nobody needs it any more.
	stop context.CancelFunc
}

// read finds the image and reads its layers. Meanwhile the runtime is loaded.
func read(ctx context.Context, o Options) (*inputs, error) {
	loading, stop := context.WithCancel(ctx)
	in := &inputs{layers: newLayers(o), stop: stop}
	type loaded struct {
		bundle *libos.Bundle
		err    error
	}
	result := make(chan loaded, 1)
	go func() {
		var l loaded
		defer func() { result <- l }()
		defer bug.Catch(&l.err)
		l.bundle, l.err = o.Backend.Load(loading, o.Runtime)
	}()
	in.runtime = sync.OnceValues(func() (*libos.Bundle, error) {
		l := <-result
		return l.bundle, l.err
	})
	var err error
	o.Observer.Stage("opening " + o.Source.String())
	if o.Found != nil {
		in.source, err = o.Found.Open(ctx)
	} else {
		in.source, err = image.Open(ctx, o.Source, o.Image)
	}
	if err != nil {
		stop()
		return nil, err
	}
	o.Observer.Stage("reading the layers and the runtime")
	tree, err := in.layers.merge(ctx, in.source)
	if err != nil {
		stop()
		in.source.Close()
		return nil, fmt.Errorf("%s: %w", o.Source, err)
	}
	in.contents = launch.Examine(ctx, tree)
	return in, nil
}
