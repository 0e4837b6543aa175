package batch_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/cconvert/cconvert/internal/batch"
)

// A source that was found answers, for a moment, by a page.
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
			r := b.work(q, b.submit(q, []batch.Job{j}))[0]
			assert.NotEqual(t, batch.Skipped, r.Status, "VOUCHES: exit 0")
		})
	}
}
