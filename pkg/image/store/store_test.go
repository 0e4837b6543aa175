package store_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/klauspost/compress/gzip"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
	"github.com/cconvert/cconvert/pkg/image/store"
)

var quick = registry.Options{FirstPause: time.Millisecond}

func parse(t testing.TB, s string) image.Reference {
	t.Helper()
	r, err := image.ParseReference(s, false)
	require.NoError(t, err)
	return r
}

func sample(t testing.TB) v1.Image {
	return fixture.Image(t, v1.Config{Cmd: []string{"/a"}}, fixture.Layer(t, fixture.File("a", "1")),
		fixture.Layer(t, fixture.File("b", strings.Repeat("2", 100_000))))
}

func added(t testing.TB) image.NewLayer {
	t.Helper()
	// So much that the registry is asked for it first.
	noise := make([]byte, 600<<10)
	_, _ = rand.NewChaCha8([32]byte{}).Read(noise)
	l, err := image.CompressLayer(gzip.BestSpeed, fixture.Tar(t, fixture.File("new", string(noise))))
	require.NoError(t, err)
	return l
}

// extend opens an image, puts a layer on it and stores it.
func extend(ctx context.Context, t testing.TB, from, to string, o registry.Options) (*image.Output, error) {
	t.Helper()
	img, err := store.Open(ctx, parse(t, from), o)
	if err != nil {
		return nil, err
	}
	defer img.Close()
	var config map[string]json.RawMessage
	require.NoError(t, json.Unmarshal(img.Config, &config))
	out, err := image.Append(img, config, []image.NewLayer{added(t)})
	if err != nil {
		return nil, err
	}
	return out, store.Write(ctx, parse(t, to), out, o)
}

func TestReferences(t *testing.T) {
	for s, want := range map[string]string{
		"redis:7":                                 "redis:7",
		"docker://localhost:5000/a/b":             "localhost:5000/a/b",
		"oci:dir":                                 "oci:dir",
		"docker://oci:1":                          "docker://oci:1",
		"docker://dir":                            "dir",
		"oci:/a/dir:v1":                           "oci:/a/dir:v1",
		"docker-archive:f.tar":                    "docker-archive:f.tar",
		"oci-archive:f.tar:v1":                    "oci-archive:f.tar:v1",
		"docker-archive:f.tar:@1":                 "docker-archive:f.tar:@1",
		"docker-archive:f.tar:app:1":              "docker-archive:f.tar:app:1",
		"docker-daemon:app:1":                     "docker-daemon:app:1",
		"a@sha256:" + strings.Repeat("0", 64):     "a@sha256:" + strings.Repeat("0", 64),
		"oci:d@sha256:" + strings.Repeat("0", 64): "oci:d@sha256:" + strings.Repeat("0", 64),
	} {
		r, err := image.ParseReference(s, false)
		if assert.NoError(t, err, s) {
			assert.Equal(t, want, r.String())
			again, err := image.ParseReference(r.String(), false)
			require.NoError(t, err)
			assert.Equal(t, want, again.String())
			assert.Equal(t, r.Transport, again.Transport)
		}
	}
	for _, bad := range []string{
		"", "UPPER", "oci:", "docker-archive:", "docker-daemon:", "a b", "oci-archive:", "containers-storage:x",
		"oci:d@sha256:12", "docker://", "docker://oci:5000/app", "http:80/app",
	} {
		_, err := image.ParseReference(bad, false)
		assert.ErrorIs(t, err, image.ErrReference, bad)
	}
}

