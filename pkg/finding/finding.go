// Package finding has what users should know about an image: codes, which are stable, how much each matters, and what
// to do about it. docs/findings.md is the list for people.
package finding

import (
	"maps"
	"slices"
)

// Severity says how much a finding matters.
type Severity string

// Severities, from what only explains to what will not work.
const (
	Info    Severity = "info"
	Warning Severity = "warning"
	Error   Severity = "error" // the image cannot run
)

// Finding is something that the user should know about an image. Codes are stable.
type Finding struct {
	Code     string   `json:"code"`
	Severity Severity `json:"severity"`
	Path     string   `json:"path,omitempty"`
	Message  string   `json:"message"`
	// Remedy says what to do about it.
	Remedy string `json:"remedy"`
}

// New makes a finding with the remedy of its code. The path may be empty.
func New(code string, severity Severity, path, message string) Finding {
	return Finding{code, severity, path, message, remedies[code]}
}

// Known reports whether there are findings of this code.
func Known(code string) bool { return remedies[code] != "" }

// Codes returns all codes, sorted.
func Codes() []string { return slices.Sorted(maps.Keys(remedies)) }

// Codes of findings.
const (
	NameNotUTF8       = "name-not-utf8"
	LinkIntoTmpfs     = "link-into-tmpfs"
	LinkOutside       = "link-into-proc"
	LinkToConsole     = "link-to-console"
	VolumeTemporary   = "volume-temporary"
	HiddenDirs        = "hidden-directory"
	LinkIntoVolume    = "link-into-volume"
	ArgvZero          = "argv-zero"
	TmpfsPerProcess   = "tmpfs-per-process"
	HiddenFiles       = "hidden-by-tmpfs"
	TmpfsSkipped      = "tmpfs-skipped"
	VolumeSealed      = "volume-sealed"
	VolumeHides       = "volume-hides-files"
	VolumeSkipped     = "volume-skipped"
	DeviceNode        = "device-node"
	LinkLoop          = "link-loop"
	TooManyMounts     = "too-many-mounts"
	StopSignal        = "stop-signal"
	ArgumentsFixed    = "arguments-fixed"
	HostArguments     = "insecure-args"
	PassThrough       = "pass-env"
	AllowedFile       = "allow-file"
	Debug             = "debug"
	GLIBCTooNew       = "glibc-too-new"
	SyscallTraps      = "syscall-traps"
	Gconv             = "gconv"
	LoaderEnv         = "loader-env"
	RuntimeUnpinned   = "runtime-unpinned"
	Annotation        = "annotation-left-out"
	InsecureSetting   = "insecure-setting"
	AVX512            = "avx512-clears-avx"
	Simulated         = "simulated"
	PackageDatabase   = "package-database"
	NoPackages        = "no-package-database"
	LeftOut           = "left-out"
	LongList          = "long-file-list"
	Threads           = "threads"
	Processes         = "process-per-enclave"
	SharedMemory      = "shared-memory"
	Semaphores        = "named-semaphores"
	ControlSocket     = "control-socket"
	PluginLink        = "plugin-link"
	UserSwitch        = "user-switch"
	DataDirectory     = "data-directory"
	FileLocks         = "file-locks"
	RenameDir         = "rename-directory"
	Interfaces        = "network-interfaces"
	SetUID            = "setuid"
	UserCannotRead    = "user-cannot-read"
	DeviceUser        = "device-user"
	Healthcheck       = "healthcheck"
	MountedSecrets    = "mounted-secrets"
	Locale            = "locale-missing"
	ContainsEnclave   = "contains-enclave"
	Converted         = "already-converted"
	Reserved          = "reserved-path"
	ManyLayers        = "many-layers"
	InterpreterAbsent = "interpreter-missing"
	LibraryAbsent     = "library-missing"
	TOCTrusted        = "toc-trusted"
	TOCRejected       = "toc-rejected"
	IndexInsecure     = "index-insecure"
	IndexRejected     = "index-rejected"
	IndexNotShared    = "index-not-shared"
	IndexUnreachable  = "index-unreachable"
	EvidenceRefused   = "evidence-refused"
	ReferrerKept      = "referrer-kept"
	EncryptedKey      = "encrypted-needs-key"
	EncryptedAtStart  = "encrypted-at-start"
	EncryptedWritable = "encrypted-writable-root"
	EncryptedScript   = "encrypted-script"
	EncryptedLink     = "encrypted-link"
	PlainCopy         = "plain-copy"
	PlainQuote        = "plain-quote"
	PlainDigest       = "plain-digest"
	PlainSource       = "plain-source"
	InsecureKey       = "insecure-key"
	GoLauncher        = "go-launcher"
	OcclumUnmeasured  = "occlum-unmeasured"
	OcclumFork        = "occlum-fork"
	OcclumProgram     = "occlum-program"
	OcclumSyscalls    = "occlum-system-calls"
	OcclumShebang     = "occlum-interpreter"
	OcclumLibC        = "occlum-libc"
	OcclumUser        = "occlum-user"
	OcclumArguments   = "occlum-arguments"
	OcclumVolume      = "occlum-volume"
)

