package store_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
	"github.com/cconvert/cconvert/pkg/image/store"
)

// serve answers requests for the manifest of R/x:1 with a document, and for blobs as the registry does.
func serve(reg *fixture.Registry, contentType string, document []byte) {
	reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if !strings.HasSuffix(r.URL.Path, "/manifests/1") && !strings.HasSuffix(r.URL.Path, digest(document)) {
			return false
		}
		w.Header().Set("Content-Type", contentType)
		w.Header().Set("Docker-Content-Digest", digest(document))
		w.Header().Set("Content-Length", fmt.Sprint(len(document)))
		_, _ = w.Write(document)
		return true
	})
}

// with sets keys of a document; nil removes one.
func with(t *testing.T, raw []byte, set map[string]any) []byte {
	t.Helper()
	var m map[string]any
	require.NoError(t, json.Unmarshal(raw, &m))
	for k, v := range set {
		if m[k] = v; v == nil {
			delete(m, k)
		}
	}
	out, err := json.Marshal(m)
	require.NoError(t, err)
	return out
}

// What can be read as two documents is refused in every place; what was only labelled carelessly is read.
func TestDocumentTypes(t *testing.T) {
	reg := fixture.NewRegistry(t)
	ref := reg.Push(t, "x:good", sample(t))
	tag, err := name.NewTag(ref)
	require.NoError(t, err)
	d, err := remote.Get(tag)
	require.NoError(t, err)
	good, docker := d.Manifest, string(types.DockerManifestSchema2)
	index := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"digest":%q,"size":%d}]}`,
		types.OCIImageIndex, docker, d.Digest, d.Size)
	withConfig := func(mt string) []byte {
		var m struct{ Config map[string]any }
		require.NoError(t, json.Unmarshal(good, &m))
		m.Config["mediaType"] = mt
		return with(t, good, map[string]any{"config": m.Config})
	}
	for _, c := range []struct {
		what, contentType string
		document          []byte
		problem           string // empty: it is read
	}{
		{"a manifest", docker, good, ""},
		{"with a character set", docker + "; charset=utf-8", good, ""},
		{"without a type of its own", docker, with(t, good, map[string]any{"mediaType": nil}), ""},
		{"from a server that knows no types", "application/octet-stream", good, ""},
		{"as plain JSON", "application/json", good, ""},
		{"the configuration as bytes", docker, withConfig("application/octet-stream"), ""},
		{"the configuration as JSON", docker, withConfig("application/json; charset=utf-8"), ""},
		{"the configuration as a page", docker, withConfig("text/html"), ""},
		{"an index with one entry without a platform", string(types.OCIImageIndex), index, ""},

		{"a manifest with manifests", docker, with(t, good, map[string]any{"manifests": []any{}}), "ambiguous"},
		{"a manifest with layers of schema 1", docker, with(t, good, map[string]any{"fsLayers": []any{}}), "ambiguous"},
		{
			"an index with layers", string(types.OCIImageIndex), with(t, index, map[string]any{"layers": []any{}}),
			"ambiguous",
		},
		{
			"an index with a configuration", string(types.OCIImageIndex),
			with(t, index, map[string]any{"config": map[string]any{}}), "ambiguous",
		},
		{"an index that came as a manifest", docker, index, "ambiguous"},
		{"a manifest that came as an index", string(types.OCIImageIndex), good, "ambiguous"},
		{"a manifest of another kind", string(types.OCIManifestSchema1), good, "ambiguous"},
		{"a type that is no string", docker, with(t, good, map[string]any{"mediaType": 7}), "mediaType"},
		{"another spelling", docker, with(t, good, map[string]any{"Manifests": []any{}}), `must be "manifests"`},
		{"a chart", docker, withConfig("application/vnd.cncf.helm.config.v1+json"), "not supported"},
	} {
		check := func(where string, err error) {
			t.Helper()
			if c.problem == "" {
				assert.NoError(t, err, "%s in %s", c.what, where)
			} else {
				assert.ErrorContains(t, err, c.problem, "%s in %s", c.what, where)
			}
		}
		serve(reg, c.contentType, c.document)
		img, err := store.Open(context.Background(), parse(t, reg.Host+"/x:1"), quick)
		check("a registry", err)
		if err == nil {
			img.Close()
		}
		found, err := store.Find(context.Background(), parse(t, reg.Host+"/x:1"), quick)
		if err == nil {
			if img, err = found.Open(context.Background()); err == nil {
				img.Close()
			}
		}
		check("a registry, found first", err)
		if _, ok := strings.CutPrefix(c.contentType, "application/vnd."); !ok || strings.Contains(c.contentType, ";") {
			continue // a layout has no content types but those in descriptors
		}
		dir := t.TempDir()
		_, err = extend(context.Background(), t, ref, "oci:"+dir+":1", quick)
		require.NoError(t, err)
		for _, blob := range append([][]byte{c.document, good}, blobsOf(t, good, tag)...) {
			require.NoError(t, os.WriteFile(dir+"/blobs/sha256/"+digest(blob)[len("sha256:"):], blob, 0o600))
		}
		list := fmt.Sprintf(`{"schemaVersion":2,"manifests":[{"mediaType":%q,"digest":%q,"size":%d}]}`, c.contentType,
			digest(c.document), len(c.document))
		require.NoError(t, os.WriteFile(dir+"/index.json", []byte(list), 0o600))
		img, err = store.Open(context.Background(), parse(t, "oci:"+dir), quick)
		check("a layout", err)
		if err == nil {
			img.Close()
		}
	}
}

// blobsOf are an image's configuration and layers.
func blobsOf(t *testing.T, raw []byte, at name.Tag) [][]byte {
	t.Helper()
	img, err := remote.Image(at)
	require.NoError(t, err)
	config, err := img.RawConfigFile()
	require.NoError(t, err)
	return [][]byte{config, raw}
}

// Architectures are written in several ways, or not at all.
func TestPlatformNames(t *testing.T) {
	for _, c := range []struct {
		os, arch string
		ok       bool
	}{
		{"linux", "amd64", true}, {"linux", "x86_64", true}, {"Linux", "AMD64", true}, {"linux", "", true},
		{"", "", true}, {"windows", "amd64", false}, {"linux", "arm64", false}, {"linux", "386", false},
	} {
		reg := fixture.NewRegistry(t)
		base := sample(t)
		raw, err := base.RawConfigFile()
		require.NoError(t, err)
		config := with(t, raw, map[string]any{"os": c.os, "architecture": c.arch})
		manifest, err := base.RawManifest()
		require.NoError(t, err)
		document := with(t, manifest, map[string]any{"config": map[string]any{
			"mediaType": types.DockerConfigJSON, "digest": digest(config), "size": len(config),
		}})
		reg.Push(t, "x:good", base)
		reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
			for at, body := range map[string][]byte{"/manifests/1": document, "/blobs/" + digest(config): config} {
				if strings.HasSuffix(r.URL.Path, at) {
					w.Header().Set("Content-Type", string(types.DockerManifestSchema2))
					_, _ = w.Write(body)
					return true
				}
			}
			return false
		})
		img, err := store.Open(context.Background(), parse(t, reg.Host+"/x:1"), quick)
		if !c.ok {
			assert.ErrorIs(t, err, image.ErrPlatform, "%s/%s", c.os, c.arch)
			continue
		}
		if assert.NoError(t, err, "%s/%s", c.os, c.arch) {
			img.Close()
		}
	}
}

// Registries refuse what others do, each in its own way.
func TestForgivenRefusals(t *testing.T) {
	ctx := context.Background()
	page := "<!DOCTYPE html><html></html>"
	status := func(code int, kind, body string) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", kind)
			w.WriteHeader(code)
			_, _ = w.Write([]byte(body))
		}
	}
	type refusal struct {
		what   string
		at     func(*http.Request) bool
		answer func(http.ResponseWriter)
	}
	var table []refusal
	mount := func(r *http.Request) bool { return r.Method == http.MethodPost && r.URL.Query().Get("mount") != "" }
	list := func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/referrers/") }
	for _, code := range []int{400, 401, 403, 404, 405} {
		table = append(table, refusal{fmt.Sprint("mount ", code), mount, status(code, "text/plain", "no")})
	}
	for _, code := range []int{204, 400, 401, 403, 404, 405, 406, 410, 415, 501} {
		body := "no"
		if code == 204 {
			body = ""
		}
		table = append(table, refusal{fmt.Sprint("referrers ", code), list, status(code, "text/plain", body)})
	}
	table = append(table,
		refusal{"referrers: a page", list, status(200, "text/html", page)},
		refusal{"referrers: a page as JSON", list, status(200, "application/json", page)},
		refusal{"referrers: nothing", list, status(200, "application/json", "")},
		refusal{"referrers: led to a page", list, func(w http.ResponseWriter) {
			w.Header().Set("Location", "/ui/")
			w.WriteHeader(http.StatusFound)
		}},
		refusal{"PUT by digest", func(r *http.Request) bool {
			return r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/manifests/sha256:")
		}, status(405, "text/plain", "no")},
	)
	for _, c := range table {
		reg := fixture.NewRegistry(t)
		from := reg.Push(t, "src:1", sample(t))
		img, err := store.Open(ctx, parse(t, from), quick)
		require.NoError(t, err)
		var config map[string]json.RawMessage
		require.NoError(t, json.Unmarshal(img.Config, &config))
		out, err := image.Append(img, config, []image.NewLayer{added(t)})
		require.NoError(t, err)
		out.Evidence = []image.Artifact{{Type: "application/mine", MediaType: "text/plain", Blob: []byte("1")}}
		met := false
		reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
			switch {
			case c.at(r):
				met = true
				c.answer(w)
			case r.URL.Path == "/ui/":
				status(200, "text/html", page)(w)
			default:
				return false
			}
			return true
		})
		assert.NoError(t, store.Write(ctx, parse(t, reg.Host+"/dst:1"), out, quick), c.what)
		assert.True(t, met, c.what)
		result, err := store.Open(ctx, parse(t, reg.Host+"/dst:1"), quick)
		if assert.NoError(t, err, c.what) {
			assert.Equal(t, out.Digest, result.Digest, c.what)
			attached, err := registry.Referrers(ctx, result, "application/mine")
			assert.NoError(t, err, c.what)
			assert.Len(t, attached, 1, c.what)
			result.Close()
		}
		img.Close()
	}
}

// A foreign layer that names no other place is sent like any other.
func TestForeignLayerWithoutPlaces(t *testing.T) {
	ctx, reg, target := context.Background(), fixture.NewRegistry(t), fixture.NewRegistry(t)
	l := static.NewLayer(fixture.Tar(t, fixture.File("w", "x")), types.DockerForeignLayer)
	img, err := mutate.Append(sample(t), mutate.Addendum{Layer: l, MediaType: types.DockerForeignLayer})
	require.NoError(t, err)
	tag, err := name.NewTag(reg.Host + "/f:1")
	require.NoError(t, err)
	require.NoError(t, remote.Write(tag, img, remote.WithNondistributable))
	_, err = extend(ctx, t, reg.Host+"/f:1", target.Host+"/f:2", quick)
	require.NoError(t, err)
	out, err := store.Open(ctx, parse(t, target.Host+"/f:2"), quick)
	require.NoError(t, err)
	r, err := out.Layers[2].Open(ctx)
	require.NoError(t, err)
	r.Close()
}

// A few megabytes of empty elements would be gigabytes in memory.
func TestLongLists(t *testing.T) {
	reg := fixture.NewRegistry(t)
	from := reg.Push(t, "src:1", sample(t))
	tag, err := name.NewTag(from)
	require.NoError(t, err)
	img, err := remote.Image(tag)
	require.NoError(t, err)
	raw, err := img.RawManifest()
	require.NoError(t, err)
	for _, field := range []string{`"layers":[`, `"annotations":{"a":"b"},"layers":[`} {
		long := bytes.Replace(raw, []byte(`"layers":[`), []byte(field+strings.Repeat("{},", 10_001)), 1)
		serve(reg, "application/vnd.docker.distribution.manifest.v2+json", long)
		begin := time.Now()
		_, err = store.Open(context.Background(), parse(t, from), quick)
		assert.ErrorContains(t, err, "a list of more than 10000 elements")
		assert.Less(t, time.Since(begin), 5*time.Second)
	}
}

// A redirect that leads to itself ends.
func TestRedirectsEnd(t *testing.T) {
	reg := fixture.NewRegistry(t)
	from := reg.Push(t, "src:1", sample(t))
	n := 0
	reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if !strings.Contains(r.URL.Path, "/manifests/") {
			return false
		}
		n++
		http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
		return true
	})
	_, err := store.Open(context.Background(), parse(t, from), quick)
	assert.ErrorIs(t, err, image.ErrRedirect)
	assert.Less(t, n, 100)
}
