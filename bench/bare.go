package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync"
)

// request is one that was recorded.
type request struct {
	Method string      `json:"method"`
	URL    string      `json:"url"` // without scheme and host
	Header http.Header `json:"header"`
	Body   []byte      `json:"body"`
	// Location is where the answer said to go on.
	Location string `json:"location"`

	status int
	answer int64 // bytes of the answer's body
}

// proxy stands before a registry and records requests.
type proxy struct {
	host   string
	server *http.Server

	mu       sync.Mutex
	on       bool
	requests []*request
}

type requestKey struct{}

func withRequest(ctx context.Context, r *request) context.Context {
	return context.WithValue(ctx, requestKey{}, r)
}

func startProxy(registry string) (*proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &proxy{host: l.Addr().String()}
	forward := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: registry})
	forward.ModifyResponse = func(resp *http.Response) error {
		r, _ := resp.Request.Context().Value(requestKey{}).(*request)
		if location := resp.Header.Get("Location"); location != "" {
			location = strings.Replace(location, "http://"+registry, "", 1)
			r.Location = location
			resp.Header.Set("Location", location)
		}
		r.status, r.answer = resp.StatusCode, max(resp.ContentLength, 0)
		return nil
	}
	p.server = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, in *http.Request) {
		r := &request{Method: in.Method, URL: in.URL.RequestURI(), Header: in.Header.Clone()}
		body, err := io.ReadAll(in.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		r.Body = body
		in.Body, in.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		p.mu.Lock()
		if p.on {
			p.requests = append(p.requests, r)
		}
		p.mu.Unlock()
		in.Host = registry
		forward.ServeHTTP(w, in.WithContext(withRequest(in.Context(), r)))
	})}
	go p.server.Serve(l) //nolint:errcheck // it ends when it is closed
	return p, nil
}

func (p *proxy) stop() { p.server.Close() }

func (p *proxy) record() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.on, p.requests = true, nil
}

func (p *proxy) recorded() []*request {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.requests
}

// down and up are the bytes of bodies from and to the registry.
func (p *proxy) down() (n int64) {
	for _, r := range p.recorded() {
		if r.Method == http.MethodGet {
			n += r.answer
		}
	}
	return n
}

func (p *proxy) up() (n int64) {
	for _, r := range p.recorded() {
		n += int64(len(r.Body))
	}
	return n
}

// layerBytes are those of answers that are larger than a manifest or configuration.
func (p *proxy) layerBytes() (n int64) {
	for _, r := range p.recorded() {
		if r.Method == http.MethodGet && strings.Contains(r.URL, "/blobs/") && r.answer > 1<<20 {
			n += r.answer
		}
	}
	return n
}

// uploads are the blobs that were completed.
func (p *proxy) uploads() (digests []string) {
	for _, r := range p.recorded() {
		u, err := url.Parse(r.URL)
		if err == nil && u.Query().Get("digest") != "" && r.status == http.StatusCreated {
			digests = append(digests, u.Query().Get("digest"))
		}
	}
	return digests
}

func (p *proxy) save(file, registry string) error {
	b, err := json.Marshal(struct {
		Registry string     `json:"registry"`
		Requests []*request `json:"requests"`
	}{registry, p.recorded()})
	if err != nil {
		return err
	}
	return os.WriteFile(file, b, 0o600)
}

// replay sends recorded requests one after the other, over one connection, and reads the answers: what a
// client does at least. An upload goes on where its own answer says.
func replay(file string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var script struct {
		Registry string
		Requests []*request
	}
	if err := json.Unmarshal(b, &script); err != nil {
		return err
	}
	moved := map[string]string{} // what the recorded answer said: what this one said
	for _, r := range script.Requests {
		to := r.URL
		for from, now := range moved {
			if rest, ok := strings.CutPrefix(to, from); ok {
				to = now + rest
				break
			}
		}
		req, err := http.NewRequest(r.Method, "http://"+script.Registry+to, bytes.NewReader(r.Body))
		if err != nil {
			return err
		}
		for name, values := range r.Header {
			req.Header[name] = values
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if err != nil {
			return err
		}
		if resp.StatusCode >= http.StatusBadRequest && resp.StatusCode != http.StatusNotFound {
			return fmt.Errorf("%s %s: %s", r.Method, to, resp.Status)
		}
		if now := resp.Header.Get("Location"); now != "" && r.Location != "" {
			moved[r.Location] = strings.Replace(now, "http://"+script.Registry, "", 1)
		}
	}
	return nil
}
