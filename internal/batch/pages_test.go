package batch_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/cconvert/cconvert/internal/queue"
)

// A source that was found, and for which its registry answers by a page, has failed.
func TestPageInPlaceOfAManifest(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"html", "json", "empty json", "text", "login", "blob html"} {
		t.Run(how, func(t *testing.T) {
			b := newBench(t)
			b.push(1)
			q := b.open()
			b.reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
				if how == "login" && r.URL.Path == "/login" {
					w.Header().Set("Content-Type", "text/html")
					_, _ = w.Write([]byte("<html>log in</html>"))
					return true
				}
				what := "/app/manifests/"
				if how == "blob html" {
					what = "/app/blobs/"
				}
				if !strings.Contains(r.URL.Path, what) {
					return false
				}
				switch how {
				case "html", "blob html":
					w.Header().Set("Content-Type", "text/html; charset=utf-8")
					_, _ = w.Write([]byte("<html>maintenance</html>"))
				case "json":
					w.Header().Set("Content-Type", "application/json")
					_, _ = w.Write([]byte(`{"status":"maintenance"}`))
				case "empty json":
					w.Header().Set("Content-Type", "application/json")
					_, _ = w.Write([]byte(`{}`))
				case "text":
					w.Header().Set("Content-Type", "text/plain")
				case "login":
					http.Redirect(w, r, "/login", http.StatusFound)
				}
				return true
			})
			j := b.job(0)
			j.Found = true
			r := b.work(q, b.submit(q, []queue.Job{j}))[0]
			assert.Equal(t, queue.Failed, r.Status, "what was found is not passed over")
		})
	}
}

// A manifest may lack its mediaType, and come from a server of files, which knows JSON (OCI image specification, "Image
// Manifest").
func TestManifestWithoutMediaType(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.push(1)
	q := b.open()
	b.reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if !strings.Contains(r.URL.Path, "/app/manifests/") {
			return false
		}
		get := r.Clone(r.Context())
		get.Method = "GET"
		get.URL.Path = "/v2/app/manifests/0"
		text := strings.NewReplacer("application/vnd.docker.container.image.v1+json",
			"application/vnd.oci.image.config.v1+json",
			"application/vnd.docker.image.rootfs.diff.tar.gzip",
			"application/vnd.oci.image.layer.v1.tar+gzip").Replace(b.serve(get).Body.String())
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
	r := b.work(q, b.submit(q, []queue.Job{j}))[0]
	assert.Equal(t, queue.Converted, r.Status, r.Error)
}