// remedies say what to do, by code. docs/findings.md has them in its last column.
var remedies = map[string]string{
	NameNotUTF8:      "Rename the file in the image.",
	OcclumUnmeasured: "Compare the digests of bom.yaml yourself, or convert the image for Gramine.",
	OcclumFork:       "Start the program itself rather than a script; have it start others by posix_spawn; one worker.",
	OcclumProgram:    "Link it with -pie; a Go program with -buildmode=pie.",
	OcclumSyscalls:   "Use a program that is linked to a C library.",
	OcclumShebang:    "Name the interpreter alone in the first line of the script, or start it with the script.",
	OcclumLibC:       "Install Occlum's C library over the unpacked image, or build on Debian 11.",
	OcclumUser:       "None: the program must work as root.",
	OcclumArguments:  "Have a program with the arguments in it as the entry point.",
	OcclumVolume:     "Mount a volume at run/mount of the instance.",
	LinkIntoTmpfs:    "Use one name for the place.",
	LinkOutside:      "Use the target's own name.",
	LinkToConsole:    "Have the program log to /dev/stdout by that name.",
	VolumeTemporary:  "--encrypt-mount if the data must stay.",
	HiddenDirs:       "Have the program make the directory.",
	LinkIntoVolume:   "Use the target's name.",
	ArgvZero:         "Fixed arguments, or a program that does not act by its name.",
	TmpfsPerProcess:  "Render the configuration when the image is built, or write it to an --encrypt-mount.",
	HiddenFiles:      "Move the files elsewhere in the image.",
	TmpfsSkipped:     "Move the program, or name another place with --tmpfs.",
	VolumeSealed: "--encrypt-mount PATH=KEY with a key that is provisioned, or --tmpfs PATH if the data need " +
		"not stay.",
	VolumeHides:    "Let the program create its files, or copy them from another directory at start.",
	VolumeSkipped:  "Move the program out of the volume.",
	DeviceNode:     "None, usually.",
	LinkLoop:       "None needed: it did not work before.",
	TooManyMounts:  "Remove links that lead to each other.",
	StopSignal:     "Make sure that the program ends on SIGTERM.",
	ArgumentsFixed: "--arg when converting.",
	HostArguments:  "Leave --insecure-args out.",
	PassThrough:    "--env NAME=VALUE.",
	AllowedFile:    "Leave --allow-file out.",
	Debug:          "Leave --debug out.",
	GLIBCTooNew:    "A newer runtime, or --libc patched to try the runtime's all the same.",
	SyscallTraps: "None needed; it is slower. A program that is linked to glibc or musl dynamically is " +
		"faster.",
	Gconv:           "Convert character sets in the program, or use the image's own C library with --libc image.",
	LoaderEnv:       "None needed. docker exec and health checks do not see it.",
	RuntimeUnpinned: "cconvert runtime lock.",
	Annotation:      "Give it to the engine where the image is started, if it is needed.",
	InsecureSetting: "Remove it from the merged manifest.",
	AVX512:          "Leave avx512 unspecified.",
	Simulated:       "Leave --runtime sim out for production.",
	PackageDatabase: "Repair the database, or name the files with --trust list:FILE.",
	NoPackages:      "Nothing, or --trust list:FILE with a recording of what the program opens.",
	LeftOut:         "If the program misses a file: --trust all, or a profile that names the files.",
	LongList: "--trust list:FILE with a recording of what the program opens, or a smaller image. Leave " +
		"--trust all out.",
	Threads: "Raise --threads, or ask the program for fewer.",
	Processes: "Start the program itself rather than a script; let it have one worker; or reckon with the " +
		"memory of an enclave for each process.",
	SharedMemory:  "Another program for the purpose: one process with threads.",
	Semaphores:    "Threads in the place of processes: a pool of threads, celery's --pool threads or solo.",
	ControlSocket: "Leave [unix_http_server] out of the configuration of supervisord.",
	UserSwitch: "Have the image start as that user, by USER in a Dockerfile; or switch by gosu, su-exec or " +
		"chroot --userspec.",
	PluginLink:    "Name the plug-in by its own file, such as --plugin python311.",
	DataDirectory: "A VOLUME in the image, --tmpfs or --encrypt-mount for the directory.",
	FileLocks: "sys.experimental__enable_flock = true in a manifest given with --manifest, if one program " +
		"alone uses the file.",
	RenameDir:      "Make the directories when the image is built.",
	Interfaces:     "Tell the program the addresses that it should listen on.",
	SetUID:         "Start the program as the user that it is to have: USER in the image.",
	UserCannotRead: "Let the image's USER read the file.",
	DeviceUser:     "docker run --group-add with the device's group; in Kubernetes, supplementalGroups.",
	Healthcheck:    "Probe the program from outside, over its network port.",
	MountedSecrets: "--secrets with a server that releases them after attestation, and --secret for each.",
	Locale:         "Add the locale to the image, or use C.UTF-8.",
	ContainsEnclave: "Run the image as it is, or convert the one that it was made from. cconvert inspect shows " +
		"its enclaves; reference, attest and deploy --epc are for it as it is.",
	ManyLayers: "Build the image with fewer layers, for instance by a stage that copies all of it: FROM " +
		"scratch, COPY --from=build / /. containerd and CRI-O take any number.",
	Reserved: "Build the image without /cconvert: whatever lies there could be taken for a part of the " +
		"runtime.",
	Converted: "Convert the image that it was made from: its digest is in the label " +
		"org.opencontainers.image.base.digest.",
	InterpreterAbsent: "Add the C library that the program was built for, or link the program statically.",
	LibraryAbsent:     "Add the package that has the library.",
	TOCTrusted:        "Leave --trust-toc out.",
	TOCRejected:       "None needed: the layer itself was read.",
	IndexInsecure:     "--index-verify-key in the place of --insecure-index.",
	IndexRejected:     "Find out who wrote the entry, and remove it.",
	EvidenceRefused:   "--attest=false, or a registry that takes OCI artifacts.",
	ReferrerKept:      "Look who has written the tag, and remove it if it should be the source's.",
	EncryptedKey: "--secrets with a server that releases the key, or try the image with " +
		"--insecure-key-in-manifest.",
	EncryptedAtStart: "--secrets with a server that releases the key, or leave the program and its libraries " +
		"unencrypted.",
	EncryptedWritable: "Do not start it with --read-only, and allow that much ephemeral storage.",
	EncryptedScript:   "--trust all, or --trust list:FILE, if the program misses a file.",
	EncryptedLink:     "None needed; name the file with --encrypt to see it in the command line.",
	PlainCopy: "Name the copy with --encrypt as well; one that a later layer removes is gone if the image is built " +
		"without it, as by a stage that copies what is needed.",
	PlainSource: "--to or --repo with a repository that those may read who may not read the source.",
	PlainDigest: "Copy the files into the image otherwise than by a package manager, or remove its record of them in " +
		"the same layer.",
	PlainQuote:  "Build the image without the text: from a file, or a secret mount of the builder.",
	InsecureKey: "Leave --insecure-key-in-manifest out: everybody who has the image has the key.",
	GoLauncher: "Start the program itself, by a shell's exec, tini or su-exec, or by a launcher that locks its " +
		"first thread.",
	IndexUnreachable: "None needed: the layer was read. Try again if it should be shared.",
	IndexNotShared:   "Give the right to write to the repository, or leave --index-sign-key out.",
}
