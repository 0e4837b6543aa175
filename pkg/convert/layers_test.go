package convert_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/cache"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/image/registry"
	"github.com/cconvert/cconvert/pkg/indexrepo"
)

// layerRequests counts the requests for layers since the last call.
func layerRequests(t *testing.T, reg *fixture.Registry) int {
	t.Helper()
	layers, err := sample(t).Layers()
	require.NoError(t, err)
	n := 0
	for _, l := range layers {
		d, err := l.Digest()
		require.NoError(t, err)
		for _, r := range reg.Requests() {
			if strings.HasPrefix(r, "GET ") && strings.HasSuffix(r, d.String()) {
				n++
			}
		}
	}
	reg.Intercept(nil)
	return n
}

// A layer that is known is not fetched, and nothing else comes out. Damage in the cache is noticed.
func TestLayersAreReadOnce(t *testing.T) {
	reg, dir := fixture.NewRegistry(t), t.TempDir()
	from := reg.Push(t, "src:1", sample(t))
	reg.Intercept(nil)
	runWith := func(store cache.Store) (string, int) {
		o := options(t, from)
		o.Cache = store
		r, err := run(context.Background(), t, o, reg.Host+"/src:2")
		require.NoError(t, err)
		return r.Output.Digest, layerRequests(t, reg)
	}
	want, n := runWith(nil)
	assert.Equal(t, 2, n)
	open := func() cache.Store { return cache.Open(dir, cache.DefaultLimit) }
	first, n := runWith(open())
	assert.Equal(t, 2, n)
	assert.Equal(t, want, first)
	second, n := runWith(open())
	assert.Zero(t, n)
	assert.Equal(t, want, second)

	for _, damage := range []func(b []byte) []byte{
		func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		func(b []byte) []byte { return b[:len(b)/2] },
		func([]byte) []byte { return nil },
	} {
		damaged := 0
		require.NoError(t,
			filepath.WalkDir(filepath.Join(dir, "index"), func(p string, d os.DirEntry, err error) error {
				if err != nil || d.IsDir() {
					return err
				}
				damaged++
				b, err := os.ReadFile(p)
				require.NoError(t, err)
				return os.WriteFile(p, damage(b), 0o600)
			}))
		assert.Equal(t, 2, damaged)
		again, n := runWith(open())
		assert.Equal(t, 2, n, "what is damaged is read again")
		assert.Equal(t, want, again)
		_, n = runWith(open())
		assert.Zero(t, n)
	}

	// An entry of another layer in the place of this one's, well written.
	entries, err := cache.Open(dir, cache.DefaultLimit).List()
	require.NoError(t, err)
	b, ok := open().Get(entries[0].Key)
	require.True(t, ok)
	require.NoError(t, open().Put(entries[1].Key, b))
	again, n := runWith(open())
	assert.Equal(t, 1, n)
	assert.Equal(t, want, again)
}

func statementKeys(t *testing.T) (*attest.PrivateKey, *attest.PublicKey) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	p, err := x509.MarshalPKCS8PrivateKey(private)
	require.NoError(t, err)
	q, err := x509.MarshalPKIXPublicKey(public)
	require.NoError(t, err)
	sign, err := attest.ParsePrivateKey(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: p}))
	require.NoError(t, err)
	check, err := attest.ParsePublicKey(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: q}))
	require.NoError(t, err)
	return sign, check
}

func codes(findings []finding.Finding, prefix string) (list []string) {
	for _, f := range findings {
		if strings.HasPrefix(f.Code, prefix) {
			list = append(list, f.Code)
		}
	}
	return list
}

