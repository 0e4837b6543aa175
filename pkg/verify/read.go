// Package verify reads confidential images back. [Read] tells what one says of itself, [Verify] whether it is
// true, [Compare] why two measurements differ, and [Rebuild] whether the same image comes out again.
package verify

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/pelletier/go-toml/v2"

	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/libos/gramine"
	"github.com/cconvert/cconvert/pkg/libos/sim"
	"github.com/cconvert/cconvert/pkg/manifest"
	"github.com/cconvert/cconvert/pkg/rootfs"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// ErrNotConverted says that an image holds no enclave that can be read here.
var ErrNotConverted = errors.New("the image is not a converted one")

const (
	maxEnclaveFile = manifest.MaxBytes // and more than any other file has
	maxRuntime     = 512 << 20         // bytes of its layer, compressed
)

// damage is a part of an image that is there and cannot be read, or is gone: what a check is for.
type damage struct {
	check string
	err   error
}

func (d *damage) Error() string { return d.err.Error() }
func (d *damage) Unwrap() error { return d.err }

// Converted is what a converted image says of itself. Nothing of it is verified but the SIGSTRUCT's own
// consistency.
type Converted struct {
	Image  string `json:"image"`
	Digest string `json:"digest"`
	// Layout is the kind of image: LayoutOurs or LayoutGSC.
	Layout string `json:"layout"`
	Places Places `json:"-"`
	// Recipe is how it was made; nil for images of other programs.
	Recipe    *convert.Recipe `json:"recipe,omitempty"`
	SigStruct *sgx.SigStruct  `json:"-"`
	MREnclave sgx.Measurement `json:"mr_enclave"`
	MRSigner  sgx.Measurement `json:"mr_signer"`
	ISVProdID uint16          `json:"isv_prod_id"`
	ISVSVN    uint16          `json:"isv_svn"`
	Debug     bool            `json:"debug_enclave"`
	Date      string          `json:"date"`
	Enclave   manifest.SGX    `json:"enclave"`
	// SignatureError says what the CPU would find wrong with the SIGSTRUCT; empty if nothing.
	SignatureError string `json:"signature_error,omitempty"`
	// Unsigned says that there is to be a signature, and is none yet.
	Unsigned bool `json:"unsigned,omitempty"`
	// Attributes are those that are signed, for people.
	Attributes Attributes `json:"attributes"`
	// Areas are the enclave's initial memory, from its top; missing if EnclaveError says why.
	Areas        []Area   `json:"areas,omitempty"`
	EnclaveError string   `json:"enclave_error,omitempty"`
	Program      Program  `json:"program"`
	Entrypoint   []string `json:"entrypoint"`
	// User and Ports are the configuration's: ports as in "80/tcp".
	User  string   `json:"user"`
	Ports []string `json:"ports,omitempty"`
	// Health is the image's health check, which an engine runs outside the enclave; nil: there is none.
	Health        *v1.HealthConfig `json:"health_check,omitempty"`
	Weaknesses    []string         `json:"weaknesses"`
	ManifestBytes int              `json:"manifest_bytes"`
	Manifest      []byte           `json:"-"`
	Trusted       []FileEntry      `json:"-"`
	TrustedFiles  int              `json:"trusted_files"`
	AllowedFiles  []string         `json:"allowed_files,omitempty"`
	// LayerDigests are those of the blobs, missing if the layers were not read.
	LayerDigests []string `json:"layers,omitempty"`

	config  map[string]any // of the image, but for its history
	notes   map[string]any // annotations of the manifest and its layers, and other images of the name
	runtime string         // digest of the archive that has the runtime; empty: it was not read as such
	enclave *gramine.Enclave
	libOS   FileEntry // what the enclave image loads first
}

// Simulated reports whether there is no enclave: the runtime only plays one.
func (c *Converted) Simulated() bool {
	return c.Places.Backend != nil && c.Places.Backend.Kind() == (sim.Backend{}).Kind()
}

