package recipe

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// Labels of a converted image.
const (
	LabelBaseDigest = "org.opencontainers.image.base.digest"
	LabelEpoch      = "cconvert.epoch"
	LabelMREnclave  = "cconvert.mrenclave"
	LabelMRSigner   = "cconvert.mrsigner"
	// LabelIdentity is that of the conversion, see Recipe.Identity.
	LabelIdentity = "cconvert.identity"
)

// Label returns a label of an image; empty if there is none, or the configuration cannot be read.
func Label(img *image.Image, name string) string {
	var config struct {
		Config struct{ Labels map[string]string } `json:"config"`
	}
	if json.Unmarshal(img.Config, &config) != nil {
		return ""
	}
	return config.Config.Labels[name]
}

// IsResult reports whether an image says of itself that it is the result of a conversion.
func IsResult(img *image.Image) bool { return Label(img, LabelMREnclave) != "" }

// replaced are the keys of the configuration that a conversion sets, labels apart, to which it only adds.
var replaced = []string{"Cmd", "Entrypoint", "Env", "StopSignal"}

// readConfig splits an image's configuration into its keys, and those of what is about running it.
func readConfig(text []byte) (config, run map[string]json.RawMessage, err error) {
	if err := json.Unmarshal(text, &config); err != nil {
		return nil, nil, fmt.Errorf("reading the image's configuration: %w", err)
	}
	if raw, ok := config["config"]; ok {
		if err := json.Unmarshal(raw, &run); err != nil {
			return nil, nil, fmt.Errorf("reading the image's configuration: %w", err)
		}
	}
	if run == nil {
		run = map[string]json.RawMessage{}
	}
	return config, run, nil
}

// SteersLoader reports whether a variable, as NAME=VALUE, would act on the runtime's loader, which has other libraries
// than the image. Podman trims names, and takes all variables of the host that begin with what is before a "*" that
// ends a name without a value.
func SteersLoader(kv string) bool {
	name, _, valued := strings.Cut(kv, "=")
	name = strings.TrimSpace(name)
	if !valued && strings.HasSuffix(name, "*") {
		return true
	}
	// LD_LIBRARY_PATH does not act on it, and health checks need it.
	return strings.HasPrefix(name, "LD_") && name != "LD_LIBRARY_PATH" || name == "GLIBC_TUNABLES"
}

// runKeys are those of what is about running an image (OCI image specification, "Image Configuration"), and Docker's.
var runKeys = []string{
	"User", "ExposedPorts", "Env", "Entrypoint", "Cmd", "Volumes", "WorkingDir", "Labels", "StopSignal", "Healthcheck",
	"ArgsEscaped", "Memory", "MemorySwap", "CpuShares", "Shell", "OnBuild", "StopTimeout",
}

// Start is how an image starts.
type Start struct {
	Entrypoint, Cmd []string
	// Agent says that a layer of its own has an agent, over the runtime's.
	Agent bool
}

// Config returns the source's configuration with the start of the enclave in it, but for the labels. What is not about
// that stays to the letter, fields that nobody knows included. Recipe.sourceConfig is the way back.
func (s Start) Config(source []byte, added int) (map[string]json.RawMessage, error) {
	config, run, err := readConfig(source)
	if err != nil {
		return nil, err
	}
	if err := exactKeys(config, "config", "rootfs", "history", "created"); err != nil {
		return nil, err
	}
	if err := exactKeys(run, runKeys...); err != nil {
		return nil, err
	}
	if err := plainRootFS(config["rootfs"]); err != nil {
		return nil, err
	}
	named, err := readKey[[]*string](run, "Env")
	if err != nil {
		return nil, err
	}
	var env []string
	for _, kv := range named {
		if kv == nil {
			return nil, errors.New("the configuration has a variable that is null, which engines read differently")
		}
		env = append(env, *kv)
	}
	for _, set := range []struct {
		key   string
		value any
	}{
		{"Entrypoint", s.Entrypoint}, {"Cmd", s.Cmd}, {"StopSignal", "SIGTERM"},
		{"Env", slices.DeleteFunc(env, SteersLoader)},
	} {
		if run[set.key], err = json.Marshal(set.value); err != nil {
			return nil, err
		}
	}
	if config["config"], err = json.Marshal(run); err != nil {
		return nil, err
	}
	if raw, ok := config["history"]; ok {
		if config["history"], err = addHistory(raw, config["created"], s.layersBy(added)...); err != nil {
			return nil, err
		}
	}
	return config, nil
}

