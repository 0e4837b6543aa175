// Package libos knows the library operating systems that run a program inside an enclave: how their
// runtime becomes a layer, and how a launch specification becomes the files that they start from.
//
// A [Backend] is one of them: gramine, the real one, and sim, which has no enclave. What a runtime
// consists of is a [Bundle]; what a conversion adds to an image is [Sealed].
package libos

import (
	"context"

	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/manifest"
	"github.com/cconvert/cconvert/pkg/rootfs"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// Places in a converted image.
const (
	// Root is the directory of all that a conversion adds.
	Root = "/cconvert"
	// App is the name of the application for the runtime's loader, which adds suffixes to it.
	App = Root + "/app/entrypoint"
	// ManifestPath is the manifest that is measured, SigPath the signature over the measurement.
	ManifestPath = App + ".manifest.sgx"
	SigPath      = App + ".sig"
	// UnsignedPath is the signature structure without key and signature, in an image that is to be signed later.
	UnsignedPath = App + ".unsigned"
	// ReasonsPath says why each trusted file is listed. It is for people, and not measured.
	ReasonsPath = Root + "/app/files.json"
	// RecipePath describes how the image was made.
	RecipePath = Root + "/app/recipe.json"
	// HostsPath replaces /etc/hosts, which container engines write.
	HostsPath = Root + "/app/hosts"
)

// Backend is a library OS.
type Backend interface {
	// Kind is the name by which users choose it.
	Kind() string
	// Paths are where its files are in a converted image.
	Paths() Paths
	// Load finds the runtime and packs it into a layer, the same bytes for the same runtime.
	Load(ctx context.Context, o LoadOptions) (*Bundle, error)
	// Seal turns a specification into the files and the enclave that the runtime starts.
	Seal(in Input) (*Sealed, error)
	// SigStruct is what is to be signed for a manifest and a measurement, under a version of the enclave's geometry.
	SigStruct(layout int, manifest []byte, m sgx.Measurement, date sgx.Date) (*sgx.SigStruct, error)
}

// Start is the command that starts an enclave of a backend, without arguments that the host chooses.
func Start(b Backend) []string {
	p := b.Paths()
	return []string{p.Loader, p.PAL, "init", App}
}

// Paths are where a runtime's files are.
type Paths struct {
	// Loader is the program that builds the enclave, PAL the enclave image that it loads, and LibOS what the
	// enclave image loads first.
	Loader, PAL, LibOS string
}

// MetaPath is where a runtime of a kind describes itself.
func MetaPath(kind string) string { return Root + "/" + kind + "/" + metaName }

// Input is what a Backend seals.
type Input struct {
	Spec    *launch.Spec
	Bundle  *Bundle
	Overlay *manifest.Overlay // may be nil
	Tree    *rootfs.Tree      // for the digests of files that the overlay names
	Date    sgx.Date
}

// Sealed is what a conversion adds to an image, but for the signature.
type Sealed struct {
	// Manifest is what is measured.
	Manifest []byte
	// Files of the enclave layer, the signature and the recipe excepted.
	Files []File
	// Layout is the enclave's initial memory.
	Layout sgx.Layout
	// SigStruct is to be completed with the measurement and signed.
	SigStruct *sgx.SigStruct
	// Entrypoint is the command that starts the enclave.
	Entrypoint []string
	// Enclave is what the manifest says of the enclave in the end.
	Enclave manifest.SGX
	// Trusted are the manifest's trusted files, in its order.
	Trusted  []manifest.TrustedFile
	Findings []finding.Finding
	// Simulated says that there is no enclave.
	Simulated bool
}
