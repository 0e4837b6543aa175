// Package verify judges confidential images. [Verify] reports whether what one says of itself is true, and what was
// expected, and [Rebuild] whether the same image comes out again. [BeforeSigning] is Verify for an image that is to be
// signed.
package verify

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/encrypted"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/rootfs"
	"github.com/cconvert/cconvert/pkg/rootfs/engines"
	"github.com/cconvert/cconvert/pkg/sgx"
	"github.com/cconvert/cconvert/pkg/startcheck"
)

// Status is the outcome of a check.
type Status string

// Outcomes.
const (
	OK      Status = "ok"
	Failed  Status = "failed"
	Skipped Status = "skipped" // it could not be made; that alone is no failure, see Check.Undecided
)

// Check is one question that was asked of an image.
type Check struct {
	Name   string `json:"name"`
	Status Status `json:"status"`
	// Detail says what was compared, or why the check was skipped.
	Detail string `json:"detail"`
	// Problems are what is wrong, or has to be decided on.
	Problems []string `json:"problems,omitempty"`
	// Undecided says that the check was skipped because nobody said what is expected, and that the image is not trusted
	// until somebody does.
	Undecided bool `json:"undecided,omitempty"`
}

// Names of checks.
const (
	CheckLayers      = inspect.PartLayers      // blobs, their archives, and their number and order
	CheckOnTop       = inspect.PartOnTop       // nothing was put over what was measured
	CheckSigStruct   = inspect.PartSigStruct   // as the CPU checks it
	CheckMeasurement = inspect.PartMeasurement // MRENCLAVE of the enclave image and the manifest
	CheckAttributes  = "attributes"            // what is signed beside MRENCLAVE is what the manifest says
	CheckRuntime     = inspect.PartRuntime     // the runtime's files
	CheckFiles       = "files"                 // each trusted file
	CheckPolicy      = inspect.PartPolicy      // the manifest is what comes of the recipe and these files
	CheckConfig      = "config"                // the configuration starts this enclave and nothing else
	CheckEncrypted   = inspect.PartEncrypted   // ciphertexts, and that there is no plain text of them
	CheckContents    = "encrypted-contents"    // what the encrypted files hold
	CheckAgent       = inspect.PartAgent       // what gets secrets, from whom, and which
	CheckSource      = "source"                // the image that it was made from
	CheckEvidence    = "evidence"              // what is attached to the image
	CheckMREnclave   = "mrenclave"             // expectations
	CheckMRSigner    = "mrsigner"              //
	CheckSVN         = "svn"                   //
	CheckProduct     = "product"               //
	CheckDebug       = "debug"                 //
	CheckRuntimeIs   = "runtime-is"            //
	CheckAgentIs     = "agent-is"              //
	CheckSecretsFrom = "secrets-from"          //
	CheckAttestedBy  = "attested-by"           //
	CheckAnyIdentity = "any-identity"          // there was an expectation of who signed or what runs
	CheckLayout      = "layout"                // the image is of a kind whose start can be verified
	CheckSimulated   = "simulated"             // there is an enclave
	CheckPlatform    = "platform"              // everybody who runs the name runs this image
	CheckChanges     = "changes"               // no option of the conversion changes what runs
)

