package service_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	logged "github.com/sirupsen/logrus/hooks/test"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers/gorillamux"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/batch"
	"github.com/cconvert/cconvert/internal/cosign"
	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/internal/plan"
	"github.com/cconvert/cconvert/internal/queue"
	"github.com/cconvert/cconvert/internal/service"
	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/libos/gramine/sim"
	"github.com/cconvert/cconvert/pkg/sgx"
)

const secret = "a secret of the test"

// place is a service with a registry, a queue and a worker.
type place struct {
	t      *testing.T
	reg    *fixture.Registry
	url    string
	queue  *queue.Queue
	silent *fixture.Registry // of a rule, and answers nothing
	keys   [2]crypto.Signer  // of the rule: ECDSA and Ed25519
	worker *batch.Worker
}

func newPlace(t *testing.T, changes ...func(*service.Options)) *place {
	p := &place{t: t, reg: fixture.NewRegistry(t), silent: fixture.NewRegistry(t)}
	p.silent.Silence(t)
	dir := t.TempDir()
	var err error
	p.keys[0], err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	_, p.keys[1], err = ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	program := filepath.Join(dir, "sim")
	require.NoError(t, os.WriteFile(program, []byte(fixture.ELF("")), 0o755))
	text, err := os.ReadFile("../../testdata/vectors/test-signing-key.pem")
	require.NoError(t, err)
	key, err := sgx.ParseKey(text, nil)
	require.NoError(t, err)
	p.worker = &batch.Worker{
		Name: "test", Files: batch.Files{Dirs: []string{dir}}, Insecure: true, Signer: key,
		Backends: []libos.Backend{sim.Backend{}},
		Own: convert.Options{
			StoreOptions: convert.StoreOptions{Image: registry.Options{FirstPause: time.Millisecond}},
		},
	}

	rules, err := plan.Parse("plan.yaml", fmt.Appendf(nil, `version: 1
defaults: {target: '%[1]s/out/{{.Repository}}:{{.Tag}}'}
convert:
- {repository: %[1]s/free, allowUnsigned: true, tags: {deny: [secret.*]}}
- {repository: %[1]s/signed, keys: [a, b]}
- {repository: %[2]s/app, allowUnsigned: true}
- {repository: %[1]s/trick, allowUnsigned: true, target: '%[1]s/out/signed:{{.Tag}}'}
- {repository: %[1]s/last, allowUnsigned: true, target: '%[1]s/out/last:1'}
- {repository: %[1]s/swap, allowUnsigned: true, target: '%[1]s/free:{{.Tag}}'}
`, p.reg.Host, p.silent.Host))
	require.NoError(t, err)
	o := service.Options{
		Plan: rules, Image: registry.Options{Keychain: authn.DefaultKeychain, FirstPause: time.Millisecond},
		Secrets: service.OneSecret(secret), Trust: map[*plan.Entry]cosign.Trust{},
	}
	var trust cosign.Trust
	for _, k := range p.keys {
		der, err := x509.MarshalPKIXPublicKey(k.Public())
		require.NoError(t, err)
		public, err := attest.ParsePublicKey(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
		require.NoError(t, err)
		trust.Keys = append(trust.Keys, public)
	}
	o.Trust[&rules.Convert[1]] = trust
	o.Job = func(img plan.Image) (queue.Job, error) {
		source, err := image.ParseReference(img.Source, true)
		if err != nil {
			return queue.Job{}, err
		}
		target, err := image.ParseReference(img.Target, true)
		if err != nil {
			return queue.Job{}, err
		}
		c := convert.Options{
			Source: source, Target: &target, Backend: sim.Backend{}, Runtime: libos.LoadOptions{Source: program},
		}
		c.Enclave.Attestation, c.Enclave.LogLevel = "none", "error"
		return queue.NewJob(c, true), nil
	}
	p.queue, err = queue.Open(context.Background(), queue.Options{Dir: filepath.Join(dir, "queue")})
	require.NoError(t, err)
	t.Cleanup(p.queue.Close)
	o.Queue, o.AnswerIn = p.queue, 20*time.Second
	for _, change := range changes {
		change(&o)
	}
	s := service.New(o)
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	go func() { _ = s.Run(ctx) }()
	server := httptest.NewServer(checked(t, s))
	t.Cleanup(server.Close)
	p.url = server.URL
	return p
}

// work has the worker work until the test ends.
func (p *place) work() {
	ctx, cancel := context.WithCancel(context.Background())
	var working sync.WaitGroup
	working.Go(func() {
		_ = p.worker.Work(ctx, ctx, p.queue,
			batch.WorkOptions{Parallel: 2, Attempts: 2, FirstPause: 10 * time.Millisecond})
	})
	p.t.Cleanup(func() { cancel(); working.Wait() })
}

// checked compares every answer with the OpenAPI description.
func checked(t *testing.T, h http.Handler) http.Handler {
	text, err := os.ReadFile("openapi.json")
	require.NoError(t, err)
	doc, err := openapi3.NewLoader().LoadFromData(text)
	require.NoError(t, err)
	require.NoError(t, doc.Validate(context.Background()))
	router, err := gorillamux.NewRouter(doc)
	require.NoError(t, err)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		route, params, err := router.FindRoute(r)
		if err != nil {
			h.ServeHTTP(w, r) // the page, and what there is not
			return
		}
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		in := &openapi3filter.RequestValidationInput{Request: r, PathParams: params, Route: route}
		out := &openapi3filter.ResponseValidationInput{
			RequestValidationInput: in, Status: rec.Code, Header: rec.Header(),
			Body:    io.NopCloser(bytes.NewReader(rec.Body.Bytes())),
			Options: &openapi3filter.Options{IncludeResponseStatus: true},
		}
		if r.URL.Path != "/metrics" {
			assert.NoError(t, openapi3filter.ValidateResponse(r.Context(), out), "%s %s", r.Method, r.URL.Path)
		}
		for k, v := range rec.Header() {
			w.Header()[k] = v
		}
		w.WriteHeader(rec.Code)
		_, _ = w.Write(rec.Body.Bytes())
	})
}

