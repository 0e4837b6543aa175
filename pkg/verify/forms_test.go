package verify_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/libos/gramine"
	"github.com/cconvert/cconvert/pkg/libos/gramine/sim"
	"github.com/cconvert/cconvert/pkg/verify"
)

// recompress stores an image with its layers in another compression, as "docker push" and builders do.
func recompress(t *testing.T, from, to string, kind types.MediaType, pack func(io.Writer) io.WriteCloser) {
	t.Helper()
	tag, err := name.NewTag(from)
	require.NoError(t, err)
	img, err := remote.Image(tag)
	require.NoError(t, err)
	layers, err := img.Layers()
	require.NoError(t, err)
	target, err := name.NewTag(to)
	require.NoError(t, err)
	config, err := img.RawConfigFile()
	require.NoError(t, err)
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1}
	send := func(l v1.Layer) v1.Descriptor {
		require.NoError(t, remote.WriteLayer(target.Context(), l))
		d, err := partial.Descriptor(l)
		require.NoError(t, err)
		return *d
	}
	m.Config = send(static.NewLayer(config, types.OCIConfigJSON))
	for _, l := range layers {
		r, err := l.Uncompressed()
		require.NoError(t, err)
		var blob bytes.Buffer
		w := pack(&blob)
		_, err = io.Copy(w, r)
		require.NoError(t, err)
		require.NoError(t, w.Close())
		m.Layers = append(m.Layers, send(static.NewLayer(blob.Bytes(), kind)))
	}
	body, err := json.Marshal(m)
	require.NoError(t, err)
	req, err := http.NewRequest(http.MethodPut, "http://"+target.RegistryStr()+"/v2/"+target.RepositoryStr()+
		"/manifests/"+target.TagStr(), bytes.NewReader(body))
	require.NoError(t, err)
	req.Header.Set("Content-Type", string(m.MediaType))
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	resp.Body.Close()
	require.Equal(t, http.StatusCreated, resp.StatusCode)
}

// forms are what others make of layers.
var forms = map[string]struct {
	kind types.MediaType
	pack func(io.Writer) io.WriteCloser
}{
	"zstd": {types.OCILayerZStd, func(w io.Writer) io.WriteCloser {
		z, err := zstd.NewWriter(w)
		if err != nil {
			panic(err)
		}
		return z
	}},
	"fast": {types.OCILayer, func(w io.Writer) io.WriteCloser {
		z, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
		if err != nil {
			panic(err)
		}
		return z
	}},
	"plain": {types.OCIUncompressedLayer, func(w io.Writer) io.WriteCloser { return plainWriter{w} }},
}

type plainWriter struct{ io.Writer }

func (plainWriter) Close() error { return nil }

// A result is read, verified, rebuilt, compared and signed again wherever it is and however its layers are compressed.
func TestOtherForms(t *testing.T) {
	ctx, a := context.Background(), newVictim(t, nil)
	first, dir := a.reg.Host+"/dst:1", t.TempDir()
	for name, f := range forms {
		recompress(t, first, a.reg.Host+"/dst:"+name, f.kind, f.pack)
	}
	archive, layout, ociArchive := "docker-archive:"+filepath.Join(dir, "a.tar")+":app:1", "oci:"+
		filepath.Join(dir, "layout")+":1", "oci-archive:"+filepath.Join(dir, "oci.tar")+":1"
	for _, to := range []string{archive, layout, ociArchive} {
		o := options(t, a.from)
		run(t, o, signer(t), to)
	}
	original, err := inspect.ReadLayers(ctx, open(t, first), inspect.Options{})
	require.NoError(t, err)
	for _, ref := range []string{
		archive, layout, ociArchive, a.reg.Host + "/dst:zstd", a.reg.Host + "/dst:fast", a.reg.Host + "/dst:plain",
	} {
		img := open(t, ref)
		c, err := inspect.Read(ctx, img, inspect.Options{})
		require.NoError(t, err, ref)
		require.NotNil(t, c.Recipe, ref)
		assert.Equal(t, original.MREnclave, c.MREnclave, ref)
		r, err := verify.Verify(ctx, img, open(t, a.from), a.expect, nil, inspect.Options{})
		require.NoError(t, err, ref)
		assert.True(t, r.Trusted, "%s: %v", ref, r.Checks)
		rebuilt, err := verify.Rebuild(ctx, img, verify.RebuildOptions{Source: parse(t, a.from)})
		require.NoError(t, err, ref)
		assert.True(t, rebuilt.Same, "%s: %v", ref, rebuilt.Why)
		layers, err := inspect.ReadLayers(ctx, img, inspect.Options{})
		require.NoError(t, err, ref)
		differences, err := inspect.Compare(original, layers)
		require.NoError(t, err, ref)
		assert.Empty(t, differences, ref)

		e, err := convert.OpenEnclave(ctx, img, []libos.Backend{gramine.Backend{}, sim.Backend{}})
		require.NoError(t, err, ref)
		key, signature, err := convert.Sign(ctx, e, otherKey(t))
		require.NoError(t, err, ref)
		again := "oci:" + filepath.Join(dir, "again") + ":1"
		_, err = convert.Finish(ctx, e, key, signature, parse(t, again), convert.StoreOptions{AllowRollback: true})
		require.NoError(t, err, ref)
		e, err = convert.OpenEnclave(ctx, open(t, again), []libos.Backend{sim.Backend{}})
		require.NoError(t, err, ref)
		assert.NotEqual(t, original.MRSigner, e.Now.MRSigner(), ref)
		assert.Equal(t, original.MREnclave, e.SigStruct.MREnclave, ref)
	}
}
