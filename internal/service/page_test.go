package service_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

// A page in place of a signature, of a proxy that is being maintained, does not make a signed image one that is not: a
// notification of it is sent again.
func TestPageInPlaceOfASignature(t *testing.T) {
	p := newPlace(t)
	ref := p.push("signed:1", "1")
	p.sign("signed:1", p.keys[0], "", nil)
	p.reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/signed/blobs/") {
			w.Header().Set("Content-Type", "text/html")
			fmt.Fprint(w, "<html>We are back soon</html>")
			return true
		}
		return false
	})
	code := p.harbor("signed:1", p.reg.Digest(t, "signed:1"))
	assert.GreaterOrEqual(t, code, 500, "it is taken, and the image left out")
	code, out := p.convert(ref)
	assert.GreaterOrEqual(t, code, 500, out)
}
