package roundtrip

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"sync"

	"github.com/cconvert/cconvert/pkg/image"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// ManifestTypes are what manifests are asked for as.
var ManifestTypes = []types.MediaType{
	types.OCIManifestSchema1, types.DockerManifestSchema2, types.OCIImageIndex, types.DockerManifestList,
}

// maxPing is how much is kept of what a registry says when a session begins, in bytes.
const maxPing = 64 << 10

// Ping is a registry's answer to the request by which every session begins, and which tells how to authenticate (OCI
// distribution specification, "Determining Support"). The zero value has not asked yet.
type Ping struct {
	mu     sync.Mutex
	answer *http.Response
	body   []byte
}

// rememberedPing asks a registry once, whatever session asks.
type rememberedPing struct {
	*Ping
	inner http.RoundTripper
	once  http.RoundTripper // does not repeat requests
}

func (p *rememberedPing) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Method != http.MethodGet || req.URL.Path != "/v2/" {
		return p.inner.RoundTrip(req)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.answer == nil && !p.plain(req) {
		resp, err := p.inner.RoundTrip(req)
		if err != nil {
			return nil, err
		}
		if !answersPing(resp) {
			return resp, nil
		}
		if err := p.keep(resp); err != nil {
			return nil, err
		}
	}
	if p.answer.Request.URL.Scheme != req.URL.Scheme {
		return nil, fmt.Errorf("%s speaks %s", req.URL.Host, p.answer.Request.URL.Scheme)
	}
	again := *p.answer
	again.Request, again.Body = req, io.NopCloser(bytes.NewReader(p.body))
	return &again, nil
}

// Forget has the registry asked again.
func (p *Ping) Forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answer, p.body = nil, nil
}

// plain asks a registry on this machine without TLS, which it seldom speaks: to find that out costs a handshake. One
// that does speak it answers with an error.
func (p *rememberedPing) plain(req *http.Request) bool {
	if req.URL.Scheme != "https" || !image.OnThisMachine(req.URL.Hostname()) {
		return false
	}
	asked := req.Clone(req.Context())
	asked.URL.Scheme = "http"
	resp, err := p.once.RoundTrip(asked)
	if err != nil {
		return false
	}
	if !answersPing(resp) {
		resp.Body.Close()
		return false
	}
	return p.keep(resp) == nil
}

func answersPing(resp *http.Response) bool {
	return resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusUnauthorized
}

// keep remembers an answer.
func (p *Ping) keep(resp *http.Response) error {
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxPing)) // a few bytes; nobody reads them
	if err != nil {
		return err
	}
	p.answer, p.body = resp, body
	return nil
}
