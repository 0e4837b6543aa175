package verify

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"

	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/encrypted"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/protectedfs"
	"github.com/cconvert/cconvert/pkg/rootfs"
)

// Rebuilt is the outcome of repeating a conversion.
type Rebuilt struct {
	Source string `json:"source"`
	// Digest is that of the image, Again what came out: of the manifest or, if the image is not stored as it was
	// written, of the configuration, which names each layer's content.
	Digest string `json:"digest"`
	Again  string `json:"again,omitempty"`
	Same   bool   `json:"same"`
	// Recompressed says that the same layers are compressed otherwise.
	Recompressed bool `json:"recompressed,omitempty"`
	// Taken says what was taken from the image itself, so that nothing is said of where it is from: each with how to do
	// without, if that is possible.
	Taken []string `json:"taken,omitempty"`
	// Why says what differs, where that is known.
	Why []string `json:"why,omitempty"`
}

// RebuildOptions say what to repeat a conversion with.
type RebuildOptions struct {
	Source image.Reference
	// Runtime is loaded by these options; with the zero value, the image's own runtime layer is used.
	Runtime *libos.LoadOptions
	// Agent is the program of the agent; nil: this version's, if the image has that, and else the image's own.
	Agent []byte
	// FilesKey returns the key to encrypted files by the source's digest; nil: it is not known.
	FilesKey func(source string) (protectedfs.Key, error)
	// Convert has the options that do not show in the output: jobs, caches, observers.
	Convert convert.Options
	Read    inspect.Options
}

// Rebuild converts the source of an image again by the image's recipe, takes over the signature, and says
// whether the same image comes out. No key is needed.
func Rebuild(ctx context.Context, img *image.Image, o RebuildOptions) (*Rebuilt, error) {
	c, err := inspect.ReadOurs(ctx, img, o.Read)
	if err == nil && c == nil {
		err = inspect.ErrNotConverted
	}
	if err != nil {
		return nil, err
	}
	out := &Rebuilt{Source: o.Source.String(), Digest: img.Digest}
	if c.SigStruct == nil {
		return nil, fmt.Errorf("%s: %s", img.Ref, c.SignatureError)
	}
	again, err := convert.Again(*c.Recipe, o.Source, c.Places.Backend)
	if err != nil {
		return nil, err
	}
	given := o.Convert
	given.Source, given.Launch, given.Enclave = again.Source, again.Launch, again.Enclave
	given.Overlay, given.Date = again.Overlay, again.Date
	given.Backend, given.Target, given.Gate = again.Backend, nil, convert.Gate{Open: true}
	if o.Runtime != nil {
		given.Runtime = *o.Runtime
	} else {
		given.Backend = sameRuntime{again.Backend, img, len(img.Layers) - c.Added(), c.Recipe.Runtime.Digest}
		out.Taken = append(out.Taken, fmt.Sprintf("the runtime, layer %s: --runtime takes it from somewhere else",
			c.Recipe.Runtime.Digest))
	}
	agent, err := o.agent(ctx, img, c, again.Backend, out)
	if err != nil {
		return nil, err
	}
	given.Backend = sameAgent{given.Backend, agent}
	if given.Encrypt, err = o.encryption(ctx, img, c, out); err != nil {
		return nil, err
	}
	p, err := convert.Prepare(ctx, given)
	if errors.Is(err, errForeign) || errors.Is(err, convert.ErrCiphertexts) {
		out.Why = append(out.Why, err.Error())
		return out, nil
	}
	if err != nil {
		return nil, err
	}
	defer p.Close()
	if len(img.Rivals) > 0 {
		out.Why = append(out.Why,
			fmt.Sprintf("an engine may choose another image by the same name: %s", strings.Join(img.Rivals, ", ")))
	}
	if got := p.Recipe.Source; got != c.Recipe.Source {
		out.Why = append(out.Why, fmt.Sprintf("the source is %s, the image was made from %s", got, c.Recipe.Source))
	}
	key, signature := c.SigStruct.Signature()
	made, err := p.Complete(key, signature)
	if err != nil {
		out.Why = append(out.Why,
			fmt.Sprintf("another measurement comes out, %s, not %s", p.SigStruct.MREnclave, c.MREnclave))
		opened, openErr := again.Backend.Open(libos.Stored{
			Layout: p.Recipe.Runtime.Layout, Files: libos.ByPath(p.EnclaveFiles(p.SigStruct)),
		})
		if openErr != nil {
			return nil, errors.Join(err, openErr)
		}
		for _, d := range inspect.CompareEnclaves(c.LibOS, opened) {
			out.Why = append(out.Why, d.String())
		}
		return out, nil
	}
	// Archives and daemons know images by their configuration alone, and it is the same image in another compression.
	out.Again = made.Digest
	if made.Digest != img.Digest && made.ImageID == img.ID() {
		out.Again = made.ImageID
		out.Digest, out.Recompressed = made.ImageID, img.Digest != made.ImageID
		foreign, err := foreignLayers(ctx, img, o.Read)
		if err != nil {
			return nil, err
		}
		steering, err := inspect.Steering(img)
		if err != nil {
			return nil, err
		}
		foreign = append(foreign, steering...)
		if out.Why = append(out.Why, foreign...); len(foreign) > 0 {
			return out, nil
		}
	}
	if out.Same = out.Again == out.Digest && len(img.Rivals) == 0; !out.Same && len(out.Why) == 0 {
		out.Why = []string{"the measurement is the same; the manifest or the configuration of the image is not"}
	}
	return out, nil
}