// SimulatedNotice is what is said of such an image wherever its values are shown.
const SimulatedNotice = "SIMULATED: there is no enclave. Nothing is confidential, and no CPU will ever report these " +
	"values"

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
	// Layer is that of the file, from 1, and Size its bytes; zero if the layers were not read.
	Layer int   `json:"layer,omitempty" toml:"-"`
	Size  int64 `json:"size,omitempty" toml:"-"`
}

// Options say how layers are read.
type Options struct {
	// Jobs is how many layers are read at a time; 0: one.
	Jobs    int
	Inflate rootfs.Inflater
	// Limits bound what the image may hold.
	Limits rootfs.Limits
	// Observe returns a reader that counts what is read of a layer; nil: nobody counts.
	Observe func(digest string, size int64, r io.ReadCloser) io.ReadCloser
}

// Read finds the enclave of a converted image. Of one that this program made, only the two layers on top are
// fetched, of others all.
func Read(ctx context.Context, img *image.Image, o Options) (*Converted, error) {
	c, err := readTop(ctx, img)
	if err != nil || c != nil {
		return c, err
	}
	return ReadLayers(ctx, img, o)
}

// ReadLayers is Read with all layers, so that it is known from which of them the trusted files are.
func ReadLayers(ctx context.Context, img *image.Image, o Options) (*Converted, error) {
	s, err := scan(ctx, img, o, false)
	if err != nil {
		return nil, err
	}
	return s.converted()
}

// readTop reads an image of this program; nil if it is not one.
func readTop(ctx context.Context, img *image.Image) (*Converted, error) {
	n := len(img.Layers)
	if n < 2 {
		return nil, nil
	}
	want := map[string]bool{}
	for _, p := range (ours{}).keep() {
		want[p] = true
	}
	files, err := extract(ctx, img.Layers[n-1], want)
	if err != nil {
		return nil, err
	}
	if files[libos.ManifestPath] == nil || files[libos.RecipePath] == nil {
		return nil, nil
	}
	recipe, err := convert.ParseRecipe(files[libos.RecipePath])
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", libos.RecipePath, err)
	}
	i := slices.IndexFunc(backends, func(b libos.Backend) bool { return b.Kind() == recipe.Runtime.Kind })
	if i < 0 {
		return nil, fmt.Errorf("the runtime %q of the image is not known", recipe.Runtime.Kind)
	}
	bundle, err := runtimeOf(ctx, img.Layers[n-2], recipe.Runtime.Digest)
	if err != nil {
		return nil, err
	}
	places := oursOf(backends[i])
	if files[places.PAL], err = bundle.Content(places.PAL); err != nil {
		return nil, err
	}
	c, err := newConverted(img, places, bundle.Layout, files)
	if c != nil {
		c.runtime = bundle.Layer.DiffID
	}
	return c, err
}

// recipeOf reads the recipe of an image of this program; of another one it is the zero value.
func recipeOf(ctx context.Context, img *image.Image) (r convert.Recipe, err error) {
	var config struct {
		Config struct{ Labels map[string]string } `json:"config"`
	}
	if err := json.Unmarshal(img.Config, &config); err != nil {
		return r, fmt.Errorf("reading the configuration: %w", err)
	}
	if config.Config.Labels[convert.LabelEpoch] == "" || len(img.Layers) == 0 {
		return r, nil
	}
	files, err := extract(ctx, img.Layers[len(img.Layers)-1], map[string]bool{libos.RecipePath: true})
	if err != nil {
		return r, err
	}
	r, _ = convert.ParseRecipe(files[libos.RecipePath]) // what is wrong with it is told by those who need it
	return r, nil
}

func extract(ctx context.Context, l *image.Layer, want map[string]bool) (map[string][]byte, error) {
	r, err := l.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return rootfs.Extract(ctx, r, l.Digest, want, maxEnclaveFile)
}

