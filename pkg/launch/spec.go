// Package launch answers, for any library OS, how a container image starts: which program with which
// arguments, environment and identity; which files it may read; where it may write; how large the
// enclave must be. [Contents.Build] finds the answer in the image's configuration and its files.
package launch

import (
	"crypto/sha256"

	"github.com/cconvert/cconvert/pkg/launch/libc"
	"github.com/cconvert/cconvert/pkg/launch/process"
	"github.com/cconvert/cconvert/pkg/profile"
	"github.com/cconvert/cconvert/pkg/reach"
	"github.com/cconvert/cconvert/pkg/release"
	"github.com/cconvert/cconvert/pkg/rootfs"
)

// Spec is how an image starts, in terms of no particular library OS.
type Spec struct {
	// Process is what a container engine would start.
	process.Process
	// Mounts are in the order in which they must be made: parents first.
	Mounts []Mount
	// Trusted are the files that the program may read, those first that it is most likely to open.
	Trusted []TrustedFile
	// Policy is the one by which they were chosen in the end, and LeftOut how many files of the image it
	// leaves out.
	Policy  Policy
	LeftOut int
	// Profile is the program's, and ProfileWhy why it was chosen.
	Profile    *profile.Profile
	ProfileWhy string
	// SizeWhy says what the enclave's size comes from.
	SizeWhy string
	// OpenBytes are the bytes of files that are opened at every start: the program's and its libraries.
	OpenBytes int64
	// EncryptedBytes are the bytes of the image's encrypted files.
	EncryptedBytes int64
	// Packages are those that have files among the trusted, sorted.
	Packages []string
	// Allowed are paths that the program may use without protection.
	Allowed []string
	// Ciphertexts are the encrypted directories and files that an agent compares with those of the image. It sees them
	// as they are on the host, below CiphertextsDir.
	Ciphertexts []string
	// Starters are scripts in the place of links to programs.
	Starters []Starter
	// Agent is what starts first and becomes the program, with secrets; nil: the program starts itself.
	Agent *release.Config
	LibC  libc.Needs
	// Memory is the enclave's, in bytes, and Threads how many of its own threads the program can have.
	Memory  uint64
	Threads int

	// main is the program that runs in the end, as far as that is known: behind tini(1) or a script another than
	// LibC.Program.
	main *rootfs.Node
}

// MountType is what a Mount puts at its path.
type MountType string

// Types of mounts.
const (
	Bind      MountType = "bind"      // another directory or file of the image
	Tmpfs     MountType = "tmpfs"     // an empty directory in the enclave's memory
	Encrypted MountType = "encrypted" // a directory or file of the host that is encrypted
)

// Mount makes something else appear at a path.
type Mount struct {
	Type MountType
	Path string
	// Target is the path on the host of a Bind or Encrypted mount.
	Target string
	// Key names the key of an Encrypted mount.
	Key string
	// Shipped says that the image has the encrypted files of the mount. Others start empty.
	Shipped bool
}

// TrustedFile is a file that the program may read because its content is measured.
type TrustedFile struct {
	Path   string
	SHA256 [sha256.Size]byte
	Size   int64
	reach.File
}

// Policy is a way to choose the files that the program may read.
type Policy string

// Policies.
const (
	TrustAuto Policy = "auto" // what the program can be expected to open
	TrustAll  Policy = "all"  // every file
	TrustList Policy = "list" // those of a list
)

// Reasons of the policies that do not look for any.
const (
	reasonAll    reach.Reason = "every file is listed"
	reasonListed reach.Reason = "listed by the user"
)

// Options are the user's decisions. The zero value decides nothing.
type Options struct {
	Env          []process.EnvVar // added to the image's, or instead of them
	Args         []string         // instead of the image's CMD, unless nil
	HostArgs     bool
	AllowedFiles []string
	Tmpfs        []string
	Encrypted    []Mount // Path and Key
	// Encrypt are files of the image that are encrypted.
	Encrypt Encryption
	// Secrets has the program get secrets at start; nil: it gets none.
	Secrets *Secrets
	// Memory, in bytes, and Threads are the enclave's; zero leaves them to the profile and the image.
	Memory  uint64
	Threads int
	// Trust is the policy, TrustAuto if empty, and List its files for TrustList.
	Trust Policy
	List  []string
	LibC  libc.Choice
	// Profile is used instead of the one that is recognised, unless nil.
	Profile *profile.Profile
}
