package image

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"sync"

	"github.com/google/go-containerregistry/pkg/v1/types"
)

// manifestTypes are what manifests are asked for as.
var manifestTypes = []types.MediaType{types.OCIManifestSchema1, types.DockerManifestSchema2, types.OCIImageIndex, types.DockerManifestList}

// rememberPing keeps a registry's answer to the request by which every session begins, and which tells how
// to authenticate (OCI distribution specification, "Determining Support").
type rememberPing struct {
	mu     sync.Mutex
	answer *http.Response
	body   []byte
}

func (p *rememberPing) over(inner http.RoundTripper) http.RoundTripper {
	return roundTripper(func(req *http.Request) (*http.Response, error) {
		if req.Method != http.MethodGet || req.URL.Path != "/v2/" {
			return inner.RoundTrip(req)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.answer == nil {
			resp, err := inner.RoundTrip(req)
			if err != nil {
				return nil, err
			}
			if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusUnauthorized {
				return resp, nil
			}
			p.body, err = io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil {
				return nil, err
			}
			p.answer = resp
		}
		if p.answer.Request.URL.Scheme != req.URL.Scheme {
			return nil, fmt.Errorf("%s speaks %s", req.URL.Host, p.answer.Request.URL.Scheme)
		}
		again := *p.answer
		again.Request, again.Body = req, io.NopCloser(bytes.NewReader(p.body))
		return &again, nil
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }
