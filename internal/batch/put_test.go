package batch_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/cconvert/cconvert/pkg/image"
)

// A page in place of an answer to a manifest that is stored, of a proxy or a login, does not say that it was.
func TestPageInPlaceOfStoring(t *testing.T) {
	login := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprint(w, "<html>Please log in</html>")
	}))
	defer login.Close()
	for what, answer := range map[string]http.HandlerFunc{
		"in place": login.Config.Handler.ServeHTTP,
		"led to another host": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, login.URL, http.StatusFound)
		},
	} {
		t.Run(what, func(t *testing.T) {
			b := newBench(t)
			b.push(1)
			b.reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
				if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/out/manifests/") {
					answer(w, r)
					return true
				}
				return false
			})
			out, err := b.worker.Convert(context.Background(), b.job(0))
			assert.Error(t, err, "it is %v", out)
			assert.True(t, errors.Is(err, image.ErrNoDocument) || errors.Is(err, image.ErrRedirect), "%v", err)
		})
	}
}
