// Package deploy writes what starts a confidential image: objects for Kubernetes, a Compose file, or a command line
// for Docker. Everything that follows from the image is taken from it; what does not is an option.
package deploy

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/cconvert/cconvert/pkg/verify"
)

// Target is where an image is to run.
type Target string

// Targets.
const (
	Intel   Target = "intel"   // Kubernetes with Intel's device plugin
	AKS     Target = "aks"     // Azure Kubernetes Service with the add-on confcom
	Alibaba Target = "alibaba" // Alibaba Cloud's ACK for confidential computing
	Docker  Target = "docker"  // a command line
	Compose Target = "compose" // a Compose file
)

// Targets are those that Write knows.
var Targets = []Target{Intel, AKS, Alibaba, Docker, Compose}

// Options are what an image does not say.
type Options struct {
	Target Target
	// Image is the reference to start; by digest, so that it is what was looked at.
	Image string
	// Name of the deployment; empty: from the image's name.
	Name      string
	Namespace string
	Replicas  int32 // 0: 1
	// Processes is how many enclaves a container has at a time, the program's own included; 0: 1.
	Processes int
	// DeviceGroup is the number of the group that may open the SGX device on the nodes; needed for images whose user is
	// not root.
	DeviceGroup *int64
	// Storage is the size of a volume for encrypted files, in the notation of Kubernetes; empty: 1Gi.
	Storage string
	// Direct starts the image in Gramine's direct mode, without SGX, where it can be tried; for Docker only.
	Direct bool
	// LegacyEPC has AKS clusters of old get their own resource.
	LegacyEPC bool
}

// ErrOption says that an option is missing or wrong.
var ErrOption = errors.New("not a deployment")

// Devices and files of an SGX machine.
const (
	enclaveDevice   = "/dev/sgx_enclave"
	provisionDevice = "/dev/sgx_provision"
	aesmDir         = "/var/run/aesmd"
)

// workload is what is common to all targets.
type workload struct {
	*verify.Converted
	Options
	sealed []string // paths of encrypted mounts
}

// Write gives the text of a deployment.
func Write(c *verify.Converted, o Options) ([]byte, error) {
	w, err := prepare(c, o)
	if err != nil {
		return nil, err
	}
	switch o.Target {
	case Docker:
		return w.docker()
	case Compose:
		return w.compose()
	case Intel, AKS, Alibaba:
		return w.kubernetes()
	}
	return nil, fmt.Errorf("%w: there is no target %q, there is %v", ErrOption, o.Target, Targets)
}

var notInNames = regexp.MustCompile(`[^a-z0-9]+`)

func prepare(c *verify.Converted, o Options) (*workload, error) {
	if o.Name == "" {
		name, _, _ := strings.Cut(o.Image[strings.LastIndexByte(o.Image, '/')+1:], "@")
		name, _, _ = strings.Cut(name, ":")
		o.Name = strings.Trim(notInNames.ReplaceAllString(strings.ToLower(name), "-"), "-")
	}
	if !regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,50}[a-z0-9])?$`).MatchString(o.Name) {
		return nil, fmt.Errorf("%w: the name %q must be lower-case letters, digits and hyphens: give one", ErrOption, o.Name)
	}
	if o.Replicas == 0 {
		o.Replicas = 1
	}
	if o.Processes == 0 {
		o.Processes = 1
	}
	if o.Replicas < 0 || o.Processes < 0 {
		return nil, fmt.Errorf("%w: there cannot be less than no replicas and processes", ErrOption)
	}
	if o.Storage == "" {
		o.Storage = "1Gi"
	}
	w := &workload{Converted: c, Options: o}
	for _, m := range c.Program.Mounts {
		if m.Type == "encrypted" {
			w.sealed = append(w.sealed, m.Path)
		}
	}
	if !w.root() && o.DeviceGroup == nil && !o.Direct {
		return nil, fmt.Errorf("%w: the image runs as %q, who must be in the group that may open %s on the nodes: name it by its number", ErrOption, c.User, enclaveDevice)
	}
	return w, nil
}

// root says whether the image's user is.
func (w *workload) root() bool { return w.Program.UID == 0 }

// quotes says whether the program can ask for quotes.
func (w *workload) quotes() bool { return w.Recipe != nil && w.Recipe.Options.Attestation == "dcap" }

// epc is the memory of all enclaves of a container, in bytes.
func (w *workload) epc() uint64 { return uint64(w.Processes) * w.Enclave.EnclaveSize }

type port struct {
	number   int32
	protocol string
}

// ports are those that the image exposes, sorted.
func (w *workload) ports() []port {
	var list []port
	for _, p := range w.Ports {
		number, protocol, _ := strings.Cut(p, "/")
		if n, err := strconv.ParseInt(number, 10, 32); err == nil && n > 0 && n < 1<<16 {
			if protocol == "" {
				protocol = "tcp"
			}
			list = append(list, port{int32(n), protocol})
		}
	}
	slices.SortFunc(list, func(a, b port) int { return int(a.number) - int(b.number) })
	return list
}

// volumeName names the volume of an encrypted mount.
func (w *workload) volumeName(path string) string {
	return w.Name + "-" + strings.Trim(notInNames.ReplaceAllString(strings.ToLower(path), "-"), "-")
}
