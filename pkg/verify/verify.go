package verify

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"reflect"
	"slices"
	"strings"

	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/rootfs"
	"github.com/cconvert/cconvert/pkg/sgx"
	"github.com/cconvert/cconvert/pkg/startcheck"
)

// Status is the outcome of a check.
type Status string

// Outcomes.
const (
	OK      Status = "ok"
	Failed  Status = "failed"
	Skipped Status = "skipped" // it could not be made; that alone is no failure
)

// Check is one question that was asked of an image.
type Check struct {
	Name   string `json:"name"`
	Status Status `json:"status"`
	// Detail says what was compared, or why the check was skipped.
	Detail string `json:"detail"`
	// Problems are what is wrong.
	Problems []string `json:"problems,omitempty"`
}

// Names of checks.
const (
	CheckLayers      = "layers"       // blobs, their archives, and their number and order
	CheckOnTop       = "on-top"       // nothing was put over what was measured
	CheckSigStruct   = "sigstruct"    // as the CPU checks it
	CheckMeasurement = "measurement"  // MRENCLAVE of the enclave image and the manifest
	CheckAttributes  = "attributes"   // what is signed beside MRENCLAVE is what the manifest says
	CheckRuntime     = "runtime"      // the runtime's files
	CheckFiles       = "files"        // each trusted file
	CheckPolicy      = "policy"       // the manifest is what the recipe gives for these files
	CheckConfig      = "config"       // the configuration starts this enclave and nothing else
	CheckSource      = "source"       // the image that it was made from
	CheckEvidence    = "evidence"     // what is attached to the image
	CheckMREnclave   = "mrenclave"    // expectations
	CheckMRSigner    = "mrsigner"     //
	CheckSVN         = "svn"          //
	CheckProduct     = "product"      //
	CheckDebug       = "debug"        //
	CheckRuntimeIs   = "runtime-is"   //
	CheckAttestedBy  = "attested-by"  //
	CheckAnyIdentity = "any-identity" // there was an expectation of who signed or what runs
)

// Report is the outcome of a verification.
type Report struct {
	*Converted
	Checks []Check `json:"checks"`
	// Consistent says that nothing in the image contradicts anything else in it.
	Consistent bool `json:"consistent"`
	// Trusted says that it is also what was expected.
	Trusted bool `json:"trusted"`
	// Started is what the image's loader did, if it was asked to start; see Start.
	Started *startcheck.Result `json:"started,omitempty"`
}

// FailedChecks names the checks that failed.
func (r *Report) FailedChecks() []string {
	var names []string
	for _, c := range r.Checks {
		if c.Status == Failed {
			names = append(names, c.Name)
		}
	}
	return names
}

// maxProblems is how many problems of one check are told.
const maxProblems = 20

// verification is a verification under way.
type verification struct {
	s      *scanned
	c      *Converted
	report *Report
	// sig is the image's SIGSTRUCT, as stored.
	sig []byte
}

func (v *verification) add(name, detail string, problems []string) {
	status := OK
	if len(problems) > 0 {
		status = Failed
	}
	if more := len(problems) - maxProblems; more > 0 {
		problems = append(slices.Clone(problems[:maxProblems]), fmt.Sprintf("and %d more", more))
	}
	v.report.Checks = append(v.report.Checks, Check{name, status, detail, problems})
}

func (v *verification) skip(name, why string) {
	v.report.Checks = append(v.report.Checks, Check{name, Skipped, why, nil})
}

// Verify recomputes everything that an image says of itself, and compares it with what is expected. Nothing
// that was kept of earlier runs is used. The source is the image that it was made from, nil where that is
// not known. An image that is not what it says is no error but failed checks; an error means that it could not
// be read.
func Verify(ctx context.Context, img, source *image.Image, e Expectations, evidence Evidence, o Options) (*Report, error) {
	r := &Report{Converted: &Converted{Image: img.Ref.String(), Digest: img.Digest}}
	v := &verification{report: r, c: r.Converted}
	var err error
	if v.s, err = scan(ctx, img, o, true); err != nil {
		if !errors.Is(err, rootfs.ErrDigest) && !errors.Is(err, image.ErrDigest) {
			return nil, err
		}
		v.add(CheckLayers, "each blob by its digest", []string{err.Error()})
		return r, nil
	}
	if v.c, err = v.s.converted(); err != nil {
		return nil, err
	}
	r.Converted, v.sig = v.c, v.s.files[v.s.places.SigStruct]
	v.layers()
	v.onTop()
	v.sigStruct()
	measured, err := v.measurement(ctx)
	if err != nil {
		return nil, err
	}
	if measured {
		v.attributes()
	}
	v.runtime()
	v.files()
	if err := v.policy(ctx); err != nil {
		return nil, err
	}
	v.source(source)
	v.evidence(evidence)
	r.Consistent = len(r.FailedChecks()) == 0
	v.expected(e, evidence)
	r.Trusted = len(r.FailedChecks()) == 0
	return r, nil
}

