package convert

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/klauspost/compress/gzip"

	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/manifest"
	"github.com/cconvert/cconvert/pkg/reach"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// Labels of a converted image.
const (
	LabelBaseDigest = "org.opencontainers.image.base.digest"
	LabelEpoch      = "cconvert.epoch"
	LabelMREnclave  = "cconvert.mrenclave"
	LabelMRSigner   = "cconvert.mrsigner"
	// LabelIdentity is that of the conversion, see Recipe.Identity.
	LabelIdentity = "cconvert.identity"
)

// Label returns a label of an image; empty if there is none, or the configuration cannot be read.
func Label(img *image.Image, name string) string {
	var config struct {
		Config struct{ Labels map[string]string } `json:"config"`
	}
	if json.Unmarshal(img.Config, &config) != nil {
		return ""
	}
	return config.Config.Labels[name]
}

// date is the SIGSTRUCT's: what the user says or the day on which the source image was created.
func (p *Prepared) date() (sgx.Date, error) {
	if p.opts.Date != nil {
		return *p.opts.Date, nil
	}
	var c struct {
		Created string `json:"created"`
	}
	if err := json.Unmarshal(p.source.Config, &c); err != nil {
		return sgx.Date{}, fmt.Errorf("reading the image's configuration: %w", err)
	}
	day, _, _ := strings.Cut(c.Created, "T")
	d, err := sgx.ParseDate(day)
	if err != nil || d.Year < 2000 || d.Year > 9999 {
		return sgx.Date{}, nil // absent, or one of the values by which builders say "none"
	}
	return d, nil
}

// EnclaveFiles are those of the enclave layer, with a SIGSTRUCT, signed or not.
func (p *Prepared) EnclaveFiles(s *sgx.SigStruct) []libos.File {
	return append(slices.Clone(p.files), signatureFile(s))
}

// writeFiles makes the files of the enclave layer but for the signature: the library OS's, and ours for whoever reads
// the image.
func (p *Prepared) writeFiles() error {
	reasons, err := json.Marshal(p.trusted)
	if err != nil {
		return err
	}
	recipe, err := json.MarshalIndent(p.recipe, "", "  ")
	if err != nil {
		return err
	}
	p.files = append(slices.Clone(p.sealed.Files),
		libos.File{Path: libos.ReasonsPath, Mode: 0o644, Content: append(reasons, '\n')},
		libos.File{Path: libos.RecipePath, Mode: 0o644, Content: append(recipe, '\n')},
	)
	return nil
}

// signatureFile is a SIGSTRUCT where the runtime looks for it or, as long as it is not signed, elsewhere.
func signatureFile(s *sgx.SigStruct) libos.File {
	f := libos.File{Path: libos.SigPath, Mode: 0o644, Content: s.Bytes()}
	if key, _ := s.Signature(); key == nil {
		f.Path = libos.UnsignedPath
	}
	return f
}

// enclaveLayer is the layer on top while it is packed. Manifests, which are most of it, come before the signature.
type enclaveLayer struct {
	out   *image.LayerWriter
	files *libos.Packer
	rest  []libos.File
}

// packEnclave begins the layer with what comes before the signature.
func packEnclave(files []libos.File) (*enclaveLayer, error) {
	out, err := image.NewLayerWriter(gzip.DefaultCompression)
	if err != nil {
		return nil, err
	}
	l := &enclaveLayer{out, libos.NewPacker(out), libos.SortFiles(files)}
	return l, l.pack(func(f libos.File) bool { return f.Path < min(libos.SigPath, libos.UnsignedPath) })
}

// pack writes the next files.
func (l *enclaveLayer) pack(these func(libos.File) bool) error {
	for len(l.rest) > 0 && these(l.rest[0]) {
		if err := l.files.Add(l.rest[0]); err != nil {
			return fmt.Errorf("packing the enclave: %w", err)
		}
		l.rest = l.rest[1:]
	}
	return nil
}

