package convert_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
	"github.com/cconvert/cconvert/pkg/image/store"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/libos/gramine"
	"github.com/cconvert/cconvert/pkg/libos/gramine/sim"
	"github.com/cconvert/cconvert/pkg/sgx"
)

var backends = []libos.Backend{gramine.Backend{}, sim.Backend{}}

// unsigned converts without a signature.
func unsigned(t *testing.T, o convert.Options, to string) {
	t.Helper()
	p, err := convert.Prepare(context.Background(), o)
	require.NoError(t, err)
	defer p.Close()
	_, err = convert.Finish(context.Background(), p, nil, nil, parse(t, to), o.StoreOptions)
	require.NoError(t, err)
}

func prepared(t *testing.T, ref string) *convert.Prepared {
	t.Helper()
	img, err := store.Open(context.Background(), parse(t, ref), registry.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { img.Close() })
	e, err := convert.OpenEnclave(context.Background(), img, backends)
	require.NoError(t, err)
	return e
}

func finish(
	t *testing.T, e *convert.Prepared, key *sgx.Key, to string, o convert.StoreOptions,
) (*convert.Result, error) {
	t.Helper()
	public, signature, err := convert.Sign(context.Background(), e, key)
	require.NoError(t, err)
	return convert.Finish(context.Background(), e, public, signature, parse(t, to), o)
}

// Signed later, or again by another key, an image is the one that signing at once gives. Of the layers, only those
// that were added are read.
func TestSigningLater(t *testing.T) {
	reg := fixture.NewRegistry(t)
	from := reg.Push(t, "src:1", sample(t))
	o := options(t, from)
	o.Evidence = &convert.Evidence{}
	want, err := run(context.Background(), t, o, reg.Host+"/dst:want")
	require.NoError(t, err)

	unsigned(t, o, reg.Host+"/dst:1")
	e := prepared(t, reg.Host+"/dst:1")
	assert.Equal(t, want.MREnclave, e.SigStruct.MREnclave)
	before := len(reg.Requests())
	out, err := finish(t, prepared(t, reg.Host+"/dst:1"), signer(t), reg.Host+"/dst:1",
		convert.StoreOptions{Evidence: o.Evidence})
	require.NoError(t, err)
	assert.Equal(t, want.Output.Digest, out.Output.Digest)
	assert.Equal(t, want.Output.Digest, reg.Digest(t, "dst:1"))
	img, err := store.Open(context.Background(), parse(t, reg.Host+"/dst:1"), registry.Options{})
	require.NoError(t, err)
	for _, r := range reg.Requests()[before:] {
		for _, l := range img.Layers[:len(img.Layers)-2] {
			assert.False(t, strings.HasPrefix(r, http.MethodGet) && strings.Contains(r, l.Digest), r)
		}
	}

	other, err := sgx.GenerateKey(rand.Reader)
	require.NoError(t, err)
	e = prepared(t, reg.Host+"/dst:1")
	assert.Equal(t, want.MRSigner, e.Now.MRSigner())
	out, err = finish(t, e, other, reg.Host+"/dst:2", convert.StoreOptions{Evidence: o.Evidence})
	require.NoError(t, err)
	assert.NotEqual(t, want.Output.Digest, out.Output.Digest)
	again, err := finish(t, prepared(t, reg.Host+"/dst:2"), signer(t), reg.Host+"/dst:3", convert.StoreOptions{})
	require.NoError(t, err)
	assert.Equal(t, want.Output.Digest, again.Output.Digest)

	// What was attached to the image is attached to the new one, about the new signer.
	img, err = store.Open(context.Background(), parse(t, reg.Host+"/dst:2"), registry.Options{})
	require.NoError(t, err)
	artifacts, err := registry.Referrers(context.Background(), img, attest.Kinds...)
	require.NoError(t, err)
	public, err := other.Public(context.Background())
	require.NoError(t, err)
	said := 0
	for _, f := range attest.Read(context.Background(), artifacts, nil) {
		if f.Statement == nil || f.Statement.PredicateType != attest.IdentityType {
			continue
		}
		said++
		var identity attest.Identity
		require.NoError(t, json.Unmarshal(f.Statement.Predicate, &identity))
		assert.Equal(t, sgx.MRSigner(public), identity.MRSigner)
		assert.Equal(t, from, identity.Source.Name)
		assert.Contains(t, string(identity.Findings), "simulated")
	}
	assert.Equal(t, 1, said)
}

// A signature for another image, or by another key than it names, completes nothing.
func TestSigningRefuses(t *testing.T) {
	ctx := context.Background()
	reg := fixture.NewRegistry(t)
	from := reg.Push(t, "src:1", sample(t))
	unsigned(t, options(t, from), reg.Host+"/dst:1")
	before := reg.Digest(t, "dst:1")
	o := options(t, from)
	o.Enclave.ISVProdID = 9
	unsigned(t, o, reg.Host+"/dst:other")
	public, signature, err := convert.Sign(ctx, prepared(t, reg.Host+"/dst:other"), signer(t))
	require.NoError(t, err)
	_, err = convert.Finish(ctx, prepared(t, reg.Host+"/dst:1"), public, signature, parse(t, reg.Host+"/dst:1"),
		convert.StoreOptions{})
	assert.ErrorContains(t, err, "does not belong to this enclave")
	assert.Equal(t, before, reg.Digest(t, "dst:1"))

	img, err := store.Open(ctx, parse(t, from), registry.Options{})
	require.NoError(t, err)
	_, err = convert.OpenEnclave(ctx, img, backends)
	assert.ErrorIs(t, err, convert.ErrNotOurs)
}

// A key that everybody has signs what protects nothing, and nothing else.
func TestTestKey(t *testing.T) {
	reg := fixture.NewRegistry(t)
	unsigned(t, options(t, reg.Push(t, "src:1", sample(t))), reg.Host+"/dst:1")
	_, _, err := convert.Sign(context.Background(), prepared(t, reg.Host+"/dst:1"), signer(t))
	require.NoError(t, err, "the simulation protects nothing")

	// The manifest says what protects; what the recipe says beside it is not measured.
	real := func(manifest string) string {
		return strings.ReplaceAll(manifest, "/cconvert/sim/", "/cconvert/gramine/")
	}
	forge(t, reg, "dst:1", "dst:2", map[string]func(string) string{libos.ManifestPath: real})
	img, err := store.Open(context.Background(), parse(t, reg.Host+"/dst:2"), registry.Options{})
	require.NoError(t, err)
	_, err = convert.OpenEnclave(context.Background(), img, backends)
	assert.ErrorIs(t, err, convert.ErrNotOurs)
	forge(t, reg, "dst:1", "dst:3", map[string]func(string) string{
		libos.ManifestPath: real,
		libos.RecipePath: func(s string) string {
			return strings.Replace(s, `"kind": "sim"`, `"kind": "gramine"`, 1)
		},
	})
	_, _, err = convert.Sign(context.Background(), prepared(t, reg.Host+"/dst:3"), signer(t))
	assert.ErrorIs(t, err, convert.ErrTestKey)
}

// forge changes files of the layer on top, as somebody can who writes to the registry.
func forge(t *testing.T, reg *fixture.Registry, from, to string, changes map[string]func(string) string) {
	t.Helper()
	tag, err := name.NewTag(reg.Host + "/" + from)
	require.NoError(t, err)
	img, err := remote.Image(tag)
	require.NoError(t, err)
	layers, err := img.Layers()
	require.NoError(t, err)
	r, err := layers[len(layers)-1].Uncompressed()
	require.NoError(t, err)
	defer r.Close()
	archive, err := io.ReadAll(r)
	require.NoError(t, err)
	files, err := libos.Unpack(archive)
	require.NoError(t, err)
	for i, f := range files {
		if change := changes[f.Path]; change != nil {
			changed := change(string(f.Content))
			require.NotEqual(t, string(f.Content), changed, f.Path)
			files[i].Content = []byte(changed)
		}
	}
	var again bytes.Buffer
	require.NoError(t, libos.Pack(&again, files))
	top, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(again.Bytes())), nil
	})
	require.NoError(t, err)
	config, err := img.ConfigFile()
	require.NoError(t, err)
	config = config.DeepCopy()
	diffID, err := top.DiffID()
	require.NoError(t, err)
	config.RootFS.DiffIDs[len(layers)-1] = diffID
	config.History = nil
	if change := changes["config"]; change != nil {
		config.Config.Labels = nil
	}
	out := mutate.MediaType(empty.Image, types.DockerManifestSchema2)
	out, err = mutate.AppendLayers(out, append(layers[:len(layers)-1:len(layers)-1], top)...)
	require.NoError(t, err)
	out, err = mutate.ConfigFile(out, config)
	require.NoError(t, err)
	target, err := name.NewTag(reg.Host + "/" + to)
	require.NoError(t, err)
	require.NoError(t, remote.Write(target, out))
}

// Who can write to the registry does not get something else signed than the manifest gives.
func TestForgedStructure(t *testing.T) {
	reg := fixture.NewRegistry(t)
	unsigned(t, options(t, reg.Push(t, "src:1", sample(t))), reg.Host+"/dst:1")
	for what, at := range map[string]int{
		"attribute flags": 0x3a0, "mask of the flags": 0x3b0, "mask of XFRM": 0x3b8, "MISCSELECT": 0x384,
		"product": 0x400, "SVN": 0x402, "date": 0x14, "SWDEFINED": 0x28,
	} {
		forge(t, reg, "dst:1", "dst:2", map[string]func(string) string{libos.UnsignedPath: func(s string) string {
			b := []byte(s)
			b[at] ^= 0x10
			return string(b)
		}})
		img, err := store.Open(context.Background(), parse(t, reg.Host+"/dst:2"), registry.Options{})
		require.NoError(t, err)
		_, err = convert.OpenEnclave(context.Background(), img, backends)
		assert.ErrorContains(t, err, "something else than the manifest", what)
	}
	// A configuration without labels is completed, and not a panic.
	forge(t, reg, "dst:1", "dst:3", map[string]func(string) string{"config": func(s string) string { return s }})
	_, err := finish(t, prepared(t, reg.Host+"/dst:3"), signer(t), reg.Host+"/dst:4", convert.StoreOptions{})
	assert.NoError(t, err)
}

// A signature over evidence does not make true what somebody else has attached.
func TestForgedEvidence(t *testing.T) {
	ctx := context.Background()
	reg := fixture.NewRegistry(t)
	from := reg.Push(t, "src:1", sample(t))
	mine, others := attestKey(t), attestKey(t)
	for name, key := range map[string]*attest.PrivateKey{"mine": mine, "others": others, "checked": others} {
		o := options(t, from)
		o.Evidence = &convert.Evidence{Key: key}
		unsigned(t, o, reg.Host+"/"+name+":1")
		e := prepared(t, reg.Host+"/"+name+":1")
		e.SourceChecked = name == "checked"
		_, err := finish(t, e, signer(t), reg.Host+"/"+name+":2",
			convert.StoreOptions{Evidence: &convert.Evidence{Key: mine}})
		require.NoError(t, err)
		img, err := store.Open(ctx, parse(t, reg.Host+"/"+name+":2"), registry.Options{})
		require.NoError(t, err)
		artifacts, err := registry.Referrers(ctx, img, attest.InTotoMediaType)
		require.NoError(t, err)
		require.Len(t, artifacts, map[string]int{"mine": 4, "others": 1, "checked": 1}[name],
			"no provenance of what nobody has looked at")
		for _, f := range attest.Read(ctx, artifacts, &mine.PublicKey) {
			assert.True(t, f.Verified)
			var identity attest.Identity
			if f.Statement.PredicateType == attest.IdentityType &&
				json.Unmarshal(f.Statement.Predicate, &identity) == nil {
				assert.Equal(t, name == "mine", identity.Source.Name == from)
				assert.Equal(t, name != "others", len(identity.Source.Digest) > 0,
					"a source that was compared, or that the same key has stated")
				assert.Equal(t, name == "mine", identity.Runtime.Digest != "", "the loader is not measured")
			}
		}
	}
	// A registry that will not list what is attached does not keep anybody from signing.
	unsigned(t, options(t, from), reg.Host+"/dst:1")
	e := prepared(t, reg.Host+"/dst:1")
	reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if strings.Contains(r.URL.Path, "/referrers/") {
			w.WriteHeader(http.StatusTeapot)
			return true
		}
		return false
	})
	r, err := finish(t, e, signer(t), reg.Host+"/dst:2", convert.StoreOptions{Evidence: &convert.Evidence{}})
	reg.Intercept(nil)
	require.NoError(t, err)
	require.Len(t, r.Findings, 1, "stored, without evidence")
	assert.Equal(t, finding.EvidenceRefused, r.Findings[0].Code)
	assert.NotEmpty(t, reg.Digest(t, "dst:2"))
}

func attestKey(t *testing.T) *attest.PrivateKey {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	der, err := x509.MarshalPKCS8PrivateKey(private)
	require.NoError(t, err)
	key, err := attest.ParsePrivateKey(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	require.NoError(t, err)
	return key
}

// A tag does not fall back to a lower security version, whether converted or signed, unless that is wanted.
func TestRollback(t *testing.T) {
	ctx := context.Background()
	reg := fixture.NewRegistry(t)
	from := reg.Push(t, "src:1", sample(t))
	o := options(t, from)
	for _, place := range []string{reg.Host + "/dst:1", "oci:" + t.TempDir() + ":1"} {
		to := parse(t, place)
		convertTo := func(svn uint16, known, allow bool) error {
			o := o
			o.Enclave.ISVSVN, o.AllowRollback = svn, allow
			if known {
				o.Target = &to
			}
			_, err := run(ctx, t, o, place)
			return err
		}
		require.NoError(t, convertTo(2, true, false))
		require.NoError(t, convertTo(2, true, false))
		require.NoError(t, convertTo(3, false, false))
		for _, known := range []bool{true, false} {
			var rollback *convert.RollbackError
			require.ErrorAs(t, convertTo(2, known, false), &rollback, place)
			assert.EqualValues(t, 3, rollback.Now)
			assert.EqualValues(t, 2, rollback.New)
		}
		o := o
		o.Enclave.ISVSVN = 1
		unsigned(t, o, reg.Host+"/low:1")
		_, err := finish(t, prepared(t, reg.Host+"/low:1"), signer(t), place, convert.StoreOptions{})
		var rollback *convert.RollbackError
		require.ErrorAs(t, err, &rollback, place)
		_, err = finish(t, prepared(t, reg.Host+"/low:1"), signer(t), place, convert.StoreOptions{AllowRollback: true})
		require.NoError(t, err)
		require.NoError(t, convertTo(0, true, true))
	}
	// Nor does it while somebody else moves it on.
	low, high := o, o
	low.Enclave.ISVSVN, high.Enclave.ISVSVN = 1, 7
	for place, before := range map[string]func(string){
		"race:1": func(place string) { _, err := run(ctx, t, o, place); require.NoError(t, err) },
		"race:2": func(string) {}, // nothing was there
		"race:3": func(string) { // nothing that has a version
			index := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: fixture.Image(t,
				v1.Config{Cmd: []string{"/a"}}, fixture.Layer(t, fixture.File("a", "1")))})
			tag, err := name.NewTag(reg.Host + "/race:3")
			require.NoError(t, err)
			require.NoError(t, remote.WriteIndex(tag, index))
		},
	} {
		place = reg.Host + "/" + place
		before(place)
		to := parse(t, place)
		low.Target, high.Target = &to, &to
		slow, err := convert.Prepare(ctx, low)
		require.NoError(t, err)
		public, signature, err := convert.Sign(ctx, slow, signer(t))
		require.NoError(t, err)
		_, err = run(ctx, t, high, place)
		require.NoError(t, err)
		_, err = convert.Finish(ctx, slow, public, signature, to, low.StoreOptions)
		assert.ErrorIs(t, err, image.ErrMoved, place)
		slow.Close()
	}

	// What is labelled as converted, and cannot be read, has a version that nobody knows; what is not converted has
	// none.
	unsigned(t, o, reg.Host+"/dst:9")
	forge(t, reg, "dst:9", "dst:10", map[string]func(string) string{
		libos.UnsignedPath: func(string) string { return "{" },
	})
	_, err := run(ctx, t, o, reg.Host+"/dst:10")
	assert.ErrorIs(t, err, convert.ErrVersionUnknown)
	forge(t, reg, "dst:9", "dst:11", map[string]func(string) string{ // which took time with the square of its keys
		libos.ManifestPath: func(text string) string {
			var keys strings.Builder
			for k := range 80_000 {
				fmt.Fprintf(&keys, "k%d=1\n", k)
			}
			return text + "[sgx.x]\n" + keys.String()
		},
	})
	img, err := store.Open(ctx, parse(t, reg.Host+"/dst:11"), registry.Options{})
	require.NoError(t, err)
	_, err = convert.OpenEnclave(ctx, img, []libos.Backend{o.Backend})
	assert.ErrorContains(t, err, "more than 10000 keys")
	reg.Push(t, "plain:1", sample(t))
	_, err = run(ctx, t, o, reg.Host+"/plain:1")
	assert.NoError(t, err)
}