func TestTargets(t *testing.T) {
	for _, c := range []struct{ from, suffix, repo, want string }{
		{"reg.example/a/b:1", "-c", "", "reg.example/a/b:1-c"},
		{"redis", "-c", "", "index.docker.io/library/redis:latest-c"},
		{"redis:7", "", "reg.example/conf/", "reg.example/conf/redis:7"},
		{"reg.example/a/b:1", "-x", "other.example", "other.example/a/b:1-x"},
		{
			"a@sha256:" + strings.Repeat("0", 64), "-c", "", "index.docker.io/library/a:sha256_" +
				strings.Repeat("0", 64) + "-c",
		},
		{"oci:d:v1", "-c", "", "oci:d:v1-c"},
		{"oci:d", "-c", "", "oci:d:latest-c"},
		{"docker-archive:d/f.tar", "-c", "", "docker-archive:d/f-c.tar"},
		{"docker-daemon:app:1", "-c", "", "docker-daemon:app:1-c"},
	} {
		r, err := parse(t, c.from).Target(c.suffix, c.repo, false)
		require.NoError(t, err)
		assert.Equal(t, c.want, r.String())
	}
	_, err := parse(t, "oci:d").Target("", "reg.example/x", false)
	assert.ErrorContains(t, err, "has no name")
}

// Every place can be read and written, and holds the same image afterwards.
func TestRoundTrips(t *testing.T) {
	ctx, reg, dir := context.Background(), fixture.NewRegistry(t), t.TempDir()
	from := reg.Push(t, "src:1", sample(t))
	out, err := extend(ctx, t, from, reg.Host+"/dst:1", quick)
	require.NoError(t, err)
	tag, err := name.NewTag(reg.Host + "/dst:1")
	require.NoError(t, err)
	pushed, err := remote.Image(tag)
	require.NoError(t, err)
	require.NoError(t, validate.Image(pushed))
	d, err := pushed.Digest()
	require.NoError(t, err)
	assert.Equal(t, out.Digest, d.String())

	for _, place := range []string{"oci:" + dir + "/layout:v1", "docker-archive:" + dir + "/a.tar:app:1"} {
		kind, _, _ := strings.Cut(place, ":")
		t.Run(kind, func(t *testing.T) {
			out, err := extend(ctx, t, from, place, quick)
			require.NoError(t, err)
			back, err := store.Open(ctx, parse(t, place), quick)
			require.NoError(t, err)
			defer back.Close()
			assert.Contains(t, []string{out.Digest, out.ImageID}, back.Digest)
			require.Len(t, back.Layers, 3)
			for _, l := range back.Layers {
				r, err := l.Open(ctx)
				require.NoError(t, err)
				n, err := io.Copy(io.Discard, r)
				require.NoError(t, err)
				assert.Positive(t, n)
				r.Close()
			}
			again, err := extend(ctx, t, place, reg.Host+"/again:1", quick)
			require.NoError(t, err)
			assert.Equal(t, again.Digest, reg.Digest(t, "again:1"))
			// Written over itself, the same tag names the new image.
			_, err = extend(ctx, t, place, place, quick)
			require.NoError(t, err)
		})
	}
	left, err := filepath.Glob(dir + "/layout/blobs/sha256/.*")
	require.NoError(t, err)
	assert.Empty(t, left, "no temporary files")
}

func TestBaseLayersAreNotSentAgain(t *testing.T) {
	ctx, reg := context.Background(), fixture.NewRegistry(t)
	from := reg.Push(t, "src:1", sample(t))
	reg.Intercept(nil)
	_, err := extend(ctx, t, from, reg.Host+"/src:2", quick)
	require.NoError(t, err)
	uploads := 0
	for _, r := range reg.Requests() {
		if strings.HasPrefix(r, "PUT /v2/src/blobs/uploads/") {
			uploads++
		}
	}
	assert.Equal(t, 2, uploads, "the new layer and the configuration")
	assert.Equal(t, "PUT /v2/src/manifests/2", last(reg.Requests(), "PUT"), "the tag moves last")

	reg.Intercept(nil)
	_, err = extend(ctx, t, from, reg.Host+"/src:2", quick)
	require.NoError(t, err)
	for _, r := range reg.Requests() {
		assert.NotRegexp(t, "^(PATCH|PUT|POST)", r, "everything is there")
	}
}