// layers compares the digests of the archives with the configuration's, and with the recipe's: the engine that
// runs the image goes by them.
func (v *verification) layers() {
	var config struct {
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(v.s.img.Config, &config); err != nil {
		v.add(CheckLayers, "the configuration's list of layers", []string{err.Error()})
		return
	}
	var problems []string
	said := config.RootFS.DiffIDs
	for i, index := range v.s.indexes {
		if i >= len(said) || said[i] != index.DiffID {
			problems = append(problems, fmt.Sprintf("layer %d, %s: its archive is %s, which the configuration does not say", i+1, index.Digest, index.DiffID))
		}
	}
	if r := v.c.Recipe; r != nil {
		below := said[:max(0, len(said)-added)]
		if !slices.Equal(r.DiffIDs, below) {
			problems = append(problems, fmt.Sprintf("the layers below the enclave are not those that were converted, or in another order: the recipe has %d", len(r.DiffIDs)))
		}
	}
	v.add(CheckLayers, fmt.Sprintf("%d layers, each by the digests of its blob and its archive", len(v.s.indexes)), problems)
}

// added is how many layers a conversion puts on an image.
const added = 2

// onTop looks for layers over the enclave's, and for what else its own layers hold.
func (v *verification) onTop() {
	if v.s.places.Backend == nil {
		v.skip(CheckOnTop, "images of this layout have their enclave in no layer of its own")
		return
	}
	n := len(v.s.indexes)
	var problems []string
	if at := v.s.tree.Lookup(v.s.places.Manifest).Layer; at != n-1 {
		for _, e := range slices.Concat(entriesOf(v.s.indexes[at+1:])...) {
			problems = append(problems, fmt.Sprintf("a layer over the enclave's %s", whatItDoes(e)))
		}
		problems = append(problems, fmt.Sprintf("the enclave is in layer %d of %d", at+1, n))
	}
	if at := v.s.tree.Lookup(libos.MetaPath(v.s.places.Backend.Kind())).Layer; at != n-added {
		problems = append(problems, fmt.Sprintf("the runtime is in layer %d of %d", at+1, n))
	}
	runtimeDir := libos.Root + "/" + v.s.places.Backend.Kind() + "/"
	for i, dir := range map[int]string{n - added: runtimeDir, n - 1: path.Dir(libos.App) + "/"} {
		if i < 0 {
			continue
		}
		for _, e := range v.s.indexes[i].Entries {
			inside := strings.HasPrefix(e.Path+"/", dir)
			above := e.Type == rootfs.Dir && strings.HasPrefix(dir, e.Path+"/")
			if !inside && !above {
				problems = append(problems, fmt.Sprintf("layer %d, which is for %s, %s", i+1, dir, whatItDoes(e)))
			}
		}
	}
	slices.Sort(problems)
	v.add(CheckOnTop, "the enclave's layer is the last, over the runtime's, and they hold nothing else", problems)
}

func entriesOf(indexes []*rootfs.Index) [][]rootfs.Entry {
	var all [][]rootfs.Entry
	for _, i := range indexes {
		all = append(all, i.Entries)
	}
	return all
}

func whatItDoes(e rootfs.Entry) string {
	switch e.Type {
	case rootfs.Whiteout:
		return fmt.Sprintf("removes %q", e.Path)
	case rootfs.Opaque:
		return fmt.Sprintf("empties %q", e.Path)
	}
	return fmt.Sprintf("has %q", e.Path)
}

func (v *verification) sigStruct() {
	var problems []string
	if v.sig == nil {
		problems = []string{"there is none: the image is not signed"}
	} else if _, err := sgx.ParseSigStruct(v.sig); err != nil {
		var check *sgx.CheckError
		if errors.As(err, &check) {
			problems = check.Failed
		}
	}
	v.add(CheckSigStruct, "header, vendor, reserved bytes, exponent, signature, Q1 and Q2, as the CPU checks them", problems)
}

// measurement says whether the enclave could be laid out.
func (v *verification) measurement(ctx context.Context) (bool, error) {
	const detail = "MRENCLAVE computed from the enclave image and the manifest, page by page"
	if v.c.enclave == nil {
		v.add(CheckMeasurement, detail, []string{v.c.EnclaveError})
		return false, nil
	}
	m, err := sgx.Measure(ctx, v.c.enclave.Layout)
	if err != nil {
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		v.add(CheckMeasurement, detail, []string{err.Error()})
		return false, nil
	}
	var problems []string
	if v.c.SigStruct == nil || v.c.SigStruct.MREnclave != m {
		problems = []string{fmt.Sprintf("the enclave would be %s, signed is %s: the enclave image or the manifest was changed", m, v.c.MREnclave)}
	}
	v.add(CheckMeasurement, detail, problems)
	return true, nil
}

// attributes compares the other signed fields with the manifest.
func (v *verification) attributes() {
	const detail = "attributes, masks, product and SVN as the manifest has them"
	s := v.c.SigStruct
	if s == nil {
		v.skip(CheckAttributes, "there is no SIGSTRUCT")
		return
	}
	want := v.c.enclave.SigStruct(s.MREnclave, s.Date)
	var problems []string
	same := func(what string, got, want any) {
		if got != want {
			problems = append(problems, fmt.Sprintf("%s is %#x, by the manifest %#x", what, got, want))
		}
	}
	same("attribute flags", s.Attributes.Flags, want.Attributes.Flags)
	same("XFRM", s.Attributes.XFRM, want.Attributes.XFRM)
	same("the mask of the flags", s.AttributesMask.Flags, want.AttributesMask.Flags)
	same("the mask of XFRM", s.AttributesMask.XFRM, want.AttributesMask.XFRM)
	same("MISCSELECT", s.MiscSelect, want.MiscSelect)
	same("MISCMASK", s.MiscMask, want.MiscMask)
	same("the product number", s.ISVProdID, want.ISVProdID)
	same("the SVN", s.ISVSVN, want.ISVSVN)
	same("the vendor", s.Vendor, want.Vendor)
	same("SWDEFINED", s.SWDefined, want.SWDefined)
	if r := v.c.Recipe; r != nil && r.Date != s.Date.String() {
		problems = append(problems, fmt.Sprintf("the date is %s, by the recipe %s", s.Date, r.Date))
	}
	v.add(CheckAttributes, detail, problems)
}

// runtime checks that the runtime's files in the image are those of its layer, and what the measured manifest
// starts.
func (v *verification) runtime() {
	var problems []string
	detail := "the library OS by the digest in the manifest"
	if p := v.digestProblem(v.c.libOS); p != "" {
		problems = append(problems, p)
	}
	if b := v.s.bundle; b != nil {
		detail += ", the loader by that of the runtime's layer, " + b.Layer.Digest
		for _, p := range slices.Sorted(maps.Keys(b.Files)) {
			if n := v.s.tree.Lookup(p); n == nil || n.Type != rootfs.Regular || n.SHA256 != b.Files[p].SHA256 {
				problems = append(problems, fmt.Sprintf("%s is not the runtime's", p))
			}
		}
		if r := v.c.Recipe.Runtime; r.Digest != b.Layer.Digest || r.Meta != b.Meta {
			problems = append(problems, fmt.Sprintf("the recipe has the runtime %s %s, layer %s", r.Kind, r.Version, r.Digest))
		}
	}
	v.add(CheckRuntime, detail, problems)
}

// files compares each trusted file with the image's.
func (v *verification) files() {
	var problems []string
	for _, f := range v.c.Trusted {
		if p := v.digestProblem(f); p != "" {
			problems = append(problems, p)
		}
	}
	v.add(CheckFiles, fmt.Sprintf("%d files, each by its digest in the manifest", len(v.c.Trusted)), problems)
}

// digestProblem says what is wrong with a file that the manifest lists; empty if nothing.
func (v *verification) digestProblem(f FileEntry) string {
	p, ok := strings.CutPrefix(f.URI, "file:")
	if !ok || !path.IsAbs(p) {
		return fmt.Sprintf("%q is not an absolute path", f.URI)
	}
	n, _, err := v.s.tree.Resolve(p)
	switch {
	case err != nil || n.Type != rootfs.Regular:
		return fmt.Sprintf("%q is not in the image", p)
	case f.SHA256 != "" && hex.EncodeToString(n.SHA256[:]) != f.SHA256:
		return fmt.Sprintf("%q in layer %d has the digest %x, the manifest says %s", p, n.Layer+1, n.SHA256, f.SHA256)
	}
	return ""
}

// policy makes the enclave's layer and the configuration again, from the recipe and the files below.
func (v *verification) policy(ctx context.Context) error {
	if v.s.places.Backend == nil {
		v.skip(CheckPolicy, "the image claims no policy by which its files were chosen")
		v.foreignConfig()
		return nil
	}
	n := max(0, len(v.s.indexes)-added)
	below, err := rootfs.Merge(v.s.indexes[:n])
	if err != nil {
		return err
	}
	p, err := convert.Repeat(ctx, *v.c.Recipe, v.s.places.Backend, v.s.bundle, below, v.s.img.Config)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, convert.ErrEpoch):
		v.skip(CheckPolicy, err.Error())
		v.foreignConfig()
		return nil
	case err != nil:
		v.add(CheckPolicy, "the enclave's layer made again from the recipe", []string{err.Error()})
		v.foreignConfig()
		return nil
	}
	files, err := p.EnclaveFiles(v.sig)
	if err != nil {
		return err
	}
	v.add(CheckPolicy, fmt.Sprintf("the enclave's layer made again from the recipe, with the policy %q", v.c.Recipe.Options.Trust), v.layerProblems(files))
	v.config(p)
	return nil
}