func (p *place) push(repoTag, what string) string {
	p.t.Helper()
	return p.reg.Push(p.t, repoTag, fixture.Image(p.t, v1.Config{
		Entrypoint: []string{"/app"}, Env: []string{"A=" + what},
	}, fixture.Layer(p.t, fixture.Program("app", fixture.ELF("")))))
}

// sign stores a signature of an image as cosign does, about a digest, which is the image's where it is empty.
func (p *place) sign(repoTag string, key crypto.Signer, about string, change func(payload string) string) {
	p.t.Helper()
	tag, err := name.NewTag(p.reg.Host + "/" + repoTag)
	require.NoError(p.t, err)
	own := p.reg.Digest(p.t, repoTag)
	if about == "" {
		about = own
	}
	payload := fmt.Appendf(nil,
		`{"critical":{"identity":{"docker-reference":""},"image":{"docker-manifest-digest":%q},
		"type":"cosign container image signature"},"optional":null}`, about)
	signed, hash := payload, crypto.Hash(0)
	if _, ok := key.(*ecdsa.PrivateKey); ok {
		sum := sha256.Sum256(payload)
		signed, hash = sum[:], crypto.SHA256
	}
	signature, err := key.Sign(rand.Reader, signed, hash)
	require.NoError(p.t, err)
	if change != nil {
		payload = []byte(change(string(payload)))
	}
	img, err := mutate.Append(empty.Image, mutate.Addendum{
		Layer: static.NewLayer(payload, "application/vnd.dev.cosign.simplesigning.v1+json"),
		Annotations: map[string]string{"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(
			signature)},
	})
	require.NoError(p.t, err)
	require.NoError(p.t, remote.Write(tag.Context().Tag(strings.Replace(own, ":", "-", 1)+".sig"), img))
}

// ask sends a request with the secret and returns the answer.
func (p *place) ask(method, path, body string) (int, map[string]any) {
	p.t.Helper()
	return p.askAs("Bearer "+secret, method, path, body)
}

func (p *place) askAs(authorization, method, path, body string) (int, map[string]any) {
	p.t.Helper()
	req, err := http.NewRequest(method, p.url+path, strings.NewReader(body))
	require.NoError(p.t, err)
	req.Header.Set("Authorization", authorization)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	require.NoError(p.t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	require.NoError(p.t, err)
	var out map[string]any
	_ = json.Unmarshal(b, &out)
	return resp.StatusCode, out
}

func (p *place) convert(image string) (int, map[string]any) {
	p.t.Helper()
	return p.ask("POST", "/api/v1/conversions", fmt.Sprintf(`{"image":%q}`, image))
}

// done waits until a conversion is.
func (p *place) done(id any) map[string]any {
	p.t.Helper()
	for range 300 {
		if _, c := p.ask("GET", fmt.Sprint("/api/v1/conversions/", id), ""); c["status"] == "converted" ||
			c["status"] == "failed" || c["status"] == "unchanged" {
			return c
		}
		time.Sleep(50 * time.Millisecond)
	}
	p.t.Fatal("it does not get done")
	return nil
}

func TestConversion(t *testing.T) {
	p := newPlace(t)
	ref := p.push("free:1", "1")
	code, first := p.convert(ref)
	require.Equal(t, http.StatusAccepted, code, first)
	assert.Equal(t, "queued", first["status"])
	code, second := p.convert(ref)
	assert.Equal(t, http.StatusAccepted, code)
	assert.Equal(t, first["id"], second["id"], "the same request twice is one conversion")
	_, list := p.ask("GET", "/api/v1/conversions", "")
	assert.Equal(t, map[string]any{"queued": 1.0}, list["counts"])

	p.work()
	c := p.done(first["id"])
	require.Equal(t, "converted", c["status"], c["error"])
	assert.Equal(t, p.reg.Host+"/out/free@"+p.reg.Digest(t, "out/free:1"), c["ref"])
	assert.Len(t, c["mr_enclave"], 64)

	// What is there is unchanged, and a moved tag is another conversion.
	_, again := p.convert(ref)
	assert.Equal(t, first["id"], again["id"])
	assert.Equal(t, "unchanged", p.done(again["id"])["status"])
	p.push("free:1", "2")
	_, moved := p.convert(ref)
	assert.NotEqual(t, first["id"], moved["id"])
	assert.Equal(t, "converted", p.done(moved["id"])["status"])

	resp, err := http.NewRequest("GET", p.url+"/metrics", nil)
	require.NoError(t, err)
	resp.SetBasicAuth("prometheus", secret)
	answer, err := http.DefaultClient.Do(resp)
	require.NoError(t, err)
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	assert.Contains(t, string(text), `cconvert_conversions{status="converted"} 1`)
	assert.Contains(t, string(text), `cconvert_conversions{status="unchanged"} 1`)
	for _, path := range []string{"/healthz", "/readyz"} {
		code, _ := p.askAs("", "GET", path, "")
		assert.Equal(t, http.StatusOK, code)
	}
}

// Only what a rule allows is converted, and where it wants a signature, only what is signed: about this image, by one
// of its keys.
func TestNoOracle(t *testing.T) {
	p := newPlace(t)
	_, stranger, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	refs := map[string]string{}
	for _, what := range []string{"unsigned", "ecdsa", "ed25519", "stranger", "other", "changed"} {
		refs[what] = p.push("signed:"+what, what)
	}
	p.sign("signed:ecdsa", p.keys[0], "", nil)
	p.sign("signed:ed25519", p.keys[1], "", nil)
	p.sign("signed:stranger", stranger, "", nil)
	p.sign("signed:other", p.keys[0], p.reg.Digest(t, "signed:ecdsa"), nil)
	// Where a signature's payload is said to lie elsewhere, that is not asked.
	trap := fixture.NewRegistry(t)
	p.push("signed:trap", "trap")
	layer := static.NewLayer([]byte("{}"), "application/vnd.dev.cosign.simplesigning.v1+json")
	trapped, err := mutate.Append(empty.Image, mutate.Addendum{
		Layer:       &foreign{layer, v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("1", 64)}},
		URLs:        []string{"http://" + trap.Host + "/x"},
		Annotations: map[string]string{"dev.cosignproject.cosign/signature": "AAAA"},
		MediaType:   "application/vnd.dev.cosign.simplesigning.v1+json",
	})
	require.NoError(t, err)
	raw, err := trapped.RawManifest()
	require.NoError(t, err)
	config, err := trapped.RawConfigFile()
	require.NoError(t, err)
	p.store("signed", strings.Replace(p.reg.Digest(t, "signed:trap"), ":", "-", 1)+".sig", raw, config)
	code, answer := p.convert(p.reg.Host + "/signed:trap")
	assert.Equal(t, http.StatusForbidden, code, "%v", answer)
	assert.Empty(t, trap.Requests())
	p.sign("signed:changed", p.keys[0], p.reg.Digest(t, "signed:ecdsa"), func(s string) string {
		return strings.ReplaceAll(s, p.reg.Digest(t, "signed:ecdsa"), p.reg.Digest(t, "signed:changed"))
	})
	for what, want := range map[string]int{
		"unsigned": http.StatusForbidden, "ecdsa": http.StatusAccepted, "ed25519": http.StatusAccepted,
		"stranger": http.StatusForbidden, "other": http.StatusForbidden, "changed": http.StatusForbidden,
	} {
		code, answer := p.convert(refs[what])
		assert.Equal(t, want, code, "%s: %v", what, answer)
	}
	// A digest would pass by what a rule says of tags.
	p.push("free:secret1", "secret")
	code, answer = p.convert(p.reg.Host + "/free@" + p.reg.Digest(t, "free:secret1"))
	assert.Equal(t, http.StatusForbidden, code, "%v", answer)
	code, answer = p.convert(p.reg.Host + "/signed@" + p.reg.Digest(t, "signed:ecdsa"))
	assert.Equal(t, http.StatusAccepted, code, "%v", answer)
	elsewhere := fixture.NewRegistry(t)
	for what, want := range map[string]int{
		elsewhere.Host + "/free:1":          http.StatusForbidden,
		p.reg.Host + "/other:1":             http.StatusForbidden,
		p.reg.Host + "/free:secret":         http.StatusForbidden,
		p.reg.Host + "/free/x:1":            http.StatusForbidden,
		p.reg.Host + "/free:absent":         http.StatusNotFound,
		"UPPER CASE":                        http.StatusBadRequest,
		"":                                  http.StatusBadRequest,
		"free:1":                            http.StatusForbidden,
		p.reg.Host + "/free:1-confidential": http.StatusForbidden,
	} {
		code, answer := p.convert(what)
		assert.Equal(t, want, code, "%s: %v", what, answer)
	}
	assert.Empty(t, elsewhere.Requests(), "no request names another host")
}

