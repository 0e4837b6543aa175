package convert

import (
	"bytes"
	"context"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/manifest"
	"github.com/cconvert/cconvert/pkg/rootfs"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// Errors of signing.
var (
	// ErrTestKey says that the key is one that everybody has.
	ErrTestKey = errors.New("this key is public")
	// ErrVersionUnknown says that the target has, or may have, a converted image whose security version and signer
	// cannot be read.
	ErrVersionUnknown = errors.New("the security version number of what the target has now is not known")
	// ErrNotOurs says that this program did not make an image.
	ErrNotOurs = errors.New("the image was not made by cconvert")
)

// Sign has a signer sign what Prepare gave. A public test key is refused with ErrTestKey, unless there is nothing
// to protect: the enclave is one for debugging, or simulated.
func Sign(ctx context.Context, p *Prepared, s sgx.Signer) (*rsa.PublicKey, []byte, error) {
	return sign(ctx, p.sealed.SigStruct, p.simulated(), s)
}

// simulated reports whether there is no enclave.
func (p *Prepared) simulated() bool {
	return slices.ContainsFunc(p.sealed.Findings, func(f finding.Finding) bool { return f.Code == finding.Simulated })
}

func sign(ctx context.Context, what *sgx.SigStruct, simulated bool, s sgx.Signer) (*rsa.PublicKey, []byte, error) {
	signature, err := s.Sign(ctx, what.ToBeSigned())
	if err != nil {
		return nil, nil, fmt.Errorf("signing: %w", err)
	}
	key, err := s.Public(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the signing key: %w", err)
	}
	if err := acceptable(key, what, simulated); err != nil {
		return nil, nil, err
	}
	return key, signature, nil
}

// acceptable reports whether a key may sign an enclave.
func acceptable(key *rsa.PublicKey, what *sgx.SigStruct, simulated bool) error {
	if whose, ok := sgx.TestKey(key); ok && !what.Debug() && !simulated {
		return fmt.Errorf("%w: the repository %s publishes its private half, so everybody can sign enclaves in its "+
			"name", ErrTestKey, whose)
	}
	return sgx.CheckPublicKey(key)
}

// Enclave is the enclave of a converted image, to be signed: for the first time, or by another key.
type Enclave struct {
	// SigStruct is what is to be signed, or was.
	SigStruct *sgx.SigStruct
	Recipe    Recipe

	source    *image.Image
	files     []libos.File
	reads     manifest.SGX
	simulated bool
}

const (
	maxEnclaveLayer   = 256 << 20 // bytes of the layer, compressed
	maxEnclaveArchive = 256 << 20
)

// Manifest is the enclave's, as the image has it.
func (e *Enclave) Manifest() []byte { return e.file(libos.ManifestPath) }

// OpenEnclave reads the topmost layer of an image, and no other. What is to be signed is what the manifest in it gives
// for the measurement that it claims, which is not computed: the image may lie about that.
func OpenEnclave(ctx context.Context, img *image.Image, backends []libos.Backend) (*Enclave, error) {
	e, err := readEnclave(ctx, img)
	if err != nil {
		return nil, err
	}
	kind := "gramine"
	if e.simulated {
		kind = "sim"
	}
	i := slices.IndexFunc(backends, func(b libos.Backend) bool { return b.Kind() == kind })
	if i < 0 || e.Recipe.Runtime.Kind != kind {
		return nil, fmt.Errorf("%w: its recipe speaks of the runtime %q, and its manifest of another one", ErrNotOurs,
			e.Recipe.Runtime.Kind)
	}
	s := e.SigStruct
	want, err := backends[i].SigStruct(e.Recipe.Runtime.Layout, e.file(libos.ManifestPath), s.MREnclave, s.Date)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(s.ToBeSigned(), want.ToBeSigned()) || s.Date.String() != e.Recipe.Date {
		return nil, errors.New("the signature structure says something else than the manifest and the recipe: " +
			"attributes, masks, product, version or date")
	}
	return e, e.checkConfig()
}

// checkConfig sees to it that the configuration can be completed, before anybody is asked to sign.
func (e *Enclave) checkConfig() error {
	before := *e.SigStruct
	defer func() { *e.SigStruct = before }()
	_, err := e.complete()
	return err
}

// readEnclave reads the topmost layer.
func readEnclave(ctx context.Context, img *image.Image) (*Enclave, error) {
	e, err := openTop(ctx, img)
	if err != nil {
		return nil, err
	}
	recipe, text := e.file(libos.RecipePath), e.file(libos.ManifestPath)
	if recipe == nil || text == nil {
		return nil, fmt.Errorf("%w: its layer on top has no recipe and manifest", ErrNotOurs)
	}
	if e.Recipe, err = ParseRecipe(recipe); err != nil {
		return nil, fmt.Errorf("reading %s: %w", libos.RecipePath, err)
	}
	if _, err := manifest.Parse(text); err != nil {
		return nil, err
	}
	if e.reads, err = manifest.ReadSGX(text); err != nil {
		return nil, err
	}
	var m struct {
		Loader struct {
			Entrypoint struct {
				URI string `toml:"uri"`
			} `toml:"entrypoint"`
		} `toml:"loader"`
	}
	if err := toml.Unmarshal(text, &m); err != nil {
		return nil, fmt.Errorf("reading the manifest: %w", err)
	}
	e.simulated = strings.HasPrefix(m.Loader.Entrypoint.URI, "file:"+libos.Root+"/sim/")
	return e, nil
}

// topFiles are those of the topmost layer, which must be one that packEnclave has made.
func topFiles(ctx context.Context, img *image.Image) (files []libos.File, err error) {
	if len(img.Layers) == 0 {
		return nil, ErrNotOurs
	}
	archive, err := topArchive(ctx, img)
	if err != nil {
		return nil, err
	}
	if files, err = libos.Unpack(archive); err != nil {
		return nil, fmt.Errorf("%w: its layer on top: %w", ErrNotOurs, err)
	}
	seen := map[string]bool{}
	for _, f := range files {
		if seen[f.Path] || path.Clean(f.Path) != f.Path || path.Dir(f.Path) != path.Dir(libos.App) {
			return nil, fmt.Errorf("%w: its layer on top has %q, or has it twice", ErrNotOurs, f.Path)
		}
		seen[f.Path] = true
	}
	return files, nil
}

func topArchive(ctx context.Context, img *image.Image) ([]byte, error) {
	top := img.Layers[len(img.Layers)-1]
	if top.Size > maxEnclaveLayer {
		return nil, fmt.Errorf("%w: its layer on top has %d bytes", ErrNotOurs, top.Size)
	}
	r, err := top.Open(ctx)
	if err != nil {
		return nil, fmt.Errorf("fetching the layer %s: %w", top.Digest, err)
	}
	defer r.Close()
	blob, err := image.ReadChecked(r, top.Digest, maxEnclaveLayer)
	if err != nil {
		return nil, fmt.Errorf("fetching the layer %s: %w", top.Digest, err)
	}
	z, err := rootfs.Decompress(ctx, bytes.NewReader(blob)) // registries and engines compress anew as they like
	if err != nil {
		return nil, fmt.Errorf("%w: its layer on top: %w", ErrNotOurs, err)
	}
	defer z.Close()
	archive, err := io.ReadAll(io.LimitReader(z, maxEnclaveArchive+1))
	if err == nil && len(archive) > maxEnclaveArchive {
		err = fmt.Errorf("it has more than %d bytes", maxEnclaveArchive)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: its layer on top: %w", ErrNotOurs, err)
	}
	return archive, nil
}

// openTop reads the topmost layer's files, and the SIGSTRUCT among them, signed or not. What the others say is
// readEnclave's.
func openTop(ctx context.Context, img *image.Image) (*Enclave, error) {
	files, err := topFiles(ctx, img)
	if err != nil {
		return nil, err
	}
	e := &Enclave{source: img, files: files}
	if signed := e.file(libos.SigPath); signed != nil {
		e.SigStruct, err = sgx.ParseSigStruct(signed)
	} else {
		e.SigStruct, err = sgx.ParseUnsigned(e.file(libos.UnsignedPath))
	}
	if err != nil {
		return nil, fmt.Errorf("reading the signature structure: %w", err)
	}
	return e, nil
}

func (e *Enclave) file(path string) []byte {
	for _, f := range e.files {
		if f.Path == path {
			return f.Content
		}
	}
	return nil
}

// Simulated says that there is no enclave. It is the measured manifest that says so.
func (e *Enclave) Simulated() bool { return e.simulated }

// Weaknesses names the settings by which the enclave is weaker than the defaults.
func (e *Enclave) Weaknesses() ([]string, error) {
	m, err := manifest.Parse(e.file(libos.ManifestPath))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", libos.ManifestPath, err)
	}
	return m.Weaknesses(), nil
}

