// Package inspect reads confidential images. [Read] returns what one says of itself, [Enclaves] the enclaves of an
// image that was not converted, and [Compare] why two measurements differ. Package verify reports whether it is true.
package inspect

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/cconvert/cconvert/pkg/encrypted"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/manifest"
	"github.com/cconvert/cconvert/pkg/recipe"
	"github.com/cconvert/cconvert/pkg/release"
	"github.com/cconvert/cconvert/pkg/rootfs"
	"github.com/cconvert/cconvert/pkg/rootfs/inflate"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// ErrNotConverted says that an image holds no enclave that can be read here.
var ErrNotConverted = errors.New("the image is not a converted one")

const (
	maxEnclaveFile = manifest.MaxBytes // and more than any other file has
	maxRuntime     = 512 << 20         // bytes of its layer, compressed
)

// Converted is what a converted image says of itself. Nothing of it is verified but the SIGSTRUCT's own
// consistency.
type Converted struct {
	Image  string `json:"image"`
	Digest string `json:"digest"`
	// Layout is the kind of image: LayoutOurs or LayoutGSC.
	Layout string `json:"layout"`
	Places Places `json:"-"`
	// LibOS is the enclave as its library OS reads it; nil for images whose enclaves are their own.
	LibOS *libos.Enclave `json:"-"`
	// Recipe is how it was made; nil for images of other programs.
	Recipe    *recipe.Recipe  `json:"recipe,omitempty"`
	SigStruct *sgx.SigStruct  `json:"-"`
	MREnclave sgx.Measurement `json:"mr_enclave"`
	MRSigner  sgx.Measurement `json:"mr_signer"`
	ISVProdID uint16          `json:"isv_prod_id"`
	ISVSVN    uint16          `json:"isv_svn"`
	Debug     bool            `json:"debug_enclave"`
	Date      string          `json:"date"`
	Enclave   sgx.Settings    `json:"enclave"`
	// SignatureError says what the CPU would find wrong with the SIGSTRUCT; empty if nothing.
	SignatureError string `json:"signature_error,omitempty"`
	// Unsigned says that there is to be a signature, and is none yet.
	Unsigned bool `json:"unsigned,omitempty"`
	// Attributes are those that are signed, for people.
	Attributes Attributes `json:"attributes"`
	// Areas are the enclave's initial memory, from its top; missing if EnclaveError says why.
	Areas        []Area        `json:"areas,omitempty"`
	EnclaveError string        `json:"enclave_error,omitempty"`
	Program      libos.Program `json:"program"`
	Entrypoint   []string      `json:"entrypoint"`
	// User and Ports are the configuration's: ports as in "80/tcp".
	User  string   `json:"user"`
	Ports []string `json:"ports,omitempty"`
	// Health is the image's health check, which an engine runs outside the enclave; nil: there is none.
	Health        *v1.HealthConfig  `json:"health_check,omitempty"`
	Weaknesses    []string          `json:"weaknesses"`
	ManifestBytes int               `json:"manifest_bytes"`
	Manifest      []byte            `json:"-"`
	Trusted       []libos.FileEntry `json:"-"`
	TrustedFiles  int               `json:"trusted_files"`
	AllowedFiles  []string          `json:"allowed_files,omitempty"`
	// Encrypted are the image's encrypted files; nil if there are none.
	Encrypted *encrypted.List `json:"encrypted,omitempty"`
	// Agent is what the agent is told that gets the program's secrets; nil if it gets none.
	Agent *release.Config `json:"agent,omitempty"`
	// LayerDigests are those of the blobs, missing if the layers were not read.
	LayerDigests []string `json:"layers,omitempty"`

	config  map[string]any // of the image, but for its history
	notes   map[string]any // annotations of the manifest and its layers, and other images of the name
	runtime string         // digest of the archive that has the runtime; empty: it was not read as such
	top     string         // digest of the topmost archive
	// archives are the digests of the layers' archives as they were read; empty: the layer was not read as a whole.
	archives []string
}

// Simulated reports whether there is no enclave: the runtime only plays one.
func (c *Converted) Simulated() bool { return c.LibOS != nil && c.LibOS.Simulated }

