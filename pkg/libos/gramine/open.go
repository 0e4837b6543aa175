package gramine

import (
	"fmt"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/libos/gramine/enclave"
	"github.com/cconvert/cconvert/pkg/manifest"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// Keep lists the manifest, and the files that it measures and that this package writes.
func (Backend) Keep() []string { return Keep() }

// Keep is that of all runtimes of Gramine's manifests.
func Keep() []string {
	return []string{
		libos.ManifestPath, libos.HostsPath, launch.StarterPath + "*", libos.EncryptedPath, libos.AgentConfigPath,
	}
}

// NewEnclave lays out the enclave that the newest known loader builds from an enclave image (libpal.so) and a manifest,
// which it checks first.
func NewEnclave(pal, manifestText []byte) (*enclave.Enclave, error) {
	if _, err := manifest.Parse(manifestText); err != nil {
		return nil, err
	}
	return enclave.New(enclave.Version, pal, manifestText)
}

// Open reads the enclave of an image that Seal has made.
func (Backend) Open(in libos.Stored) (*libos.Enclave, error) {
	e, err := theRuntime.Open(in)
	if err != nil {
		return nil, err
	}
	e.Direct = []string{directLoader, directPAL, "init", libos.App}
	return e, nil
}

// Open reads the manifest of an image and, if it is asked for, lays out the enclave.
func (r Runtime) Open(in libos.Stored) (*libos.Enclave, error) {
	text := in.Files[libos.ManifestPath]
	if text == nil {
		return nil, fmt.Errorf("%s is missing", libos.ManifestPath)
	}
	e, err := readManifest(libos.ManifestPath, text)
	if err != nil {
		return nil, err
	}
	e.Start = r.Start()
	e.layOut(in.Layout)
	if in.Read == nil || e.LayoutError != nil {
		return e.Enclave, nil
	}
	pal, err := in.Read(r.PAL)
	if err != nil {
		return nil, err
	}
	e.load(pal)
	return e.Enclave, nil
}

// opened is an enclave while it is read.
type opened struct {
	*libos.Enclave
	geometry enclave.Geometry
}

// layOut finds the version of the geometry, which decides on what is signed.
func (e *opened) layOut(version int) {
	if e.geometry, e.LayoutError = enclave.GeometryOf(version); e.LayoutError == nil {
		e.SigStruct = func(m sgx.Measurement, date sgx.Date) *sgx.SigStruct {
			return e.geometry.SigStruct(e.Settings, m, date)
		}
	}
}

// load adds the enclave image.
func (e *opened) load(pal []byte) {
	laidOut, err := e.geometry.Enclave(pal, e.Manifest, e.Settings)
	if err != nil {
		e.LayoutError, e.SigStruct = err, nil
		return
	}
	e.Layout = &laidOut.Layout
}

// readManifest reads what a manifest says. The name is for messages.
func readManifest(name string, text []byte) (*opened, error) {
	var m struct {
		LibOS struct {
			Entrypoint string `toml:"entrypoint"`
		} `toml:"libos"`
		Loader struct {
			Entrypoint any            `toml:"entrypoint"`
			Argv       []string       `toml:"argv"`
			Host       bool           `toml:"insecure__use_cmdline_argv"`
			Env        map[string]any `toml:"env"`
			UID        int            `toml:"uid"`
			GID        int            `toml:"gid"`
		} `toml:"loader"`
		FS struct {
			StartDir string        `toml:"start_dir"`
			Mounts   []libos.Mount `toml:"mounts"`
		} `toml:"fs"`
		SGX struct {
			Trusted []libos.FileEntry `toml:"trusted_files"`
			Allowed []string          `toml:"allowed_files"`
		} `toml:"sgx"`
	}
	whole, err := manifest.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if err := toml.Unmarshal(text, &m); err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	e := &libos.Enclave{
		Manifest: text, Weaknesses: whole.Weaknesses(), First: &libos.FileEntry{}, Table: map[string]any{},
	}
	if e.Settings, err = enclave.ReadSettings(text); err != nil {
		return nil, err
	}
	if err := toml.Unmarshal(text, &e.Table); err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	if section, ok := e.Table["sgx"].(map[string]any); ok { // too many to be one value
		delete(section, "trusted_files")
	}
	if e.Keys, err = keysIn(e.Table); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	switch first := m.Loader.Entrypoint.(type) {
	case string: // Gramine 1.7: the digest is among the trusted files
		e.First.URI = first
	case map[string]any:
		e.First.URI, _ = first["uri"].(string)
		e.First.SHA256, _ = first["sha256"].(string)
	}
	if place, ok := strings.CutPrefix(e.First.URI, "file:"+libos.Root+"/"); ok {
		e.Kind, _, _ = strings.Cut(place, "/")
	}
	e.Program = libos.Program{
		Entrypoint: m.LibOS.Entrypoint, Argv: m.Loader.Argv, HostArgs: m.Loader.Host, Env: m.Loader.Env,
		WorkDir: m.FS.StartDir, UID: m.Loader.UID, GID: m.Loader.GID, Mounts: m.FS.Mounts,
	}
	e.Trusted, e.Allowed = m.SGX.Trusted, m.SGX.Allowed
	return &opened{Enclave: e}, nil
}
