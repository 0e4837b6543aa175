package convert

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/recipe"
	"github.com/cconvert/cconvert/pkg/rootfs"
	"github.com/cconvert/cconvert/pkg/sbom"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// Conversion is an image that lacks the measurement and the signature: the outcome of a conversion, or read back by
// OpenEnclave. Nothing changes it.
type Conversion struct {
	Recipe recipe.Recipe
	// Manifest is the library OS's, as it is measured.
	Manifest []byte
	// Simulated says that there is no enclave.
	Simulated bool

	settings sgx.Settings
	unsigned *sgx.SigStruct
	files    []libos.File // of the enclave's layer, but for the signature
	// base is the image on which new layers go, and below the new ones that come before the enclave's.
	base  *image.Image
	below []image.NewLayer
	// listed describes the layers below, for a bill.
	listed func(context.Context) ([]sbom.Layer, error)
	// config returns the configuration but for the labels. The caller may change it.
	config func() (map[string]json.RawMessage, error)
}

// EnclaveFiles returns the files of the enclave's layer with a SIGSTRUCT, signed or not.
func (c *Conversion) EnclaveFiles(s *sgx.SigStruct) []libos.File {
	return append(slices.Clone(c.files), libos.SignatureFile(s))
}

// Added are the diff IDs of the new layers below the enclave's, the runtime's first.
func (c *Conversion) Added() (ids []string) {
	for _, l := range c.below {
		ids = append(ids, l.DiffID)
	}
	return ids
}

// Config returns the configuration of the image with a SIGSTRUCT, signed or not.
func (c *Conversion) Config(s *sgx.SigStruct) (map[string]json.RawMessage, error) {
	config, err := c.config()
	if err != nil {
		return nil, err
	}
	return config, c.Recipe.Label(config, s)
}

// sealed is a conversion with all that is told of it. Nothing changes it either.
type sealed struct {
	Conversion
	layout   sgx.Layout // which is to be measured
	findings []finding.Finding
	// result is what is known before it is measured.
	result Result
}

// seal works out how the program starts, and what the enclave consists of.
func seal(
	ctx context.Context, o Options, source *image.Image, contents *launch.Contents,
	runtime func() (*libos.Bundle, error), agent func() (*libos.Agent, error), encrypted *libos.Encrypted,
) (*sealed, error) {
	spec, err := contents.Build(ctx, source.Config, o.Launch)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.Source, err)
	}
	date, err := o.date(source.Config)
	if err != nil {
		return nil, err
	}
	bundle, err := runtime()
	if err != nil {
		return nil, err
	}
	begins, err := agent()
	if err != nil {
		return nil, err
	}
	in := libos.Input{
		Spec: spec, Enclave: o.Enclave, Bundle: bundle, Overlay: o.Overlay, Tree: contents.Tree, Date: date,
		Encrypted: encrypted, Agent: begins,
		Contents: contentsOf(source, contents.Tree, rootfs.Options{Inflate: o.Inflate, Limits: o.Limits}),
	}
	parts, err := o.Backend.Seal(ctx, in)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.Source, err)
	}
	if err := contents.Tree.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", o.Source, err)
	}
	made, err := recipe.New(o.Recorded(), o.Overlay, source, bundle, begins, date)
	if err != nil {
		return nil, err
	}
	trusted := recipe.FileRuns(parts.Trusted)
	files, err := recipe.Files(made, trusted)
	if err != nil {
		return nil, err
	}
	// Cmd is empty: arguments are measured.
	begin := recipe.Start{Entrypoint: parts.Entrypoint, Cmd: []string{}, Agent: begins != nil}
	if spec.HostArgs {
		// The host's arguments follow what the image fixes; its CMD is what they replace.
		begin.Entrypoint = slices.Concat(begin.Entrypoint, spec.Argv[1:spec.FixedArgs])
		begin.Cmd = spec.Argv[spec.FixedArgs:]
	}
	findings, err := findingsOf(o.Backend, spec, parts, bundle, source)
	if err != nil {
		return nil, err
	}
	below := []image.NewLayer{bundle.Layer}
	if begins != nil {
		below = append(below, begins.Layer)
	}
	below = append(below, parts.Layers...)
	listed := listLayers(bundle, begins, parts.Layers)
	return &sealed{
		Conversion: Conversion{
			Recipe: made, Manifest: parts.Manifest, Simulated: parts.Simulated, settings: parts.Settings,
			unsigned: parts.SigStruct, files: slices.Concat(parts.Files, files),
			base: source, below: below,
			listed: func(context.Context) ([]sbom.Layer, error) { return listed, nil },
			config: func() (map[string]json.RawMessage, error) {
				return begin.Config(source.Config, len(below)+1)
			},
		},
		layout: parts.Layout, findings: findings, result: describeResult(spec, o.Backend, bundle, parts, trusted),
	}, nil
}