// Uploads of what is not known yet begin early. They can come to an end before they are used, and are ended where they
// are not.
func TestUploadsBegunEarly(t *testing.T) {
	ctx, reg := context.Background(), fixture.NewRegistry(t)
	img, err := store.Open(ctx, parse(t, reg.Push(t, "src:1", sample(t))), quick)
	require.NoError(t, err)
	defer img.Close()
	var config map[string]json.RawMessage
	require.NoError(t, json.Unmarshal(img.Config, &config))
	small, err := image.CompressLayer(gzip.BestSpeed, fixture.Tar(t, fixture.File("new", "1")))
	require.NoError(t, err)
	out, err := image.Append(img, config, []image.NewLayer{small})
	require.NoError(t, err)
	count := func(what string) (n int) {
		for _, r := range reg.Requests() {
			if strings.HasPrefix(r, what) {
				n++
			}
		}
		return n
	}
	begin := func(to string) image.Upload {
		u := store.NewUpload(ctx, parse(t, reg.Host+"/src:"+to), quick)
		u.Begin(img)
		require.Eventually(t, func() bool { return count("POST") == 2 }, 5*time.Second, time.Millisecond)
		return u
	}

	reg.Intercept(nil)
	u := begin("abandoned")
	u.Close()
	assert.Equal(t, 2, count("DELETE /v2/src/blobs/uploads/"))

	reg.Intercept(nil)
	u = begin("2")
	require.NoError(t, u.Write(out))
	u.Close()
	assert.Equal(t, 2, count("POST"), "none but those that were begun")
	assert.Zero(t, count("DELETE"))
	assert.Equal(t, out.Digest, reg.Digest(t, "src:2"))

	reg = fixture.NewRegistry(t)
	img, err = store.Open(ctx, parse(t, reg.Push(t, "src:1", sample(t))), quick)
	require.NoError(t, err)
	defer img.Close()
	var ended sync.Map // the first upload of each blob
	reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if r.Method != http.MethodPut || !strings.Contains(r.URL.Path, "/blobs/uploads/") {
			return false
		}
		if _, again := ended.LoadOrStore(r.URL.Query().Get("digest"), true); again {
			return false
		}
		w.WriteHeader(http.StatusNotFound)
		return true
	})
	u = begin("3")
	require.NoError(t, json.Unmarshal(img.Config, &config))
	out, err = image.Append(img, config, []image.NewLayer{small})
	require.NoError(t, err)
	require.NoError(t, u.Write(out))
	u.Close()
	assert.Equal(t, 4, count("POST"), "for each another one")
	assert.Equal(t, out.Digest, reg.Digest(t, "src:3"))
}

func last(requests []string, method string) string {
	for _, r := range slices.Backward(requests) {
		if strings.HasPrefix(r, method) {
			return r
		}
	}
	return ""
}

func TestIndex(t *testing.T) {
	reg := fixture.NewRegistry(t)
	push := func(tag string, add ...mutate.IndexAddendum) string {
		n, err := name.NewTag(reg.Host + "/" + tag)
		require.NoError(t, err)
		require.NoError(t, remote.WriteIndex(n, mutate.AppendManifests(empty.Index, add...)))
		return n.String()
	}
	entry := func(img v1.Image, os, arch, variant string) mutate.IndexAddendum {
		return mutate.IndexAddendum{
			Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: os, Architecture: arch, Variant: variant}},
		}
	}
	want, other := sample(t),
		fixture.Image(t, v1.Config{Cmd: []string{"/other"}}, fixture.Layer(t, fixture.File("o", "o")))
	wantDigest, err := want.Digest()
	require.NoError(t, err)
	ref := push("i:1", entry(other, "unknown", "unknown", ""), entry(other, "linux", "arm64", "v8"),
		entry(other, "linux", "amd64", "v3"), entry(want, "linux", "amd64", ""))
	img, err := store.Open(context.Background(), parse(t, ref), quick)
	require.NoError(t, err)
	assert.Equal(t, wantDigest.String(), img.Digest)

	ref = push("i:2", entry(other, "unknown", "unknown", ""), entry(other, "linux", "arm64", "v8"),
		entry(other, "windows", "amd64", ""))
	_, err = store.Open(context.Background(), parse(t, ref), quick)
	assert.ErrorIs(t, err, image.ErrPlatform)
	assert.ErrorContains(t, err, "there is linux/arm64/v8, windows/amd64")
}

