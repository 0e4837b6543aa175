package roundtrip

import (
	"fmt"
	"net/http"

	"github.com/cconvert/cconvert/pkg/image"
)

// requireTLS sends nothing over HTTP, except to a registry on this machine, and nothing that another one leads to.
// go-containerregistry falls back to HTTP for all addresses
// of private networks (RFC 1918) and some names, and whoever keeps port 443 from answering there would be sent the
// credentials.
type requireTLS struct {
	inner http.RoundTripper
	local bool // the registry is on this machine
}

func (t *requireTLS) RoundTrip(r *http.Request) (*http.Response, error) {
	here := t.local && image.OnThisMachine(r.URL.Hostname())
	if r.URL.Scheme != "https" && !here {
		return nil, fmt.Errorf("%s: %w", r.URL.Host, image.ErrHTTP)
	}
	return t.inner.RoundTrip(r)
}
