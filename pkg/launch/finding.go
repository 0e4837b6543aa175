package launch

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

// NewFinding makes a finding with the remedy of its code. The path may be empty.
func NewFinding(code string, severity Severity, path, message string) Finding {
	return Finding{code, severity, path, message, remedies[code]}
}

func (s *Spec) find(code string, severity Severity, path, message string) {
	s.Findings = append(s.Findings, NewFinding(code, severity, path, message))
}

// KnownCode reports whether there are findings of this code.
func KnownCode(code string) bool { return remedies[code] != "" }

// Codes of findings.
const (
	CodeNameNotUTF8       = "name-not-utf8"
	CodeLinkIntoTmpfs     = "link-into-tmpfs"
	CodeLinkOutside       = "link-into-proc"
	CodeLinkToConsole     = "link-to-console"
	CodeVolumeTemporary   = "volume-temporary"
	CodeHiddenDirs        = "hidden-directory"
	CodeLinkIntoVolume    = "link-into-volume"
	CodeArgvZero          = "argv-zero"
	CodeTmpfsPerProcess   = "tmpfs-per-process"
	CodeHiddenFiles       = "hidden-by-tmpfs"
	CodeTmpfsSkipped      = "tmpfs-skipped"
	CodeVolumeSealed      = "volume-sealed"
	CodeVolumeHides       = "volume-hides-files"
	CodeVolumeSkipped     = "volume-skipped"
	CodeDeviceNode        = "device-node"
	CodeLinkLoop          = "link-loop"
	CodeTooManyMounts     = "too-many-mounts"
	CodeStopSignal        = "stop-signal"
	CodeArgumentsFixed    = "arguments-fixed"
	CodeHostArguments     = "insecure-args"
	CodePassThrough       = "pass-env"
	CodeAllowedFile       = "allow-file"
	CodeDebug             = "debug"
	CodeGLIBCTooNew       = "glibc-too-new"
	CodeSyscallTraps      = "syscall-traps"
	CodeGconv             = "gconv"
	CodeLoaderEnv         = "loader-env"
	CodeRuntimeUnpinned   = "runtime-unpinned"
	CodeAnnotation        = "annotation-left-out"
	CodeInsecureSetting   = "insecure-setting"
	CodeAVX512            = "avx512-clears-avx"
	CodeSimulated         = "simulated"
	CodePackageDatabase   = "package-database"
	CodeNoPackages        = "no-package-database"
	CodeLeftOut           = "left-out"
	CodeLongList          = "long-file-list"
	CodeThreads           = "threads"
	CodeProcesses         = "process-per-enclave"
	CodeSharedMemory      = "shared-memory"
	CodeSemaphores        = "named-semaphores"
	CodeControlSocket     = "control-socket"
	CodePluginLink        = "plugin-link"
	CodeUserSwitch        = "user-switch"
	CodeDataDirectory     = "data-directory"
	CodeFileLocks         = "file-locks"
	CodeRenameDir         = "rename-directory"
	CodeInterfaces        = "network-interfaces"
	CodeSetUID            = "setuid"
	CodeUserCannotRead    = "user-cannot-read"
	CodeDeviceUser        = "device-user"
	CodeHealthcheck       = "healthcheck"
	CodeMountedSecrets    = "mounted-secrets"
	CodeLocale            = "locale-missing"
	CodeContainsEnclave   = "contains-enclave"
	CodeConverted         = "already-converted"
	CodeReserved          = "reserved-path"
	CodeManyLayers        = "many-layers"
	CodeInterpreterAbsent = "interpreter-missing"
	CodeLibraryAbsent     = "library-missing"
	CodeTOCTrusted        = "toc-trusted"
	CodeTOCRejected       = "toc-rejected"
	CodeIndexInsecure     = "index-insecure"
	CodeIndexRejected     = "index-rejected"
	CodeIndexNotShared    = "index-not-shared"
	CodeIndexUnreachable  = "index-unreachable"
	CodeEvidenceRefused   = "evidence-refused"
)