// findingsOf gathers what there is to say of a conversion beside its layers.
func findingsOf(
	backend libos.Backend, spec *launch.Spec, parts *libos.Sealed, bundle *libos.Bundle, source *image.Image,
) ([]finding.Finding, error) {
	findings := slices.Concat(parts.Findings, longList(backend, spec))
	if !bundle.Pinned {
		findings = append(findings, finding.New(finding.RuntimeUnpinned, finding.Warning, bundle.Source,
			"the runtime was found by a tag, which can move: it is "+bundle.SourceDigest+" now"))
	}
	steering, err := source.Steering()
	if err != nil {
		return nil, err
	}
	for _, name := range steering {
		findings = append(findings, finding.New(finding.Annotation, finding.Info, name,
			"by this annotation of the manifest engines would run the image otherwise: it is left out"))
	}
	for _, l := range source.Layers {
		for _, name := range image.Lazy(l.Annotations) {
			findings = append(findings, finding.New(finding.Annotation, finding.Info, l.Digest,
				"by the annotation "+name+" of this layer engines may take other files than its archive's: it is left "+
					"out"))
		}
	}
	others, err := source.OtherKeys()
	for _, key := range others {
		findings = append(findings, finding.New(finding.Annotation, finding.Info, key,
			"by this key of the manifest registries would attach the image to another one: it is left out"))
	}
	return findings, err
}

// slowStart is how many seconds of reading a list are worth a finding.
const slowStart = 2

// longList is the finding that a start takes long because of the list of files, if it does.
func longList(backend libos.Backend, spec *launch.Spec) []finding.Finding {
	t := backend.StartSeconds(len(spec.Trusted))
	if t <= slowStart {
		return nil
	}
	return []finding.Finding{finding.New(finding.LongList, finding.Warning, "",
		fmt.Sprintf("%d files are listed: reading the list takes about %.1f s at each start of a process, and twice "+
			"that under SGX", len(spec.Trusted), t))}
}

// date is the SIGSTRUCT's: what the user says or the day on which the source image was created.
func (o Options) date(config []byte) (sgx.Date, error) {
	if o.Date != nil {
		return *o.Date, nil
	}
	var c struct {
		Created string `json:"created"`
	}
	if err := json.Unmarshal(config, &c); err != nil {
		return sgx.Date{}, fmt.Errorf("reading the image's configuration: %w", err)
	}
	day, _, _ := strings.Cut(c.Created, "T")
	d, err := sgx.ParseDate(day)
	if err != nil || d.Year < 2000 || d.Year > 9999 {
		return sgx.Date{}, nil // absent, or one of the values by which builders say "none"
	}
	return d, nil
}

// describeResult is what is told of a conversion before it is measured.
func describeResult(
	spec *launch.Spec, backend libos.Backend, bundle *libos.Bundle, parts *libos.Sealed, trusted []recipe.FileRun,
) Result {
	files := 0
	for _, run := range trusted {
		files += run.Count
	}
	runtime := Runtime{
		Kind: bundle.Kind, Version: bundle.Version, Digest: bundle.Layer.Digest, Source: bundle.Source,
	}
	if bundle.SourceDigest != "" {
		runtime.Source += "@" + bundle.SourceDigest
	}
	return Result{
		Runtime:     runtime,
		EnclaveSize: parts.Settings.EnclaveSize, MaxThreads: parts.Settings.MaxThreads, EDMM: parts.Settings.EDMM,
		TrustedFiles: files, Trust: string(spec.Policy), LeftOut: spec.LeftOut, Profile: spec.Profile.Name,
		ProfileWhy: spec.ProfileWhy, SizeWhy: spec.SizeWhy, HostArgs: spec.HostArgs,
		StartSeconds: backend.StartSeconds(files), ManifestSize: len(parts.Manifest),
	}
}