// An image that this program cannot read may be anybody's, and so may one whose configuration is gone.
func TestTargetThatCannotBeRead(t *testing.T) {
	ctx, reg := context.Background(), fixture.NewRegistry(t)
	o := options(t, reg.Push(t, "src:1", sample(t)))
	encrypted, err := mutate.Append(mutate.MediaType(empty.Image, types.OCIManifestSchema1), mutate.Addendum{
		Layer:     fixture.Layer(t, fixture.File("a", "1")),
		MediaType: "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
	})
	require.NoError(t, err)
	var deep v1.ImageIndex = empty.Index
	var in mutate.Appendable = sample(t)
	for range 3 {
		deep = mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: in})
		in = deep
	}
	reg.Push(t, "dst:encrypted", mutate.ConfigMediaType(encrypted, types.OCIConfigJSON))
	tag, err := name.NewTag(reg.Host + "/dst:deep")
	require.NoError(t, err)
	require.NoError(t, remote.WriteIndex(tag, deep))
	for _, tag := range []string{"encrypted", "deep"} {
		before := reg.Digest(t, "dst:"+tag)
		_, err = run(ctx, t, o, reg.Host+"/dst:"+tag)
		require.ErrorIs(t, err, convert.ErrVersionUnknown, tag)
		assert.Equal(t, before, reg.Digest(t, "dst:"+tag))
	}

	gone := fixture.Image(t, v1.Config{Cmd: []string{"/gone"}}, fixture.Layer(t, fixture.File("a", "1")))
	reg.Push(t, "dst:gone", gone)
	id, err := gone.ConfigName()
	require.NoError(t, err)
	reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if r.URL.Path != "/v2/dst/blobs/"+id.String() {
			return false
		}
		w.WriteHeader(http.StatusNotFound)
		return true
	})
	_, err = run(ctx, t, o, reg.Host+"/dst:gone") // it may be there again in a moment
	require.ErrorIs(t, err, convert.ErrVersionUnknown)
	o.AllowRollback = true
	_, err = run(ctx, t, o, reg.Host+"/dst:gone")
	require.NoError(t, err)
}