func TestRefusedManifests(t *testing.T) {
	reg := fixture.NewRegistry(t)
	put := func(tag, mediaType, body string) string {
		req, err := http.NewRequest(http.MethodPut, "http://"+reg.Host+"/v2/x/manifests/"+tag, strings.NewReader(body))
		require.NoError(t, err)
		req.Header.Set("Content-Type", mediaType)
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		resp.Body.Close()
		require.Equal(t, http.StatusCreated, resp.StatusCode)
		return reg.Host + "/x:" + tag
	}
	for want, ref := range map[string]string{
		"schema 1 is not supported": put("s1", string(types.DockerManifestSchema1Signed), `{"schemaVersion":1}`),
		"not a container image": put("chart", string(types.OCIManifestSchema1),
			`{"schemaVersion":2,"config":{"mediaType":"application/vnd.cncf.helm.config.v1+json","digest":"sha256:`+
				strings.Repeat("0", 64)+`"},"layers":[]}`),
	} {
		_, err := store.Open(context.Background(), parse(t, ref), quick)
		assert.ErrorIs(t, err, image.ErrUnsupported)
		assert.ErrorContains(t, err, want)
	}
	_, err := store.Open(context.Background(), parse(t, reg.Host+"/none:1"), quick)
	assert.ErrorIs(t, err, image.ErrNotFound)
	arm := fixture.Image(t, v1.Config{}, fixture.Layer(t, fixture.File("a", "1")))
	c, err := arm.ConfigFile()
	require.NoError(t, err)
	c = c.DeepCopy()
	c.Architecture = "arm64"
	arm, err = mutate.ConfigFile(arm, c)
	require.NoError(t, err)
	_, err = store.Open(context.Background(), parse(t, reg.Push(t, "arm:1", arm)), quick)
	assert.ErrorIs(t, err, image.ErrPlatform)
}

func TestForeignLayerStaysAReference(t *testing.T) {
	reg := fixture.NewRegistry(t)
	content := fixture.Tar(t, fixture.File("w", "windows"))
	foreign := httptestServer(t, content)
	l := static.NewLayer(content, types.DockerForeignLayer)
	img, err := mutate.Append(sample(t),
		mutate.Addendum{Layer: l, MediaType: types.DockerForeignLayer, URLs: []string{foreign}})
	require.NoError(t, err)
	from := reg.Push(t, "f:1", img)
	opened, err := store.Open(context.Background(), parse(t, from), quick)
	require.NoError(t, err)
	r, err := opened.Layers[2].Open(context.Background())
	require.NoError(t, err)
	b, err := io.ReadAll(r)
	require.NoError(t, err)
	assert.Equal(t, content, b)

	_, err = extend(context.Background(), t, from, reg.Host+"/f:2", quick)
	require.NoError(t, err)
	tag, err := name.NewTag(reg.Host + "/f:2")
	require.NoError(t, err)
	out, err := remote.Image(tag)
	require.NoError(t, err)
	m, err := out.Manifest()
	require.NoError(t, err)
	assert.Equal(t, []string{foreign}, m.Layers[2].URLs)
	assert.Equal(t, types.DockerForeignLayer, m.Layers[2].MediaType)
}

func httptestServer(t *testing.T, content []byte) string {
	reg := fixture.NewRegistry(t)
	reg.Intercept(func(w http.ResponseWriter, _ *http.Request, _ int) bool {
		_, _ = w.Write(content)
		return true
	})
	return "http://" + reg.Host + "/layer"
}