// complete ends the layer.
func (l *enclaveLayer) complete(s *sgx.SigStruct) (image.NewLayer, error) {
	l.rest = libos.SortFiles(append(l.rest, signatureFile(s)))
	if err := l.pack(func(libos.File) bool { return true }); err != nil {
		return image.NewLayer{}, err
	}
	if err := l.files.Close(); err != nil {
		return image.NewLayer{}, fmt.Errorf("packing the enclave: %w", err)
	}
	return l.out.Layer()
}

// FileRun says why so many of the trusted files, one after the other in the manifest, are listed.
type FileRun struct {
	Count   int          `json:"count"`
	Reason  reach.Reason `json:"reason"`
	Package string       `json:"package,omitempty"`
}

func fileRuns(files []manifest.TrustedFile) []FileRun {
	var runs []FileRun
	for _, f := range files {
		if n := len(runs); n == 0 || runs[n-1].Reason != f.Why.Reason || runs[n-1].Package != f.Why.Package {
			runs = append(runs, FileRun{Reason: f.Why.Reason, Package: f.Why.Package})
		}
		runs[len(runs)-1].Count++
	}
	return runs
}

// readConfig splits an image's configuration into its keys, and those of what is about running it.
func readConfig(text []byte) (config, run map[string]json.RawMessage, err error) {
	if err := json.Unmarshal(text, &config); err != nil {
		return nil, nil, fmt.Errorf("reading the image's configuration: %w", err)
	}
	if raw, ok := config["config"]; ok {
		if err := json.Unmarshal(raw, &run); err != nil {
			return nil, nil, fmt.Errorf("reading the image's configuration: %w", err)
		}
	}
	if run == nil {
		run = map[string]json.RawMessage{}
	}
	return config, run, nil
}

// IsResult reports whether an image says of itself that it is the result of a conversion.
func IsResult(img *image.Image) bool {
	var config struct {
		Config struct{ Labels map[string]string } `json:"config"`
	}
	return json.Unmarshal(img.Config, &config) == nil && config.Config.Labels[LabelMREnclave] != ""
}

// SteersLoader reports whether a variable, as NAME=VALUE, would act on the runtime's loader, which has other libraries
// than the image. Podman trims names, and takes all variables of the host that begin with what is before a "*" that
// ends a name without a value.
func SteersLoader(kv string) bool {
	name, _, valued := strings.Cut(kv, "=")
	name = strings.TrimSpace(name)
	if !valued && strings.HasSuffix(name, "*") {
		return true
	}
	// LD_LIBRARY_PATH does not act on it, and health checks need it.
	return strings.HasPrefix(name, "LD_") && name != "LD_LIBRARY_PATH" || name == "GLIBC_TUNABLES"
}

// Config is the source's configuration with the start of the enclave in it. What is not about that
// stays to the letter, fields that nobody knows included.
func (p *Prepared) Config(s *sgx.SigStruct) (map[string]json.RawMessage, error) {
	config, run, err := readConfig(p.source.Config)
	if err != nil {
		return nil, err
	}
	if err := exactKeys(config, "config", "rootfs", "history", "created"); err != nil {
		return nil, err
	}
	if err := exactKeys(run, "Labels", "Env", "Entrypoint", "Cmd", "StopSignal"); err != nil {
		return nil, err
	}
	var labels map[string]string
	var env []string
	for name, to := range map[string]any{"Labels": &labels, "Env": &env} {
		if raw, ok := run[name]; ok {
			if err := json.Unmarshal(raw, to); err != nil {
				return nil, fmt.Errorf("reading %s in the image's configuration: %w", name, err)
			}
		}
	}
	if labels == nil {
		labels = map[string]string{}
	}
	labels[LabelBaseDigest] = p.source.Digest
	labels[LabelEpoch] = fmt.Sprint(FormatEpoch)
	labels[LabelMREnclave] = s.MREnclave.String()
	var signer sgx.Measurement
	if key, _ := s.Signature(); key != nil {
		signer = s.MRSigner()
		labels[LabelMRSigner] = signer.String()
	}
	labels[LabelIdentity] = p.recipe.Identity(signer)

	start := slices.Clone(p.sealed.Entrypoint)
	rest := []string{} // Cmd is empty: arguments are measured
	if p.spec.HostArgs {
		// The host's arguments follow what the image fixes; its CMD is what they replace.
		start = append(start, p.spec.Argv[1:p.spec.FixedArgs]...)
		rest = p.spec.Argv[p.spec.FixedArgs:]
	}
	env = slices.DeleteFunc(env, SteersLoader)
	for name, v := range map[string]any{
		"Labels": labels, "Env": env, "Entrypoint": start, "Cmd": rest, "StopSignal": "SIGTERM",
	} {
		raw, err := json.Marshal(v)
		if err != nil {
			return nil, err
		}
		run[name] = raw
	}
	if config["config"], err = json.Marshal(run); err != nil {
		return nil, err
	}
	if raw, ok := config["history"]; ok {
		if config["history"], err = addHistory(raw, config["created"]); err != nil {
			return nil, err
		}
	}
	return config, nil
}