// What was packed while the enclave was measured is the same as what is packed afterwards.
func TestCompleteAgain(t *testing.T) {
	ctx, reg := context.Background(), fixture.NewRegistry(t)
	p, err := convert.Prepare(ctx, options(t, reg.Push(t, "src:1", sample(t))))
	require.NoError(t, err)
	defer p.Close()
	key, signature, err := convert.Sign(ctx, p, signer(t))
	require.NoError(t, err)
	first, err := p.Complete(key, signature)
	require.NoError(t, err)
	again, err := p.Complete(key, signature)
	require.NoError(t, err)
	assert.Equal(t, first.Digest, again.Digest)
}

// An image that another key has signed is not replaced by accident, by whichever way.
func TestReplacedSigner(t *testing.T) {
	ctx, reg := context.Background(), fixture.NewRegistry(t)
	from := reg.Push(t, "src:1", sample(t))
	o := options(t, from)
	first, err := run(ctx, t, o, reg.Host+"/dst:1")
	require.NoError(t, err)
	other, err := sgx.GenerateKey(rand.Reader)
	require.NoError(t, err)
	attempt := func(key sgx.Signer, known, allowed bool) error {
		each := o
		each.ReplaceSigner = allowed
		target := parse(t, reg.Host+"/dst:1")
		if known {
			each.Target = &target
		}
		p, err := convert.Prepare(ctx, each)
		if err != nil {
			return err
		}
		defer p.Close()
		if key == nil {
			_, err = convert.Finish(ctx, p, nil, nil, target, each.StoreOptions)
			return err
		}
		public, signature, err := convert.Sign(ctx, p, key)
		require.NoError(t, err)
		_, err = convert.Finish(ctx, p, public, signature, target, each.StoreOptions)
		return err
	}
	var changed *convert.SignerError
	for _, known := range []bool{true, false} {
		for _, key := range []sgx.Signer{other, nil} {
			require.ErrorAs(t, attempt(key, known, false), &changed)
			assert.Equal(t, first.MRSigner, changed.Now)
			assert.Equal(t, first.Output.Digest, reg.Digest(t, "dst:1"))
		}
		require.NoError(t, attempt(signer(t), known, false), "its own signer")
	}
	_, err = finish(t, prepared(t, reg.Host+"/dst:1"), other, reg.Host+"/dst:1", convert.StoreOptions{})
	require.ErrorAs(t, err, &changed)
	assert.Equal(t, first.Output.Digest, reg.Digest(t, "dst:1"))
	require.NoError(t, attempt(other, true, true))
	assert.NotEqual(t, first.Output.Digest, reg.Digest(t, "dst:1"))
	_, err = finish(t, prepared(t, reg.Host+"/dst:1"), signer(t), reg.Host+"/dst:1",
		convert.StoreOptions{ReplaceSigner: true})
	require.NoError(t, err)
	// What must not be read may be anybody's; some registries deny reading to those who ask for that alone.
	now := reg.Digest(t, "dst:1")
	for writersRead, want := range map[bool]bool{false: false, true: true} {
		var read atomic.Int32
		reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
			reading := strings.HasPrefix(r.URL.Path, "/v2/dst/manifests/") &&
				(r.Method == http.MethodGet || r.Method == http.MethodHead)
			if !reading || read.Add(1) > 1 && writersRead {
				return false
			}
			w.WriteHeader(http.StatusForbidden)
			return true
		})
		err := attempt(other, true, false)
		if want {
			var changed *convert.SignerError
			require.ErrorAs(t, err, &changed, "it was read")
		} else {
			require.ErrorIs(t, err, convert.ErrVersionUnknown)
			require.ErrorIs(t, err, image.ErrUnauthorized)
			reg.Intercept(nil)
			assert.Equal(t, now, reg.Digest(t, "dst:1"))
		}
	}
	reg.Intercept(nil)
	// What is not signed yet is nobody's.
	require.NoError(t, attempt(nil, true, true))
	require.NoError(t, attempt(other, true, false))
}