// contentOf reads a file of an image, and makes sure that it is what the tree says: an archive can have several entries
// of one path, and a hard link that stands between them names another one than the last.
func contentOf(ctx context.Context, img *image.Image, n *rootfs.Node) ([]byte, error) {
	contents, err := contentsOf(ctx, img, []*rootfs.Node{n})
	return contents[n], err
}

// contentsOf is contentOf of several files of one layer, which is read once.
func contentsOf(ctx context.Context, img *image.Image, nodes []*rootfs.Node) (map[*rootfs.Node][]byte, error) {
	if len(nodes) == 0 {
		return nil, nil
	}
	want := map[string]bool{}
	for _, n := range nodes {
		want[n.Origin()] = true
	}
	files, err := extract(ctx, img.Layers[nodes[0].Layer], want)
	if err != nil {
		return nil, err
	}
	contents := map[*rootfs.Node][]byte{}
	for _, n := range nodes {
		content := files[n.Origin()]
		if sha256.Sum256(content) != n.SHA256 {
			return nil, &damage{
				CheckLayers, fmt.Errorf("%s: the layer has several entries of the path %s, and engines unpack another "+
					"one here than the last", n.Path, n.Origin()),
			}
		}
		contents[n] = content
	}
	return contents, nil
}

// runtimeOf reads the layer that holds a runtime, of which the image says that it has a digest; empty: nothing.
func runtimeOf(ctx context.Context, l *image.Layer, said string) (*libos.Bundle, error) {
	r, err := l.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	blob, err := image.ReadChecked(r, l.Digest, maxRuntime)
	if err != nil {
		return nil, fmt.Errorf("fetching the runtime's layer %s: %w", l.Digest, err)
	}
	b, err := libos.ReadBundle(ctx, blob, said)
	if err != nil {
		return nil, &damage{CheckRuntime, err}
	}
	return b, nil
}

// newConverted makes the description of an image from the contents of its files.
func newConverted(img *image.Image, p Places, version int, files map[string][]byte) (*Converted, error) {
	c := &Converted{
		Image: img.Ref.String(), Digest: img.Digest, Layout: p.Layout, Places: p,
		Manifest: files[p.Manifest], Weaknesses: []string{},
	}
	if err := c.readManifest(); err != nil {
		return nil, &damage{CheckMeasurement, err}
	}
	if p.Backend != nil {
		recipe, err := convert.ParseRecipe(files[libos.RecipePath])
		if c.Recipe = &recipe; err != nil {
			return nil, &damage{CheckPolicy, fmt.Errorf("reading %s: %w", libos.RecipePath, err)}
		}
		c.readReasons(files[libos.ReasonsPath])
	}
	if err := c.readSigStruct(files[p.SigStruct], files[libos.UnsignedPath]); err != nil {
		return nil, &damage{CheckSigStruct, err}
	}
	enclave, err := gramine.NewEnclave(version, files[p.PAL], c.Manifest)
	if err != nil {
		c.EnclaveError = err.Error()
	} else {
		c.enclave, c.Areas = enclave, areas(enclave.Layout)
	}
	if err := c.readNotes(img); err != nil {
		return nil, err
	}
	return c, c.readConfig(img)
}

// readNotes takes over what engines may go by beside the configuration.
func (c *Converted) readNotes(img *image.Image) error {
	annotations, err := img.Annotations()
	if err != nil {
		return err
	}
	c.notes = map[string]any{}
	for name, value := range annotations {
		c.notes["annotation "+name] = value
	}
	for i, l := range img.Layers {
		for name, value := range l.Annotations {
			c.notes[fmt.Sprintf("annotation of layer %d %s", i+1, name)] = value
		}
	}
	for _, r := range img.Rivals {
		c.notes["rival "+r] = "an engine may choose it by the same name"
	}
	return nil
}