// Sign has a signer sign the enclave, by the rules of [Sign].
func (e *Enclave) Sign(ctx context.Context, s sgx.Signer) (*rsa.PublicKey, []byte, error) {
	return sign(ctx, e.SigStruct, e.Simulated(), s)
}

// StoreOptions say how a newly signed image is stored.
type StoreOptions struct {
	Image image.Options
	// Evidence is attached to it in registries; nil: nothing is.
	Evidence *Evidence
	// AllowRollback lets it replace an image with a higher security version number, ReplaceSigner one that another key
	// has signed.
	AllowRollback, ReplaceSigner bool
	// SourceChecked says that the image was compared with its source. Otherwise no source is stated with a key.
	SourceChecked bool
}

// Store puts the image with its new signature together, and stores it. What changes is the layer on top, what the
// configuration says of the signer, and what is attached. The result has the same digest as if the conversion had
// been signed so at once. The error is image.ErrEvidence if it is stored and the registry refused optional
// evidence.
func (e *Enclave) Store(
	ctx context.Context, key *rsa.PublicKey, signature []byte, to image.Reference, o StoreOptions,
) (*image.Output, error) {
	if err := acceptable(key, e.SigStruct, e.Simulated()); err != nil {
		return nil, err
	}
	upload := image.NewUpload(ctx, to, o.Image)
	defer upload.Close()
	now, err := present(upload)
	unknown := errors.Is(err, ErrVersionUnknown) && (o.AllowRollback || o.ReplaceSigner)
	if err != nil && !unknown {
		return nil, err
	}
	if err := checkReplaced(now, e.SigStruct.ISVSVN, sgx.MRSigner(key), o.AllowRollback, o.ReplaceSigner); err != nil {
		return nil, err
	}
	before := *e.SigStruct
	if err := e.SigStruct.Attach(key, signature); err != nil {
		return nil, err
	}
	out, err := e.complete()
	if err != nil {
		return nil, err
	}
	if o.Evidence != nil && to.Transport == image.Registry {
		identity, err := e.identity(ctx, &before, o.Evidence, o.SourceChecked)
		if err != nil {
			return nil, err
		}
		if out.Evidence, err = o.Evidence.about(ctx, identity, out, to.Name.Context().Name()); err != nil {
			return nil, err
		}
		out.EvidenceOptional = !o.Evidence.Required
	}
	return out, upload.Write(out)
}

