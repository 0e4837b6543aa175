package inspect

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"errors"
	"fmt"
	"maps"
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
	// Config is how the SDK's tool laid the enclave out; nil for other kinds. MetadataError says in what the metadata
	// are not those that the tool of SDK 2.20 writes, as other versions of it write others. Both are measured all the
	// same.
	Config        *sdk.Config `json:"config,omitempty"`
	MetadataError string      `json:"metadata_error,omitempty"`

	// Structure is the SIGSTRUCT; nil: it could not be read.
	Structure *sgx.SigStruct `json:"-"`
}

// Problem is what keeps the CPU from starting the enclave as it is in the file; empty if nothing is known to.
func (f EnclaveFile) Problem() string {
	if f.SignatureError == "" && (f.Measured || f.Kind == KindSDK) {
		return f.MeasurementError
	}
	return f.SignatureError
}

// MayDebug is sgx.SigStruct.MayDebug of its SIGSTRUCT; false if it has no SIGSTRUCT.
func (f EnclaveFile) MayDebug() bool { return f.Structure != nil && f.Structure.MayDebug() }

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
	indexes, err := o.ScanAll(ctx, img, rootfs.Options{Inflate: o.Inflate, Limits: o.Limits})
	if err != nil {
		return nil, err
	}
	tree, err := rootfs.Merge(indexes)
	if err != nil {
		return nil, err
	}
	return EnclavesOf(ctx, img, tree)
}

// EnclavesOf finds the signed enclaves in an image whose layers were scanned.
func EnclavesOf(ctx context.Context, img *image.Image, tree *rootfs.Tree) ([]EnclaveFile, error) {
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
	m := &measuring{left: sdk.MaxMeasured, known: map[[sha256.Size]byte][]EnclaveFile{}}
	if err := m.readAll(ctx, img, nodes); err != nil {
		return nil, err
	}
	var list []EnclaveFile
	for _, n := range nodes {
		for _, f := range m.known[n.SHA256] {
			f.Path = n.Path
			list = append(list, f)
		}
	}
	return list, nil
}

// Bounds of reading files again of which a scan has told that they have enclaves.
const (
	maxAtOnce = 512 << 20 // bytes in memory
	maxAgain  = 4 << 30   // bytes of all of them
)

// readAll reads the enclaves of files, each content once, in as few passes over a layer as memory allows.
func (m *measuring) readAll(ctx context.Context, img *image.Image, nodes []*rootfs.Node) error {
	byLayer := map[int][]*rootfs.Node{}
	seen := map[[sha256.Size]byte]bool{}
	all := int64(0)
	for _, n := range nodes {
		if !seen[n.SHA256] {
			seen[n.SHA256] = true
			byLayer[n.Layer] = append(byLayer[n.Layer], n)
			all += n.Size
		}
	}
	if all > maxAgain {
		return fmt.Errorf("the image's files with enclaves have more than %d bytes", int64(maxAgain))
	}
	for _, layer := range slices.Sorted(maps.Keys(byLayer)) {
		for rest := byLayer[layer]; len(rest) > 0; {
			n, bytes := 0, int64(0)
			for n < len(rest) && (n == 0 || bytes+rest[n].Size <= maxAtOnce) {
				bytes += rest[n].Size
				n++
			}
			if err := m.readSome(ctx, img, rest[:n]); err != nil {
				return err
			}
			rest = rest[n:]
		}
	}
	return nil
}

// readSome reads the enclaves of files of one layer.
func (m *measuring) readSome(ctx context.Context, img *image.Image, nodes []*rootfs.Node) error {
	contents, err := contentsOf(ctx, img, slices.DeleteFunc(slices.Clone(nodes), func(n *rootfs.Node) bool {
		return n.Size > sdk.MaxFile
	}))
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if m.known[n.SHA256], err = m.read(ctx, n, contents[n]); err != nil {
			return err
		}
	}
	return nil
}

// measuring is what measuring the enclaves of one image may take.
type measuring struct {
	left  uint64                              // bytes to be hashed
	known map[[sha256.Size]byte][]EnclaveFile // by the file's content
}

// maxEnclaves is how many files of an image are looked into.
const maxEnclaves = 100

// read reads the enclaves of a file, by its sections if it is of a kind that is known. Of a file that is too large
// there is no content.
func (m *measuring) read(ctx context.Context, n *rootfs.Node, content []byte) ([]EnclaveFile, error) {
	var list []EnclaveFile
	f, err := sdkEnclave(ctx, n.Path, content, &m.left)
	if err != nil {
		return nil, err
	}
	if f != nil {
		list = append(list, *f)
	}
	in := sectionOf(content, oeSection)
	for _, b := range n.ELF.SigStructs {
		if f != nil && f.Structure != nil && b == string(f.Structure.Bytes()) {
			continue
		}
		kind := ""
		if bytes.Contains(in, []byte(b)) {
			kind = KindOpenEnclave
		}
		if f := newEnclaveFile(n.Path, kind, []byte(b)); f != nil {
			f.MeasurementError = "how files of this kind are measured is not known here: MRENCLAVE is what the " +
				"SIGSTRUCT says"
			list = append(list, *f)
		}
	}
	return list, nil
}

// SDKEnclave reads and measures a file as an enclave of Intel's SDK; nil if it is not one.
func SDKEnclave(ctx context.Context, path string, content []byte) (*EnclaveFile, error) {
	left := uint64(sdk.MaxMeasured)
	return sdkEnclave(ctx, path, content, &left)
}

// sdkEnclave is SDKEnclave that hashes no more than what is left to be hashed.
func sdkEnclave(ctx context.Context, path string, content []byte, left *uint64) (*EnclaveFile, error) {
	e, err := sdk.Open(content)
	if errors.Is(err, sdk.ErrNone) {
		return nil, nil
	}
	if err != nil {
		return &EnclaveFile{
			Path: path, Kind: KindSDK, SignatureError: "it could not be read", MeasurementError: err.Error(),
		}, nil
	}
	f := newEnclaveFile(path, KindSDK, e.SigStruct)
	c := e.Config()
	f.Config = &c
	if err := e.CheckMetadata(); err != nil {
		f.MetadataError = err.Error()
	}
	if e.Hashed() > *left {
		f.MeasurementError = fmt.Sprintf("it was not measured: that of all enclaves together takes more than %d bytes "+
			"to be hashed", uint64(sdk.MaxMeasured))
		return f, nil
	}
	*left -= e.Hashed()
	m, err := e.Measure(ctx)
	if ctx.Err() != nil {
		return f, ctx.Err()
	}
	switch {
	case err != nil:
		f.MeasurementError = err.Error()
	case m != f.MREnclave:
		f.Measured, f.MeasurementError = true,
			fmt.Sprintf("the enclave would be %s, signed is %s: the file was changed", m, f.MREnclave)
	default:
		f.Measured = true
		if err := f.Structure.CheckEnclave(m, e.Attributes, e.MiscSelect); err != nil {
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
	f := &EnclaveFile{Path: path, Kind: kind, Enclave: attest.NewEnclave(s), Structure: s}
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
