package gramine

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/libos/gramine/enclave"
	"github.com/cconvert/cconvert/pkg/manifest"
	"github.com/cconvert/cconvert/pkg/reach"
	"github.com/cconvert/cconvert/pkg/release"
	"github.com/cconvert/cconvert/pkg/rootfs"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// Layers are the runtime's and the enclave's.
func (Backend) Layers() int { return 2 }

// embedded has the agent, if make has put it there.
//
//go:embed all:embedded
var embedded embed.FS

// Agent is cmd/cconvert-agent.
func (Backend) Agent() ([]byte, error) { return libos.EmbeddedAgent(embedded) }

// CheckOverlay reports what is wrong with a user's manifest.
func (Backend) CheckOverlay(name, text string) error {
	_, err := manifest.ParseOverlay(name, []byte(text))
	return err
}

// StartSeconds predicts how long Gramine reads a list of so many trusted files: it takes each into an array that it
// copies, and looks for duplicates from the front. The figures fit what was measured with Gramine v1.9 without SGX,
// between 0.04 s for none and 5.1 s for 17,988; under SGX the list is read twice.
func (Backend) StartSeconds(files int) float64 {
	n := float64(files)
	return 0.04 + 1.55e-4*n + 6e-9*n*n
}

// Seal makes the manifest of a specification for this runtime, and the enclave that it starts.
func (Backend) Seal(_ context.Context, in libos.Input) (*libos.Sealed, error) {
	r := theRuntime
	r.Prepare = func(m *manifest.Manifest, s *libos.Sealed) { libC{in, m, s}.choose() }
	return r.Seal(in)
}

var theRuntime = Runtime{Loader: loaderPath, PAL: palPath, LibOS: libosPath}

// Runtime is something that starts programs from Gramine's manifests in an enclave of Gramine's layout.
type Runtime struct {
	// Loader is the program that builds the enclave, PAL the enclave image that it loads, and LibOS what the
	// enclave image loads first.
	Loader, PAL, LibOS string
	// Prepare adds to the manifest what is the runtime's own.
	Prepare func(*manifest.Manifest, *libos.Sealed)
}

// Start is the command that starts an enclave, without arguments that the host chooses.
func (r Runtime) Start() []string { return []string{r.Loader, r.PAL, "init", libos.App} }

// hosts is what /etc/hosts says in the enclave: the one on the host is written by the container engine.
const hosts = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"

