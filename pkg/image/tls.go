package image

import (
	"errors"
	"fmt"
	"net"
	"net/http"

	"github.com/google/go-containerregistry/pkg/name"
)

// ErrHTTP says that a registry, or what it leads to, speaks only HTTP, and that nobody has allowed that.
var ErrHTTP = errors.New("only HTTP is spoken there, by which others can read and change what is sent")

// requireTLS sends nothing over HTTP, except to a registry on this machine, and nothing that another one leads to.
// go-containerregistry falls back to HTTP for all addresses
// of private networks (RFC 1918) and some names, and whoever keeps port 443 from answering there would be sent the
// credentials.
type requireTLS struct {
	inner http.RoundTripper
	local bool // the registry is on this machine
}

func (t *requireTLS) RoundTrip(r *http.Request) (*http.Response, error) {
	here := t.local && onThisMachine(r.URL.Hostname())
	if r.URL.Scheme != "https" && !here {
		return nil, fmt.Errorf("%s: %w", r.URL.Host, ErrHTTP)
	}
	return t.inner.RoundTrip(r)
}

func onThisMachine(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// allowsHTTP reports whether a registry's name was parsed as one that may be spoken to over HTTP.
func allowsHTTP(r name.Registry) bool {
	insecure, err := name.NewRegistry(r.Name(), name.Insecure)
	return err == nil && insecure == r
}