// foreign is a layer with another digest.
type foreign struct {
	v1.Layer
	digest v1.Hash
}

func (f *foreign) Digest() (v1.Hash, error) { return f.digest, nil }
func (f *foreign) DiffID() (v1.Hash, error) { return f.digest, nil }

// store puts a manifest and its configuration into a repository as they are.
func (p *place) store(repo, tag string, manifest, config []byte) {
	p.t.Helper()
	r, err := name.NewRepository(p.reg.Host + "/" + repo)
	require.NoError(p.t, err)
	require.NoError(p.t,
		remote.WriteLayer(r, static.NewLayer(config, "application/vnd.docker.container.image.v1+json")))
	req, err := http.NewRequest("PUT", "http://"+p.reg.Host+"/v2/"+repo+"/manifests/"+tag, bytes.NewReader(manifest))
	require.NoError(p.t, err)
	req.Header.Set("Content-Type", "application/vnd.docker.distribution.manifest.v2+json")
	resp, err := http.DefaultClient.Do(req)
	require.NoError(p.t, err)
	resp.Body.Close()
	require.Equal(p.t, http.StatusCreated, resp.StatusCode)
}

func TestBadRequests(t *testing.T) {
	p := newPlace(t)
	ref := p.push("free:1", "1")
	good := fmt.Sprintf(`{"image":%q}`, ref)
	// What another page has a browser send is not what its user wants.
	req, err := http.NewRequest("POST", p.url+"/api/v1/conversions", strings.NewReader(good))
	require.NoError(t, err)
	req.SetBasicAuth("any", secret)
	req.Header.Set("Sec-Fetch-Site", "cross-site")
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	resp.Body.Close()
	assert.Equal(t, http.StatusForbidden, resp.StatusCode)
	hook := logged.NewGlobal()
	defer logrus.StandardLogger().ReplaceHooks(logrus.LevelHooks{})
	for _, authorization := range []string{
		"", "Bearer", "Bearer wrong", "Bearer " + secret + "x", "Basic " +
			base64.StdEncoding.EncodeToString([]byte(secret+":wrong")), secret,
	} {
		for _, path := range []string{"/api/v1/conversions", "/api/v1/notifications/harbor", "/", "/metrics"} {
			code, _ := p.askAs(authorization, "POST", path, good)
			assert.Equal(t, http.StatusUnauthorized, code, "%q %s", authorization, path)
		}
	}
	told := 0
	for _, e := range hook.AllEntries() {
		if strings.Contains(e.Message, "without the secret") {
			assert.Contains(t, e.Data["address"], "127.0.0.1:")
			told++
		}
	}
	assert.GreaterOrEqual(t, told, 20, "a burst of them is logged")
	assert.Less(t, told, 24, "and not all")
	for body, want := range map[string]int{
		"":                           http.StatusBadRequest,
		"{":                          http.StatusBadRequest,
		"[]":                         http.StatusBadRequest,
		`{"image":1}`:                http.StatusBadRequest,
		good + good:                  http.StatusBadRequest,
		strings.Repeat("[", 100_000): http.StatusBadRequest,
		`{"image":"x","also":[` + strings.Repeat("{},", 100_000) + `{}]}`: http.StatusBadRequest,
		`{"image":"` + strings.Repeat("x", 2<<20) + `"}`:                  http.StatusRequestEntityTooLarge,
	} {
		code, _ := p.ask("POST", "/api/v1/conversions", body)
		assert.Equal(t, want, code, "%.40q", body)
	}
	code, _ := p.ask("DELETE", "/api/v1/conversions", "")
	assert.Equal(t, http.StatusMethodNotAllowed, code)
	code, _ = p.ask("GET", "/api/v1/conversions/none", "")
	assert.Equal(t, http.StatusNotFound, code)
	records, err := p.queue.Records(context.Background(), queue.Requests)
	require.NoError(t, err)
	assert.Empty(t, records, "nothing was queued")
}

