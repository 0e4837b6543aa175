// Package launch answers, for any library OS, how a container image starts: which program with which
// arguments, environment and identity; which files it may read; where it may write; how large the
// enclave must be. [Contents.Build] finds the answer in the image's configuration and its files.
package launch

import (
	"crypto/sha256"

	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/profile"
	"github.com/cconvert/cconvert/pkg/reach"
	"github.com/cconvert/cconvert/pkg/rootfs"
)

// Spec is how an image starts, in terms of no particular library OS.
type Spec struct {
	// Entrypoint is the program's path with all symbolic links resolved.
	Entrypoint string
	// Argv are the arguments, the first being the program as the image names it.
	Argv []string
	// HostArgs lets whoever starts the container choose the arguments, unmeasured.
	HostArgs bool
	// FixedArgs is how many of Argv belong to the ENTRYPOINT: the others are what arguments of the host
	// replace.
	FixedArgs int
	Env       []EnvVar // sorted by name
	WorkDir   string
	UID, GID  uint32
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
	// Packages are those that have files among the trusted, sorted.
	Packages []string
	// Allowed are paths that the program may use without protection.
	Allowed []string
	// Starters are scripts in the place of links to programs.
	Starters []Starter
	LibC     LibC
	Enclave  Enclave
	// Findings are what the user should know.
	Findings []finding.Finding

	// main is the program that runs in the end, as far as that is known: behind tini(1) or a script another than
	// LibC.Program.
	main   *rootfs.Node
	groups []uint32 // the user's, besides GID
	path   []pathDir
	found  map[string]found // by the name of a program
}

// EnvVar is an environment variable.
type EnvVar struct {
	Name, Value string
	// PassThrough takes the value from the host at start, unmeasured.
	PassThrough bool
}

// MountType is what a Mount puts at its path.
type MountType string

// Types of mounts.
const (
	Bind      MountType = "bind"      // another directory or file of the image
	Tmpfs     MountType = "tmpfs"     // an empty directory in the enclave's memory
	Encrypted MountType = "encrypted" // a directory of the host whose files are encrypted
)

// Mount makes something else appear at a path.
type Mount struct {
	Type MountType
	Path string
	// Target is the path on the host of a Bind or Encrypted mount.
	Target string
	// Key names the key of an Encrypted mount.
	Key string
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

// LibCKind is the kind of C library that the program is linked to.
type LibCKind string

// The kinds of C libraries that matter.
const (
	GLIBC  LibCKind = "glibc"
	Musl   LibCKind = "musl"
	Static LibCKind = "static" // none: system calls come from the program itself
)

// LibC is what the program needs of a C library.
type LibC struct {
	Kind LibCKind
	// Program is the path of the ELF file that was looked at: the entrypoint or its interpreter.
	Program string
	// Shell is the path of the shell that runs the entrypoint, if one does.
	Shell string
	// Interp is the dynamic linker that the program names.
	Interp string
	// Choice is the user's: which C library is to be used.
	Choice LibCChoice
	// Interps are the dynamic linkers that the programs of the image name, by base name: the path without
	// links. That of Program is there too.
	Interps map[string]string
	// Kinds are the C libraries of all programs that can be started, Kind first.
	Kinds []LibCKind
	// UsesIconv says that a program that can be started converts character sets.
	UsesIconv bool
	// NeedsGLIBC is the highest version that any program of the image needs, as "2.36".
	NeedsGLIBC string
	// Cache is the path of the image's ld.so.cache, if it has one.
	Cache string
	// Dirs are the directories of ld.so.conf and the usual ones that exist, for when there is no cache.
	Dirs []string
	// Localtime, Zoneinfo and Locales are the data that a C library reads from its own paths.
	Localtime, Zoneinfo, Locales string
	// Gconv is the directory of character set converters, if there is one.
	Gconv string
}

// LibCChoice says which C library is to be used.
type LibCChoice string

// Choices. The zero value is LibCAuto.
const (
	LibCAuto    LibCChoice = "auto"    // the runtime's patched one where it works
	LibCPatched LibCChoice = "patched" // the runtime's, even where the image's is newer
	LibCImage   LibCChoice = "image"   // the image's own: every system call is trapped
)

// Enclave is what is asked of the enclave.
type Enclave struct {
	Size        uint64 // bytes; in Options, zero leaves it to the profile and the image
	Threads     int    // likewise
	EDMM        bool
	Debug       bool
	ISVProdID   uint16
	ISVSVN      uint16
	Attestation string // "none" or "dcap"
	LogLevel    string
}

// Options are the user's decisions. The zero value decides nothing.
type Options struct {
	Env          []EnvVar // added to the image's, or instead of them
	Args         []string // instead of the image's CMD, unless nil
	HostArgs     bool
	AllowedFiles []string
	Tmpfs        []string
	Encrypted    []Mount // Path and Key
	Enclave      Enclave
	// Trust is the policy, TrustAuto if empty, and List its files for TrustList.
	Trust Policy
	List  []string
	LibC  LibCChoice
	// Profile is used instead of the one that is recognised, unless nil.
	Profile *profile.Profile
}

// find notes a finding. The path may be empty.
func (s *Spec) find(code string, severity finding.Severity, path, message string) {
	s.Findings = append(s.Findings, finding.New(code, severity, path, message))
}