// One machine reads the layers, the others believe it if it has signed, and only then.
func TestSharedIndexes(t *testing.T) {
	reg := fixture.NewRegistry(t)
	from := reg.Push(t, "src:1", sample(t))
	sign, check := statementKeys(t)
	otherSign, otherCheck := statementKeys(t)
	var asked []string
	convertWith := func(repo *indexrepo.Repo, store cache.Store) (*convert.Result, int) {
		var err error
		repo.Artifacts, err = registry.NewArtifacts(reg.Host+"/fleet/index", false, registry.Options{FirstPause: 1})
		require.NoError(t, err)
		o := options(t, from)
		o.Shared, o.Cache = repo, store
		reg.Intercept(nil)
		r, err := run(context.Background(), t, o, reg.Host+"/src:2")
		require.NoError(t, err)
		asked = reg.Requests()
		return r, layerRequests(t, reg)
	}
	first, n := convertWith(&indexrepo.Repo{Sign: sign, Verify: check}, nil)
	assert.Equal(t, 2, n)
	assert.Equal(t, convert.LayerCounts{Read: 2}, first.Layers)
	assert.Empty(t, codes(first.Findings, "index-"))

	second, n := convertWith(&indexrepo.Repo{Verify: check}, nil)
	assert.Zero(t, n)
	assert.Equal(t, convert.LayerCounts{Shared: 2}, second.Layers)
	assert.Equal(t, first.Output.Digest, second.Output.Digest)
	assert.Empty(t, codes(second.Findings, "index-"))

	// Who trusts somebody else reads the layers; so does who trusts nobody, whatever is in the cache.
	store := cache.Open(t.TempDir(), cache.DefaultLimit)
	third, _ := convertWith(&indexrepo.Repo{Verify: check}, store)
	assert.Equal(t, convert.LayerCounts{Shared: 2}, third.Layers)
	third, n = convertWith(&indexrepo.Repo{Verify: otherCheck}, store)
	assert.Equal(t, 2, n)
	for _, request := range asked {
		assert.NotContains(t, request, "/v2/fleet/index/blobs/", "what nobody vouched for is not read")
	}
	assert.Equal(t, convert.LayerCounts{Read: 2}, third.Layers)
	assert.Equal(t, []string{finding.IndexRejected, finding.IndexRejected}, codes(third.Findings, "index-"))
	assert.Equal(t, first.Output.Digest, third.Output.Digest)

	store = cache.Open(t.TempDir(), cache.DefaultLimit)
	fourth, n := convertWith(&indexrepo.Repo{Insecure: true}, store)
	assert.Zero(t, n)
	assert.Equal(t, []string{finding.IndexInsecure, finding.IndexInsecure}, codes(fourth.Findings, "index-"))
	fourth, n = convertWith(&indexrepo.Repo{Insecure: true}, store)
	assert.Zero(t, n)
	assert.Len(t, codes(fourth.Findings, finding.IndexInsecure), 2, "said every time")
	_, n = convertWith(&indexrepo.Repo{}, store)
	assert.Equal(t, 2, n, "what was taken unverified stays apart")

	// The signed entry of one layer under the tag of another, and an entry that is signed but no index.
	tags, err := remote.List(repository(t, reg.Host+"/fleet/index"))
	require.NoError(t, err)
	require.Len(t, tags, 2)
	one, err := remote.Image(repository(t, reg.Host+"/fleet/index").Tag(tags[0]))
	require.NoError(t, err)
	require.NoError(t, remote.Tag(repository(t, reg.Host+"/fleet/index").Tag(tags[1]), one))
	fifth, n := convertWith(&indexrepo.Repo{Verify: check}, nil)
	assert.Equal(t, 1, n)
	assert.Equal(t, convert.LayerCounts{Read: 1, Shared: 1}, fifth.Layers)
	assert.Equal(t, []string{finding.IndexRejected}, codes(fifth.Findings, "index-"))
	assert.Equal(t, first.Output.Digest, fifth.Output.Digest)
	artifacts, err := registry.NewArtifacts(reg.Host+"/fleet/index", false, registry.Options{})
	require.NoError(t, err)
	for _, tag := range tags {
		key := strings.Replace(tag, "-sha256-", "/sha256-", 1)
		require.NoError(t,
			(&indexrepo.Repo{Artifacts: artifacts, Sign: otherSign}).Put(context.Background(), key, []byte("no index")))
	}
	fifth, n = convertWith(&indexrepo.Repo{Verify: otherCheck}, nil)
	assert.Equal(t, 2, n)
	assert.Equal(t, []string{finding.IndexRejected, finding.IndexRejected}, codes(fifth.Findings, "index-"))

	// Who knew a layer already tells the others of it, once.
	kept := cache.Open(t.TempDir(), cache.DefaultLimit)
	warm := options(t, from)
	warm.Cache = kept
	_, err = run(context.Background(), t, warm, reg.Host+"/src:2")
	require.NoError(t, err)
	warm.Shared = &indexrepo.Repo{Sign: sign}
	warm.Shared.Artifacts, err = registry.NewArtifacts(reg.Host+"/fleet/late", false, registry.Options{FirstPause: 1})
	require.NoError(t, err)
	for _, want := range []int{2, 0} {
		reg.Intercept(nil)
		r, err := run(context.Background(), t, warm, reg.Host+"/src:2")
		require.NoError(t, err)
		assert.Equal(t, 2, r.Layers.Cached)
		sent := 0
		for _, request := range reg.Requests() {
			if strings.HasPrefix(request, "PUT /v2/fleet/late/manifests/") {
				sent++
			}
		}
		assert.Equal(t, want, sent)
	}

	// A registry that cannot be reached is no forgery.
	gone := options(t, from)
	gone.Shared = &indexrepo.Repo{Verify: check, Artifacts: artifacts}
	reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		broken := strings.Contains(r.URL.Path, "/fleet/")
		if broken {
			w.WriteHeader(http.StatusForbidden)
		}
		return broken
	})
	unreachable, err := run(context.Background(), t, gone, reg.Host+"/src:2")
	require.NoError(t, err)
	assert.Equal(t, []string{finding.IndexUnreachable, finding.IndexUnreachable},
		codes(unreachable.Findings, "index-"))
	for _, f := range unreachable.Findings {
		if f.Code == finding.IndexUnreachable {
			assert.Equal(t, finding.Info, f.Severity)
		}
	}

	// One that does not answer is asked once.
	silent := fixture.NewRegistry(t)
	silent.Silence(t)
	mute, err := registry.NewArtifacts(silent.Host+"/fleet/index", true, registry.Options{})
	require.NoError(t, err)
	reg.Intercept(nil)
	quiet := options(t, from)
	quiet.Shared = &indexrepo.Repo{Verify: check, Artifacts: mute, Patience: 200 * time.Millisecond}
	for range 5 {
		unreachable, err = run(context.Background(), t, quiet, reg.Host+"/src:2")
		require.NoError(t, err)
		assert.Len(t, codes(unreachable.Findings, finding.IndexUnreachable), 2)
	}
	assert.LessOrEqual(t, len(silent.Requests()), 2)

	// Not being able to share is no reason to fail.
	o := options(t, from)
	o.Shared = &indexrepo.Repo{Artifacts: artifacts, Sign: sign}
	reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		forbidden := r.Method != http.MethodGet && strings.Contains(r.URL.Path, "/fleet/")
		if forbidden {
			w.WriteHeader(http.StatusForbidden)
		}
		return forbidden
	})
	r, err := run(context.Background(), t, o, reg.Host+"/src:2")
	require.NoError(t, err)
	assert.Equal(t, []string{finding.IndexNotShared, finding.IndexNotShared}, codes(r.Findings, "index-"))
}

