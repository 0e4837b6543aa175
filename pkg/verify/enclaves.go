package verify

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/rootfs"
	"github.com/cconvert/cconvert/pkg/sgx"
	"github.com/cconvert/cconvert/pkg/sgx/sdk"
)

// EnclaveFile is a signed enclave in an image that was not converted: of Intel's SGX SDK, Open Enclave or EGo.
type EnclaveFile struct {
	Path string `json:"path"`
	// Kind is how its file is made: KindSDK, KindOpenEnclave, or empty if that is not known.
	Kind string `json:"kind,omitempty"`
	attest.Enclave
	// SignatureError says what the CPU would find wrong with the SIGSTRUCT; empty if nothing.
	SignatureError string `json:"signature_error,omitempty"`
	// Measured says that the MRENCLAVE was computed from the file; otherwise it is what the SIGSTRUCT says alone, and
	// MeasurementError says why.
	Measured         bool   `json:"measured"`
	MeasurementError string `json:"measurement_error,omitempty"`
	// Config is how the SDK's tool laid the enclave out; nil for other kinds. MetadataError says in what the metadata are
	// not those that the tool of SDK 2.20 writes, as other versions of it write others. Both are measured all the same.
	Config        *sdk.Config `json:"config,omitempty"`
	MetadataError string      `json:"metadata_error,omitempty"`

	structure *sgx.SigStruct
}

// Problem is what keeps the CPU from starting the enclave as it is in the file; empty if nothing is known to.
func (f EnclaveFile) Problem() string {
	if f.SignatureError == "" && (f.Measured || f.Kind == KindSDK) {
		return f.MeasurementError
	}
	return f.SignatureError
}

// Kinds of files with an enclave.
const (
	KindSDK         = "sgx-sdk"      // Intel's SGX SDK
	KindOpenEnclave = "open-enclave" // Open Enclave, and EGo, which builds upon it
)

// oeSection is where Open Enclave has its SIGSTRUCT (openenclave, oe_sgx_enclave_properties_t).
const oeSection = ".oeinfo"

// LayoutSDK is that of images with enclaves of their own.
const LayoutSDK = "sdk"

// AsItIs describes an image that was not converted for those who deploy it: user and ports, and the memory that its
// enclaves are said to take, in bytes.
func AsItIs(img *image.Image, size uint64) (*Converted, error) {
	c := &Converted{Image: img.Ref.String(), Digest: img.Digest, Layout: LayoutSDK}
	c.Enclave.EnclaveSize = size
	if err := c.readConfig(img); err != nil {
		return nil, err
	}
	if user, _, _ := strings.Cut(c.User, ":"); user != "" && user != "0" && user != "root" {
		c.Program.UID = -1 // some other user
	}
	return c, nil
}

// Enclaves finds the signed enclaves in an image, by path.
func Enclaves(ctx context.Context, img *image.Image, o Options) ([]EnclaveFile, error) {
	indexes, err := o.scanAll(ctx, img, rootfs.Options{Inflate: o.Inflate, Limits: o.Limits})
	if err != nil {
		return nil, err
	}
	tree, err := rootfs.Merge(indexes)
	if err != nil {
		return nil, err
	}
	var nodes []*rootfs.Node
	_ = tree.Walk(func(n *rootfs.Node) error {
		if n.ELF != nil && len(n.ELF.SigStructs) > 0 {
			nodes = append(nodes, n)
		}
		return nil
	})
	if len(nodes) > maxEnclaves {
		return nil, fmt.Errorf("the image has more than %d files with enclaves", maxEnclaves)
	}
	var list []EnclaveFile
	for _, n := range nodes {
		found, err := enclavesIn(ctx, img, n)
		if err != nil {
			return nil, err
		}
		list = append(list, found...)
	}
	return list, nil
}

// maxEnclaves is how many files of an image are looked into.
const maxEnclaves = 100

// enclavesIn reads the enclaves of a file, by its sections if it is of a kind that is known.
func enclavesIn(ctx context.Context, img *image.Image, n *rootfs.Node) ([]EnclaveFile, error) {
	var content []byte
	if n.Size <= sdk.MaxFile {
		files, err := extract(ctx, img.Layers[n.Layer], map[string]bool{n.Origin(): true})
		if err != nil {
			return nil, err
		}
		content = files[n.Origin()]
	}
	if f, err := SDKEnclave(ctx, n.Path, content); f != nil || err != nil {
		return []EnclaveFile{*f}, err
	}
	structures, kind := n.ELF.SigStructs, ""
	if in := sectionOf(content, oeSection); in != nil {
		kind = KindOpenEnclave
		structures = slices.DeleteFunc(slices.Clone(structures), func(s string) bool { return !bytes.Contains(in, []byte(s)) })
	}
	var list []EnclaveFile
	for _, b := range structures {
		if f := newEnclaveFile(n.Path, kind, []byte(b)); f != nil {
			f.MeasurementError = "how files of this kind are measured is not known here: MRENCLAVE is what the SIGSTRUCT says"
			list = append(list, *f)
		}
	}
	return list, nil
}