// layerProblems compares the enclave's layer with what it must hold.
func (v *verification) layerProblems(want []libos.File) []string {
	var problems []string
	expected := map[string]bool{}
	for _, f := range want {
		expected[f.Path] = true
		n := v.s.tree.Lookup(f.Path)
		switch {
		case n == nil:
			problems = append(problems, fmt.Sprintf("%s is missing", f.Path))
		case f.Link != "" && (n.Type != rootfs.Symlink || n.Link != f.Link):
			problems = append(problems, fmt.Sprintf("%s is not a link to %s", f.Path, f.Link))
		case f.Link == "" && (n.Type != rootfs.Regular || n.Mode != uint32(f.Mode)):
			problems = append(problems, fmt.Sprintf("%s is of another type or mode", f.Path))
		case f.Link == "" && !bytes.Equal(v.s.files[f.Path], f.Content):
			if f.Path == libos.ManifestPath {
				problems = append(problems, manifestProblems(f.Content, v.s.files[f.Path])...)
				continue
			}
			problems = append(problems, fmt.Sprintf("%s is not what the recipe gives", f.Path))
		}
	}
	for _, e := range v.s.indexes[len(v.s.indexes)-1].Entries {
		if e.Type != rootfs.Dir && !expected[e.Path] {
			problems = append(problems, fmt.Sprintf("the enclave's layer %s", whatItDoes(e)))
		}
	}
	return problems
}

