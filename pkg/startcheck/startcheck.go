// Package startcheck finds out, on a machine without SGX, whether a CPU would start an enclave. It runs the
// loader that builds the enclave, and only that, as the image's configuration starts it, in namespaces of its
// own over the given files. It stands in for the kernel's SGX driver: it hashes each page that the loader adds, and
// when the loader asks for EINIT it does what the CPU would do with the SIGSTRUCT. Nothing is ever executed in an
// enclave.
//
// The loader is untrusted code. It has no network, no capabilities, no files but the given ones and, to read, the
// kernel's in /proc and of the processors in /sys. It inherits no descriptor and no key, can make no process and no
// namespace, and may use some eighty system calls. Memory, files and time are limited; if the caller is root, it is
// nobody. It still runs on this machine's kernel, so a caller must be asked for it.
//
// It needs Linux 5.14 on x86-64 with user namespaces, and a main function that begins with reexec.Init of
// github.com/moby/sys.
package startcheck

import (
	"errors"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/cconvert/cconvert/pkg/sgx"
)

// ErrUnsupported says that this machine cannot run the check.
var ErrUnsupported = errors.New("checking a start is not possible here")

// Lacks returns what the SGX loader of Gramine needs of a processor and this machine has not, by the name that
// /proc/cpuinfo has for it; empty if nothing is known to be missing. The kernel leaves out what it does not let
// programs use.
func Lacks() string {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	return lacks(string(info))
}

func lacks(cpuinfo string) string {
	for line := range strings.Lines(cpuinfo) {
		name, flags, _ := strings.Cut(line, ":")
		if strings.TrimSpace(name) == "flags" && !slices.Contains(strings.Fields(flags), fsgsbase) {
			return fsgsbase
		}
	}
	return ""
}

// fsgsbase are the instructions by which a loader sets the base of FS and GS without the kernel.
const fsgsbase = "fsgsbase"

// File is a file that the loader can open.
type File struct {
	Content    []byte
	Executable bool
}

// Command is what starts the enclave.
type Command struct {
	// Files by their absolute, clean path. There is nothing else but /proc, /sys and a few devices.
	Files map[string]File
	// Argv begins with the loader's path.
	Argv, Env []string
	// Timeout ends a loader that does not ask for EINIT; 0: a minute.
	Timeout time.Duration
}

// Result is what the loader did.
type Result struct {
	// Reached says that it asked for EINIT.
	Reached bool `json:"reached"`
	// Refused are the reasons for which a CPU would refuse; none if it would start the enclave.
	Refused   []string        `json:"refused"`
	MREnclave sgx.Measurement `json:"mr_enclave"` // of the pages that were added
	// Signed is the MRENCLAVE in the SIGSTRUCT.
	Signed sgx.Measurement `json:"signed_mr_enclave"`
	// SigStruct is what the loader gave to EINIT.
	SigStruct     []byte `json:"-"`
	Size          uint64 `json:"enclave_size"`
	Pages         uint64 `json:"pages"`
	MeasuredPages uint64 `json:"measured_pages"`
	// Output is the end of what the loader printed.
	Output string `json:"output,omitempty"`
}

// Accepted says that a CPU with the demanded features would start the enclave.
func (r *Result) Accepted() bool { return r.Reached && len(r.Refused) == 0 }

// defaultTimeout is long: adding the pages of an enclave of 64 GiB takes seconds.
const defaultTimeout = time.Minute