// SDKEnclave reads and measures a file as an enclave of Intel's SDK; nil if it is not one.
func SDKEnclave(ctx context.Context, path string, content []byte) (*EnclaveFile, error) {
	e, err := sdk.Open(content)
	if errors.Is(err, sdk.ErrNone) {
		return nil, nil
	}
	if err != nil {
		return &EnclaveFile{Path: path, Kind: KindSDK, SignatureError: "it could not be read", MeasurementError: err.Error()}, nil
	}
	f := newEnclaveFile(path, KindSDK, e.SigStruct)
	c := e.Config()
	f.Config = &c
	if err := e.CheckMetadata(); err != nil {
		f.MetadataError = err.Error()
	}
	m, err := e.Measure(ctx)
	if ctx.Err() != nil {
		return f, ctx.Err()
	}
	switch {
	case err != nil:
		f.MeasurementError = err.Error()
	case m != f.MREnclave:
		f.Measured, f.MeasurementError = true, fmt.Sprintf("the enclave would be %s, signed is %s: the file was changed", m, f.MREnclave)
	default:
		f.Measured = true
		if err := f.structure.CheckEnclave(m, e.Attributes, e.MiscSelect); err != nil {
			f.MeasurementError = err.Error()
		}
	}
	return f, nil
}

// newEnclaveFile describes a SIGSTRUCT; nil if it is too short to be one.
func newEnclaveFile(path, kind string, structure []byte) *EnclaveFile {
	s, err := sgx.ParseSigStruct(structure)
	if s == nil {
		return nil
	}
	f := &EnclaveFile{Path: path, Kind: kind, Enclave: attest.NewEnclave(s), structure: s}
	if err != nil {
		f.SignatureError = err.Error()
	}
	return f
}

// sectionOf is a section of an ELF file; nil if there is none of the name.
func sectionOf(file []byte, name string) []byte {
	f, err := elf.NewFile(bytes.NewReader(file))
	if err != nil {
		return nil
	}
	s := f.Section(name)
	if s == nil || s.Type == elf.SHT_NOBITS || s.Offset > uint64(len(file)) || s.FileSize > uint64(len(file))-s.Offset {
		return nil
	}
	return file[s.Offset : s.Offset+s.FileSize]
}

// OwnEnclaves checks the enclaves of an image that was not converted: each against its own SIGSTRUCT, and against what
// is expected of MRENCLAVE, MRSIGNER, product and SVN. What starts them, and what else the image holds, is not verified.
func OwnEnclaves(ctx context.Context, img *image.Image, e Expectations, o Options) (*Report, error) {
	list, err := Enclaves(ctx, img, o)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, ErrNotConverted
	}
	r := &Report{Converted: &Converted{Image: img.Ref.String(), Digest: img.Digest, Layout: LayoutSDK, Weaknesses: []string{}}, Enclaves: list}
	v := &verification{report: r, c: r.Converted}
	v.platform(img)
	for _, f := range list {
		problems := func(s string) []string {
			if s == "" {
				return nil
			}
			return []string{s}
		}
		v.add(CheckSigStruct, f.Path+": header, vendor, reserved bytes, exponent, signature, Q1 and Q2, as the CPU checks them", problems(f.SignatureError))
		if !f.Measured && f.Kind != KindSDK {
			v.undecided(CheckMeasurement, f.Path+": "+f.MeasurementError)
			continue
		}
		v.add(CheckMeasurement, f.Path+": MRENCLAVE computed from segments, metadata and patches, page by page", problems(f.MeasurementError))
	}
	r.Consistent = len(r.FailedChecks()) == 0
	for _, f := range list {
		v.expectEnclave(e, f)
	}
	v.expectKind(e)
	if e.Attested != nil {
		v.add(CheckAttestedBy, "the enclaves' identity is stated by the holder of the expected key",
			[]string{"statements about enclaves that were not converted are not checked: expect --mrsigner or --mrenclave"})
	}
	if len(e.RuntimeDigest) > 0 || len(e.Known) > 0 {
		v.add(CheckRuntimeIs, "the runtime's layer is an expected one", []string{"such an image has none"})
	}
	v.expectIdentity(e)
	r.Trusted = len(r.Unmet()) == 0
	return r, nil
}
