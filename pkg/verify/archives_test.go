package verify_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/verify"
)

// swap stores the victim under another tag with the same configuration, one layer's blob being another one.
func (a *victim) swap(tag string, layer int, blob []byte, mt types.MediaType, annotations map[string]string) string {
	a.t.Helper()
	original, _ := a.image()
	m, err := original.Manifest()
	require.NoError(a.t, err)
	m = m.DeepCopy()
	l := static.NewLayer(blob, mt)
	ref, err := name.NewTag(a.reg.Host + "/dst:" + tag)
	require.NoError(a.t, err)
	require.NoError(a.t, remote.WriteLayer(ref.Context(), l))
	d := &m.Layers[layer]
	d.Digest, err = l.Digest()
	require.NoError(a.t, err)
	d.Size, d.MediaType, d.Annotations = int64(len(blob)), mt, annotations
	body, err := json.Marshal(m)
	require.NoError(a.t, err)
	req, err := http.NewRequest(http.MethodPut, "http://"+a.reg.Host+"/v2/dst/manifests/"+tag, bytes.NewReader(body))
	require.NoError(a.t, err)
	req.Header.Set("Content-Type", string(m.MediaType))
	resp, err := http.DefaultClient.Do(req)
	require.NoError(a.t, err)
	resp.Body.Close()
	require.Equal(a.t, http.StatusCreated, resp.StatusCode)
	return ref.String()
}

// plain is the archive of one of the victim's layers.
func (a *victim) plain(layer int) []byte {
	a.t.Helper()
	_, x := a.image()
	r, err := x.layers[layer].Uncompressed()
	require.NoError(a.t, err)
	defer r.Close()
	b, err := io.ReadAll(r)
	require.NoError(a.t, err)
	return b
}

// Who stores layers anew, in another compression, may have stored others: the configuration alone does not show it.
func TestSameConfigurationOtherLayers(t *testing.T) {
	a := newVictim(t, nil)
	rebuilt := func(ref string) *verify.Rebuilt {
		r, err := verify.Rebuild(context.Background(), open(t, ref),
			verify.RebuildOptions{Source: parse(t, a.from), Convert: convert.Options{}})
		require.NoError(t, err)
		return r
	}
	for _, layer := range []int{base, second, runtimeLayer} {
		plain := a.swap("plain", layer, a.plain(layer), types.OCIUncompressedLayer, nil)
		assert.Empty(t, a.failed(plain, true))
		r := rebuilt(plain)
		assert.True(t, r.Same && r.Recompressed, r.Why)

		differences := func(ref string, read func(context.Context, *image.Image, inspect.Options) (*inspect.Converted,
			error)) []inspect.Difference {
			one, err := read(context.Background(), open(t, a.reg.Host+"/dst:1"), inspect.Options{})
			require.NoError(t, err)
			two, err := read(context.Background(), open(t, ref), inspect.Options{})
			require.NoError(t, err)
			list, err := inspect.Compare(one, two)
			require.NoError(t, err)
			return list
		}
		assert.Empty(t, differences(plain, inspect.ReadLayers), "compressed otherwise")

		evil := a.swap("evil", layer, append(a.plain(layer), make([]byte, 512)...), types.OCIUncompressedLayer, nil)
		assert.NotEmpty(t, differences(evil, inspect.ReadLayers), "diff says which layer holds something else")
		assert.Contains(t, a.failed(evil, true), verify.CheckLayers)
		r = rebuilt(evil)
		assert.False(t, r.Same)
		if layer != runtimeLayer { // which is read for converting again
			assert.Contains(t, r.Why[0], "its archive is")
		}
	}
}

// Engines that load lazily take files from a layer's table of contents, or from elsewhere.
func TestLazyLayers(t *testing.T) {
	a := newVictim(t, nil)
	stargz := func(archive []byte) ([]byte, string) {
		b, err := estargz.Build(io.NewSectionReader(bytes.NewReader(archive), 0, int64(len(archive))))
		require.NoError(t, err)
		defer b.Close()
		blob, err := io.ReadAll(b)
		require.NoError(t, err)
		return blob, b.TOCDigest().String()
	}
	// An honest one, as the source has it already.
	blob, toc := stargz(a.plain(base))
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(blob)), nil })
	require.NoError(t, err)
	reg := fixture.NewRegistry(t)
	src := reg.Push(t, "src:1", fixture.Image(t, v1.Config{Entrypoint: []string{"/usr/bin/app"}},
		annotated{l, map[string]string{estargz.TOCJSONDigestAnnotation: toc}}))
	lazy := &victim{t: t, reg: reg, from: src, expect: verify.Expectations{AllowSimulated: true, AnySigner: true}}
	run(t, options(t, src), signer(t), reg.Host+"/dst:1")
	assert.Empty(t, lazy.failed(reg.Host+"/dst:1", true))

	for what, annotations := range map[string]map[string]string{
		"another table": {estargz.TOCJSONDigestAnnotation: "sha256:" + string(bytes.Repeat([]byte("0"), 64))},
		"nydus":         {"containerd.io/snapshot/nydus-bootstrap": "true"},
		"no table":      {"io.github.containers.zstd-chunked.manifest-position": "0:1:1:1"},
	} {
		ref := a.swap("lazy", base, a.plain(base), types.OCIUncompressedLayer, annotations)
		assert.Contains(t, a.failed(ref, false), verify.CheckLayers, what)
	}
}

// annotated is a layer with annotations in the manifest.
type annotated struct {
	v1.Layer
	annotations map[string]string
}

func (l annotated) Descriptor() (*v1.Descriptor, error) {
	digest, err := l.Digest()
	if err != nil {
		return nil, err
	}
	size, err := l.Size()
	return &v1.Descriptor{MediaType: types.OCILayer, Digest: digest, Size: size, Annotations: l.annotations}, err
}

// A name that leads engines to another image is not "the same", and two measurements are not one.
func TestRebuildAndDiffOfOthers(t *testing.T) {
	a := newVictim(t, nil)
	good, _ := a.image()
	evil := fixture.Image(t, v1.Config{Entrypoint: []string{"/evil"}}, fixture.Layer(t, fixture.Program("evil", "x")))
	amd64 := &v1.Platform{OS: "linux", Architecture: "amd64"}
	tag, err := name.NewTag(a.reg.Host + "/dst:index")
	require.NoError(t, err)
	require.NoError(t, remote.WriteIndex(tag, mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: good, Descriptor: v1.Descriptor{Platform: amd64}},
		mutate.IndexAddendum{Add: evil, Descriptor: v1.Descriptor{Platform: amd64}})))
	r, err := verify.Rebuild(context.Background(), open(t, tag.String()),
		verify.RebuildOptions{Source: parse(t, a.from), Convert: convert.Options{}})
	require.NoError(t, err)
	assert.False(t, r.Same)
	assert.Contains(t, r.Why[0], "another image by the same name")

	one, err := inspect.ReadLayers(context.Background(), open(t, a.reg.Host+"/dst:1"), inspect.Options{})
	require.NoError(t, err)
	two := *one
	two.MREnclave[0] ^= 1
	differences, err := inspect.Compare(one, &two)
	require.NoError(t, err)
	assert.Len(t, differences, 1)
}
