// Package convert turns a container image into one that runs inside an SGX enclave.
//
// [Run] does it at once. It is two functions with the signature between them: [Prepare] does everything that needs no
// key, and returns what is to be signed; [Finish] takes the signature and stores the image. Who signs, and when, is
// decided by the caller: [Sign] has an sgx.Signer do it. [OpenEnclave] returns the same for an image that was converted
// before, to be signed for the first time, or by another key.
//
// Which library OS the image gets is Options.Backend, of package libos/gramine or libos/gramine/sim. [Analyze] says
// what a conversion would make of an image, and what will not work, without making anything.
package convert

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/cconvert/cconvert/internal/bug"
	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
	"github.com/cconvert/cconvert/pkg/image/store"
	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// ErrConverted says that the source is the output of a conversion.
var ErrConverted = errors.New("the image is already converted")

// ErrReserved says that a layer of the source has, or may lead to, files where the enclave goes, which the loader could
// take for its own. That a later layer removes them does not count, see [rootfs.Within].
var ErrReserved = errors.New("the image has files at " + libos.Root + ", where the enclave goes")

// Prepared is a conversion that is measured, and lacks nothing but the signature.
type Prepared struct {
	Conversion
	// SigStruct is to be signed.
	SigStruct *sgx.SigStruct
	// Now is the SIGSTRUCT that an image has which was read back, signed or not; nil for a new one.
	Now *sgx.SigStruct
	// SourceChecked says that an image which was read back was compared with its source. Otherwise no source is stated
	// with a key.
	SourceChecked bool

	findings []finding.Finding
	result   Result              // what is known without the signature
	packing  *libos.EnclaveLayer // the enclave's layer, begun; nil: not yet, or it was used
	watch    *stopwatch
	observer Observer

	// Of a conversion whose target was known: where it goes, how, and what was begun there.
	target *image.Reference
	store  StoreOptions
	begun  *destination
}

// ToBeSigned returns the 256 bytes that the signature covers.
func (p *Prepared) ToBeSigned() []byte { return p.SigStruct.ToBeSigned() }

// Findings are what the user should know of the image; none of an image that was read back.
func (p *Prepared) Findings() []finding.Finding { return p.findings }

// Close lets go of the source of a conversion, and of what was begun at its target.
func (p *Prepared) Close() error {
	if p.begun != nil {
		p.begun.close()
	}
	return p.base.Close()
}

// Prepare reads the image and the runtime, works out how the program starts and measures the enclave.
func Prepare(ctx context.Context, o Options) (_ *Prepared, err error) {
	if err := o.begin(); err != nil {
		return nil, err
	}
	if o.Image.Shared == nil {
		o.Image.Shared = &registry.Shared{}
	}
	if (o.Encrypt == nil) != (len(o.Launch.Encrypt.Paths) == 0) {
		return nil, &launch.OptionError{Option: "encrypt", Why: "--encrypt and --encrypt-key must be given together"}
	}
	watch := startWatch()
	var begun *destination
	var in *inputs
	defer func() {
		if err != nil && begun != nil {
			begun.close()
		}
		if err != nil && in != nil {
			in.source.Close()
		}
	}()
	if o.Target != nil {
		begun = openDestination(ctx, *o.Target, o.Image)
	}
	if in, err = read(ctx, o); err != nil {
		return nil, err
	}
	defer in.stop()
	watch.lap("scan")

	if in.contents.Tree.Lookup(libos.RecipePath) != nil {
		return nil, fmt.Errorf("%s: %w", o.Source, ErrConverted)
	}
	if err := in.layers.reserved; err != nil {
		return nil, fmt.Errorf("%s: %w", o.Source, err)
	}
	if o.Encrypt != nil {
		o.Observer.Stage("encrypting files")
		if o.Launch.Encrypt, err = in.encrypt(ctx, o); err != nil {
			return nil, fmt.Errorf("%s: %w", o.Source, err)
		}
		watch.lap("encrypt")
	}
	s, err := seal(ctx, o, in.source, in.contents, in.runtime, in.agent, in.encrypted)
	if err != nil {
		return nil, err
	}
	if _, err := s.config(); err != nil { // before anything is measured
		return nil, fmt.Errorf("%s: %w", o.Source, err)
	}
	findings := slices.Concat(s.findings, in.layers.findings)
	if err := o.Gate.Pass(findings); err != nil {
		return nil, err
	}
	if begun != nil {
		begun.upload.Begin(in.source, s.below...)
	}
	watch.lap("launch")

	p := &Prepared{
		Conversion: s.Conversion, findings: findings, result: s.result, watch: watch, observer: o.Observer,
		target: o.Target, store: o.StoreOptions, begun: begun,
	}
	p.result.Layers, p.result.Encrypted = in.layers.counts, in.told
	o.Observer.Stage("measuring the enclave")
	if p.SigStruct, p.packing, err = measure(ctx, s, begun, o.StoreOptions); err != nil {
		return nil, err
	}
	watch.lap("measure")
	return p, nil
}

// measure completes what is to be signed. Meanwhile the layer on top is begun, and it is seen whether the target may be
// replaced.
func measure(
	ctx context.Context, s *sealed, begun *destination, o StoreOptions,
) (toSign *sgx.SigStruct, packing *libos.EnclaveLayer, err error) {
	measured := *s.unsigned
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		defer bug.Catch(&err)
		if measured.MREnclave, err = sgx.Measure(gctx, s.layout); err != nil {
			return fmt.Errorf("measuring the enclave: %w", err)
		}
		return nil
	})
	g.Go(func() (err error) {
		packing, err = libos.PackEnclave(s.files)
		return err
	})
	if begun != nil {
		g.Go(func() error { return begun.checkVersion(s.unsigned.ISVSVN, o) })
	}
	err = g.Wait()
	return &measured, packing, err
}

// inputs are what a conversion begins with.
type inputs struct {
	source *image.Image
	layers *layers
	// contents are the image's files.
	contents *launch.Contents
	// encrypted is what is added for encrypted files, and told what there is to say of them; nil if there are none.
	encrypted *libos.Encrypted
	told      *Encrypted
	// runtime waits for the library OS, which is needed last.
	runtime func() (*libos.Bundle, error)
	// agent waits for what gets secrets; nil if the image gets none.
	agent func() (*libos.Agent, error)
	// stop ends loading it if nobody needs it any more.
	stop context.CancelFunc
}

// read finds the image and reads its layers. Meanwhile the runtime is loaded.
func read(ctx context.Context, o Options) (*inputs, error) {
	loading, stop := context.WithCancel(ctx)
	in := &inputs{layers: newLayers(o), stop: stop}
	in.runtime = ahead(func() (*libos.Bundle, error) { return o.Backend.Load(loading, o.Runtime) })
	in.agent = ahead(o.agent)
	var err error
	o.Observer.Stage("opening " + o.Source.String())
	if o.Found != nil {
		in.source, err = o.Found.Open(ctx)
	} else {
		in.source, err = store.Open(ctx, o.Source, o.Image)
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