// remedies say what to do, by code. docs/findings.md has them in its last column.
var remedies = map[string]string{
	CodeNameNotUTF8:     "Rename the file in the image.",
	CodeLinkIntoTmpfs:   "Use one name for the place.",
	CodeLinkOutside:     "Use the target's own name.",
	CodeLinkToConsole:   "Have the program log to /dev/stdout by that name.",
	CodeVolumeTemporary: "--encrypt-mount if the data must stay.",
	CodeHiddenDirs:      "Have the program make the directory.",
	CodeLinkIntoVolume:  "Use the target's name.",
	CodeArgvZero:        "Fixed arguments, or a program that does not act by its name.",
	CodeTmpfsPerProcess: "Render the configuration when the image is built, or write it to an --encrypt-mount.",
	CodeHiddenFiles:     "Move the files elsewhere in the image.",
	CodeTmpfsSkipped:    "Move the program, or name another place with --tmpfs.",
	CodeVolumeSealed: "--encrypt-mount PATH=KEY with a key that is provisioned, or --tmpfs PATH if the data need " +
		"not stay.",
	CodeVolumeHides:    "Let the program create its files, or copy them from another directory at start.",
	CodeVolumeSkipped:  "Move the program out of the volume.",
	CodeDeviceNode:     "None, usually.",
	CodeLinkLoop:       "None needed: it did not work before.",
	CodeTooManyMounts:  "Remove links that lead to each other.",
	CodeStopSignal:     "Make sure that the program ends on SIGTERM.",
	CodeArgumentsFixed: "--arg when converting.",
	CodeHostArguments:  "Leave --insecure-args out.",
	CodePassThrough:    "--env NAME=VALUE.",
	CodeAllowedFile:    "Leave --allow-file out.",
	CodeDebug:          "Leave --debug out.",
	CodeGLIBCTooNew:    "A newer runtime, or --libc patched to try the runtime's all the same.",
	CodeSyscallTraps: "None needed; it is slower. A program that is linked to glibc or musl dynamically is " +
		"faster.",
	CodeGconv:           "Convert character sets in the program, or use the image's own C library with --libc image.",
	CodeLoaderEnv:       "None needed. docker exec and health checks do not see it.",
	CodeRuntimeUnpinned: "cconvert runtime lock.",
	CodeAnnotation:      "Give it to the engine where the image is started, if it is needed.",
	CodeInsecureSetting: "Remove it from the merged manifest.",
	CodeAVX512:          "Leave avx512 unspecified.",
	CodeSimulated:       "Leave --runtime sim out for production.",
	CodePackageDatabase: "Repair the database, or name the files with --trust list:FILE.",
	CodeNoPackages:      "Nothing, or --trust list:FILE with a recording of what the program opens.",
	CodeLeftOut:         "If the program misses a file: --trust all, or a profile that names the files.",
	CodeLongList: "--trust list:FILE with a recording of what the program opens, or a smaller image. Leave " +
		"--trust all out.",
	CodeThreads: "Raise --threads, or ask the program for fewer.",
	CodeProcesses: "Start the program itself rather than a script; let it have one worker; or reckon with the " +
		"memory of an enclave for each process.",
	CodeSharedMemory:  "Another program for the purpose: one process with threads.",
	CodeSemaphores:    "Threads in the place of processes: a pool of threads, celery's --pool threads or solo.",
	CodeControlSocket: "Leave [unix_http_server] out of the configuration of supervisord.",
	CodeUserSwitch: "Have the image start as that user, by USER in a Dockerfile; or switch by gosu, su-exec or " +
		"chroot --userspec.",
	CodePluginLink:    "Name the plug-in by its own file, such as --plugin python311.",
	CodeDataDirectory: "A VOLUME in the image, --tmpfs or --encrypt-mount for the directory.",
	CodeFileLocks: "sys.experimental__enable_flock = true in a manifest given with --manifest, if one program " +
		"alone uses the file.",
	CodeRenameDir:      "Make the directories when the image is built.",
	CodeInterfaces:     "Tell the program the addresses that it should listen on.",
	CodeSetUID:         "Start the program as the user that it is to have: USER in the image.",
	CodeUserCannotRead: "Let the image's USER read the file.",
	CodeDeviceUser:     "docker run --group-add with the device's group; in Kubernetes, supplementalGroups.",
	CodeHealthcheck:    "Probe the program from outside, over its network port.",
	CodeMountedSecrets: "Have the program fetch its secrets after attestation.",
	CodeLocale:         "Add the locale to the image, or use C.UTF-8.",
	CodeContainsEnclave: "Run the image as it is, or convert the one that it was made from. cconvert inspect shows " +
		"its enclaves; reference, attest and deploy --epc are for it as it is.",
	CodeManyLayers: "Build the image with fewer layers, for instance by a stage that copies all of it: FROM " +
		"scratch, COPY --from=build / /. containerd and CRI-O take any number.",
	CodeReserved: "Build the image without /cconvert: whatever lies there could be taken for a part of the " +
		"runtime.",
	CodeConverted: "Convert the image that it was made from: its digest is in the label " +
		"org.opencontainers.image.base.digest.",
	CodeInterpreterAbsent: "Add the C library that the program was built for, or link the program statically.",
	CodeLibraryAbsent:     "Add the package that has the library.",
	CodeTOCTrusted:        "Leave --trust-toc out.",
	CodeTOCRejected:       "None needed: the layer itself was read.",
	CodeIndexInsecure:     "--index-verify-key in the place of --insecure-index.",
	CodeIndexRejected:     "Find out who wrote the entry, and remove it.",
	CodeEvidenceRefused:   "--attest=false, or a registry that takes OCI artifacts.",
	CodeIndexUnreachable:  "None needed: the layer was read. Try again if it should be shared.",
	CodeIndexNotShared:    "Give the right to write to the repository, or leave --index-sign-key out.",
}