// plainRootFS refuses layers of a configuration that are not said as the specification has it (OCI image specification,
// "Image Configuration"): they are written anew, and what else is there would be lost.
func plainRootFS(raw json.RawMessage) error {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil {
		return fmt.Errorf("reading the configuration's rootfs: %w", err)
	}
	for key, value := range fields {
		if key != "diff_ids" && (key != "type" || string(value) != `"layers"`) {
			return fmt.Errorf("the configuration's rootfs has %.100s: %.100s, which is not of the OCI image "+
				"specification", key, value)
		}
	}
	return nil
}

// Label adds to a configuration what is said of the enclave.
func (r Recipe) Label(config map[string]json.RawMessage, s *sgx.SigStruct) error {
	var run map[string]json.RawMessage
	if err := json.Unmarshal(config["config"], &run); err != nil {
		return fmt.Errorf("reading the image's configuration: %w", err)
	}
	if err := exactKeys(run, "Labels"); err != nil {
		return err
	}
	labels, err := readKey[map[string]string](run, "Labels")
	if err != nil {
		return err
	}
	if labels == nil {
		labels = map[string]string{}
	}
	labels[LabelBaseDigest], labels[LabelEpoch] = r.Source, fmt.Sprint(r.Epoch)
	labels[LabelMREnclave], labels[LabelIdentity] = s.MREnclave.String(), r.Identity(s.MRSigner())
	if key, _ := s.Signature(); key != nil {
		labels[LabelMRSigner] = s.MRSigner().String()
	}
	if run["Labels"], err = json.Marshal(labels); err != nil {
		return err
	}
	config["config"], err = json.Marshal(run)
	return err
}

// readKey reads a key of what a configuration says of running the image; the zero value if it is not there.
func readKey[T any](run map[string]json.RawMessage, name string) (value T, err error) {
	if raw, ok := run[name]; ok {
		if err := json.Unmarshal(raw, &value); err != nil {
			return value, fmt.Errorf("reading %s in the image's configuration: %w", name, err)
		}
	}
	return value, nil
}

// WithoutTop returns the configuration of an image without its topmost layer.
func WithoutTop(output []byte, layers int) (map[string]json.RawMessage, error) {
	config, run, err := readConfig(output)
	if err != nil {
		return nil, err
	}
	var rootfs v1.RootFS
	if err := json.Unmarshal(config["rootfs"], &rootfs); err != nil {
		return nil, fmt.Errorf("reading the configuration's rootfs: %w", err)
	}
	if len(rootfs.DiffIDs) != layers || layers == 0 {
		return nil, fmt.Errorf("the configuration lists %d layers, the manifest %d", len(rootfs.DiffIDs), layers)
	}
	rootfs.DiffIDs = rootfs.DiffIDs[:layers-1]
	if config["rootfs"], err = json.Marshal(rootfs); err != nil {
		return nil, err
	}
	config["config"], err = json.Marshal(run)
	return config, err
}

// exactKeys refuses keys that differ from a known one in upper and lower case alone. Some readers of
// JSON take them for the same, so that what was set under the right name could be overruled.
func exactKeys(m map[string]json.RawMessage, known ...string) error {
	for k := range m {
		for _, name := range known {
			if k != name && strings.EqualFold(k, name) {
				return fmt.Errorf("the image's configuration has the key %q, which must be %q", k, name)
			}
		}
	}
	return nil
}