// Added is how many layers the conversion has put on the image; 0 for images of other programs.
func (c *Converted) Added() int {
	switch {
	case c.Places.Backend == nil:
		return 0
	case c.Agent != nil:
		return c.Places.Backend.Layers() + 1
	}
	return c.Places.Backend.Layers()
}

// AgentOf reads the program of an image's agent; nil if it has none.
func (c *Converted) AgentOf(ctx context.Context, img *image.Image) ([]byte, error) {
	at := len(img.Layers) - c.Added() + 1
	if c.Agent == nil || at < 1 {
		return nil, nil
	}
	files, err := ExtractFiles(ctx, img.Layers[at], map[string]bool{libos.AgentPath: true})
	return files[libos.AgentPath], err
}

// SimulatedNotice is what is said of such an image wherever its values are shown.
const SimulatedNotice = "SIMULATED: there is no enclave. Nothing is confidential, and no CPU will ever report these " +
	"values"

// Options say how layers are read.
type Options struct {
	// Backends are the library operating systems that are known; nil: those of package all.
	Backends []libos.Backend
	// Jobs is how many layers are read at a time; 0: one.
	Jobs    int
	Inflate inflate.Inflater
	// Limits bound what the image may hold.
	Limits rootfs.Limits
	// Observe returns a reader that counts what is read of a layer; nil: nobody counts.
	Observe func(digest string, size int64, r io.ReadCloser) io.ReadCloser
}

// Read finds the enclave of a converted image. Of one that this program made, only the two layers on top are
// fetched, of others all.
func Read(ctx context.Context, img *image.Image, o Options) (*Converted, error) {
	c, err := ReadOurs(ctx, img, o)
	if err != nil || c != nil {
		return c, err
	}
	return ReadLayers(ctx, img, o)
}

// ReadLayers is Read with all layers, so that it is known from which of them the trusted files are.
func ReadLayers(ctx context.Context, img *image.Image, o Options) (*Converted, error) {
	s, err := Scan(ctx, img, o)
	if err != nil {
		return nil, err
	}
	return s.Converted(ctx)
}

// ReadOurs reads an image of this program; nil if it is not one.
func ReadOurs(ctx context.Context, img *image.Image, o Options) (*Converted, error) {
	n := len(img.Layers)
	if n < 2 {
		return nil, nil
	}
	want := map[string]bool{}
	for _, p := range o.keep() {
		want[p] = true
	}
	sum := sha256.New()
	files, err := extractAndSum(ctx, img.Layers[n-1], want, sum)
	if err != nil {
		return nil, err
	}
	if files[libos.RecipePath] == nil {
		return nil, nil
	}
	recipe, err := recipe.Parse(files[libos.RecipePath])
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", libos.RecipePath, err)
	}
	backends := o.Known()
	i := slices.IndexFunc(backends, func(b libos.Backend) bool { return b.Kind() == recipe.Runtime.Kind })
	if i < 0 {
		return nil, fmt.Errorf("the runtime %q of the image is not known", recipe.Runtime.Kind)
	}
	places := placesOf(backends[i])
	s := &Scanned{Image: img, Places: places, Files: files}
	if files[places.Manifest] == nil || n < s.Added() {
		return nil, nil
	}
	if s.Bundle, err = RuntimeOf(ctx, img.Layers[n-s.Added()], recipe.Runtime.Digest); err != nil {
		return nil, err
	}
	c, err := s.Converted(ctx)
	if err != nil {
		return nil, err
	}
	c.LayerDigests = nil // the layers were not read
	c.top = fmt.Sprintf("sha256:%x", sum.Sum(nil))
	c.archives = make([]string, n)
	for i := n - s.Added() + 1; i < n-1; i++ { // of the agent's, above all: it starts first
		between := sha256.New()
		if _, err := extractAndSum(ctx, img.Layers[i], nil, between); err != nil {
			return nil, err
		}
		c.archives[i] = fmt.Sprintf("sha256:%x", between.Sum(nil))
	}
	return c, nil
}