func TestCredentials(t *testing.T) {
	reg := fixture.NewRegistry(t)
	from := reg.Push(t, "src:1", sample(t))
	reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		user, password, _ := r.BasicAuth()
		if user == "alice" && password == "pw" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="r"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	dir := t.TempDir()
	t.Setenv("DOCKER_CONFIG", dir)
	_, err := extend(context.Background(), t, from, reg.Host+"/dst:1", quick)
	assert.ErrorIs(t, err, image.ErrUnauthorized)
	assert.False(t, image.Transient(err))

	auth := base64.StdEncoding.EncodeToString([]byte("alice:pw"))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "config.json"),
		fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, reg.Host, auth), 0o600))
	_, err = extend(context.Background(), t, from, reg.Host+"/dst:1", quick)
	assert.NoError(t, err)

	// A credential helper, as docker-credential-NAME on PATH.
	require.NoError(t, os.WriteFile(filepath.Join(dir, "config.json"),
		fmt.Appendf(nil, `{"credHelpers":{%q:"test"}}`, reg.Host), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "docker-credential-test"),
		[]byte("#!/bin/sh\necho '{\"Username\":\"alice\",\"Secret\":\"pw\"}'\n"), 0o755))
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	_, err = extend(context.Background(), t, from, reg.Host+"/dst:2", quick)
	assert.NoError(t, err)
}

// fault answers one request as a broken registry would.
type fault func(reg *fixture.Registry, w http.ResponseWriter, r *http.Request) bool

var faults = map[string]fault{
	"500": func(_ *fixture.Registry, w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusInternalServerError)
		return true
	},
	"429 with Retry-After": func(_ *fixture.Registry, w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Retry-After", "0")
		w.WriteHeader(http.StatusTooManyRequests)
		return true
	},
	"reset": func(_ *fixture.Registry, w http.ResponseWriter, _ *http.Request) bool {
		if conn, _, err := w.(http.Hijacker).Hijack(); err == nil {
			conn.Close()
		}
		return true
	},
	// The request is carried out, but its answer breaks off: in the body or, where it has none, before it.
	"truncated body": func(reg *fixture.Registry, w http.ResponseWriter, r *http.Request) bool {
		answer := httptest.NewRecorder()
		reg.Inner.ServeHTTP(answer, r)
		conn, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return true
		}
		defer conn.Close()
		body := answer.Body.Bytes()
		if r.Method == http.MethodHead || len(body) == 0 {
			return true
		}
		fmt.Fprintf(rw, "HTTP/1.1 %d %s\r\n", answer.Code, http.StatusText(answer.Code))
		answer.Header().Set("Content-Length", strconv.Itoa(len(body)))
		_ = answer.Header().Write(rw)
		fmt.Fprintf(rw, "\r\n%s", body[:len(body)/2])
		_ = rw.Flush()
		return true
	},
}

// A registry that fails at any single request ends in success or a clean error, and never in a tag that
// moved to an incomplete image.
func TestEverySingleFault(t *testing.T) {
	ctx := context.Background()
	for name, fail := range faults {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			source := fixture.NewRegistry(t)
			from := source.Push(t, "src:1", sample(t))
			old := fixture.Image(t, v1.Config{}, fixture.Layer(t, fixture.File("old", "old")))
			oldDigest, err := old.Digest()
			require.NoError(t, err)
			out, err := extend(ctx, t, from, fixture.NewRegistry(t).Host+"/quiet:1", quick)
			require.NoError(t, err)

			seen := map[string]int{}
			for _, faulty := range []string{"source", "target"} {
				for at := 0; ; at++ {
					target := fixture.NewRegistry(t) // it must not have the blobs already
					target.Push(t, "dst:1", old)
					reg := map[string]*fixture.Registry{"source": source, "target": target}[faulty]
					hit := ""
					reg.Intercept(func(w http.ResponseWriter, r *http.Request, index int) bool {
						if index != at {
							return false
						}
						hit = r.Method
						return fail(reg, w, r)
					})
					_, err := extend(ctx, t, from, target.Host+"/dst:1", quick)
					reg.Intercept(nil)
					if hit == "" {
						require.NoError(t, err)
						break
					}
					got := target.Digest(t, "dst:1")
					if err != nil {
						assert.Equal(t, oldDigest.String(), got, "request %d: %v", at, err)
						continue
					}
					seen[hit]++
					assert.Equal(t, out.Digest, got, "request %d", at)
					assertComplete(t, target.Host+"/dst:1")
				}
			}
			assert.Positive(t, seen[http.MethodGet], "a GET that fails once is survived")
			// Requests come in no fixed order, so that a method's need not be among those above.
			for _, method := range []string{http.MethodHead, http.MethodPost, http.MethodPut} {
				target, failed := fixture.NewRegistry(t), false
				target.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
					if failed || r.Method != method {
						return false
					}
					failed = true
					return fail(target, w, r)
				})
				_, err = extend(ctx, t, from, target.Host+"/dst:1", quick)
				target.Intercept(nil)
				require.NoError(t, err, "a %s that fails once is survived", method)
				assert.True(t, failed)
				assert.Equal(t, out.Digest, target.Digest(t, "dst:1"))
			}
		})
	}
}