// Seal makes the manifest and lays out the enclave.
func (r Runtime) Seal(in libos.Input) (*libos.Sealed, error) {
	out := &libos.Sealed{Findings: slices.Concat(in.Spec.Findings, in.Enclave.Findings())}
	m, err := manifest.New(in.Spec, in.Enclave)
	if err != nil {
		return nil, err
	}
	m.Section("loader")["entrypoint"] = manifest.Table{
		"uri": "file:" + r.LibOS, "sha256": hexSum(in.Bundle.Files[r.LibOS].SHA256),
	}
	m.AddMounts(manifest.Table{"path": "/etc/hosts", "uri": "file:" + libos.HostsPath})
	own := []libos.File{{Path: libos.HostsPath, Mode: 0o644, Content: []byte(hosts)}}
	if e := in.Encrypted; e != nil {
		own = append(own, libos.File{Path: libos.EncryptedPath, Mode: 0o644, Content: e.List})
		if e.KeyName != "" {
			m.Section("fs")[insecureKeys] = manifest.Table{e.KeyName: hex.EncodeToString(e.Key[:])}
			out.Findings = append(out.Findings, finding.New(finding.InsecureKey, finding.Warning, e.KeyName,
				"the key to the encrypted files is in the manifest, for everybody to read: nothing is confidential"))
		}
	}
	if c := in.Spec.Agent; c != nil {
		text, err := c.Marshal()
		if err != nil {
			return nil, err
		}
		own = append(own, libos.File{Path: libos.AgentConfigPath, Mode: 0o644, Content: text})
		m.Section("libos")["entrypoint"] = libos.AgentPath
		m.Trusted = append([]manifest.TrustedFile{trusted(libos.AgentPath, in.Agent.SHA256)}, m.Trusted...)
	}
	for _, s := range in.Spec.Starters {
		own = append(own, libos.File{Path: s.Path, Mode: 0o755, Content: []byte(s.Text())})
	}
	var listed []manifest.TrustedFile
	for _, f := range own {
		listed = append(listed, trusted(f.Path, sha256.Sum256(f.Content)))
	}
	m.Trusted = append(listed, m.Trusted...)
	if r.Prepare != nil {
		r.Prepare(m, out)
	}
	asked := m.Weaknesses() // which the specification's findings speak of
	var overlay *manifest.Overlay
	if in.Overlay != "" {
		if overlay, err = manifest.ParseOverlay("the user's manifest", []byte(in.Overlay)); err != nil {
			return nil, err
		}
		m.Merge(overlay)
		if err := completeTrusted(m, in.Tree); err != nil {
			return nil, err
		}
		m.DropRepeated()
	}
	if err := normalise(m); err != nil {
		return nil, err
	}
	if err := m.Check(); err != nil {
		return nil, err
	}
	if f := overlay.Features(); f["avx"] == "required" && f["avx512"] == "disabled" {
		out.Findings = append(out.Findings, finding.New(finding.AVX512, finding.Warning, "sgx.cpu_features",
			"disabling avx512 disables avx as well, although it is required: they share a bit"))
	}
	for _, setting := range m.Weaknesses() {
		if slices.Contains(asked, setting) {
			continue
		}
		out.Findings = append(out.Findings,
			finding.New(finding.InsecureSetting, finding.Warning, setting, "this setting weakens the enclave"))
	}
	if out.Manifest, err = m.Render(); err != nil {
		return nil, err
	}
	g, err := enclave.GeometryOf(in.Bundle.Layout)
	if err != nil {
		return nil, err
	}
	// Without the trusted files, of which there can be very many.
	text, err := (&manifest.Manifest{Table: m.Table}).Render()
	if err != nil {
		return nil, err
	}
	settings, err := enclave.ReadSettings(text)
	if err != nil {
		return nil, err
	}
	pal, err := in.Bundle.Content(r.PAL)
	if err != nil {
		return nil, err
	}
	e, err := g.Enclave(pal, out.Manifest, settings)
	if err != nil {
		return nil, err
	}
	out.Layout, out.Settings, out.Entrypoint = e.Layout, e.SGX, r.Start()
	if err := checkAgent(in.Spec.Agent, m, out.Manifest); err != nil {
		return nil, err
	}
	for _, f := range m.Trusted {
		out.Trusted = append(out.Trusted, f.Why)
	}
	out.SigStruct = e.SigStruct(sgx.Measurement{}, in.Date)
	out.Files = append([]libos.File{
		{Path: libos.ManifestPath, Mode: 0o644, Content: out.Manifest},
		// The loader of direct mode looks for another suffix.
		{Path: libos.App + ".manifest", Link: path.Base(libos.ManifestPath)},
	}, own...)
	if c := in.Spec.Agent; c != nil {
		for _, dir := range c.Dirs {
			out.Files = append(out.Files, libos.File{
				Path: dir, Dir: true, Mode: secretsMode, UID: int(in.Spec.UID), GID: int(in.Spec.GID),
			})
		}
	}
	return out, nil
}

