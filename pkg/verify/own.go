package verify

import (
	"context"
	"errors"

	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/recipe"
	"github.com/cconvert/cconvert/pkg/rootfs"
	"github.com/cconvert/cconvert/pkg/rootfs/engines"
)

// ErrConverted says that an image was converted, so that it starts the enclave of the conversion and none of its own.
var ErrConverted = errors.New("the image is a converted one")

// OwnEnclaves checks the enclaves of an image that was not converted: each against its own SIGSTRUCT, and against what
// is expected of MRENCLAVE, MRSIGNER, product and SVN. What starts them, and what else the image holds, is not
// verified.
func OwnEnclaves(ctx context.Context, img, source *image.Image, e Expectations, o inspect.Options) (*Report, error) {
	indexes, err := o.ScanAll(ctx, img, rootfs.Options{Inflate: o.Inflate, DiffID: true, Limits: o.Limits})
	if err != nil {
		return nil, err
	}
	r := &Report{Converted: &inspect.Converted{
		Image: img.Ref.String(), Digest: img.Digest, Layout: inspect.LayoutSDK, Weaknesses: []string{},
	}}
	v := &verification{report: r, c: r.Converted}
	tree, err := rootfs.Merge(indexes)
	if err != nil {
		return nil, err
	}
	list, err := inspect.EnclavesOf(ctx, img, tree)
	if err != nil {
		return v.unreadable(err)
	}
	if len(list) == 0 {
		return nil, inspect.ErrNotConverted
	}
	if _, found := o.Find(tree); found || recipe.IsResult(img) {
		return nil, ErrConverted
	}
	r.Enclaves = list
	if err := v.platform(img); err != nil {
		return nil, err
	}
	_, foreign, err := checkArchives(ctx, img, indexes, o.Limits)
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, f := range list {
		paths = append(paths, f.Path)
	}
	foreign = append(foreign, engines.Disputed(indexes, paths)...)
	signed := func(e *rootfs.Entry) bool { return e.ELF != nil && len(e.ELF.SigStructs) > 0 }
	foreign = append(foreign, engines.Hidden(indexes, tree, signed)...)
	v.add(CheckLayers, "each layer is the archive that manifest and configuration say, and engines agree on where the "+
		"enclaves are", foreign)
	if source != nil {
		v.add(CheckSource, "the image was made from the given one",
			[]string{"an image that was not converted was made from no other: verify it without --source"})
	}
	for _, f := range list {
		problems := func(s string) []string {
			if s == "" {
				return nil
			}
			return []string{s}
		}
		v.add(CheckSigStruct, f.Path+": header, vendor, reserved bytes, exponent, signature, Q1 and Q2, as the CPU "+
			"checks them", problems(f.SignatureError))
		if !f.Measured && f.Kind != inspect.KindSDK {
			v.undecided(CheckMeasurement, f.Path+": "+f.MeasurementError)
			continue
		}
		v.add(CheckMeasurement, f.Path+": MRENCLAVE computed from segments, metadata and patches, page by page",
			problems(f.MeasurementError))
	}
	r.Consistent = len(r.FailedChecks()) == 0
	for _, f := range list {
		v.expectEnclave(e, f)
	}
	v.expectKind(e)
	if e.Attested != nil {
		v.add(CheckAttestedBy, "the enclaves' identity is stated by the holder of the expected key",
			[]string{"statements about enclaves that were not converted are not checked: expect --mrsigner or " +
				"--mrenclave"})
	}
	if e.FilesKey != nil {
		v.add(CheckEncrypted, "the image has encrypted files", []string{noEncrypted})
	}
	if len(e.RuntimeDigest) > 0 || len(e.Known) > 0 {
		v.add(CheckRuntimeIs, "the runtime's layer is an expected one", []string{"such an image has none"})
	}
	if len(e.SecretsFrom) > 0 {
		v.add(CheckSecretsFrom, "secrets come from expected servers only", []string{"from whom such an image gets " +
			"secrets is its own programs' matter"})
	}
	if len(e.AgentDigest) > 0 {
		v.add(CheckAgentIs, "the agent is an expected one", []string{"such an image has none"})
	}
	v.expectIdentity(e)
	r.Trusted = len(r.Unmet()) == 0
	return r, nil
}