// complete puts the image together.
func (e *Enclave) complete() (*image.Output, error) {
	files := slices.DeleteFunc(slices.Clone(e.files), func(f libos.File) bool {
		return f.Path == libos.SigPath || f.Path == libos.UnsignedPath
	})
	packing, err := packEnclave(files)
	if err != nil {
		return nil, err
	}
	layer, err := packing.complete(e.SigStruct)
	if err != nil {
		return nil, err
	}
	below, err := e.source.Below(1)
	if err != nil {
		return nil, err
	}
	config, run, err := readConfig(e.source.Config)
	if err != nil {
		return nil, err
	}
	if err := exactKeys(run, "Labels"); err != nil {
		return nil, err
	}
	var labels map[string]string
	if raw := run["Labels"]; raw != nil {
		if err := json.Unmarshal(raw, &labels); err != nil {
			return nil, fmt.Errorf("reading Labels in the image's configuration: %w", err)
		}
	}
	if labels == nil {
		labels = map[string]string{}
	}
	labels[LabelBaseDigest], labels[LabelEpoch] = e.Recipe.Source, fmt.Sprint(e.Recipe.Epoch)
	labels[LabelMREnclave], labels[LabelMRSigner] = e.SigStruct.MREnclave.String(), e.SigStruct.MRSigner().String()
	labels[LabelIdentity] = e.Recipe.Identity(e.SigStruct.MRSigner())
	if run["Labels"], err = json.Marshal(labels); err != nil {
		return nil, err
	}
	if config["config"], err = json.Marshal(run); err != nil {
		return nil, err
	}
	var rootfs struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	}
	if err := json.Unmarshal(config["rootfs"], &rootfs); err != nil {
		return nil, fmt.Errorf("reading the configuration's rootfs: %w", err)
	}
	if len(rootfs.DiffIDs) != len(e.source.Layers) {
		return nil,
			fmt.Errorf("the configuration lists %d layers, the manifest %d", len(rootfs.DiffIDs), len(e.source.Layers))
	}
	rootfs.DiffIDs = rootfs.DiffIDs[:len(below.Layers)]
	if config["rootfs"], err = json.Marshal(rootfs); err != nil {
		return nil, err
	}
	out, err := image.Append(below, config, []image.NewLayer{layer})
	if err != nil {
		return nil, fmt.Errorf("putting the image together: %w", err)
	}
	return out, nil
}