func assertComplete(t *testing.T, ref string) {
	t.Helper()
	tag, err := name.NewTag(ref)
	require.NoError(t, err)
	img, err := remote.Image(tag)
	require.NoError(t, err)
	require.NoError(t, validate.Image(img))
}

// A registry that stays broken is a transient error, and the tag stays where it was.
func TestPersistentFaults(t *testing.T) {
	ctx := context.Background()
	for name, fail := range faults {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			source, target := fixture.NewRegistry(t), fixture.NewRegistry(t)
			from := source.Push(t, "src:1", sample(t))
			target.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
				return strings.Contains(r.URL.Path, "/uploads/") && fail(target, w, r)
			})
			_, err := extend(ctx, t, from, target.Host+"/dst:1", quick)
			require.Error(t, err)
			assert.True(t, image.Transient(err), "%v", err)
			target.Intercept(nil)
			assert.Empty(t, target.Digest(t, "dst:1"))
		})
	}
}

// A download that breaks in the middle goes on where it was.
func TestBrokenDownloadGoesOn(t *testing.T) {
	reg := fixture.NewRegistry(t)
	content := bytes.Repeat([]byte("0123456789"), 100_000)
	img := fixture.Image(t, v1.Config{}, static.NewLayer(content, types.DockerLayer))
	from := reg.Push(t, "src:1", img)
	for _, ranges := range []bool{true, false} {
		opened, err := store.Open(context.Background(), parse(t, from), quick)
		require.NoError(t, err)
		sent, requests := 0, 0
		reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
			requests++
			from := 0
			if h := r.Header.Get("Range"); h != "" && ranges {
				_, err := fmt.Sscanf(h, "bytes=%d-", &from)
				require.NoError(t, err)
			}
			conn, rw, err := w.(http.Hijacker).Hijack()
			require.NoError(t, err)
			defer conn.Close()
			status := "200 OK"
			if from > 0 {
				status = "206 Partial Content"
			}
			fmt.Fprintf(rw, "HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n", status, len(content)-from)
			part := content[from:min(len(content), from+requests*200_000)]
			sent += len(part)
			_, _ = rw.Write(part)
			_ = rw.Flush()
			return true
		})
		r, err := opened.Layers[0].Open(context.Background())
		require.NoError(t, err)
		got, err := io.ReadAll(r)
		reg.Intercept(nil)
		require.NoError(t, err)
		assert.True(t, bytes.Equal(content, got))
		assert.Greater(t, requests, 2)
		if ranges {
			assert.LessOrEqual(t, sent, len(content)+400_000, "nothing is sent twice but what was under way")
		}
	}
}