// manifestProblems says in what a manifest differs from the one that it should be.
func manifestProblems(want, got []byte) []string {
	changes, err := compareManifests(want, got)
	if err != nil {
		return []string{err.Error()}
	}
	problems := []string{}
	if len(changes) == 0 {
		problems = append(problems, "the manifest is written otherwise than the recipe gives it")
	}
	for _, c := range changes {
		problems = append(problems, "the manifest, compared with what the recipe gives: "+c.String())
	}
	return problems
}

// config compares the image's configuration with the one that belongs to the enclave.
func (v *verification) config(p *convert.Prepared) {
	const detail = "entrypoint, arguments, environment, stop signal and labels are those of this enclave"
	if v.c.SigStruct == nil {
		v.foreignConfig()
		return
	}
	want, err := p.Config(v.c.SigStruct)
	if err != nil {
		v.add(CheckConfig, detail, []string{err.Error()})
		return
	}
	raw, err := json.Marshal(want)
	if err != nil {
		v.add(CheckConfig, detail, []string{err.Error()})
		return
	}
	v.add(CheckConfig, detail, configProblems(raw, v.s.img.Config, "rootfs"))
}

// configProblems names the keys in which two configurations differ.
func configProblems(want, got []byte, ignore ...string) []string {
	var a, b map[string]any
	if err := cmp.Or(json.Unmarshal(want, &a), json.Unmarshal(got, &b)); err != nil {
		return []string{err.Error()}
	}
	return tableProblems("", a, b, ignore)
}