// identity is what the image says of itself, with the new signer, and what its evidence says beyond that: the source's
// name, and findings: null if nobody has looked for any. If new evidence is signed, the old one must be by the same
// key: a signature does not make true what somebody else has claimed. Old evidence that cannot be read is as good as
// none.
func (e *Enclave) identity(
	ctx context.Context, before *sgx.SigStruct, by *Evidence, sourceChecked bool,
) (attest.Identity, error) {
	options, err := json.Marshal(e.Recipe.Options)
	if err != nil {
		return attest.Identity{}, err
	}
	r := e.Recipe.Runtime
	identity := attest.Identity{
		EnclaveSize: e.reads.EnclaveSize, MaxThreads: e.reads.MaxThreads, EDMM: e.reads.EDMM,
		Source:  attest.NewResource("", e.Recipe.Source),
		Runtime: attest.Runtime{Kind: r.Kind, Version: r.Version, Digest: r.Digest},
		Epoch:   e.Recipe.Epoch, Options: options, Findings: json.RawMessage("null"), Simulated: e.simulated,
	}
	var key *attest.PublicKey
	if by.Key != nil {
		key = &by.Key.PublicKey
		// The recipe's source is a word, as is the runtime's version, and the loader is not measured: who signs vouches
		// for none of them.
		if identity.Runtime.Digest, identity.Runtime.Version = "", ""; !sourceChecked {
			identity.Source = attest.Resource{}
		}
	}
	artifacts, err := e.source.Referrers(ctx, attest.InTotoMediaType)
	if ctx.Err() != nil || err != nil && by.Required {
		return attest.Identity{}, err
	}
	for _, f := range attest.Read(ctx, artifacts, key) {
		var said attest.Identity
		if f.Statement == nil || key != nil && !f.Verified || f.Statement.PredicateType != attest.IdentityType ||
			json.Unmarshal(f.Statement.Predicate, &said) != nil {
			continue
		}
		of := slices.ContainsFunc(f.Statement.Subject, func(r attest.Resource) bool { return r.Is(e.source.Digest) })
		if of && said.Enclave == attest.NewEnclave(before) && said.Source.Is(e.Recipe.Source) &&
			said.Runtime.Digest == r.Digest {
			identity.Source, identity.Findings, identity.Runtime = said.Source, said.Findings, said.Runtime
			break
		}
	}
	identity.Enclave = attest.NewEnclave(e.SigStruct)
	return identity, nil
}

// RollbackError says that an image would be replaced by one with a lower security version number.
type RollbackError struct {
	Now, New uint16
	// Signer is the MRSIGNER of the present one.
	Signer sgx.Measurement
}

func (e *RollbackError) Error() string {
	signer := "signed by " + e.Signer.String()
	if e.Signer == (sgx.Measurement{}) {
		signer = "not signed yet"
	}
	return fmt.Sprintf("the target has an enclave with the security version number (ISV SVN) %d, %s, and this one has "+
		"%d: what is sealed to the higher number cannot be read by the lower one, and relying parties refuse it", e.Now,
		signer, e.New)
}

// present returns the enclave of the image that the upload would replace, signed or not, or nil.
func present(upload *image.Upload) (*sgx.SigStruct, error) {
	now, err := upload.Current()
	if err != nil && !image.Transient(err) && upload.Context().Err() == nil {
		err = fmt.Errorf("%w: %w", ErrVersionUnknown, err)
	}
	if err != nil || now == nil {
		return nil, err
	}
	defer now.Close()
	if !IsResult(now) {
		return nil, nil // so there is no version to fall behind
	}
	e, err := openTop(upload.Context(), now)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrVersionUnknown, err)
	}
	return e.SigStruct, nil
}

// SignerError says that an image would be replaced that another key has signed.
type SignerError struct {
	// Now is the MRSIGNER of the present one, New that of what would replace it: zero for what is not signed yet.
	Now, New sgx.Measurement
}

func (e *SignerError) Error() string {
	by := "one by " + e.New.String()
	if e.New == (sgx.Measurement{}) {
		by = "one that is not signed yet"
	}
	return fmt.Sprintf("the target has an enclave signed by %s, and would get %s: whoever relies on that signer would "+
		"refuse it, and what is sealed to it could not be read", e.Now, by)
}

// checkReplaced reports why an enclave must not be replaced by one of a security version and a signer: a RollbackError
// or a SignerError, unless it is allowed to.
func checkReplaced(now *sgx.SigStruct, svn uint16, signer sgx.Measurement, rollback, another bool) error {
	if now == nil {
		return nil
	}
	if now.ISVSVN > svn && !rollback {
		return &RollbackError{now.ISVSVN, svn, now.MRSigner()}
	}
	if key, _ := now.Signature(); key != nil && now.MRSigner() != signer && !another {
		return &SignerError{now.MRSigner(), signer}
	}
	return nil
}
