// Package deploy writes what starts a confidential image: objects for Kubernetes, a Compose file, or a command line
// for Docker. Everything that follows from the image is taken from it; what does not is an option.
package deploy

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/release"
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
	*inspect.Converted
	Options
	sealed []string // paths of encrypted mounts that stay
	filled []string // those of directories for released files, which are empty at each start
	ports  []port   // that the image exposes
}

// Write returns the text of a deployment.
func Write(c *inspect.Converted, o Options) ([]byte, error) {
	w, err := prepare(c, o)
	if err != nil {
		return nil, err
	}
	write := map[Target]func() ([]byte, error){
		Docker: w.docker, Compose: w.compose, Intel: w.kubernetes, AKS: w.kubernetes, Alibaba: w.kubernetes,
	}[o.Target]
	if write == nil {
		return nil, fmt.Errorf("%w: there is no target %q, there is %v", ErrOption, o.Target, Targets)
	}
	text, err := write()
	if err == nil && c.Simulated() {
		text = append([]byte("# "+inspect.SimulatedNotice+".\n"), text...)
	}
	if e := c.Encrypted; err == nil && e != nil {
		text = append([]byte(encryptedNotice(c)), text...)
	}
	if c.Agent != nil && err == nil {
		text = append([]byte(agentNotice(c.Agent)), text...)
	}
	return text, err
}

// encryptedNotice says what starting an image with encrypted files needs, as comments.
func encryptedNotice(c *inspect.Converted) string {
	e := c.Encrypted
	brings := fmt.Sprintf("must be written to\n# /dev/attestation/keys/%s in the enclave.", e.Key)
	if c.Agent != nil && slices.Contains(c.Agent.Want, release.Slot{Kind: release.KindKey, Name: e.Key}) {
		brings = "is among the secrets."
	}
	return fmt.Sprintf("# The image has %d encrypted files. Their key, of the id %s, %s\n"+
		"# The root file system must not be read-only: the library OS opens the files for writing, always, and up\n"+
		"# to %s of them are copied into the container's writable layer.\n",
		len(e.Files), e.KeyID, brings, binary(roundUp(e.Bytes())))
}

// agentNotice says what starting an image that gets secrets needs, as comments. What release.ParseConfig accepts has
// nothing in it that would end one.
func agentNotice(a *release.Config) string {
	text := "# Before the program starts, an agent gets its secrets, and ends with 125 if it gets none. It must\n" +
		"# reach one of\n"
	for _, from := range a.From() {
		text += "#   " + from + "\n"
	}
	if len(a.Dirs) > 0 {
		text += "# and write, encrypted, to " + strings.Join(a.Dirs, ", ") + ".\n"
	}
	return text
}

func roundUp(n int64) uint64 { return (uint64(n) + 1<<20 - 1) &^ (1<<20 - 1) }

var notInNames = regexp.MustCompile(`[^a-z0-9]+`)

