// Package libos knows the library operating systems that run a program inside an enclave: how their
// runtime becomes a layer, and how a launch specification becomes the files that they start from.
//
// A [Backend] is one of them; package all has the list. What a runtime consists of is a [Bundle]; what a conversion
// adds to an image is [Sealed], and what is read back of it an [Enclave].
package libos

import (
	"context"
	"io"

	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/protectedfs"
	"github.com/cconvert/cconvert/pkg/reach"
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
	// EncryptedPath lists the image's encrypted files. It is measured.
	EncryptedPath = Root + "/app/encrypted.json"
	// HostsPath replaces /etc/hosts, which container engines write.
	HostsPath = Root + "/app/hosts"
)

// Backend is a library OS.
type Backend interface {
	// Kind is the name by which users choose it.
	Kind() string
	// Layers is how many layers a conversion puts on an image, an agent's apart: the runtime's, what Seal returns, and
	// the enclave's.
	Layers() int
	// Agent returns the program that starts first in an enclave and gets secrets: ErrNoAgent if there is none.
	Agent() ([]byte, error)
	// Load finds the runtime and packs it into a layer, the same bytes for the same runtime.
	Load(ctx context.Context, o LoadOptions) (*Bundle, error)
	// Image returns the image from which Load takes the runtime; false: it takes it from elsewhere.
	Image(o LoadOptions) (ref image.Reference, ok bool, err error)
	// CheckOverlay reports what is wrong with a user's own configuration of the library OS. The name is for messages.
	CheckOverlay(name, text string) error
	// Seal turns a specification into the files and the enclave that the runtime starts. It does the same each time for
	// the same input.
	Seal(ctx context.Context, in Input) (*Sealed, error)
	// EncryptedFormat is the version of encrypted files that the runtime writes, and reads. That it does not know such
	// files is an error.
	EncryptedFormat(b *Bundle) (protectedfs.Version, error)
	// StartSeconds predicts how long each start of a process takes that may read so many files.
	StartSeconds(files int) float64
	// Keep lists the files of the enclave's layer that Open reads, as patterns for rootfs.Scan. The first is one that
	// each enclave has.
	Keep() []string
	// Open reads the enclave of a converted image.
	Open(in Stored) (*Enclave, error)
}

// Foreign knows the images that another program makes for a library OS.
type Foreign interface {
	// Name is the one of the kind of image.
	Name() string
	// Keep lists the files that Open reads, as patterns for rootfs.Scan.
	Keep() []string
	// Find returns the places of an image of this kind.
	Find(tree *rootfs.Tree) (Places, bool)
	// Open reads the enclave of such an image: its files are those of the places.
	Open(p Places, files map[string][]byte) (*Enclave, error)
}

// MetaPath is where a runtime of a kind describes itself.
func MetaPath(kind string) string { return Root + "/" + kind + "/" + metaName }

// Input is what a Backend seals.
type Input struct {
	Spec    *launch.Spec
	Enclave EnclaveOptions
	Bundle  *Bundle
	// Overlay is a user's own configuration of the library OS; empty: there is none.
	Overlay string
	Tree    *rootfs.Tree
	Date    sgx.Date
	// Encrypted is what there is of files that the image has encrypted; nil: it has none.
	Encrypted *Encrypted
	// Agent is what starts first if the specification has something to tell it.
	Agent *Agent
	// Contents reads regular files of the tree that are wanted, in the order of the layers. What is in memory of the
	// image does not hold them, so it takes another pass over the layers that have some.
	Contents Contents
}

// Encrypted is what a conversion adds for files that the image has encrypted.
type Encrypted struct {
	// List is the content of EncryptedPath, which is measured.
	List []byte
	// Key is put into the manifest by this name; empty: it comes from elsewhere.
	KeyName string
	Key     protectedfs.Key
}

// Contents visits the contents of files of an image, in one pass over each layer that has some. The nodes are those
// that have the content, hard links of each other. A reader is good until the visit returns.
type Contents func(
	ctx context.Context, want func(*rootfs.Node) bool, visit func(n []*rootfs.Node, content io.Reader) error,
) error

// Sealed is what a conversion adds to an image, but for the signature.
type Sealed struct {
	// Manifest is the text that is measured; empty: there is none.
	Manifest []byte
	// Layers come between the runtime's and the enclave's.
	Layers []image.NewLayer
	// Files of the enclave's layer, the signature and the recipe excepted.
	Files []File
	// Layout is the enclave's initial memory.
	Layout sgx.Layout
	// SigStruct is to be completed with the measurement and signed.
	SigStruct *sgx.SigStruct
	// Entrypoint is the command that starts the enclave.
	Entrypoint []string
	// Settings are the enclave's in the end.
	Settings sgx.Settings
	// Trusted says why each file is measured by its digest, in the order of the manifest.
	Trusted  []reach.File
	Findings []finding.Finding
	// Simulated says that there is no enclave.
	Simulated bool
}