// A name that a registry would clean, or lead to another one, does not get past the rules.
func TestNamesAroundTheRules(t *testing.T) {
	p := newPlace(t)
	p.push("free:1", "1")
	p.push("signed:1", "2")
	for _, s := range []string{"free/../signed:1", "free/./../signed:1", "free//../signed:1", "./signed:1",
		"x/../free:1", "free:..", "free:1/../../signed/manifests/1", "free@sha256:../1",
		"signed:1@sha256:" + strings.Repeat("0", 64)} {
		code, answer := p.convert(p.reg.Host + "/" + s)
		assert.Equal(t, http.StatusBadRequest, code, "%s: %v", s, answer)
		event := fmt.Sprintf(
			`{"events":[{"id":"1","action":"push","target":{"mediaType":"application/vnd.oci.image.manifest.v1+json",
			"repository":%q,"tag":"1","digest":"sha256:0"},"request":{"host":%q}}]}`,
			strings.TrimSuffix(s, ":1"), p.reg.Host)
		code, answer = p.ask("POST", "/api/v1/notifications/distribution", event)
		assert.Equal(t, http.StatusAccepted, code)
		assert.Empty(t, answer["conversions"], s)
	}
	for _, to := range []string{"/v2/signed/manifests/1", "http://" + p.reg.Host + "/v2/signed/manifests/1"} {
		p.reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
			if strings.HasPrefix(r.URL.Path, "/v2/free/manifests/") {
				http.Redirect(w, r, to, http.StatusMovedPermanently)
				return true
			}
			return false
		})
		code, _ := p.convert(p.reg.Host + "/free:1")
		assert.Equal(t, http.StatusBadRequest, code)
	}
	records, err := p.queue.Records(context.Background(), queue.Requests)
	require.NoError(t, err)
	assert.Empty(t, records, "nothing was queued")
}

// What no signature is wanted for does not replace what comes of signed images.
func TestTargetOfAnotherRule(t *testing.T) {
	p := newPlace(t)
	code, answer := p.convert(p.push("trick:1", "1"))
	assert.Equal(t, http.StatusForbidden, code)
	assert.Contains(t, answer["error"], "/signed:1, of which the rule in line 5 wants other signatures")
}

// Of two requests for a tag that moves, the later one's image is the result, though the earlier one's takes longer.
func TestMovedWhileAsking(t *testing.T) {
	p := newPlace(t)
	ref := p.push("free:1", "old")
	var held atomic.Bool
	reached, release := make(chan struct{}), make(chan struct{})
	p.reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if r.URL.Path != "/v2/free/manifests/1" || held.Swap(true) {
			return false
		}
		answer := httptest.NewRecorder()
		p.reg.Inner.ServeHTTP(answer, r) // before the tag moves
		close(reached)
		<-release
		for name, values := range answer.Header() {
			w.Header()[name] = values
		}
		w.WriteHeader(answer.Code)
		_, _ = w.Write(answer.Body.Bytes())
		return true
	})
	codes := make(chan int, 2)
	go func() { code, _ := p.convert(ref); codes <- code }()
	<-reached
	p.push("free:1", "new")
	go func() { code, _ := p.convert(ref); codes <- code }()
	time.Sleep(300 * time.Millisecond)
	close(release)
	for range 2 {
		assert.Equal(t, http.StatusAccepted, <-codes)
	}
	p.work()
	require.Eventually(t, func() bool {
		_, list := p.ask("GET", "/api/v1/conversions", "")
		counts, _ := list["counts"].(map[string]any)
		return counts["queued"] == nil && counts["running"] == nil
	}, 20*time.Second, 50*time.Millisecond)
	tag, err := name.NewTag(p.reg.Host + "/out/free:1")
	require.NoError(t, err)
	img, err := remote.Image(tag)
	require.NoError(t, err)
	config, err := img.ConfigFile()
	require.NoError(t, err)
	assert.Contains(t, config.Config.Env, "A=new")
}

// What a registry answers without end is not read without end, however many ask for it.
func TestEndlessSignatures(t *testing.T) {
	p := newPlace(t)
	ref := p.push("signed:1", "1")
	var sent atomic.Int64
	p.reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if !strings.HasSuffix(r.URL.Path, ".sig") {
			return false
		}
		w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		_, _ = io.WriteString(w, `{"schemaVersion":2,"layers":[`)
		for chunk := bytes.Repeat([]byte(`{"size":1},`), 10_000); sent.Load() < 1<<30; {
			n, err := w.Write(chunk)
			sent.Add(int64(n))
			if err != nil {
				break
			}
		}
		return true
	})
	code, answer := p.convert(ref)
	assert.Equal(t, http.StatusBadRequest, code, "%v", answer)
	assert.Less(t, sent.Load(), int64(64<<20), "a few megabytes, and what is on its way")
}