// agent returns the program that gets the image's secrets; nil if it gets none.
func (o RebuildOptions) agent(
	ctx context.Context, img *image.Image, c *inspect.Converted, backend libos.Backend, out *Rebuilt,
) ([]byte, error) {
	has, err := c.AgentOf(ctx, img)
	switch {
	case err != nil || has == nil:
		return nil, err
	case o.Agent != nil:
		return o.Agent, nil
	}
	if own, err := backend.Agent(); err == nil && bytes.Equal(own, has) {
		return own, nil
	}
	out.Taken = append(out.Taken, fmt.Sprintf("the agent, SHA-256 %x, which is not the one of this version: --agent "+
		"takes it from a file", sha256.Sum256(has)))
	return has, nil
}

// encryption says how the files are encrypted again that the image has encrypted.
func (o RebuildOptions) encryption(
	ctx context.Context, img *image.Image, c *inspect.Converted, out *Rebuilt,
) (*convert.Encryption, error) {
	if c.Recipe.Options.Encrypt == nil && o.FilesKey != nil {
		return nil, ErrNotEncrypted
	}
	if c.Recipe.Options.Encrypt == nil {
		return nil, nil
	}
	if c.Encrypted == nil {
		return nil, fmt.Errorf("%w: by the recipe there are encrypted files", encrypted.ErrList)
	}
	key, public := c.LibOS.Keys[c.Encrypted.Key]
	switch {
	case c.Encrypted.Random:
		out.Taken = append(out.Taken, "the encrypted files: they were encrypted at random")
	case o.FilesKey != nil:
		return &convert.Encryption{Key: o.FilesKey}, nil
	case public:
		return &convert.Encryption{Key: func(string) (protectedfs.Key, error) { return key, nil }}, nil
	default:
		out.Taken = append(out.Taken, "the encrypted files: to encrypt them again needs the key, --encrypt-key")
	}
	at := len(img.Layers) - c.Added() - 1
	if at < 0 {
		return nil, fmt.Errorf("%w: there is no layer for encrypted files", encrypted.ErrList)
	}
	indexes, err := o.Read.ScanAll(ctx, &image.Image{Layers: img.Layers[at : at+1]},
		rootfs.Options{DiffID: true, Limits: o.Read.Limits})
	if err != nil {
		return nil, err
	}
	index, err := c.Encrypted.Describe(indexes[0])
	if err != nil {
		return nil, err
	}
	return &convert.Encryption{Made: &convert.Ciphertexts{
		Layer: img.Layers[at], Index: index, List: c.Encrypted, Key: key,
	}}, nil
}

// foreignLayers are the layers of an image that are not what its configuration says, which alone does not make them so.
func foreignLayers(ctx context.Context, img *image.Image, o inspect.Options) ([]string, error) {
	indexes, err := o.ScanAll(ctx, img, rootfs.Options{Inflate: o.Inflate, DiffID: true, Limits: o.Limits})
	if err != nil {
		return nil, err
	}
	_, problems, err := checkArchives(ctx, img, indexes, o.Limits)
	return problems, err
}

// errForeign says that an image's runtime is in a layer that no conversion makes.
var errForeign = errors.New("the runtime's layer is not one that a conversion makes")

// sameRuntime is a backend whose runtime is the one in an image.
type sameRuntime struct {
	libos.Backend
	img  *image.Image
	at   int    // its layer
	said string // the digest of that
}

func (r sameRuntime) Load(ctx context.Context, _ libos.LoadOptions) (*libos.Bundle, error) {
	b, err := inspect.RuntimeOf(ctx, r.img.Layers[r.at], r.said)
	if err == nil && b.Foreign != nil {
		err = fmt.Errorf("%w: %w", errForeign, b.Foreign)
	}
	return b, err
}

// sameAgent is a backend whose agent is the one in an image.
type sameAgent struct {
	libos.Backend
	program []byte // nil: there is none
}

func (a sameAgent) Agent() ([]byte, error) {
	if a.program == nil {
		return nil, errors.New("the recipe has an agent, and the image has none")
	}
	return a.program, nil
}