// checkAgent reports a manifest in which an agent would not do what it is told, as a launch.OptionError: a user's own
// can have changed what the agent needs.
func checkAgent(c *release.Config, m *manifest.Manifest, text []byte) error {
	if c == nil {
		return nil
	}
	opened, err := readManifest("the manifest", text)
	if err != nil {
		return err
	}
	problems := libos.AgentProblems(c, opened.Enclave)
	if m.Section("sgx")["remote_attestation"] != "dcap" {
		problems = append(problems, "sgx.remote_attestation is not dcap")
	}
	if len(problems) > 0 {
		return &launch.OptionError{
			Option: "secrets", Why: "with these options the agent cannot keep them: " + strings.Join(problems, "; "),
		}
	}
	return nil
}

// secretsMode is that of directories for released files. Clusters that start images as users of their own have them in
// the group of the image's.
const secretsMode = 0o770

// insecureKeys is the table of keys in the "fs" section of a manifest (Gramine, "Manifest syntax", "Encrypted files").
const insecureKeys = "insecure__keys"

// trusted is the entry of a file that the runtime brings.
func trusted(p string, sum [sha256.Size]byte) manifest.TrustedFile {
	return manifest.TrustedFile{
		URI: "file:" + p, SHA256: sum, Known: true, Why: reach.File{Reason: manifest.ReasonRuntime},
	}
}

func hexSum(sum [sha256.Size]byte) string { return hex.EncodeToString(sum[:]) }

// normalise writes the sizes as the loader reads them: in decimal.
func normalise(m *manifest.Manifest) error {
	section := m.Section("sgx")
	if s, ok := section["enclave_size"].(string); ok {
		n, err := enclave.ParseSize(s)
		if err != nil {
			return fmt.Errorf("sgx.enclave_size: %w", err)
		}
		section["enclave_size"] = enclave.FormatSize(n)
	}
	// What the host may change cannot have a digest as well.
	if allowed, _ := section["allowed_files"].([]any); len(allowed) > 0 {
		changeable := map[any]bool{}
		for _, uri := range allowed {
			if s, ok := uri.(string); ok {
				changeable[s] = true
			}
		}
		m.Trusted = slices.DeleteFunc(m.Trusted, func(f manifest.TrustedFile) bool { return changeable[f.URI] })
	}
	return nil
}

// completeTrusted finds the digests of the files that an overlay names without them.
func completeTrusted(m *manifest.Manifest, tree *rootfs.Tree) error {
	if !slices.ContainsFunc(m.Trusted, func(f manifest.TrustedFile) bool { return !f.Known }) {
		return nil
	}
	complete := make([]manifest.TrustedFile, 0, len(m.Trusted))
	for _, f := range m.Trusted {
		if f.Known {
			complete = append(complete, f)
			continue
		}
		p, ok := strings.CutPrefix(f.URI, "file:")
		if !ok || !path.IsAbs(p) {
			return fmt.Errorf("trusted file %q: it must be file: and an absolute path", f.URI)
		}
		n, _, err := tree.Resolve(p)
		if err != nil {
			return fmt.Errorf("trusted file %q: %w", f.URI, err)
		}
		switch {
		case n.Type == rootfs.Regular:
			complete = append(complete, manifest.TrustedFile{URI: f.URI, SHA256: n.SHA256, Known: true, Why: f.Why})
		case n.Type == rootfs.Dir && strings.HasSuffix(p, "/"):
			complete = append(complete, below(n, strings.TrimSuffix(f.URI, "/"), f.Why)...)
		default:
			return fmt.Errorf("trusted file %q: it is not a regular file; a directory is written with a slash at its "+
				"end", f.URI)
		}
	}
	m.Trusted = complete
	return nil
}

// below lists the regular files of a directory.
func below(dir *rootfs.Node, uri string, why reach.File) []manifest.TrustedFile {
	var files []manifest.TrustedFile
	for _, c := range dir.Children() {
		switch c.Type {
		case rootfs.Regular:
			files = append(files,
				manifest.TrustedFile{URI: uri + "/" + c.Name(), SHA256: c.SHA256, Known: true, Why: why})
		case rootfs.Dir:
			files = append(files, below(c, uri+"/"+c.Name(), why)...)
		}
	}
	return files
}