func TestLayoutErrors(t *testing.T) {
	ctx, dir := context.Background(), t.TempDir()
	reg := fixture.NewRegistry(t)
	from := reg.Push(t, "src:1", sample(t))
	for _, tag := range []string{"a", "b"} {
		_, err := extend(ctx, t, from, "oci:"+dir+":"+tag, quick)
		require.NoError(t, err)
	}
	_, err := store.Open(ctx, parse(t, "oci:"+dir), quick)
	assert.ErrorContains(t, err, `name one of the tags ["a" "b"]`)
	_, err = store.Open(ctx, parse(t, "oci:"+dir+":c"), quick)
	assert.ErrorIs(t, err, image.ErrNotFound)
	_, err = store.Open(ctx, parse(t, "oci:"+t.TempDir()), quick)
	assert.ErrorContains(t, err, "is not an OCI layout")
	_, err = store.Open(ctx, parse(t, "docker-archive:"+dir+"/none.tar"), quick)
	assert.ErrorIs(t, err, image.ErrNotFound)

	// A blob that is not what its name says is found when it is read.
	img, err := store.Open(ctx, parse(t, "oci:"+dir+":a"), quick)
	require.NoError(t, err)
	blob := filepath.Join(dir, "blobs", "sha256", strings.TrimPrefix(img.Layers[0].Digest, "sha256:"))
	require.NoError(t, os.WriteFile(blob, []byte("other"), 0o644))
	_, err = extend(ctx, t, "oci:"+dir+":a", "oci:"+t.TempDir(), quick)
	assert.ErrorContains(t, err, "does not match its digest")
}

func TestInterruptedWriteLeavesNothing(t *testing.T) {
	reg := fixture.NewRegistry(t)
	from := reg.Push(t, "src:1", sample(t))
	for _, place := range []string{"oci:%s/out:1", "docker-archive:%s/out.tar:app:1"} {
		dir := t.TempDir()
		img, err := store.Open(context.Background(), parse(t, from), quick)
		require.NoError(t, err)
		var config map[string]json.RawMessage
		require.NoError(t, json.Unmarshal(img.Config, &config))
		out, err := image.Append(img, config, []image.NewLayer{added(t)})
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		err = store.Write(ctx, parse(t, fmt.Sprintf(place, dir)), out, quick)
		assert.ErrorIs(t, err, context.Canceled)
		_ = filepath.WalkDir(dir, func(p string, d os.DirEntry, _ error) error {
			assert.True(t, d.IsDir(), p)
			return nil
		})
	}
}

func TestFullDisk(t *testing.T) {
	reg := fixture.NewRegistry(t)
	from := reg.Push(t, "src:1", sample(t))
	dir := t.TempDir()
	// The limit on a file's size stands in for a full disk: the same write fails half way.
	var old syscall.Rlimit
	require.NoError(t, syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old))
	small := old
	small.Cur = 900_000 // more than the log that go test keeps of this process
	archive := parse(t, "docker-archive:"+dir+"/out.tar:app:1")
	img, err := store.Open(context.Background(), parse(t, from), quick)
	require.NoError(t, err)
	var config map[string]json.RawMessage
	require.NoError(t, json.Unmarshal(img.Config, &config))
	big, err := image.CompressLayer(gzip.NoCompression, fixture.Tar(t, fixture.File("big", strings.Repeat("x", 1<<20))))
	require.NoError(t, err)
	out, err := image.Append(img, config, []image.NewLayer{big})
	require.NoError(t, err)
	require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &small))
	err = store.Write(context.Background(), archive, out, quick)
	require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &old))
	assert.ErrorIs(t, err, syscall.EFBIG)
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Empty(t, entries, "neither the archive nor a temporary file")
}

func TestArchiveOfDocker(t *testing.T) {
	// As "docker save" writes it: plain layers.
	file := filepath.Join(t.TempDir(), "a.tar")
	tag, err := name.NewTag("app:1")
	require.NoError(t, err)
	require.NoError(t, tarball.WriteToFile(file, tag, sample(t)))
	img, err := store.Open(context.Background(), parse(t, "docker-archive:"+file), quick)
	require.NoError(t, err)
	defer img.Close()
	id, err := sample(t).ConfigName()
	require.NoError(t, err)
	assert.Equal(t, id.String(), img.Digest)
	_, err = store.Open(context.Background(), parse(t, "docker-archive:"+file+":other:2"), quick)
	assert.Error(t, err)
}