// readConfig takes over what the image's configuration says of the start.
func (c *Converted) readConfig(img *image.Image) error {
	var config struct {
		Config struct {
			Entrypoint, Cmd []string
			User            string
			ExposedPorts    map[string]struct{}
			Healthcheck     *v1.HealthConfig
		} `json:"config"`
	}
	if err := json.Unmarshal(img.Config, &config); err != nil {
		return fmt.Errorf("reading the configuration: %w", err)
	}
	if err := json.Unmarshal(img.Config, &c.config); err != nil {
		return fmt.Errorf("reading the configuration: %w", err)
	}
	delete(c.config, "history")
	c.Entrypoint = slices.Concat(config.Config.Entrypoint, config.Config.Cmd)
	c.User, c.Ports, c.Health = config.Config.User, slices.Sorted(maps.Keys(config.Config.ExposedPorts)),
		config.Config.Healthcheck
	return nil
}

// readReasons gives each trusted file its reason, if there are any.
func (c *Converted) readReasons(b []byte) {
	runs, err := convert.ParseReasons(b)
	if err != nil {
		return // nothing that was measured
	}
	rest := c.Trusted
	for _, r := range runs {
		for ; r.Count > 0 && len(rest) > 0; r.Count, rest = r.Count-1, rest[1:] {
			rest[0].Reason, rest[0].Package = string(r.Reason), r.Package
		}
	}
}

// readSigStruct reads the signature structure, of an image that is not signed yet what it will be.
func (c *Converted) readSigStruct(signed, unsigned []byte) error {
	var s *sgx.SigStruct
	var err error
	switch {
	case signed != nil:
		if s, err = sgx.ParseSigStruct(signed); s == nil {
			return fmt.Errorf("reading %s: %w", c.Places.SigStruct, err)
		}
		if err != nil {
			c.SignatureError = err.Error()
		}
	case unsigned != nil && c.Recipe != nil:
		c.SignatureError, c.Unsigned = notSigned, true
		if s, err = sgx.ParseUnsigned(unsigned); err != nil {
			return fmt.Errorf("reading %s: %w", libos.UnsignedPath, err)
		}
	default:
		c.SignatureError = "there is none: the image is not signed"
		return nil
	}
	c.SigStruct, c.MREnclave, c.MRSigner = s, s.MREnclave, s.MRSigner()
	c.ISVProdID, c.ISVSVN, c.Debug, c.Date = s.ISVProdID, s.ISVSVN, s.Debug(), s.Date.String()
	c.Attributes = decode(s)
	return nil
}

const notSigned = "there is none: the image is to be signed later"

func (c *Converted) readManifest() error {
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
			StartDir string  `toml:"start_dir"`
			Mounts   []Mount `toml:"mounts"`
		} `toml:"fs"`
		SGX struct {
			Trusted []FileEntry `toml:"trusted_files"`
			Allowed []string    `toml:"allowed_files"`
		} `toml:"sgx"`
	}
	whole, err := manifest.Parse(c.Manifest)
	if err != nil {
		return fmt.Errorf("%s: %w", c.Places.Manifest, err)
	}
	if err := toml.Unmarshal(c.Manifest, &m); err != nil {
		return fmt.Errorf("reading %s: %w", c.Places.Manifest, err)
	}
	if c.Enclave, err = manifest.ReadSGX(c.Manifest); err != nil {
		return err
	}
	c.Weaknesses = append(c.Weaknesses, whole.Weaknesses()...)
	switch e := m.Loader.Entrypoint.(type) {
	case string: // Gramine 1.7: the digest is among the trusted files
		c.libOS.URI = e
	case map[string]any:
		c.libOS.URI, _ = e["uri"].(string)
		c.libOS.SHA256, _ = e["sha256"].(string)
	}
	c.Program = Program{
		Entrypoint: m.LibOS.Entrypoint, Argv: m.Loader.Argv, HostArgs: m.Loader.Host, Env: m.Loader.Env,
		WorkDir: m.FS.StartDir,
		UID:     m.Loader.UID, GID: m.Loader.GID, Mounts: m.FS.Mounts,
	}
	c.ManifestBytes, c.Trusted, c.TrustedFiles, c.AllowedFiles = len(c.Manifest), m.SGX.Trusted, len(m.SGX.Trusted),
		m.SGX.Allowed
	return nil
}