// A table of contents is believed if the user says so, and only the one that the manifest names.
func TestTableOfContents(t *testing.T) {
	reg := fixture.NewRegistry(t)
	content := strings.Repeat("0123456789abcdef", 1000)
	archive := fixture.Tar(t, fixture.Program("bin/app", fixture.ELF("")), fixture.File("srv/data", content),
		fixture.File("etc/conf", "x"))
	built, err := estargz.Build(io.NewSectionReader(bytes.NewReader(archive), 0, int64(len(archive))))
	require.NoError(t, err)
	blob, err := io.ReadAll(built)
	require.NoError(t, err)
	require.NoError(t, built.Close())
	push := func(tag, toc string) string {
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(blob)), nil
		})
		require.NoError(t, err)
		img, err := mutate.Append(fixture.Image(t, v1.Config{Entrypoint: []string{"/bin/app"}}), mutate.Addendum{
			Layer: l, Annotations: map[string]string{estargz.TOCJSONDigestAnnotation: toc},
		})
		require.NoError(t, err)
		return reg.Push(t, tag, img)
	}
	right, wrong := push("lazy:1", built.TOCDigest().String()), push("lazy:2", "sha256:"+strings.Repeat("0", 64))
	store := cache.Open(t.TempDir(), cache.DefaultLimit)
	convertWith := func(from string, trust bool) *convert.Result {
		o := options(t, from)
		o.TrustTOC, o.Cache = trust, store
		r, err := run(context.Background(), t, o, reg.Host+"/out:1")
		require.NoError(t, err)
		return r
	}
	for range 2 { // the second is from the cache
		lazy := convertWith(right, true)
		assert.Equal(t, convert.LayerCounts{TOC: 1}, lazy.Layers)
		assert.Equal(t, []string{finding.TOCTrusted}, codes(lazy.Findings, "toc-"))
	}
	lazy := convertWith(right, true)
	careful := convertWith(right, false)
	assert.Equal(t, convert.LayerCounts{Read: 1}, careful.Layers, "what was only believed is no knowledge")
	assert.Equal(t, careful.Output.Digest, lazy.Output.Digest)

	store = cache.Open(t.TempDir(), cache.DefaultLimit)
	rejected := convertWith(wrong, true)
	assert.Equal(t, convert.LayerCounts{Read: 1}, rejected.Layers)
	assert.Equal(t, []string{finding.TOCRejected}, codes(rejected.Findings, "toc-"))
	assert.Equal(t, careful.MREnclave, rejected.MREnclave)

	assert.Empty(t, codes(careful.Findings, "toc-"))

	// A registry that answers with the whole blob.
	store = cache.Open(t.TempDir(), cache.DefaultLimit)
	reg.Intercept(func(_ http.ResponseWriter, r *http.Request, _ int) bool { r.Header.Del("Range"); return false })
	whole := convertWith(right, true)
	assert.Equal(t, convert.LayerCounts{Read: 1}, whole.Layers)
}

