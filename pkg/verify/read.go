// Package verify reads a converted image back: what it would start, with which identity.
package verify

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/pelletier/go-toml/v2"

	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/manifest"
	"github.com/cconvert/cconvert/pkg/rootfs"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// ErrNotConverted says that an image holds no enclave of ours.
var ErrNotConverted = errors.New("the image is not a converted one")

const maxEnclaveFile = 1 << 30

// Converted is what a converted image says of itself. Nothing of it is verified but the SIGSTRUCT's own
// consistency.
type Converted struct {
	Image     string          `json:"image"`
	Digest    string          `json:"digest"`
	Recipe    convert.Recipe  `json:"recipe"`
	SigStruct *sgx.SigStruct  `json:"-"`
	MREnclave sgx.Measurement `json:"mr_enclave"`
	MRSigner  sgx.Measurement `json:"mr_signer"`
	ISVProdID uint16          `json:"isv_prod_id"`
	ISVSVN    uint16          `json:"isv_svn"`
	Debug     bool            `json:"debug_enclave"`
	Date      string          `json:"date"`
	Enclave   manifest.SGX    `json:"enclave"`
	// SignatureError says what the CPU would find wrong with the SIGSTRUCT; empty if nothing.
	SignatureError string      `json:"signature_error,omitempty"`
	Program        Program     `json:"program"`
	Entrypoint     []string    `json:"entrypoint"`
	Weaknesses     []string    `json:"weaknesses"`
	ManifestBytes  int         `json:"manifest_bytes"`
	Manifest       []byte      `json:"-"`
	Trusted        []FileEntry `json:"-"`
	TrustedFiles   int         `json:"trusted_files"`
	AllowedFiles   []string    `json:"allowed_files,omitempty"`
}

// Program is what runs in the enclave.
type Program struct {
	Entrypoint string         `json:"entrypoint"`
	Argv       []string       `json:"argv"`
	HostArgs   bool           `json:"insecure_args"` // the host chooses the arguments
	Env        map[string]any `json:"env"`
	WorkDir    string         `json:"workdir"`
	UID        int            `json:"uid"`
	GID        int            `json:"gid"`
	Mounts     []Mount        `json:"mounts"`
}

// Mount is an entry of fs.mounts.
type Mount struct {
	Type string `json:"type,omitempty" toml:"type"`
	Path string `json:"path" toml:"path"`
	URI  string `json:"uri,omitempty" toml:"uri"`
	Key  string `json:"key,omitempty" toml:"key_name"`
}

// FileEntry is an entry of sgx.trusted_files.
type FileEntry struct {
	URI    string `json:"uri" toml:"uri"`
	SHA256 string `json:"sha256" toml:"sha256"`
	// Reason and Package are what the conversion said of it: nothing that was measured.
	Reason  string `json:"reason,omitempty" toml:"-"`
	Package string `json:"package,omitempty" toml:"-"`
}

// Read finds the enclave of a converted image. Only the layer on top is fetched.
func Read(ctx context.Context, img *image.Image) (*Converted, error) {
	if len(img.Layers) == 0 {
		return nil, ErrNotConverted
	}
	top := img.Layers[len(img.Layers)-1]
	r, err := top.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	files, err := rootfs.Extract(ctx, r, top.Digest, map[string]bool{libos.ManifestPath: true, libos.SigPath: true, libos.RecipePath: true, libos.ReasonsPath: true}, maxEnclaveFile)
	if err != nil {
		return nil, err
	}
	c := &Converted{Image: img.Ref.String(), Digest: img.Digest, Manifest: files[libos.ManifestPath]}
	if c.Manifest == nil || files[libos.RecipePath] == nil {
		return nil, ErrNotConverted
	}
	if err := json.Unmarshal(files[libos.RecipePath], &c.Recipe); err != nil {
		return nil, fmt.Errorf("reading %s: %w", libos.RecipePath, err)
	}
	if err := c.readManifest(); err != nil {
		return nil, err
	}
	c.readReasons(files[libos.ReasonsPath])
	if err := c.readSigStruct(files[libos.SigPath]); err != nil {
		return nil, err
	}
	var config struct {
		Config struct{ Entrypoint []string } `json:"config"`
	}
	if err := json.Unmarshal(img.Config, &config); err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	c.Entrypoint = config.Config.Entrypoint
	return c, nil
}

// readReasons gives each trusted file its reason, where there are any.
func (c *Converted) readReasons(b []byte) {
	var runs []convert.FileRun
	if json.Unmarshal(b, &runs) != nil {
		return
	}
	rest := c.Trusted
	for _, r := range runs {
		for ; r.Count > 0 && len(rest) > 0; r.Count, rest = r.Count-1, rest[1:] {
			rest[0].Reason, rest[0].Package = string(r.Reason), r.Package
		}
	}
}

func (c *Converted) readSigStruct(b []byte) error {
	if b == nil {
		c.SignatureError = "there is no SIGSTRUCT"
		return nil
	}
	s, err := sgx.ParseSigStruct(b)
	if s == nil {
		return fmt.Errorf("reading %s: %w", libos.SigPath, err)
	}
	if err != nil {
		c.SignatureError = err.Error()
	}
	c.SigStruct, c.MREnclave, c.MRSigner = s, s.MREnclave, s.MRSigner()
	c.ISVProdID, c.ISVSVN, c.Debug, c.Date = s.ISVProdID, s.ISVSVN, s.Debug(), s.Date.String()
	return nil
}

func (c *Converted) readManifest() error {
	var m struct {
		LibOS struct {
			Entrypoint string `toml:"entrypoint"`
		} `toml:"libos"`
		Loader struct {
			Argv []string       `toml:"argv"`
			Host bool           `toml:"insecure__use_cmdline_argv"`
			Env  map[string]any `toml:"env"`
			UID  int            `toml:"uid"`
			GID  int            `toml:"gid"`
		} `toml:"loader"`
		FS struct {
			StartDir string  `toml:"start_dir"`
			Mounts   []Mount `toml:"mounts"`
		} `toml:"fs"`
		SGX struct {
			Trusted []FileEntry `toml:"trusted_files"`
			Allowed []string    `toml:"allowed_files"`
		} `toml:"sgx"`
	}
	if err := toml.Unmarshal(c.Manifest, &m); err != nil {
		return fmt.Errorf("reading %s: %w", libos.ManifestPath, err)
	}
	var err error
	if c.Enclave, err = manifest.ReadSGX(c.Manifest); err != nil {
		return err
	}
	var whole manifest.Manifest
	if err := toml.Unmarshal(c.Manifest, &whole.Table); err != nil {
		return fmt.Errorf("reading %s: %w", libos.ManifestPath, err)
	}
	c.Weaknesses = whole.Weaknesses()
	c.Program = Program{
		Entrypoint: m.LibOS.Entrypoint, Argv: m.Loader.Argv, HostArgs: m.Loader.Host, Env: m.Loader.Env, WorkDir: m.FS.StartDir,
		UID: m.Loader.UID, GID: m.Loader.GID, Mounts: m.FS.Mounts,
	}
	c.ManifestBytes, c.Trusted, c.TrustedFiles, c.AllowedFiles = len(c.Manifest), m.SGX.Trusted, len(m.SGX.Trusted), m.SGX.Allowed
	return nil
}
