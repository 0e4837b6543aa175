package verify_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"math/bits"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/protectedfs"
	"github.com/cconvert/cconvert/pkg/rootfs"
	"github.com/cconvert/cconvert/pkg/sgx"
	"github.com/cconvert/cconvert/pkg/verify"
)

// crate is a library OS that does not exist: it repacks all files that the program needs into one, and measures that
// file, and nothing else.
type crate struct{}

const (
	crateLoader   = libos.Root + "/crate/loader"
	crateContents = libos.Root + "/crate/contents"
	crateSettings = libos.Root + "/app/crate.json"
)

func (crate) Image(libos.LoadOptions) (ref image.Reference, ok bool, err error) {
	return ref, false, nil
}

func (crate) StartSeconds(int) float64 { return 0 }

func (crate) Kind() string { return "crate" }

// The runtime's, one for the contents, and the enclave's.
func (crate) Layers() int { return 3 }

func (crate) Agent() ([]byte, error) { return nil, libos.ErrNoAgent }

func (crate) Keep() []string { return []string{crateSettings} }

func (crate) CheckOverlay(name, _ string) error {
	return errors.New(name + ": there is nothing to configure")
}

func (crate) Load(context.Context, libos.LoadOptions) (*libos.Bundle, error) {
	archive, err := libos.PackRuntime(libos.Meta{Kind: "crate", Version: "1", Layout: 1},
		[]libos.File{{Path: crateLoader, Mode: 0o755, Content: []byte("loader")}})
	if err != nil {
		return nil, err
	}
	b, err := libos.NewBundle(archive)
	if err != nil {
		return nil, err
	}
	b.Source, b.Pinned = "crate", true
	return b, nil
}

func (crate) EncryptedFormat(*libos.Bundle) (protectedfs.Version, error) {
	return 0, errors.New("it has no encrypted files")
}

func (crate) Seal(ctx context.Context, in libos.Input) (*libos.Sealed, error) {
	needed := map[string]bool{}
	for _, f := range in.Spec.Trusted {
		needed[f.Path] = true
	}
	var contents bytes.Buffer
	want := func(n *rootfs.Node) bool { return needed[n.Path] }
	err := in.Contents(ctx, want, func(nodes []*rootfs.Node, content io.Reader) error {
		for _, n := range nodes {
			contents.WriteString(n.Path + "\x00")
		}
		_ = binary.Write(&contents, binary.LittleEndian, nodes[0].Size)
		_, err := io.Copy(&contents, content)
		return err
	})
	if err != nil {
		return nil, err
	}
	w, err := image.NewLayerWriter(1)
	if err != nil {
		return nil, err
	}
	err = libos.Pack(w, []libos.File{{Path: crateContents, Mode: 0o644, Content: contents.Bytes()}})
	if err != nil {
		return nil, err
	}
	layer, err := w.Layer()
	if err != nil {
		return nil, err
	}
	settings, err := json.Marshal(in.Spec.Argv)
	if err != nil {
		return nil, err
	}
	layout := crateLayout(contents.Bytes())
	return &libos.Sealed{
		Layers: []image.NewLayer{layer}, Layout: layout, SigStruct: crateSigStruct(sgx.Measurement{}, in.Date),
		Files:      []libos.File{{Path: crateSettings, Mode: 0o644, Content: settings}},
		Entrypoint: []string{crateLoader, crateContents}, Settings: sgx.Settings{EnclaveSize: layout.Size},
		Findings: in.Spec.Findings,
	}, nil
}

func (crate) Open(in libos.Stored) (*libos.Enclave, error) {
	e := &libos.Enclave{Kind: "crate", SigStruct: crateSigStruct, Start: []string{crateLoader, crateContents}}
	if err := json.Unmarshal(in.Files[crateSettings], &e.Program.Argv); err != nil {
		return nil, err
	}
	if in.Read == nil {
		return e, nil
	}
	contents, err := in.Read(crateContents)
	if err != nil {
		return nil, err
	}
	layout := crateLayout(contents)
	e.Layout, e.Settings.EnclaveSize = &layout, layout.Size
	return e, nil
}

func crateLayout(contents []byte) sgx.Layout {
	pages := max(2, (len(contents)+sgx.PageSize-1)/sgx.PageSize)
	return sgx.Layout{
		Size: sgx.PageSize << bits.Len(uint(pages-1)), SSAFrameSize: 1,
		Areas: []sgx.Area{{
			Name: "contents", Size: uint64(pages) * sgx.PageSize, Flags: sgx.R | sgx.REG, Data: contents,
		}},
	}
}