// Registries tell of everything that is pushed to them; what no rule allows is left out.
func TestNotifications(t *testing.T) {
	p := newPlace(t)
	p.push("free:1", "1")
	p.push("free:2", "2")
	p.push("signed:1", "3")
	asked := func(answer map[string]any) (tags []string) {
		list, ok := answer["conversions"].([]any)
		require.True(t, ok, "%v", answer)
		for _, c := range list {
			target := c.(map[string]any)["target"].(string)
			tags = append(tags, strings.TrimPrefix(target, p.reg.Host))
		}
		return tags
	}
	resource := func(name string) string {
		return fmt.Sprintf(`{"digest":"sha256:0","tag":"x","resource_url":"%s/%s"}`, p.reg.Host, name)
	}
	code, answer := p.ask("POST", "/api/v1/notifications/harbor",
		`{"type":"PUSH_ARTIFACT","occur_at":1,"operator":"admin","event_data":{"resources":[`+
			resource("free:1")+","+resource("signed:1")+","+resource("free:1")+","+resource("free:absent")+","+
			resource("free:sha256-00.sig")+`],"repository":{"name":"free"}}}`)
	assert.Equal(t, http.StatusAccepted, code)
	assert.Equal(t, []string{"/out/free:1"}, asked(answer))
	code, answer = p.ask("POST", "/api/v1/notifications/harbor",
		`{"type":"DELETE_ARTIFACT","event_data":{"resources":[`+resource("free:1")+`]}}`)
	assert.Equal(t, http.StatusOK, code)
	assert.Empty(t, asked(answer))

	event := func(action, host, repo, tag, kind string) string {
		return fmt.Sprintf(
			`{"id":"1","action":%q,"target":{"mediaType":%q,"repository":%q,"tag":%q,"digest":"sha256:0"},
		"request":{"host":%q}}`, action, kind, repo, tag, host)
	}
	manifest := "application/vnd.docker.distribution.manifest.v2+json"
	code, answer = p.ask("POST", "/api/v1/notifications/distribution", `{"events":[`+strings.Join([]string{
		event("push", p.reg.Host, "free", "2", manifest), event("pull", p.reg.Host, "free", "1", manifest),
		event("push", p.reg.Host, "free", "", manifest),
		event("push", p.reg.Host, "free", "1", "application/octet-stream"),
		event("push", "evil.example", "free", "1", manifest), event("push", p.reg.Host, "signed", "1", manifest),
	}, ",")+`]}`)
	assert.Equal(t, http.StatusAccepted, code)
	assert.Equal(t, []string{"/out/free:2"}, asked(answer))
	code, _ = p.ask("POST", "/api/v1/notifications/harbor", `{"type":"PUSH_ARTIFACT","event_data":{"resources":[`+
		strings.Repeat(resource("free:1")+",", 200)+resource("free:1")+`]}}`)
	assert.Equal(t, http.StatusBadRequest, code)

	// A registry that does not answer makes the notification fail, so that it is sent again.
	p.reg.Intercept(func(w http.ResponseWriter, _ *http.Request, _ int) bool {
		w.WriteHeader(http.StatusBadGateway)
		return true
	})
	code, _ = p.ask("POST", "/api/v1/notifications/harbor", `{"type":"PUSH_ARTIFACT","event_data":{"resources":[`+
		resource("free:1")+`]}}`)
	assert.Equal(t, http.StatusBadGateway, code)
}