// exactKeys refuses keys that differ from a known one in upper and lower case alone. Some readers of
// JSON take them for the same, so that what was set under the right name could be overruled.
func exactKeys(m map[string]json.RawMessage, known ...string) error {
	for k := range m {
		for _, name := range known {
			if k != name && strings.EqualFold(k, name) {
				return fmt.Errorf("the image's configuration has the key %q, which must be %q", k, name)
			}
		}
	}
	return nil
}

// addedBy is what the history says of the two new layers.
var addedBy = []string{"cconvert: runtime", "cconvert: enclave"}

// addHistory notes the two new layers, at the time of the source's creation: there is no clock here.
func addHistory(raw, created json.RawMessage) (json.RawMessage, error) {
	var history []json.RawMessage
	if err := json.Unmarshal(raw, &history); err != nil {
		return nil, fmt.Errorf("reading the history in the image's configuration: %w", err)
	}
	if len(history) == 0 {
		return raw, nil // none is kept: it would have to be of every layer
	}
	for _, by := range addedBy {
		entry := map[string]any{"created_by": by}
		if created != nil {
			entry["created"] = created
		}
		b, err := json.Marshal(entry)
		if err != nil {
			return nil, err
		}
		history = append(history, b)
	}
	return json.Marshal(history)
}

func (p *Prepared) result(out *image.Output, to image.Reference) *Result {
	s, e := p.signed, p.sealed.Enclave
	trusted := 0
	for _, run := range p.trusted {
		trusted += run.Count
	}
	r := &Result{
		Source: p.source.Ref.String(),
		Output: Output{AddedBytes: p.added},
		Runtime: Runtime{
			Kind: p.bundle.Kind, Version: p.bundle.Version, Digest: p.bundle.Layer.Digest, Source: p.bundle.Source,
		},

		MREnclave: s.MREnclave, MRSigner: s.MRSigner(), ISVProdID: s.ISVProdID, ISVSVN: s.ISVSVN,
		DebugEnclave: s.Debug(),
		Layers:       p.layers,

		EnclaveSize: e.EnclaveSize, MaxThreads: e.MaxThreads, EDMM: e.EDMM,
		TrustedFiles: trusted, Trust: string(p.spec.Policy), LeftOut: p.spec.LeftOut, Profile: p.spec.Profile.Name,
		ProfileWhy: p.spec.ProfileWhy, SizeWhy: p.spec.SizeWhy,
		StartSeconds: launch.StartSeconds(trusted), ManifestSize: len(p.sealed.Manifest),
		Findings: append([]finding.Finding{}, p.sealed.Findings...), Timings: p.watch.steps,
	}
	if p.bundle.SourceDigest != "" {
		r.Runtime.Source += "@" + p.bundle.SourceDigest
	}
	total := 0.0
	for _, seconds := range r.Timings {
		total += seconds
	}
	r.Timings["total"] = total
	r.Target, r.HostArgs = to.String(), p.spec.HostArgs
	r.Output.Ref, r.Output.Digest = out.Name(to)
	return r
}
