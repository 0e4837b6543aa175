package deploy

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"
)

// docker writes a command line for a shell.
func (w *workload) docker() ([]byte, error) {
	args := []string{"docker", "run", "--detach", "--name", w.Name}
	if w.Local {
		args = append(args, "--pull", "never")
	}
	if w.Direct {
		if w.LibOS == nil || w.LibOS.Direct == nil {
			return nil, fmt.Errorf("%w: only images with Gramine's runtime have a direct mode", ErrOption)
		}
		// Direct mode needs system calls that Docker's profile does not allow.
		args = append(args, "--security-opt", "seccomp=unconfined", "--entrypoint", w.LibOS.Direct[0])
	} else if !w.Simulated() {
		args = append(args, "--device", enclaveDevice)
		if w.quotes() {
			args = append(args, "--device", provisionDevice, "--volume", aesmDir+":"+aesmDir)
		}
		if !w.root() {
			args = append(args, "--group-add", strconv.FormatInt(*w.DeviceGroup, 10))
		}
	}
	if w.checked() {
		args = append(args, "--no-healthcheck")
	}
	for _, p := range w.ports {
		args = append(args, "--publish", fmt.Sprintf("%d:%d/%s", p.number, p.number, p.protocol))
	}
	for _, path := range w.sealed {
		args = append(args, "--volume", w.volumeName(path)+":"+path)
	}
	args = append(args, w.Options.Image)
	if w.Direct {
		args = append(args, w.LibOS.Direct[1:]...)
	}
	for i, a := range args {
		args[i] = quote(a)
	}
	return []byte(strings.Join(args, " ") + "\n"), nil
}

// plain is what a shell takes as it is.
var plain = regexp.MustCompile(`^[-_./:@=,+a-zA-Z0-9]+$`)

// quote makes one word for a shell of a text.
func quote(s string) string {
	if plain.MatchString(s) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// The parts of a Compose file (Compose specification, "Services top-level elements") that are needed here.
type (
	composeFile struct {
		Services map[string]composeService `json:"services"`
		Volumes  map[string]struct{}       `json:"volumes,omitempty"`
	}
	composeService struct {
		Image    string   `json:"image"`
		Pull     string   `json:"pull_policy,omitempty"`
		Devices  []string `json:"devices,omitempty"`
		GroupAdd []string `json:"group_add,omitempty"`
		Ports    []string `json:"ports,omitempty"`
		Volumes  []string `json:"volumes,omitempty"`
		Restart  string   `json:"restart"`
		Health   any      `json:"healthcheck,omitempty"`
		Deploy   any      `json:"deploy,omitempty"`
	}
)

// compose writes a Compose file.
func (w *workload) compose() ([]byte, error) {
	s := composeService{Image: w.Options.Image, Restart: "unless-stopped"}
	if w.Local {
		s.Pull = "never"
	}
	if !w.Simulated() {
		s.Devices = []string{enclaveDevice + ":" + enclaveDevice}
	}
	if w.quotes() {
		s.Devices = append(s.Devices, provisionDevice+":"+provisionDevice)
		s.Volumes = append(s.Volumes, aesmDir+":"+aesmDir)
	}
	if !w.root() && !w.Simulated() {
		s.GroupAdd = []string{strconv.FormatInt(*w.DeviceGroup, 10)}
	}
	for _, p := range w.ports {
		s.Ports = append(s.Ports, fmt.Sprintf("%d:%d/%s", p.number, p.number, p.protocol))
	}
	if w.checked() {
		s.Health = map[string]any{"disable": true}
	}
	f := composeFile{Volumes: map[string]struct{}{}}
	for _, path := range w.sealed {
		f.Volumes[w.volumeName(path)] = struct{}{}
		s.Volumes = append(s.Volumes, w.volumeName(path)+":"+path)
	}
	if w.Replicas > 1 {
		if len(s.Ports) > 0 {
			return nil, fmt.Errorf("%w: the image's ports are published under their own numbers, which two containers "+
				"on one machine cannot share", ErrOption)
		}
		s.Deploy = map[string]any{"replicas": w.Replicas}
	}
	f.Services = map[string]composeService{w.Name: s}
	return yaml.Marshal(f)
}
