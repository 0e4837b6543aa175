package main

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
)

// What is no page of a list is not its end, wherever it comes from.
func TestPageElsewhere(t *testing.T) {
	for what, redirected := range map[string]bool{"in place": false, "redirected": true} {
		t.Run(what, func(t *testing.T) {
			b := newPlanBench(t)
			reg := fixture.NewRegistry(t)
			for _, repo := range []string{"app", "other"} {
				reg.Push(t, repo+":1", fixture.Image(t, v1.Config{Entrypoint: []string{"/bin/app"}},
					fixture.Layer(t, fixture.Program("bin/app", fixture.ELF("")))))
			}
			reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
				switch {
				case r.URL.Path == "/maintenance.json", !redirected && strings.HasSuffix(r.URL.Path, "/app/tags/list"):
					w.Header().Set("Content-Type", "application/json")
					fmt.Fprint(w, `{"status":"maintenance"}`)
				case strings.HasSuffix(r.URL.Path, "/app/tags/list"):
					http.Redirect(w, r, "/maintenance.json", http.StatusFound)
				default:
					return false
				}
				return true
			})
			out, code := b.run("batch", b.plan(fmt.Sprintf(`version: 1
defaults: {options: {runtime: sim}}
convert:
- {registry: %s}
`, reg.Host)), "--key", b.key)
			require.NotEmpty(t, reg.Digest(t, "other:1-confidential"))
			assert.NotZero(t, code, out)
		})
	}
}
