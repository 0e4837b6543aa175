package batch_test

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	server "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/internal/queue"
	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
	"github.com/cconvert/cconvert/pkg/image/store"
)

// rawImage is an image with a manifest of somebody's own.
type rawImage struct {
	v1.Image
	raw []byte
}

func (r rawImage) RawManifest() ([]byte, error)        { return r.raw, nil }
func (r rawImage) Manifest() (*v1.Manifest, error)     { return v1.ParseManifest(bytes.NewReader(r.raw)) }
func (r rawImage) MediaType() (types.MediaType, error) { return kindOf(r.raw), nil }
func (r rawImage) Size() (int64, error)                { return int64(len(r.raw)), nil }
func (r rawImage) Digest() (v1.Hash, error) {
	h, _, err := v1.SHA256(bytes.NewReader(r.raw))
	return h, err
}

// A stranger's image does not attach itself, or anything, to the result of another one, in a repository in which the
// stranger must not write.
func TestSubjectOfTheSource(t *testing.T) {
	ctx, b := context.Background(), newBench(t)
	b.reg = fixture.NewRegistry(t, server.WithReferrersSupport(true))
	// As the OCI distribution specification has it: the list tells the artifactType of the manifest.
	b.reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		before, _, found := strings.Cut(r.URL.Path, "/referrers/")
		if !found {
			return false
		}
		rec := httptest.NewRecorder()
		b.reg.Inner.ServeHTTP(rec, r)
		var index v1.IndexManifest
		if json.Unmarshal(rec.Body.Bytes(), &index) != nil {
			return false
		}
		for i, d := range index.Manifests {
			m := httptest.NewRecorder()
			b.reg.Inner.ServeHTTP(m, httptest.NewRequest("GET", before+"/manifests/"+d.Digest.String(), nil))
			var said struct{ ArtifactType string }
			if json.Unmarshal(m.Body.Bytes(), &said) == nil && said.ArtifactType != "" {
				index.Manifests[i].ArtifactType = said.ArtifactType
			}
		}
		w.Header().Set("Content-Type", string(types.OCIImageIndex))
		_ = json.NewEncoder(w).Encode(index)
		return true
	})
	b.push(2)
	b.worker.Own.Evidence = &convert.Evidence{Required: true}
	victim := b.job(0)
	victim.NoEvidence, victim.NeedsEvidence = false, true
	_, err := b.worker.Convert(ctx, victim)
	require.NoError(t, err)
	out, err := b.worker.Convert(ctx, victim)
	require.NoError(t, err)
	require.Equal(t, queue.Unchanged, out.Status)

	// The stranger may push to "app" alone, and says that its image is about the victim's result, in "out".
	tag, err := name.NewTag(b.reg.Host + "/app:1")
	require.NoError(t, err)
	img, err := remote.Image(tag)
	require.NoError(t, err)
	raw, err := img.RawManifest()
	require.NoError(t, err)
	var m map[string]any
	require.NoError(t, json.Unmarshal(raw, &m))
	m["mediaType"] = types.OCIManifestSchema1
	m["config"].(map[string]any)["mediaType"] = types.OCIConfigJSON
	for _, l := range m["layers"].([]any) {
		l.(map[string]any)["mediaType"] = types.OCILayer
	}
	m["artifactType"] = attest.InTotoMediaType
	m["subject"] = map[string]any{"mediaType": types.OCIManifestSchema1, "digest": out.Digest, "size": 1000}
	raw, err = json.Marshal(m)
	require.NoError(t, err)
	require.NoError(t, remote.Write(tag, rawImage{img, raw}))
	_, err = b.worker.Convert(ctx, b.job(1))
	require.NoError(t, err)

	ref, err := image.ParseReference(victim.Target, true)
	require.NoError(t, err)
	now, err := store.Open(ctx, ref, registry.Options{})
	require.NoError(t, err)
	defer now.Close()
	assert.Equal(t, out.Digest, now.Digest)
	found, err := registry.Referrers(ctx, now, attest.InTotoMediaType)
	assert.NoError(t, err, "the evidence of the victim's result can be read")
	assert.Len(t, found, 4)
	again, err := b.worker.Convert(ctx, victim)
	require.NoError(t, err)
	assert.Equal(t, queue.Unchanged, again.Status)
}

func kindOf(raw []byte) types.MediaType {
	var m struct{ MediaType types.MediaType }
	_ = json.Unmarshal(raw, &m)
	return m.MediaType
}