func repository(t *testing.T, s string) name.Repository {
	t.Helper()
	r, err := name.NewRepository(s)
	require.NoError(t, err)
	return r
}

// Who does not accept what was found stores nothing, however early uploads begin.
func TestNothingIsSentBeforeItIsAccepted(t *testing.T) {
	reg := fixture.NewRegistry(t)
	from := reg.Push(t, "src:1", sample(t))
	o := options(t, from)
	target := parse(t, reg.Host+"/other:1")
	o.Target, o.Gate, o.Enclave.Debug = &target, convert.Gate{Strict: true}, true
	reg.Intercept(nil)
	_, err := convert.Prepare(context.Background(), o)
	require.ErrorIs(t, err, convert.ErrFindings)
	var stopped *convert.FindingsError
	require.ErrorAs(t, err, &stopped)
	assert.Contains(t, stopped.Codes, finding.Debug)
	assert.NotEmpty(t, stopped.Findings)
	for _, r := range reg.Requests() {
		assert.NotRegexp(t, "^(POST|PUT|PATCH)", r)
	}

	// Afterwards, what needs no signature is sent before there is one, and once only.
	o.Gate = convert.Gate{}
	p, err := convert.Prepare(context.Background(), o)
	require.NoError(t, err)
	defer p.Close()
	key, signature, err := convert.Sign(context.Background(), p, signer(t))
	require.NoError(t, err)
	require.Eventually(t, func() bool { // the runtime; the two layers are mounted, and two uploads begun
		return count(reg.Requests(), "PUT /v2/other/blobs/") == 1 && count(reg.Requests(), "POST /v2/other/blobs/") == 5
	}, 5e9, 1e6)
	r, err := convert.Finish(context.Background(), p, key, signature, target, o.StoreOptions)
	require.NoError(t, err)
	assert.Equal(t, 3, count(reg.Requests(), "PUT /v2/other/blobs/"), "the enclave and the configuration as well")
	assert.Equal(t, 5, count(reg.Requests(), "POST /v2/other/blobs/"))
	assert.Equal(t, r.Output.Digest, reg.Digest(t, "other:1"))
}

// An early upload that fails is told of, and moves no tag.
func TestEarlyUploadFails(t *testing.T) {
	reg := fixture.NewRegistry(t)
	o := options(t, reg.Push(t, "src:1", sample(t)))
	target := parse(t, reg.Host+"/other:1")
	o.Target = &target
	reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if r.Method == http.MethodPost {
			w.WriteHeader(http.StatusForbidden)
		}
		return r.Method == http.MethodPost
	})
	p, err := convert.Prepare(context.Background(), o)
	require.NoError(t, err)
	defer p.Close()
	key, signature, err := convert.Sign(context.Background(), p, signer(t))
	require.NoError(t, err)
	_, err = convert.Finish(context.Background(), p, key, signature, target, o.StoreOptions)
	assert.ErrorContains(t, err, "uploading the blob")
	assert.NotErrorIs(t, err, context.Canceled)
	assert.Empty(t, reg.Digest(t, "other:1"))
}

