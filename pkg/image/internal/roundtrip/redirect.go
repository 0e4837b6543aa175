package roundtrip

import (
	"fmt"
	"net/http"
	"net/url"
	"regexp"

	"github.com/cconvert/cconvert/pkg/image"
)

// manifestPath is that of requests for manifests (OCI distribution specification, "Endpoints").
var manifestPath = regexp.MustCompile(`^/v2/(.+)/manifests/[^/]+$`)

// sameRepository follows no redirect of a manifest to another repository of the same registry: rules, signatures and
// targets go by the name that was asked for. To another host a registry may lead under another name, as registry.k8s.io
// does, unless it is strict.
type sameRepository struct {
	inner  http.RoundTripper
	strict bool
}

// maxRedirects is how many redirects of one request are followed, as in net/http.
const maxRedirects = 10

func (t *sameRepository) RoundTrip(in *http.Request) (*http.Response, error) {
	first := first(in)
	if first.Response != nil && first.Response.Request != nil {
		return nil, fmt.Errorf("%w: it redirects more than %d times", image.ErrRedirect, maxRedirects)
	}
	asked := manifestPath.FindStringSubmatch(first.URL.Path)
	if first == in || asked == nil {
		return t.inner.RoundTrip(in)
	}
	led := manifestPath.FindStringSubmatch(in.URL.Path)
	if (t.strict || SameHost(first.URL, in.URL)) && (led == nil || led[1] != asked[1]) {
		return nil, fmt.Errorf("%w: from %s to %s%s", image.ErrRedirect, first.URL.Path, in.URL.Host, in.URL.Path)
	}
	return t.inner.RoundTrip(in)
}

// SameHost reports whether two addresses are of the same host and port, whatever the scheme.
func SameHost(a, b *url.URL) bool {
	return a.Hostname() == b.Hostname() && (port(a) == port(b) || a.Port() == "" && b.Port() == "")
}

func port(u *url.URL) string {
	switch {
	case u.Port() != "":
		return u.Port()
	case u.Scheme == "http":
		return "80"
	}
	return "443"
}