func crateSigStruct(m sgx.Measurement, date sgx.Date) *sgx.SigStruct {
	return &sgx.SigStruct{
		Date: date, MREnclave: m, MiscMask: sgx.MiscMaskAll,
		Attributes:     sgx.Attributes{Flags: sgx.FlagMode64, XFRM: sgx.XFRMLegacy},
		AttributesMask: sgx.Attributes{Flags: sgx.FlagsMaskAll, XFRM: ^uint64(0)},
	}
}

// Another library OS needs nothing but a backend: images are converted for it, read, verified, signed again and
// rebuilt.
func TestAnotherLibraryOS(t *testing.T) {
	ctx, reg := context.Background(), fixture.NewRegistry(t)
	from := reg.Push(t, "src:1", fixture.Image(t, v1.Config{Entrypoint: []string{"/bin/app", "--serve"}},
		fixture.Layer(t, fixture.Program("bin/app", fixture.ELF("")), fixture.File("etc/app.conf", "the settings")),
		fixture.Layer(t, fixture.Hardlink("bin/again", "bin/app"), fixture.File("etc/other.conf", "other ones"))))
	o := options(t, from)
	o.Backend = crate{}
	first, second := otherKey(t), newKey(t)
	made := run(t, o, first, reg.Host+"/dst:1")

	img := open(t, reg.Host+"/dst:1")
	require.Len(t, img.Layers, 5)
	known := inspect.Options{Backends: []libos.Backend{crate{}}}
	c, err := inspect.Read(ctx, img, known)
	require.NoError(t, err)
	assert.Equal(t, made.MREnclave, c.MREnclave)
	assert.Equal(t, []string{crateLoader, crateContents}, c.Entrypoint)
	assert.Equal(t, []string{"/bin/app", "--serve"}, c.Program.Argv)
	contents, err := rootfs.Extract(ctx, fetched(t, img.Layers[3]), img.Layers[3].Digest,
		map[string]bool{crateContents: true}, 1<<20, nil)
	require.NoError(t, err)
	for _, part := range []string{"/bin/app\x00", fixture.ELF(""), "the settings", "other ones"} {
		assert.Contains(t, string(contents[crateContents]), part)
	}

	x := verify.Expectations{MRSigner: []sgx.Measurement{made.MRSigner}, AnyRuntime: true}
	r, err := verify.Verify(ctx, img, open(t, from), x, nil, known)
	require.NoError(t, err)
	assert.True(t, r.Trusted, r.Checks)
	r, err = verify.Verify(ctx, img, nil, x, nil, inspect.Options{})
	require.NoError(t, err)
	assert.False(t, r.Consistent, "it is not in the list")

	r, e, err := verify.BeforeSigning(ctx, img, open(t, from), verify.Expectations{AnyRuntime: true}, known)
	require.NoError(t, err)
	require.NotNil(t, e, r.Checks)
	key, signature, err := convert.Sign(ctx, e, second)
	require.NoError(t, err)
	again, err := convert.Finish(ctx, e, key, signature, parse(t, reg.Host+"/dst:2"), convert.StoreOptions{})
	require.NoError(t, err)
	at := run(t, o, second, reg.Host+"/dst:3")
	assert.Equal(t, at.Output.Digest, again.Output.Digest, "as if it had been signed so at once")

	rebuilt, err := verify.Rebuild(ctx, open(t, reg.Host+"/dst:2"), verify.RebuildOptions{
		Source: parse(t, from), Read: known,
	})
	require.NoError(t, err)
	assert.True(t, rebuilt.Same, rebuilt.Why)

	// What is changed in the added layers is seen.
	for layer, change := range map[int]fixture.Entry{
		2: fixture.Program("cconvert/crate/loader", "another loader"),
		3: fixture.File("cconvert/crate/contents", "other contents"),
		4: fixture.File("cconvert/app/crate.json", `["/bin/sh"]`),
	} {
		a := &victim{t: t, reg: reg, from: from}
		original, y := a.image()
		y.add(layer, change)
		y.push(reg.Host+"/attack:1", original)
		r, err := verify.Verify(ctx, open(t, reg.Host+"/attack:1"), nil, x, nil, known)
		require.NoError(t, err)
		assert.False(t, r.Consistent, "layer %d: %v", layer, r.Checks)
		assert.Contains(t, strings.Join(r.FailedChecks(), " "), map[int]string{
			2: verify.CheckRuntime, 3: verify.CheckMeasurement, 4: verify.CheckPolicy,
		}[layer])
	}
}

func newKey(t *testing.T) *sgx.Key {
	t.Helper()
	key, err := sgx.GenerateKey(rand.Reader)
	require.NoError(t, err)
	return key
}

// fetched opens a layer.
func fetched(t *testing.T, l *image.Layer) io.Reader {
	t.Helper()
	r, err := l.Open(context.Background())
	require.NoError(t, err)
	t.Cleanup(func() { r.Close() })
	return r
}