// recipeOf reads the recipe of an image of this program; of another one it is the zero value.
func recipeOf(ctx context.Context, img *image.Image) (r recipe.Recipe, err error) {
	var config struct {
		Config struct{ Labels map[string]string } `json:"config"`
	}
	if err := json.Unmarshal(img.Config, &config); err != nil {
		return r, fmt.Errorf("reading the configuration: %w", err)
	}
	if config.Config.Labels[recipe.LabelEpoch] == "" || len(img.Layers) == 0 {
		return r, nil
	}
	files, err := ExtractFiles(ctx, img.Layers[len(img.Layers)-1], map[string]bool{libos.RecipePath: true})
	if err != nil {
		return r, err
	}
	r, _ = recipe.Parse(files[libos.RecipePath]) // what is wrong with it is told by those who need it
	return r, nil
}

// ExtractFiles reads files of a layer, by the paths of their entries.
func ExtractFiles(ctx context.Context, l *image.Layer, want map[string]bool) (map[string][]byte, error) {
	return extractAndSum(ctx, l, want, nil)
}

func extractAndSum(
	ctx context.Context, l *image.Layer, want map[string]bool, sum hash.Hash,
) (map[string][]byte, error) {
	r, err := l.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return rootfs.Extract(ctx, r, l.Digest, want, maxEnclaveFile, sum)
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
	files, err := ExtractFiles(ctx, img.Layers[nodes[0].Layer], want)
	if err != nil {
		return nil, err
	}
	contents := map[*rootfs.Node][]byte{}
	for _, n := range nodes {
		content := files[n.Origin()]
		if sha256.Sum256(content) != n.SHA256 {
			return nil, &Damage{
				PartLayers, fmt.Errorf("%s: the layer has several entries of the path %s, and engines unpack another "+
					"one here than the last", n.Path, n.Origin()),
			}
		}
		contents[n] = content
	}
	return contents, nil
}

// RuntimeOf reads the layer that holds a runtime, of which the image says that it has a digest; empty: nothing.
func RuntimeOf(ctx context.Context, l *image.Layer, said string) (*libos.Bundle, error) {
	blob, err := l.Blob(ctx, maxRuntime)
	if err != nil {
		return nil, fmt.Errorf("the runtime: %w", err)
	}
	b, err := libos.ReadBundle(ctx, blob, said)
	if err != nil {
		return nil, &Damage{PartRuntime, err}
	}
	return b, nil
}

// newConverted makes the description of an image whose enclave its library OS has read, from the contents of its files.
func newConverted(img *image.Image, p Places, e *libos.Enclave, files map[string][]byte) (*Converted, error) {
	p.Start = e.Start
	c := &Converted{
		Image: img.Ref.String(), Digest: img.Digest, Layout: p.Layout, Places: p, LibOS: e,
		Manifest: e.Manifest, ManifestBytes: len(e.Manifest), Enclave: e.Settings, Program: e.Program,
		Trusted: e.Trusted, TrustedFiles: len(e.Trusted), AllowedFiles: e.Allowed,
		Weaknesses: append([]string{}, e.Weaknesses...),
	}
	if p.Backend != nil {
		recipe, err := recipe.Parse(files[libos.RecipePath])
		if c.Recipe = &recipe; err != nil {
			return nil, &Damage{PartPolicy, fmt.Errorf("reading %s: %w", libos.RecipePath, err)}
		}
		c.readReasons(files[libos.ReasonsPath])
		if text := files[libos.EncryptedPath]; text != nil {
			if c.Encrypted, err = encrypted.ParseList(text); err != nil {
				return nil, &Damage{PartEncrypted, fmt.Errorf("reading %s: %w", libos.EncryptedPath, err)}
			}
		}
		if text := files[libos.AgentConfigPath]; text != nil {
			if c.Agent, err = release.ParseConfig(text); err != nil {
				return nil, &Damage{PartAgent, fmt.Errorf("reading %s: %w", libos.AgentConfigPath, err)}
			}
		}
	}
	if err := c.readSigStruct(files[p.SigStruct], files[libos.UnsignedPath]); err != nil {
		return nil, &Damage{PartSigStruct, err}
	}
	if e.LayoutError != nil {
		c.EnclaveError = e.LayoutError.Error()
	} else {
		c.Areas = areas(*e.Layout)
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
	var err error
	if c.config, err = DecodeExactly(img.Config); err != nil {
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
	runs, err := recipe.ParseReasons(b)
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