func prepare(c *inspect.Converted, o Options) (*workload, error) {
	if o.Name == "" {
		name, _, _ := strings.Cut(o.Image[strings.LastIndexByte(o.Image, '/')+1:], "@")
		name, _, _ = strings.Cut(name, ":")
		o.Name = strings.Trim(notInNames.ReplaceAllString(strings.ToLower(name), "-"), "-")
	}
	if len(o.Name) > maxName {
		return nil, fmt.Errorf("%w: the name %q has %d characters, and %d are the most: give a shorter one with --name",
			ErrOption, o.Name, len(o.Name), maxName)
	}
	if !regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`).MatchString(o.Name) {
		return nil,
			fmt.Errorf("%w: the name %q must be lower-case letters, digits and hyphens: give one", ErrOption, o.Name)
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
	if err := o.fit(); err != nil {
		return nil, err
	}
	w := &workload{Converted: c, Options: o}
	if c.Agent != nil {
		w.filled = c.Agent.Dirs
	}
	for _, m := range c.Program.Mounts {
		if slices.Contains(w.filled, m.Path) {
			continue
		}
		if m.Type == "encrypted" && (c.Encrypted == nil || m.Key != c.Encrypted.Key) { // else the image has the files
			if !utf8.ValidString(m.Path) ||
				strings.ContainsFunc(m.Path, func(c rune) bool { return !unicode.IsPrint(c) }) {
				return nil, fmt.Errorf("%w: the path %q of a volume has characters that cannot be printed", ErrOption,
					m.Path)
			}
			w.sealed = append(w.sealed, m.Path)
		}
	}
	if err := w.readPorts(); err != nil {
		return nil, err
	}
	if !w.root() && o.DeviceGroup == nil && !o.Direct && !c.Simulated() {
		return nil, fmt.Errorf("%w: the image runs as %q, who must be in the group that may open %s on the nodes: "+
			"name it by its number", ErrOption, c.User, enclaveDevice)
	}
	return w, nil
}

// root reports whether the image's user is.
func (w *workload) root() bool { return w.Program.UID == 0 }

// quotes reports whether the program can ask for quotes.
func (w *workload) quotes() bool {
	return !w.Simulated() && w.Recipe != nil && w.Recipe.Options.Attestation == "dcap"
}

// epc is the memory of all enclaves of a container, in bytes.
func (w *workload) epc() uint64 { return uint64(w.Processes) * w.Enclave.EnclaveSize }

// fit refuses options that the target cannot express.
func (o Options) fit() error {
	kubernetes := o.Target != Docker && o.Target != Compose
	for _, c := range []struct {
		given bool
		what  string
		fits  bool
	}{
		{o.Direct, "direct mode", o.Target == Docker},
		{o.LegacyEPC, "the resource of old clusters", o.Target == AKS},
		{o.Replicas > 1, "more than one container", o.Target != Docker},
		{o.Processes > 1, "a number of processes", kubernetes},
		{o.Namespace != "", "a namespace", kubernetes},
	} {
		if c.given && !c.fits {
			return fmt.Errorf("%w: %s has no meaning for the target %s", ErrOption, c.what, o.Target)
		}
	}
	return nil
}

type port struct {
	number   int32
	protocol string
}

// maxPorts is how many ports of ranges are written.
const maxPorts = 1000

// readPorts reads the ports that the image exposes (OCI image specification, "config.ExposedPorts"), ranges
// included, and sorts them.
func (w *workload) readPorts() error {
	for _, p := range w.Ports {
		numbers, protocol, _ := strings.Cut(p, "/")
		protocol = cmp.Or(strings.ToLower(protocol), "tcp")
		low, high, ranged := strings.Cut(numbers, "-")
		if !ranged {
			high = low
		}
		from, err1 := strconv.ParseUint(low, 10, 16)
		to, err2 := strconv.ParseUint(high, 10, 16)
		if err1 != nil || err2 != nil || from == 0 || to < from ||
			!slices.Contains([]string{"tcp", "udp", "sctp"}, protocol) {
			return fmt.Errorf("%w: the image exposes %q, which is no port", ErrOption, p)
		}
		for n := from; n <= to; n++ {
			if len(w.ports) == maxPorts {
				return fmt.Errorf("%w: the image exposes more than %d ports", ErrOption, maxPorts)
			}
			w.ports = append(w.ports, port{int32(n), protocol})
		}
	}
	slices.SortFunc(w.ports, func(a, b port) int {
		return cmp.Or(cmp.Compare(a.number, b.number), cmp.Compare(a.protocol, b.protocol))
	})
	w.ports = slices.Compact(w.ports)
	return nil
}

// maxName leaves room in a label for what Kubernetes adds to a deployment's name.
const maxName = 52

// maxLabel is the length of a name in Kubernetes (RFC 1123, "label").
const maxLabel = 63

// checked reports whether the image has a health check. Its command would run outside the enclave, where it sees
// nothing of the program: engines are told to leave it, and Kubernetes probes the port as often instead.
func (w *workload) checked() bool {
	return w.Health != nil && len(w.Health.Test) > 0 && w.Health.Test[0] != "NONE"
}

// volumeName names the volume of an encrypted mount. If the path does not make a name by itself, a part of its
// digest does.
func (w *workload) volumeName(path string) string {
	readable := strings.Trim(notInNames.ReplaceAllString(path, "-"), "-")
	name := w.Name + "-" + readable
	if "/"+strings.ReplaceAll(readable, "-", "/") == path && len(name) <= maxLabel {
		return name
	}
	sum := sha256.Sum256([]byte(path))
	suffix := hex.EncodeToString(sum[:4])
	return strings.TrimRight(name[:min(len(name), maxLabel-len(suffix)-1)], "-") + "-" + suffix
}