func FuzzRequests(f *testing.F) {
	// a machine that is busy is no crash
	s := service.New(service.Options{Plan: &plan.Plan{}, Secrets: service.OneSecret(secret), AnswerIn: time.Minute})
	f.Add("conversions", `{"image":"a/b:1"}`)
	f.Add("notifications/harbor", `{"type":"PUSH_ARTIFACT","event_data":{"resources":[{"resource_url":"a/b:1"}]}}`)
	f.Add("notifications/distribution",
		`{"events":[{"action":"push","target":{"mediaType":"manifest","repository":"a","tag":"b"},
		"request":{"host":"c"}}]}`)
	f.Fuzz(func(t *testing.T, path, body string) {
		r := httptest.NewRequest("POST", "/", strings.NewReader(body))
		r.URL.Path = "/api/v1/" + path
		r.Header.Set("Authorization", "Bearer "+secret)
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if w.Code >= 500 {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
	})
}

// Any number of requests about a registry that does not answer keep nobody from the others, nor from what is known
// here.
func TestSilentRegistry(t *testing.T) {
	p := newPlace(t)
	p.reg.Push(t, "free:1", fixture.Image(t, v1.Config{Entrypoint: []string{"/app"}},
		fixture.Layer(t, fixture.Program("app", fixture.ELF("")))))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	send := func(method, path, body string) int {
		req, err := http.NewRequestWithContext(ctx, method, p.url+path, strings.NewReader(body))
		if err != nil {
			return 0
		}
		req.Header.Set("Authorization", "Bearer "+secret)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return 0
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	codes := make(chan int, 200)
	for i := range 200 {
		go func() {
			codes <- send(http.MethodPost, "/api/v1/conversions",
				fmt.Sprintf(`{"image":"%s/app:%d"}`, p.silent.Host, i))
		}()
	}
	for range 200 - 16 - 64 {
		assert.Equal(t, http.StatusServiceUnavailable, <-codes, "more than can wait")
	}
	for _, path := range []string{"/metrics", "/api/v1/conversions", "/"} {
		assert.Equal(t, http.StatusOK, send(http.MethodGet, path, ""), path)
	}
	assert.Equal(t, http.StatusAccepted,
		send(http.MethodPost, "/api/v1/conversions", `{"image":"`+p.reg.Host+`/free:1"}`))
}

// Of the images of one notification that would become the same, the last one counts.
func TestOrderInNotification(t *testing.T) {
	p := newPlace(t)
	var resources, tags []string
	for i := range 9 { // the last one has the first name
		tags = append(tags, fmt.Sprint(9-i))
		p.push("last:"+tags[i], tags[i])
		resources = append(resources, fmt.Sprintf(`{"resource_url":"%s/last:%s"}`, p.reg.Host, tags[i]))
	}
	resources = append(resources[8:], resources...) // and is named twice
	code, answer := p.ask("POST", "/api/v1/notifications/harbor", `{"type":"PUSH_ARTIFACT","event_data":{"resources":[`+
		strings.Join(resources, ",")+`]}}`)
	require.Equal(t, http.StatusAccepted, code, "%v", answer)
	require.Len(t, answer["conversions"], 9)
	p.work()
	var records []*queue.Record
	require.Eventually(t, func() bool {
		var err error
		records, err = p.queue.Records(context.Background(), queue.Requests)
		require.NoError(t, err)
		return !slices.ContainsFunc(records, func(r *queue.Record) bool { return !r.Status.Final() })
	}, 30*time.Second, 20*time.Millisecond)
	for _, r := range records {
		want := queue.Skipped
		if strings.HasSuffix(r.Job.Source, "@"+p.reg.Digest(t, "last:1")) {
			want = queue.Converted
		}
		assert.Equal(t, want, r.Status, "%s: %s", r.Job.Source, r.Error)
	}
}

// A registry sends a notification again until it is taken, and all later ones wait: what is wrong with one image for
// good must not be answered as what may pass, nor keep the others from being asked for.
func TestPoisonedNotification(t *testing.T) {
	p := newPlace(t)
	app := fixture.Image(t, v1.Config{Entrypoint: []string{"/app"}},
		fixture.Layer(t, fixture.Program("app", fixture.ELF(""))))
	p.reg.Push(t, "free:1", app)
	p.reg.Push(t, "signed:1", app)
	digest := p.reg.Digest(t, "signed:1")
	tag, err := name.NewTag(p.reg.Host + "/signed:" + strings.ReplaceAll(digest, ":", "-") + ".sig")
	require.NoError(t, err)
	require.NoError(t, remote.WriteIndex(tag, empty.Index)) // no manifest with signatures
	resource := func(name string) string { return fmt.Sprintf(`{"resource_url":"%s/%s"}`, p.reg.Host, name) }
	code, answer := p.ask("POST", "/api/v1/notifications/harbor", `{"type":"PUSH_ARTIFACT","event_data":{"resources":[`+
		resource("signed:1")+","+resource("free:1")+`]}}`)
	assert.Equal(t, http.StatusAccepted, code, "%v", answer)
	assert.Len(t, answer["conversions"], 1)
}

// pushedEvent is what Distribution sends when a tag is pushed.
func pushedEvent(host, digest, agent string) string {
	return fmt.Sprintf(`{"events":[{"action":"push",
		"target":{"mediaType":"application/vnd.oci.image.manifest.v1+json","repository":"free","tag":"1","digest":%q},
		"request":{"host":%q,"useragent":%q}}]}`,
		digest, host, agent)
}

// Distribution tells of a push before the tag has moved. What was pushed is what is converted.
func TestToldBeforeTheTagMoves(t *testing.T) {
	p := newPlace(t)
	p.push("free:1", "before")
	p.push("free:2", "after")
	digest := p.reg.Digest(t, "free:2")
	time.AfterFunc(300*time.Millisecond, func() { p.push("free:1", "after") })
	code, answer := p.ask("POST", "/api/v1/notifications/distribution",
		pushedEvent(p.reg.Host, digest, ""))
	require.Equal(t, http.StatusAccepted, code, "%v", answer)
	assert.Contains(t, fmt.Sprint(answer["conversions"]), "/free@"+digest)
	// What was pushed and moved on since is another event's.
	p.push("free:1", "later")
	code, answer = p.ask("POST", "/api/v1/notifications/distribution", pushedEvent(p.reg.Host, digest, ""))
	require.Equal(t, http.StatusAccepted, code, "%v", answer)
	assert.Empty(t, answer["conversions"])
}

// A notification that takes longer than its sender waits is taken when it is sent again; and a client that says much of
// itself does not keep a registry from being heard.
func TestNotificationsThatTakeLong(t *testing.T) {
	p := newPlace(t, func(o *service.Options) { o.AnswerIn = 20 * time.Millisecond })
	p.push("free:1", "1")
	p.reg.Intercept(func(http.ResponseWriter, *http.Request, int) bool {
		time.Sleep(30 * time.Millisecond)
		return false
	})
	event := pushedEvent(p.reg.Host, p.reg.Digest(t, "free:1"), strings.Repeat("<", 300_000))
	codes := map[int]int{}
	require.Eventually(t, func() bool {
		code, _ := p.ask("POST", "/api/v1/notifications/distribution", event)
		codes[code]++
		return code == http.StatusAccepted
	}, 20*time.Second, 10*time.Millisecond, "%v", codes)
	assert.Positive(t, codes[http.StatusServiceUnavailable])
	assert.Len(t, codes, 2)
	records, err := p.queue.Records(context.Background(), queue.Requests)
	require.NoError(t, err)
	assert.Len(t, records, 1)
}

// What another rule converts is replaced by a result if it is one, and not otherwise.
func TestSourceOfAnotherRule(t *testing.T) {
	p := newPlace(t)
	p.push("swap:1", "1")
	p.push("free:1", "source")
	source := p.reg.Digest(t, "free:1")
	code, _ := p.ask("POST", "/api/v1/conversions", `{"image":"`+p.reg.Host+`/swap:1"}`)
	require.Equal(t, http.StatusAccepted, code)
	p.work()
	require.Eventually(t, func() bool {
		records, err := p.queue.Records(context.Background(), queue.Requests)
		require.NoError(t, err)
		return len(records) == 1 && records[0].Status == queue.Failed
	}, 20*time.Second, 20*time.Millisecond)
	assert.Equal(t, source, p.reg.Digest(t, "free:1"))
}

// many is a queue in which much was done.
type many struct{ service.Queue }

func (many) Watch(ctx context.Context, _ string, tell func(*queue.Record)) error {
	for i := range 12_000 {
		tell(&queue.Record{ID: fmt.Sprint(i % 11_000), Status: queue.Converted})
	}
	<-ctx.Done()
	return nil
}

// What was done long ago is not remembered for ever.
func TestOldConversions(t *testing.T) {
	p := newPlace(t, func(o *service.Options) { o.Queue = many{o.Queue} })
	require.Eventually(t, func() bool {
		_, answer := p.ask("GET", "/api/v1/conversions", "")
		n := answer["counts"].(map[string]any)["converted"]
		return n == 10_000.0
	}, 20*time.Second, 50*time.Millisecond)
}

// crowded is a queue with as many conversions of a repository as may wait, until they are done.
type crowded struct {
	service.Queue
	repository string
	done       chan struct{}
}

func (q crowded) Watch(ctx context.Context, id string, tell func(*queue.Record)) error {
	for _, status := range []queue.Status{queue.Queued, queue.Converted} {
		for i := range 1000 {
			tell(&queue.Record{
				ID: fmt.Sprint(i), Status: status,
				Job: queue.Job{Source: fmt.Sprintf("%s@sha256:%064d", q.repository, i)},
			})
		}
		if status == queue.Queued {
			<-q.done
		}
	}
	return q.Queue.Watch(ctx, id, tell)
}

// What a registry tells of while too many conversions wait is asked for later, and holds back nothing else.
func TestToldWhileManyWait(t *testing.T) {
	done := make(chan struct{})
	p := newPlace(t, func(o *service.Options) {
		o.Queue = crowded{o.Queue, o.Plan.Convert[4].Repository, done}
	})
	for _, tag := range []string{"1", "2"} {
		p.push("last:"+tag, tag)
	}
	p.push("free:1", "1")
	require.Eventually(t, func() bool {
		code, _ := p.convert(p.reg.Host + "/last:1")
		return code == http.StatusTooManyRequests
	}, 10*time.Second, 20*time.Millisecond)
	tell := func(name string) int {
		code, answer := p.ask("POST", "/api/v1/notifications/harbor", fmt.Sprintf(
			`{"type":"PUSH_ARTIFACT","event_data":{"resources":[{"resource_url":"%s/%s"}]}}`, p.reg.Host, name))
		require.Equal(t, http.StatusAccepted, code)
		return len(answer["conversions"].([]any))
	}
	assert.Zero(t, tell("last:1"))
	assert.Zero(t, tell("last:2"))
	assert.Equal(t, 1, tell("free:1"))
	sources := func() (list []string) {
		records, err := p.queue.Records(context.Background(), queue.Requests)
		require.NoError(t, err)
		for _, r := range records {
			list = append(list, strings.TrimPrefix(r.Job.Source, p.reg.Host))
		}
		return list
	}
	time.Sleep(3 * time.Second)
	assert.Equal(t, []string{"/free@" + p.reg.Digest(t, "free:1")}, sources())
	close(done)
	require.Eventually(t, func() bool { return len(sources()) == 2 }, 20*time.Second, 50*time.Millisecond)
	assert.Contains(t, sources(), "/last@"+p.reg.Digest(t, "last:2"),
		"both become the same, of which the last one counts")
}

// Of two services on one queue, as during an update, the slower one does not have the last word.
func TestTwoServices(t *testing.T) {
	var o service.Options
	p := newPlace(t, func(own *service.Options) { o = *own })
	second := service.New(o)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { _ = second.Run(ctx) }()
	server := httptest.NewServer(second)
	defer server.Close()
	push := func(what string) string {
		p.push("signed:1", what)
		p.sign("signed:1", p.keys[0], "", nil)
		return p.reg.Digest(t, "signed:1")
	}
	older := push("old")
	reached, release := make(chan struct{}), make(chan struct{})
	var once atomic.Bool
	p.reg.Intercept(func(_ http.ResponseWriter, r *http.Request, _ int) bool {
		if strings.Contains(r.URL.Path, strings.Replace(older, ":", "-", 1)+".sig") && !once.Swap(true) {
			close(reached)
			<-release
		}
		return false
	})
	ended := make(chan int)
	go func() {
		code, _ := p.convert(p.reg.Host + "/signed:1")
		ended <- code
	}()
	<-reached
	newer := push("new")
	first := p.url
	p.url = server.URL
	code, answer := p.convert(p.reg.Host + "/signed:1")
	require.Equal(t, http.StatusAccepted, code, "%v", answer)
	p.url = first
	close(release)
	require.Equal(t, http.StatusAccepted, <-ended)
	p.work()
	require.Eventually(t, func() bool {
		records, err := p.queue.Records(ctx, queue.Requests)
		require.NoError(t, err)
		for _, r := range records {
			require.Contains(t, r.Job.Source, newer)
		}
		return len(records) == 1 && records[0].Status == queue.Converted
	}, 20*time.Second, 50*time.Millisecond)
}

// What is refused takes the place of nothing that was postponed, and a registry that is silent keeps no other one's
// images from being asked for.
func TestPostponedBesideOthers(t *testing.T) {
	done := make(chan struct{})
	p := newPlace(t, func(o *service.Options) { o.Queue = crowded{o.Queue, o.Plan.Convert[4].Repository, done} })
	p.push("last:1", "1")
	require.Eventually(t, func() bool {
		code, _ := p.convert(p.reg.Host + "/last:1")
		return code == http.StatusTooManyRequests
	}, 10*time.Second, 20*time.Millisecond)
	code, _ := p.ask("POST", "/api/v1/notifications/harbor", fmt.Sprintf(
		`{"type":"PUSH_ARTIFACT","event_data":{"resources":[{"resource_url":"%s/last:1"}]}}`, p.reg.Host))
	require.Equal(t, http.StatusAccepted, code)
	close(done)
	require.Eventually(t, func() bool { // there is room, and the image is not asked for yet
		code, _ := p.convert(p.reg.Host + "/last:absent")
		return code == http.StatusNotFound
	}, 10*time.Second, 5*time.Millisecond)
	require.Eventually(t, func() bool {
		records, err := p.queue.Records(context.Background(), queue.Requests)
		require.NoError(t, err)
		return len(records) == 1
	}, 20*time.Second, 50*time.Millisecond)
}

// Names of hosts differ in no bound by their case.
func TestCaseOfHosts(t *testing.T) {
	done := make(chan struct{})
	defer close(done)
	p := newPlace(t, func(o *service.Options) {
		o.Queue = crowded{o.Queue, "localhost:5/app", done}
		text := "version: 1\nconvert: [{repository: 'localhost:5/app', allowUnsigned: true}]\n"
		rules, err := plan.Parse("plan.yaml", []byte(text))
		require.NoError(t, err)
		o.Plan = rules
	})
	for _, host := range []string{"localhost:5", "LOCALhost:5"} {
		require.Eventually(t, func() bool {
			code, _ := p.convert(host + "/app:1")
			return code == http.StatusTooManyRequests
		}, 10*time.Second, 20*time.Millisecond, host)
	}
}

// harbor tells of a push as Harbor does, and returns the answer's code.
func (p *place) harbor(image, digest string) int {
	p.t.Helper()
	code, _ := p.ask("POST", "/api/v1/notifications/harbor", harborEvent(p.reg.Host, image, digest))
	return code
}

func harborEvent(host, image, digest string) string {
	return fmt.Sprintf(`{"type":"PUSH_ARTIFACT","event_data":{"resources":[{"resource_url":"%s/%s","digest":%q}]}}`,
		host, image, digest)
}

// oneTarget has two repositories with one target.
func oneTarget(t *testing.T, o *service.Options) (host string) {
	t.Helper()
	host = strings.TrimSuffix(o.Plan.Convert[0].Repository, "/free")
	rules, err := plan.Parse("plan.yaml", fmt.Appendf(nil, `version: 1
defaults: {target: '%[1]s/out/app:1'}
convert:
- {repository: %[1]s/one, allowUnsigned: true}
- {repository: %[1]s/two, allowUnsigned: true}
`, host))
	require.NoError(t, err)
	o.Plan = rules
	return host
}

// untilCrowded waits until the service knows that too many conversions are waiting.
func (p *place) untilCrowded(image string) {
	p.t.Helper()
	require.Eventually(p.t, func() bool {
		code, _ := p.convert(p.reg.Host + "/" + image)
		return code == http.StatusTooManyRequests
	}, 10*time.Second, 20*time.Millisecond)
}

// another starts a service with options of its own on the same queue, and returns its URL.
func another(t *testing.T, o service.Options) string {
	t.Helper()
	s := service.New(o)
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	go func() { _ = s.Run(ctx) }()
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	return server.URL
}

// at asks at another service.
func (p *place) at(url string, ask func()) {
	own := p.url
	p.url = url
	ask()
	p.url = own
}

// pass writes the registry's answer to whoever asked.
func pass(w http.ResponseWriter, answer *httptest.ResponseRecorder) {
	for k, v := range answer.Header() {
		w.Header()[k] = v
	}
	w.WriteHeader(answer.Code)
	_, _ = w.Write(answer.Body.Bytes())
}

// holdTag has the registry answer the first question where a tag leads, and lets the answer go on when it is told to.
func (p *place) holdTag(path string) (at, goOn chan struct{}) {
	at, goOn = make(chan struct{}), make(chan struct{})
	var once atomic.Bool
	p.reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if !strings.HasSuffix(r.URL.Path, path) || r.Method != http.MethodGet || once.Swap(true) {
			return false
		}
		answer := httptest.NewRecorder()
		p.reg.Inner.ServeHTTP(answer, r)
		close(at)
		<-goOn
		pass(w, answer)
		return true
	})
	return at, goOn
}