// WithEncrypted notes in the history of a configuration that a layer with encrypted files was added.
func WithEncrypted(config []byte) ([]byte, error) {
	var c map[string]json.RawMessage
	if err := json.Unmarshal(config, &c); err != nil {
		return nil, fmt.Errorf("reading the image's configuration: %w", err)
	}
	raw, ok := c["history"]
	if !ok {
		return config, nil
	}
	var err error
	if c["history"], err = addHistory(raw, c["created"], "cconvert: encrypted files"); err != nil {
		return nil, err
	}
	return json.Marshal(c)
}

// addHistory notes the new layers, at the time of the source's creation: there is no clock here.
func addHistory(raw, created json.RawMessage, added ...string) (json.RawMessage, error) {
	var history []json.RawMessage
	if err := json.Unmarshal(raw, &history); err != nil {
		return nil, fmt.Errorf("reading the history in the image's configuration: %w", err)
	}
	if len(history) == 0 {
		return raw, nil // none is kept: it would have to be of every layer
	}
	for _, by := range added {
		entry := map[string]any{"created_by": by}
		if created != nil {
			entry["created"] = created
		}
		b, err := json.Marshal(entry)
		if err != nil {
			return nil, err
		}
		history = append(history, b)
	}
	return json.Marshal(history)
}

// layersBy are what the history says of so many new layers: the runtime's comes first, the enclave's last.
func (s Start) layersBy(added int) []string {
	by := slices.Repeat([]string{"cconvert: contents"}, added)
	if s.Agent {
		by[1] = "cconvert: agent"
	}
	by[0], by[added-1] = "cconvert: runtime", "cconvert: enclave"
	return by
}

// SourceConfig returns the configuration that a source must have had, as far as the output with so many added layers
// tells: what a label of the output has replaced is taken from the source.
func (r Recipe) SourceConfig(output, source []byte, added int) ([]byte, error) {
	was, err := r.ConfigBefore(output, added)
	if err != nil {
		return nil, err
	}
	config, run, err := readConfig(was)
	if err != nil {
		return nil, err
	}
	_, before, err := readConfig(source)
	if err != nil {
		return nil, err
	}
	labels, err := readKey[map[string]string](run, "Labels")
	if err != nil {
		return nil, err
	}
	if labels == nil {
		labels = map[string]string{}
	}
	old, err := readKey[map[string]string](before, "Labels")
	if err != nil {
		return nil, err
	}
	for _, label := range []string{LabelBaseDigest, LabelEpoch, LabelMREnclave, LabelMRSigner, LabelIdentity} {
		if v, ok := old[label]; ok {
			labels[label] = v
		} else {
			delete(labels, label)
		}
	}
	if run["Labels"], err = json.Marshal(labels); err != nil {
		return nil, err
	}
	if config["config"], err = json.Marshal(run); err != nil {
		return nil, err
	}
	return json.Marshal(config)
}

// ConfigBefore undoes what Start.Config did, but for labels, which are written anew.
func (r Recipe) ConfigBefore(output []byte, added int) ([]byte, error) {
	config, run, err := readConfig(output)
	if err != nil {
		return nil, err
	}
	for _, key := range replaced {
		if raw, ok := r.Replaced[key]; ok {
			run[key] = raw
		} else if key != "Env" {
			delete(run, key)
		}
	}
	if config["config"], err = json.Marshal(run); err != nil {
		return nil, err
	}
	if config["rootfs"], err = json.Marshal(map[string]any{"type": "layers", "diff_ids": r.DiffIDs}); err != nil {
		return nil, err
	}
	if raw, ok := config["history"]; ok {
		var history []json.RawMessage
		if err := json.Unmarshal(raw, &history); err != nil {
			return nil, fmt.Errorf("reading the history in the image's configuration: %w", err)
		}
		if config["history"], err = json.Marshal(history[:max(0, len(history)-added)]); err != nil {
			return nil, err
		}
	}
	return json.Marshal(config)
}
