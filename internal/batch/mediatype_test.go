package batch_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/cconvert/cconvert/internal/batch"
)

// A good OCI image, whose manifest has no mediaType (it is optional), from a server of files: application/json.
func TestManifestWithoutMediaType(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.push(1)
	q := b.open()
	b.reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if !strings.Contains(r.URL.Path, "/app/manifests/") {
			return false
		}
		rec := httptest.NewRecorder()
		get := r.Clone(r.Context())
		get.Method = "GET"
		get.URL.Path = "/v2/app/manifests/0"
		b.reg.Inner.ServeHTTP(rec, get)
		text := strings.NewReplacer("application/vnd.docker.container.image.v1+json",
			"application/vnd.oci.image.config.v1+json",
			"application/vnd.docker.image.rootfs.diff.tar.gzip",
			"application/vnd.oci.image.layer.v1.tar+gzip").Replace(rec.Body.String())
		var m map[string]any
		_ = json.Unmarshal([]byte(text), &m)
		delete(m, "mediaType")
		out, _ := json.Marshal(m)
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(out)
		return true
	})
	j := b.job(0)
	j.Found = true
	r := b.work(q, b.submit(q, []batch.Job{j}))[0]
	assert.NotEqual(t, batch.Skipped, r.Status, "VOUCHES: exit 0")
}