// archive writes a file as docker save would, with the given entries.
func archive(t *testing.T, entries ...fixture.Entry) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "a.tar")
	require.NoError(t, os.WriteFile(file, fixture.Tar(t, entries...), 0o600))
	return file
}

func TestBadArchives(t *testing.T) {
	layer := string(fixture.Tar(t, fixture.File("a", "1")))
	config := func(diffIDs string) string {
		return `{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[` + diffIDs + `]}}`
	}
	id := `"sha256:` + strings.Repeat("0", 64) + `"`
	manifest := func(layers string) fixture.Entry {
		return fixture.File("manifest.json", `[{"Config":"c.json","RepoTags":["app:1"],"Layers":[`+layers+`]}]`)
	}
	for want, entries := range map[string][]fixture.Entry{
		"lists 1 layers, the configuration 2": {
			manifest(`"l.tar"`), fixture.File("c.json", config(id+","+id)), fixture.File("l.tar", layer),
		},
		"lists 1 layers, the configuration 0": {
			manifest(`"l.tar"`), fixture.File("c.json", config("")), fixture.File("l.tar", layer),
		},
		"more than 8388608": {
			manifest(`"l.tar"`), fixture.File("c.json", strings.Repeat(" ", 33<<20)), fixture.File("l.tar", layer),
		},
		"manifest.json": {fixture.File("x", "")},
		"name one of": {fixture.File("manifest.json",
			`[{"Config":"c","RepoTags":["a:1"]},{"Config":"c","RepoTags":["b:1"]}]`)},
	} {
		_, err := store.Open(context.Background(), parse(t, "docker-archive:"+archive(t, entries...)), quick)
		assert.ErrorContains(t, err, want)
	}
}

// A manifest that two kinds of readers would read in two ways is refused.
func TestAmbiguousManifest(t *testing.T) {
	dir := t.TempDir()
	reg := fixture.NewRegistry(t)
	from := reg.Push(t, "src:1", sample(t))
	_, err := extend(context.Background(), t, from, "oci:"+dir+":1", quick)
	require.NoError(t, err)
	index, err := os.ReadFile(dir + "/index.json")
	require.NoError(t, err)
	var i v1.IndexManifest
	require.NoError(t, json.Unmarshal(index, &i))
	raw, err := os.ReadFile(dir + "/blobs/sha256/" + i.Manifests[0].Digest.Hex)
	require.NoError(t, err)
	raw = bytes.Replace(raw, []byte(`"layers":`), []byte(`"Layers":[],"layers":`), 1)
	h, size, err := v1.SHA256(bytes.NewReader(raw))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(dir+"/blobs/sha256/"+h.Hex, raw, 0o600))
	i.Manifests[0].Digest, i.Manifests[0].Size = h, size
	index, err = json.Marshal(i)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(dir+"/index.json", index, 0o600))
	_, err = store.Open(context.Background(), parse(t, "oci:"+dir+":1"), quick)
	assert.ErrorContains(t, err, `which must be "layers"`)
}

// A blob in a layout that is damaged is written again, not taken for granted.
func TestDamagedBlobIsReplaced(t *testing.T) {
	dir := t.TempDir()
	reg := fixture.NewRegistry(t)
	from := reg.Push(t, "src:1", sample(t))
	out, err := extend(context.Background(), t, from, "oci:"+dir+":1", quick)
	require.NoError(t, err)
	file := dir + "/blobs/sha256/" + strings.TrimPrefix(out.ImageID, "sha256:")
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, bytes.ToUpper(b), 0o644))
	_, err = extend(context.Background(), t, from, "oci:"+dir+":2", quick)
	require.NoError(t, err)
	again, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Equal(t, b, again)
}