// sources are those that were asked for.
func (p *place) sources() string {
	p.t.Helper()
	var list []string
	for _, r := range p.records() {
		list = append(list, r.Job.Source)
	}
	return strings.Join(list, " ")
}

func (p *place) records() []*queue.Record {
	p.t.Helper()
	records, err := p.queue.Records(context.Background(), queue.Requests)
	require.NoError(p.t, err)
	return records
}

// targetIsOf checks that a source was converted, and that its target has what came out.
func (p *place) targetIsOf(source, target string) {
	p.t.Helper()
	for _, r := range p.records() {
		if strings.Contains(r.Job.Source, source) {
			require.Contains(p.t, []queue.Status{queue.Converted, queue.Unchanged}, r.Status, r.Error)
			assert.Equal(p.t, r.Digest, p.reg.Digest(p.t, target), "the target has what was told of last")
			return
		}
	}
	p.t.Errorf("%s was not asked for: %s", source, p.sources())
}

// fails has the registry answer requests for a path by an error, after a while, for as long as the answer is true.
func (p *place) fails(path string, after time.Duration) *atomic.Bool {
	var failing atomic.Bool
	failing.Store(true)
	p.reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if !failing.Load() || !strings.Contains(r.URL.Path, path) {
			return false
		}
		time.Sleep(after)
		w.WriteHeader(http.StatusBadGateway)
		return true
	})
	return &failing
}
