package store_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
	"github.com/cconvert/cconvert/pkg/image/store"
)

// A list of referrers has pages. Artifacts of others, of whatever shape, do not get in the way.
func TestReferrersOnPages(t *testing.T) {
	ctx := context.Background()
	reg := fixture.NewRegistry(t)
	from := reg.Push(t, "src:1", sample(t))
	artifacts, err := registry.NewArtifacts(reg.Host+"/src", false, quick)
	require.NoError(t, err)
	var listed []string
	for i := range 3 {
		tag := fmt.Sprint("artifact", i)
		require.NoError(t, artifacts.Push(ctx, tag,
			image.Artifact{Type: "application/mine", MediaType: "text/plain", Blob: []byte(tag)}))
		listed = append(listed, reg.Digest(t, "src:"+tag))
	}
	foreign := reg.Push(t, "src:foreign",
		fixture.Image(t, v1.Config{}, fixture.Layer(t), fixture.Layer(t, fixture.File("x", ""))))
	tag, err := name.NewTag(foreign)
	require.NoError(t, err)
	d, err := remote.Head(tag)
	require.NoError(t, err)
	listed = append(listed, d.Digest.String())

	page := func(digests []string) string {
		var entries []string
		for _, d := range digests {
			entries = append(entries,
				fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":%q,"size":1}`, d))
		}
		return `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[` +
			strings.Join(entries, ",") + `]}`
	}
	next := "/v2/src/referrers/x?last=1"
	reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		switch {
		case r.URL.Query().Get("last") == "1":
			fmt.Fprint(w, page(listed[2:]))
		case strings.Contains(r.URL.Path, "/referrers/"):
			w.Header().Set("Link", "<"+next+`>; rel="next"`)
			fmt.Fprint(w, page(listed[:2]))
		default:
			return false
		}
		return true
	})
	img, err := store.Open(ctx, parse(t, from), quick)
	require.NoError(t, err)
	found, err := registry.Referrers(ctx, img, "application/mine")
	require.NoError(t, err)
	var texts []string
	for _, a := range found {
		texts = append(texts, string(a.Blob))
	}
	assert.Equal(t, []string{"artifact0", "artifact1", "artifact2"}, texts)

	next = "http://other.example/v2/src/referrers/x?last=1"
	_, err = registry.Referrers(ctx, img, "application/mine")
	assert.ErrorContains(t, err, "goes on at", "credentials stay with the registry")
	next = "/v2/src/referrers/x"
	_, err = registry.Referrers(ctx, img, "application/mine")
	assert.ErrorContains(t, err, "more than 64 pages")
}

// A tag for the list of what refers to an image that has an image, or an index of images, is left as it is.
func TestListTagTaken(t *testing.T) {
	ctx := context.Background()
	reg := fixture.NewRegistry(t)
	img, err := store.Open(ctx, parse(t, reg.Push(t, "src:1", sample(t))), quick)
	require.NoError(t, err)
	tag := "src:" + strings.ReplaceAll(img.Digest, ":", "-")
	attach := func() error {
		return registry.Attach(ctx, img, []image.Artifact{
			{Type: "application/mine", MediaType: "text/plain", Blob: []byte("said")},
		}, quick)
	}
	other := fixture.Image(t, v1.Config{Cmd: []string{"/other"}}, fixture.Layer(t, fixture.File("a", "1")))
	reg.Push(t, tag, other)
	before := reg.Digest(t, tag)
	require.ErrorContains(t, attach(), "is no list of what refers to an image")
	assert.Equal(t, before, reg.Digest(t, tag))

	ref, err := name.ParseReference(reg.Host + "/" + tag)
	require.NoError(t, err)
	index := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{
		Add: other, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}},
	})
	require.NoError(t, remote.WriteIndex(ref, index))
	before = reg.Digest(t, tag)
	require.ErrorContains(t, attach(), "is no list of what refers to an image")
	assert.Equal(t, before, reg.Digest(t, tag))

	require.NoError(t, remote.WriteIndex(ref, empty.Index))
	require.NoError(t, attach())
}

// What is attached to an image refers to it, and is attached once.
func TestAttach(t *testing.T) {
	ctx := context.Background()
	reg := fixture.NewRegistry(t)
	img, err := store.Open(ctx, parse(t, reg.Push(t, "src:1", sample(t))), quick)
	require.NoError(t, err)
	before := reg.Digest(t, "src:1")
	for range 2 {
		require.NoError(t, registry.Attach(ctx, img,
			[]image.Artifact{{Type: "application/mine", MediaType: "text/plain", Blob: []byte("said")}}, quick))
	}
	found, err := registry.Referrers(ctx, img, "application/mine")
	require.NoError(t, err)
	require.Len(t, found, 1)
	assert.Equal(t, "said", string(found[0].Blob))
	assert.Equal(t, before, reg.Digest(t, "src:1"), "the image stays as it is")

	// What was attached and is gone, all of it or its blob alone, is attached again.
	const emptyConfig = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a" // of "{}"
	for _, gone := range []string{
		"blobs/" + emptyConfig, "blobs/" + found[0].BlobDigest, "manifests/" + found[0].Digest,
	} {
		req, err := http.NewRequestWithContext(ctx, http.MethodDelete, "http://"+reg.Host+"/v2/src/"+gone, nil)
		require.NoError(t, err)
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Equal(t, http.StatusAccepted, resp.StatusCode)
		require.NoError(t, registry.Attach(ctx, img, []image.Artifact{
			{Type: "application/mine", MediaType: "text/plain", Blob: []byte("said")},
		}, quick))
		again, err := registry.Referrers(ctx, img, "application/mine")
		require.NoError(t, err, gone)
		assert.Equal(t, found, again)
		resp, err = http.Head("http://" + reg.Host + "/v2/src/blobs/" + emptyConfig)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		assert.Equal(t, http.StatusOK, resp.StatusCode, gone)
	}

	dir := t.TempDir()
	_, err = extend(ctx, t, reg.Host+"/src:1", "oci:"+dir+":1", quick)
	require.NoError(t, err)
	layout, err := store.Open(ctx, parse(t, "oci:"+dir+":1"), quick)
	require.NoError(t, err)
	assert.ErrorIs(t, registry.Attach(ctx, layout, found, quick), image.ErrUnsupported)
}