func tableProblems(prefix string, want, got map[string]any, ignore []string) []string {
	var problems []string
	keys := map[string]bool{}
	for k := range want {
		keys[k] = true
	}
	for k := range got {
		keys[k] = true
	}
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		name := prefix + k
		a, aTable := want[k].(map[string]any)
		b, bTable := got[k].(map[string]any)
		switch {
		case slices.Contains(ignore, name) || reflect.DeepEqual(want[k], got[k]) || empty(want[k]) && empty(got[k]):
		case aTable && bTable:
			problems = append(problems, tableProblems(name+".", a, b, ignore)...)
		default:
			problems = append(problems, fmt.Sprintf("%s is %s, and must be %s", name, text(got[k]), text(want[k])))
		}
	}
	return problems
}

// empty says whether a value says no more than its absence.
func empty(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case string:
		return v == ""
	case []any:
		return len(v) == 0
	case map[string]any:
		return len(v) == 0
	}
	return false
}

func text(v any) string {
	b, err := json.Marshal(v)
	if err != nil || v == nil {
		return "absent"
	}
	if len(b) > 200 {
		return string(b[:200]) + "…"
	}
	return string(b)
}

// foreignConfig checks what can be checked of a configuration that cannot be made again.
func (v *verification) foreignConfig() {
	var problems []string
	start := v.s.places.Start
	ours := v.c.Recipe != nil && !v.c.Recipe.Options.HostArgs
	if len(v.c.Entrypoint) < len(start) || !slices.Equal(v.c.Entrypoint[:len(start)], start) || ours && len(v.c.Entrypoint) > len(start) {
		problems = append(problems, fmt.Sprintf("the image starts %q, the enclave is started by %q", v.c.Entrypoint, start))
	}
	var config struct {
		Config struct {
			Env    []string
			Labels map[string]string
		}
	}
	if err := json.Unmarshal(v.s.img.Config, &config); err != nil {
		problems = append(problems, err.Error())
	}
	for _, kv := range config.Config.Env {
		if strings.HasPrefix(kv, "LD_PRELOAD=") || strings.HasPrefix(kv, "LD_AUDIT=") {
			problems = append(problems, fmt.Sprintf("%s acts on the loader", kv))
		}
	}
	if r := v.c.Recipe; r != nil {
		for label, want := range map[string]string{
			convert.LabelBaseDigest: r.Source, convert.LabelEpoch: fmt.Sprint(r.Epoch),
			convert.LabelMREnclave: v.c.MREnclave.String(), convert.LabelMRSigner: v.c.MRSigner.String(),
		} {
			if got := config.Config.Labels[label]; got != want {
				problems = append(problems, fmt.Sprintf("the label %s is %q, and must be %q", label, got, want))
			}
		}
		slices.Sort(problems)
	}
	v.add(CheckConfig, "the command starts this enclave", problems)
}

// source compares the layers and the configuration with the image that was converted.
func (v *verification) source(source *image.Image) {
	if source == nil {
		return
	}
	var problems []string
	if v.c.Recipe != nil && v.c.Recipe.Source != source.Digest {
		problems = append(problems, fmt.Sprintf("%s is %s, the recipe says %s", source.Ref, source.Digest, v.c.Recipe.Source))
	}
	var config struct {
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(source.Config, &config); err != nil {
		problems = append(problems, err.Error())
	}
	for i, id := range config.RootFS.DiffIDs {
		if i >= len(v.s.indexes) || v.s.indexes[i].DiffID != id {
			problems = append(problems, fmt.Sprintf("layer %d of the source, %s, is not layer %d of the image", i+1, id, i+1))
		}
	}
	ignore := []string{"rootfs", "history", "config.Labels", "config.Image"}
	for _, key := range []string{"Cmd", "Entrypoint", "Env", "StopSignal"} { // compared with the recipe
		ignore = append(ignore, "config."+key)
	}
	problems = append(problems, configProblems(source.Config, v.s.img.Config, ignore...)...)
	v.add(CheckSource, "the layers and the configuration of "+source.Ref.String()+" are unchanged underneath", problems)
}
