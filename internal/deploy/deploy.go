// Package deploy writes what starts a confidential image: objects for Kubernetes, a Compose file, or a command line
// for Docker. Everything that follows from the image is taken from it; what does not is an option.
package deploy

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/profile"
	"github.com/cconvert/cconvert/pkg/reach"
	"github.com/cconvert/cconvert/pkg/release"
	"github.com/cconvert/cconvert/pkg/sgx"
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

// ParseTarget returns the target of a name. Kubernetes without more is that with Intel's device plugin.
func ParseTarget(name string) Target {
	if name == "kubernetes" || name == "k8s" {
		return Intel
	}
	return Target(name)
}

// Options are what an image does not say.
type Options struct {
	Target Target
	// Image is the reference to start; by digest, so that it is what was looked at. If Local is set it is the name of
	// an image that the Docker daemon of this machine has, which no registry is asked for.
	Image string
	Local bool
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
	// CPU and Memory are what a container asks Kubernetes for, in its notation; empty: 250m, and 128Mi for each
	// process. The enclaves' memory is not among it: that is a resource of its own.
	CPU, Memory string
	// PullSecrets are the names of the secrets with which Kubernetes fetches the image.
	PullSecrets []string
	// By is the command that writes the deployment, for the first line of it; empty: nobody is named.
	By string
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
	sealed   []string           // paths of encrypted mounts that stay
	filled   []string           // those of directories for released files, which are empty at each start
	ports    []port             // that the image exposes
	profiles []*profile.Profile // of what is started
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
		return nil, fmt.Errorf("%w: there is no target %q; of Kubernetes there is %s, %s and %s, and else %s and %s",
			ErrOption, o.Target, Intel, AKS, Alibaba, Docker, Compose)
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
	if err == nil {
		text = append([]byte(w.header()), text...)
	}
	return text, err
}

// header says what was written of what by whom, as comments.
func (w *workload) header() string {
	if w.By == "" {
		return ""
	}
	text := "# Written by \"" + w.By + "\".\n"
	if w.measured() {
		text += "# MRENCLAVE " + w.MREnclave.String() + "\n"
	}
	return text
}

// measured reports whether the image has a measurement that a CPU will report.
func (w *workload) measured() bool { return !w.Simulated() && w.MREnclave != sgx.Measurement{} }

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

// nameOf makes a name for Kubernetes of a text: that of a Service begins with a letter (RFC 1035, "label").
func nameOf(text string) string {
	name := strings.Trim(notInNames.ReplaceAllString(strings.ToLower(text), "-"), "-")
	if name != "" && unicode.IsDigit(rune(name[0])) {
		name = "app-" + name
	}
	return name
}

func prepare(c *inspect.Converted, o Options) (*workload, error) {
	if o.Name == "" {
		name, _, _ := strings.Cut(o.Image[strings.LastIndexByte(o.Image, '/')+1:], "@")
		name, _, _ = strings.Cut(name, ":")
		o.Name = nameOf(name)
	}
	if len(o.Name) > maxName {
		return nil, fmt.Errorf("%w: the name %q has %d characters, and %d are the most: give a shorter one with --name",
			ErrOption, o.Name, len(o.Name), maxName)
	}
	if !regexp.MustCompile(`^[a-z]([-a-z0-9]*[a-z0-9])?$`).MatchString(o.Name) {
		return nil,
			fmt.Errorf("%w: the name %q must be lower-case letters, digits and hyphens, with a letter first: give one "+
				"with --name", ErrOption, o.Name)
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
	for _, s := range []struct{ what, size string }{
		{"of a volume", o.Storage}, {"of CPU", o.CPU}, {"of memory", o.Memory},
	} {
		if s.size != "" && !quantity.MatchString(s.size) {
			return nil, fmt.Errorf("%w: the size %q %s is not one such as 5Gi or 250m", ErrOption, s.size, s.what)
		}
	}
	w := &workload{Converted: c, Options: o, profiles: profilesOf(c)}
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
			"give its number with --device-group (\"stat -c %%g %s\" on a node prints it)", ErrOption, c.User,
			enclaveDevice, enclaveDevice)
	}
	return w, nil
}

// root reports whether the image's user is.
func (w *workload) root() bool { return w.Program.UID == 0 }

// profilesOf returns the profiles of the programs that an image starts, by their names, and of those that its scripts
// name.
func profilesOf(c *inspect.Converted) []*profile.Profile {
	var list []*profile.Profile
	if c.Recipe != nil && c.Recipe.Options.Profile != "" {
		p := profile.Find(c.Recipe.Options.Profile)
		if text := c.Recipe.Options.ProfileText; text != "" {
			p, _ = profile.Parse(c.Recipe.Options.Profile, []byte(text)) // a conversion took it
		}
		if p != nil {
			list = append(list, p)
		}
	}
	words := append([]string{c.Program.Entrypoint}, c.Program.Argv...)
	for _, f := range c.Trusted {
		if f.Reason == string(reach.Program) || f.Reason == string(reach.Named) {
			words = append(words, f.URI)
		}
	}
	var programs []profile.Program
	for _, word := range words {
		programs = append(programs, profile.Program{Names: []string{path.Base(word)}})
	}
	for _, p := range profile.Matching(programs) {
		if !slices.Contains(list, p) {
			list = append(list, p)
		}
	}
	return list
}

// capabilities are those that the start needs, sorted. Ports below 1024 are the host's to give.
func (w *workload) capabilities() []string {
	var list []string
	if w.lowPort() {
		list = append(list, "NET_BIND_SERVICE")
	}
	if w.root() {
		for _, p := range w.profiles {
			list = append(list, p.Host.Capabilities...)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

func (w *workload) lowPort() bool {
	return slices.ContainsFunc(w.ports, func(p port) bool { return p.number < 1024 })
}

// writesImage reports whether something is written to the image's own files.
func (w *workload) writesImage() bool {
	outside := func(file string) bool {
		return !slices.ContainsFunc(slices.Concat(w.sealed, w.filled), func(dir string) bool {
			return file == dir || strings.HasPrefix(file, strings.TrimSuffix(dir, "/")+"/")
		})
	}
	return w.Encrypted != nil || w.Layout != inspect.LayoutOurs || slices.ContainsFunc(w.allowed(), outside)
}

// allowed are the paths that the program may use without protection.
func (w *workload) allowed() (paths []string) {
	for _, uri := range w.AllowedFiles {
		if p, ok := strings.CutPrefix(uri, "file:"); ok {
			paths = append(paths, p)
		}
	}
	return paths
}

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
		{o.Local, "an image that only the Docker daemon of this machine has", !kubernetes},
		{o.Direct, "direct mode", o.Target == Docker},
		{o.LegacyEPC, "the resource of old clusters", o.Target == AKS},
		{o.Replicas > 1, "more than one container", o.Target != Docker},
		{o.Processes > 1, "a number of processes", kubernetes},
		{o.Namespace != "", "a namespace", kubernetes},
		{o.CPU+o.Memory != "", "a request of CPU or memory", kubernetes},
		{len(o.PullSecrets) > 0, "a secret to fetch the image with", kubernetes},
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