func count(requests []string, prefix string) (n int) {
	for _, r := range requests {
		if strings.HasPrefix(r, prefix) {
			n++
		}
	}
	return n
}

// What a registry says of the parts of a layer is not believed of the same layer from elsewhere.
func TestTableOfContentsOfAnother(t *testing.T) {
	ctx, honest, liar := context.Background(), fixture.NewRegistry(t), fixture.NewRegistry(t)
	pack := func(content string) (blob []byte, toc string) {
		archive := fixture.Tar(t, fixture.Program("bin/app", fixture.ELF("")), fixture.File("srv/data", content))
		built, err := estargz.Build(io.NewSectionReader(bytes.NewReader(archive), 0, int64(len(archive))))
		require.NoError(t, err)
		defer built.Close()
		blob, err = io.ReadAll(built)
		require.NoError(t, err)
		return blob, built.TOCDigest().String()
	}
	blob, toc := pack("what is in the layer")
	lied := "what is not"
	other, otherTOC := pack(lied)
	for i := 0; len(other) != len(blob) && i < 1000; i++ { // the table is at the end
		lied = fmt.Sprintf("what is not: %x", sha256.Sum256([]byte{byte(i), byte(i >> 8)}))[:13+i%40]
		other, otherTOC = pack(lied)
	}
	layer := static.NewLayer(blob, types.OCILayer)
	digest, err := layer.Digest()
	require.NoError(t, err)
	annotated := func(toc string) v1.Image {
		img, err := mutate.Append(mutate.MediaType(empty.Image, types.OCIManifestSchema1), mutate.Addendum{
			Layer: layer, MediaType: types.OCILayer,
			Annotations: map[string]string{estargz.TOCJSONDigestAnnotation: toc},
		})
		require.NoError(t, err)
		img, err = mutate.ConfigFile(img, &v1.ConfigFile{
			OS: "linux", Architecture: "amd64", Config: v1.Config{Entrypoint: []string{"/bin/app"}},
			RootFS: v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{digest}},
		})
		require.NoError(t, err)
		return img
	}
	from, lie := honest.Push(t, "src:1", annotated(toc)), liar.Push(t, "src:1", annotated(otherTOC))
	liar.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, digest.String()) {
			return false
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(other))
		return true
	})
	store := cache.Open(t.TempDir(), cache.DefaultLimit)
	manifest := func(from string) string {
		o := options(t, from)
		o.TrustTOC, o.Cache = true, store
		p, err := convert.Prepare(ctx, o)
		require.NoError(t, err)
		defer p.Close()
		return string(p.Manifest)
	}
	listed := func(content string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(content))) }
	assert.Contains(t, manifest(lie), listed(lied), "who trusts tables is told what the registry likes")
	assert.Contains(t, manifest(from), listed("what is in the layer"))
	assert.NotContains(t, manifest(from), listed(lied))
}

// What one repository said unverified is not believed, from the cache, of whoever believes another one.
func TestInsecureIndexOfAnother(t *testing.T) {
	reg := fixture.NewRegistry(t)
	from := reg.Push(t, "src:1", sample(t))
	store := cache.Open(t.TempDir(), cache.DefaultLimit)
	with := func(repository string, store cache.Store) *convert.Result {
		artifacts, err := registry.NewArtifacts(reg.Host+repository, false, registry.Options{FirstPause: 1})
		require.NoError(t, err)
		o := options(t, from)
		o.Shared, o.Cache = &indexrepo.Repo{Insecure: true, Artifacts: artifacts}, store
		r, err := run(context.Background(), t, o, reg.Host+"/src:2")
		require.NoError(t, err)
		return r
	}
	with("/strangers/index", nil) // it has entries now, of whoever may write there
	require.Equal(t, convert.LayerCounts{Shared: 2}, with("/strangers/index", store).Layers)
	assert.Equal(t, convert.LayerCounts{Read: 2}, with("/own/index", store).Layers, "own/index has nothing")
}
