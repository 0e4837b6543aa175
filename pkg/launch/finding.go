package launch

// Severity says how much a finding matters.
type Severity string

// Severities, from what only explains to what will not work.
const (
	Info    Severity = "info"
	Warning Severity = "warning"
)

// Finding is something that the user should know about an image. Codes are stable.
type Finding struct {
	Code     string   `json:"code"`
	Severity Severity `json:"severity"`
	Path     string   `json:"path,omitempty"`
	Message  string   `json:"message"`
}

// Codes of findings.
const (
	CodeNameNotUTF8     = "name-not-utf8"
	CodeLinkIntoTmpfs   = "link-into-tmpfs"
	CodeLinkOutside     = "link-into-proc"
	CodeLinkToConsole   = "link-to-console"
	CodeVolumeTemporary = "volume-temporary"
	CodeHiddenDirs      = "hidden-directory"
	CodeLinkIntoVolume  = "link-into-volume"
	CodeArgvZero        = "argv-zero"
	CodeTmpfsPerProcess = "tmpfs-per-process"
	CodeHiddenFiles     = "hidden-by-tmpfs"
	CodeTmpfsSkipped    = "tmpfs-skipped"
	CodeVolumeSealed    = "volume-sealed"
	CodeVolumeHides     = "volume-hides-files"
	CodeVolumeSkipped   = "volume-skipped"
	CodeDeviceNode      = "device-node"
	CodeLinkLoop        = "link-loop"
	CodeTooManyMounts   = "too-many-mounts"
	CodeStopSignal      = "stop-signal"
	CodeArgumentsFixed  = "arguments-fixed"
	CodeHostArguments   = "insecure-args"
	CodePassThrough     = "pass-env"
	CodeAllowedFile     = "allow-file"
	CodeDebug           = "debug"
	CodeGLIBCTooNew     = "glibc-too-new"
	CodeSyscallTraps    = "syscall-traps"
	CodeGconv           = "gconv"
	CodeLoaderEnv       = "loader-env"
	CodeRuntimeUnpinned = "runtime-unpinned"
	CodeInsecureSetting = "insecure-setting"
	CodeAVX512          = "avx512-clears-avx"
	CodeUnconfined      = "simulated"
)

func (s *Spec) find(code string, severity Severity, path, message string) {
	s.Findings = append(s.Findings, Finding{code, severity, path, message})
}