// Report is the outcome of a verification.
type Report struct {
	*inspect.Converted
	Checks []Check `json:"checks"`
	// Enclaves are those of an image that was not converted, see OwnEnclaves.
	Enclaves []inspect.EnclaveFile `json:"enclaves,omitempty"`
	// Consistent says that nothing in the image contradicts anything else in it.
	Consistent bool `json:"consistent"`
	// Trusted says that it is also what was expected.
	Trusted bool `json:"trusted"`
	// Waived are the expectations that were given up, by the names of their flags: of these nothing was checked.
	Waived []string `json:"waived,omitempty"`
	// Started is what the image's loader did, if it was asked to start; see Start.
	Started *startcheck.Result `json:"started,omitempty"`
	// Quote is what a quote says that was compared with the image; see Attested.
	Quote *Quoted `json:"quote,omitempty"`
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

// Unmet names the checks that keep the image from being trusted: those that failed, and those that are undecided.
func (r *Report) Unmet() []string {
	var names []string
	for _, c := range r.Checks {
		if c.Status == Failed || c.Undecided {
			names = append(names, c.Name)
		}
	}
	return names
}

// maxProblems is how many problems of one check are told.
const maxProblems = 20

// verification is a verification under way.
type verification struct {
	s      *inspect.Scanned
	c      *inspect.Converted
	report *Report
	// sig is the image's SIGSTRUCT, as stored.
	sig []byte
	// below are the files under the runtime's layer; nil for images of other programs.
	below  *rootfs.Tree
	limits rootfs.Limits
	// signing says that the image is looked at in order to sign it: it need not be signed yet.
	signing bool
	// changes are in what the manifest differs from one by a recipe without options that change what runs.
	changes []string
	// encryptedProblems are what is wrong with the list of encrypted files, and plain what they hold, by path, if they
	// were decrypted.
	encryptedProblems []string
	plain             map[string]encrypted.Plain
	// mutable reports whether the recipe lets the program change an encrypted file.
	mutable func(path string) bool
	// starts is the agent that starts first and gets secrets; nil: the image has no agent.
	starts *libos.Agent
	// sound is the evidence that does not contradict the image.
	sound Evidence
	// about is said first of each check.
	about string
	// readable says that all parts of the image could be read.
	readable bool
}

func (v *verification) add(name, detail string, problems []string) {
	status := OK
	if len(problems) > 0 {
		status = Failed
	}
	v.report.Checks = append(v.report.Checks,
		Check{Name: name, Status: status, Detail: detail, Problems: atMost(problems)})
}

// atMost returns as many problems as are told.
func atMost(problems []string) []string {
	if more := len(problems) - maxProblems; more > 0 {
		return append(slices.Clone(problems[:maxProblems]), fmt.Sprintf("and %d more", more))
	}
	return problems
}

func (v *verification) skip(name, why string) {
	v.report.Checks = append(v.report.Checks, Check{Name: name, Status: Skipped, Detail: why})
}

// undecided notes a check that somebody has to decide on.
func (v *verification) undecided(name, why string) {
	v.report.Checks = append(v.report.Checks, Check{Name: name, Status: Skipped, Detail: why, Undecided: true})
}

// Verify recomputes everything that an image says of itself, and compares it with what is expected. Nothing
// that was kept of earlier runs is used. The source is the image that it was made from, nil if that is
// not known. An image that is not what it says is no error but failed checks; an error means that it could not
// be read.
func Verify(
	ctx context.Context, img, source *image.Image, e Expectations, evidence Evidence, o inspect.Options,
) (*Report, error) {
	v := &verification{}
	r, err := v.consistency(ctx, img, source, e, evidence, o)
	if err != nil || !v.readable {
		return r, err
	}
	v.expected(e, source != nil)
	r.Trusted = len(r.Unmet()) == 0
	return r, nil
}

// BeforeSigning is Verify for an image that is to be signed, for the first time or again: all that the signature will
// be taken to vouch for is checked, the enclave image and the library OS in the runtime's layer among it, which become
// the signer's. The source is the image that it was made from, nil if that is not known. Nothing is expected of who has
// signed before. If the report's Trusted is true, the enclave is the one that was checked; else it is nil. The error is
// convert.ErrNotOurs for images of other programs, whatever is in their layer on top.
func BeforeSigning(
	ctx context.Context, img, source *image.Image, e Expectations, o inspect.Options,
) (*Report, *convert.Prepared, error) {
	v := &verification{signing: true}
	return v.beforeSigning(ctx, img, source, e, o)
}

func (v *verification) beforeSigning(
	ctx context.Context, img, source *image.Image, e Expectations, o inspect.Options,
) (*Report, *convert.Prepared, error) {
	r, err := v.consistency(ctx, img, source, e, nil, o)
	if errors.Is(err, inspect.ErrNotConverted) || err == nil && v.readable && v.c.Layout != inspect.LayoutOurs {
		err = convert.ErrNotOurs
	}
	if err != nil || !v.readable {
		return r, nil, err
	}
	v.expectItself(e)
	v.vouched(e)
	v.vouchedAgent(e)
	v.expectSecrets(e, source != nil)
	v.expectPlain(e, source != nil)
	if r.Trusted = len(r.Unmet()) == 0; !r.Trusted {
		return r, nil, nil
	}
	enclave, err := convert.OpenEnclave(ctx, img, o.Known())
	if err != nil {
		return r, nil, err
	}
	if !bytes.Equal(enclave.ToBeSigned(), v.c.SigStruct.ToBeSigned()) ||
		!bytes.Equal(enclave.Manifest, v.c.Manifest) {
		return nil, nil, errors.New("the enclave that would be signed is not the one that was checked")
	}
	enclave.SourceChecked = source != nil
	return r, enclave, nil
}

// consistency makes the checks of an image against itself.
func (v *verification) consistency(
	ctx context.Context, img, source *image.Image, e Expectations, evidence Evidence, o inspect.Options,
) (*Report, error) {
	r := &Report{Converted: &inspect.Converted{Image: img.Ref.String(), Digest: img.Digest}}
	v.report, v.c, v.limits = r, r.Converted, o.Limits
	var err error
	if v.s, err = inspect.Scan(ctx, img, o); err != nil {
		if errors.Is(err, rootfs.ErrDigest) || errors.Is(err, image.ErrDigest) || errors.Is(err, rootfs.ErrOverlay) {
			err = &inspect.Damage{Part: CheckLayers, Err: err}
		}
		return v.unreadable(err)
	}
	if v.c, err = v.s.Converted(ctx); err != nil {
		return v.unreadable(err)
	}
	r.Converted, v.sig = v.c, v.s.Files[v.s.Places.SigStruct]
	if v.s.Places.Backend != nil {
		below := v.s.Indexes[:max(0, len(v.s.Indexes)-v.s.Added())]
		if v.below, err = rootfs.Merge(v.describe(below)); err != nil {
			return nil, err
		}
	}
	if err := v.platform(img); err != nil {
		return nil, err
	}
	if err := v.layers(ctx); err != nil {
		return nil, err
	}
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
	if err := v.readAgent(ctx); err != nil {
		return nil, err
	}
	if err := v.policy(ctx); err != nil {
		return nil, err
	}
	v.agent()
	if err := v.encrypted(ctx, e); err != nil {
		return nil, err
	}
	if err := v.source(ctx, source, o); err != nil {
		return nil, err
	}
	v.evidence(evidence)
	if err := v.s.Tree.Err(); err != nil {
		return nil, err
	}
	if v.below != nil && v.below.Err() != nil {
		return nil, v.below.Err()
	}
	r.Consistent, v.readable = len(r.FailedChecks()) == 0, true
	return r, nil
}

// unreadable ends a verification: with a failed check where it is the image's fault.
func (v *verification) unreadable(err error) (*Report, error) {
	var part *inspect.Damage
	if !errors.As(err, &part) {
		return nil, err
	}
	v.add(part.Part, "it can be read", []string{part.Error()})
	return v.report, nil
}

// platform looks for other images that an engine may choose by the same name.
func (v *verification) platform(img *image.Image) error {
	if rivals := img.Rivals; len(rivals) > 0 {
		v.add(CheckPlatform, "the name leads everybody to this image",
			[]string{fmt.Sprintf("the index names other images for linux/amd64, which an engine may run instead of "+
				"%s: %s", img.Digest, strings.Join(rivals, ", "))})
	}
	problems, err := inspect.Steering(img)
	if len(problems) > 0 {
		v.add(CheckPlatform, "engines run it as they run others", problems)
	}
	return err
}

// layers compares what the engine goes by that runs the image: the archives with the configuration and the recipe, and
// tables of contents with the archives.
func (v *verification) layers(ctx context.Context) error {
	said, problems, err := checkArchives(ctx, v.s.Image, v.s.Indexes, v.limits)
	if err != nil {
		return err
	}
	if r := v.c.Recipe; r != nil {
		below := said[:max(0, len(said)-v.s.Added())]
		if !slices.Equal(r.DiffIDs, below) {
			problems = append(problems, fmt.Sprintf("the layers below the enclave are not those that were converted, "+
				"or in another order: the recipe has %d", len(r.DiffIDs)))
		}
	}
	if p := v.s.Places; p.Backend == nil { // of ours, nothing but the two layers on top decides
		problems = append(problems, engines.Disputed(v.s.Indexes, []string{p.Manifest, p.SigStruct, p.Image})...)
		problems = append(problems, engines.Hidden(v.s.Indexes, v.s.Tree, func(e *rootfs.Entry) bool {
			return e.Path == p.Manifest || e.Path == p.SigStruct || path.Base(e.Path) == path.Base(p.Image)
		})...)
	}
	v.add(CheckLayers, fmt.Sprintf("%d layers, each by the digests of its blob and its archive", len(v.s.Indexes)),
		problems)
	return nil
}

// onTop looks for layers over the enclave's, and for what else its own layers hold.
func (v *verification) onTop() {
	if v.s.Places.Backend == nil {
		v.skip(CheckOnTop, "images of this layout have their enclave in no layer of its own")
		return
	}
	n, added := len(v.s.Indexes), v.s.Added()
	var problems []string
	if at := v.s.Tree.Lookup(v.s.Places.Manifest).Layer; at != n-1 {
		for _, e := range slices.Concat(entriesOf(v.s.Indexes[at+1:])...) {
			problems = append(problems, fmt.Sprintf("a layer over the enclave's %s", whatItDoes(e)))
		}
		problems = append(problems, fmt.Sprintf("the enclave is in layer %d of %d", at+1, n))
	}
	if at := v.s.Tree.Lookup(libos.MetaPath(v.s.Places.Backend.Kind())).Layer; at != n-added {
		problems = append(problems, fmt.Sprintf("the runtime is in layer %d of %d", at+1, n))
	}
	app := path.Dir(libos.App) + "/"
	if n >= added {
		for _, e := range v.s.Indexes[n-added].Entries {
			if e.Path != "/" && !strings.HasPrefix(e.Path+"/", libos.Root+"/") || strings.HasPrefix(e.Path+"/", app) {
				problems = append(problems,
					fmt.Sprintf("layer %d, which is for the runtime, %s", n-added+1, whatItDoes(e)))
			}
		}
		if v.c.Agent != nil {
			for _, e := range v.s.Indexes[n-added+1].Entries {
				above := e.Type == rootfs.Dir && (e.Path == libos.Root || e.Path == path.Dir(libos.AgentPath))
				if e.Path != libos.AgentPath && !above {
					problems = append(problems,
						fmt.Sprintf("layer %d, which is for the agent, %s", n-added+2, whatItDoes(e)))
				}
			}
		}
	}
	for _, e := range v.s.Indexes[n-1].Entries {
		if v.c.Agent != nil && e.Type == rootfs.Dir && slices.Contains(v.c.Agent.Dirs, e.Path) {
			continue // which the policy's check compares
		}
		if !strings.HasPrefix(e.Path+"/", app) && (e.Type != rootfs.Dir || !strings.HasPrefix(app, e.Path+"/")) {
			problems = append(problems, fmt.Sprintf("layer %d, which is for %s, %s", n, app, whatItDoes(e)))
		}
	}
	if i, entry := engines.Within(v.s.Indexes[:max(0, n-added)], libos.Root); entry != "" {
		problems = append(problems, fmt.Sprintf("layer %d, below the runtime's, has %q, which leads to %s: what the "+
			"loader loads would be the image's to decide", i+1, entry, libos.Root))
	}
	if v.s.Bundle.Foreign != nil {
		problems = append(problems, fmt.Sprintf("layer %d, the runtime's: %v", n-added+1, v.s.Bundle.Foreign))
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
	if v.signing && v.c.Unsigned {
		v.skip(CheckSigStruct, "the image is not signed yet")
		return
	}
	var problems []string
	if v.sig == nil {
		problems = []string{v.c.SignatureError}
	} else if _, err := sgx.ParseSigStruct(v.sig); err != nil {
		var check *sgx.CheckError
		if errors.As(err, &check) {
			problems = check.Failed
		}
	}
	v.add(CheckSigStruct, "header, vendor, reserved bytes, exponent, signature, Q1 and Q2, as the CPU checks them",
		problems)
}

// measurement reports whether the enclave could be laid out.
func (v *verification) measurement(ctx context.Context) (bool, error) {
	const detail = "MRENCLAVE computed from the enclave image and the manifest, page by page"
	if v.c.LibOS.Layout == nil {
		v.add(CheckMeasurement, detail, []string{v.c.EnclaveError})
		return false, nil
	}
	m, err := sgx.Measure(ctx, *v.c.LibOS.Layout)
	if err != nil {
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		v.add(CheckMeasurement, detail, []string{err.Error()})
		return false, nil
	}
	var problems []string
	if v.c.SigStruct == nil || v.c.SigStruct.MREnclave != m {
		problems = []string{fmt.Sprintf("the enclave would be %s, signed is %s: the enclave image or the manifest was "+
			"changed", m, v.c.MREnclave)}
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
	want := v.c.LibOS.SigStruct(s.MREnclave, s.Date)
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
	if first := v.c.LibOS.First; first != nil {
		if p := v.digestProblem(*first); p != "" {
			problems = append(problems, p)
		}
	}
	if b := v.s.Bundle; b != nil {
		detail += ", the loader by that of the runtime's layer, " + b.Layer.Digest
		for _, p := range slices.Sorted(maps.Keys(b.Files)) {
			if n := v.s.Tree.Lookup(p); n == nil || n.Type != rootfs.Regular || n.SHA256 != b.Files[p].SHA256 {
				problems = append(problems, fmt.Sprintf("%s is not the runtime's", p))
			}
		}
		if r := v.c.Recipe.Runtime; r.Digest != b.Layer.Digest || r.Meta != b.Meta {
			problems = append(problems,
				fmt.Sprintf("the recipe has the runtime %s %s, layer %s", r.Kind, r.Version, r.Digest))
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
func (v *verification) digestProblem(f libos.FileEntry) string {
	p, ok := strings.CutPrefix(f.URI, "file:")
	if !ok || !path.IsAbs(p) {
		return fmt.Sprintf("%q is not an absolute path", f.URI)
	}
	n, _, err := v.s.Tree.Resolve(p)
	switch {
	case err != nil || n.Type != rootfs.Regular:
		return fmt.Sprintf("%q is not in the image", p)
	case f.SHA256 == "":
		return fmt.Sprintf("the manifest has no digest of %q", p)
	case hex.EncodeToString(n.SHA256[:]) != f.SHA256:
		return fmt.Sprintf("%q in layer %d has the digest %x, the manifest says %s", p, n.Layer+1, n.SHA256, f.SHA256)
	}
	return ""
}
