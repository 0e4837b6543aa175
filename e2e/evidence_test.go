//go:build e2e

package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"image/png"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/cconvert/cconvert/internal/fixture"
)

// Other programs find what is attached, in a registry that has no list of referrers, and agree with it: skopeo finds
// it, OpenSSL checks the signatures, Veraison's own tool reads the CoRIM.
func TestEvidenceForOthers(t *testing.T) {
	registry := "127.0.0.1:" + startRegistry(t)
	dir := t.TempDir()
	source := registry + "/app:1"
	tag, err := name.NewTag(source)
	require.NoError(t, err)
	img := fixture.Image(t, v1.Config{Cmd: []string{"/app"}},
		fixture.Layer(t, fixture.Program("app", compile(t, "gcc", "-static"))))
	require.NoError(t, remote.Write(tag, img))
	private, public := filepath.Join(dir, "attest.pem"), filepath.Join(dir, "attest.pub")
	command(t, "openssl", "genpkey", "-algorithm", "ed25519", "-out", private)
	command(t, "openssl", "pkey", "-in", private, "-pubout", "-out", public)
	prefix, libs := standIn(t)
	runtime := []string{"--runtime", "gramine=dir:" + prefix, "--runtime-libs", libs}
	converted := cconvert(t, append([]string{source, "--attest-key", private}, runtime...)...)
	command(t, program, "verify", converted, "--attest-verify-key", public, "--source", source, "--any-runtime")

	repo, digest, _ := strings.Cut(converted, "@")
	raw := func(ref string) (m struct {
		Manifests []struct{ Digest, ArtifactType string }
		Layers    []struct{ Digest, MediaType string }
		Subject   struct{ Digest string }
	}) {
		require.NoError(t,
			json.Unmarshal([]byte(command(t, "skopeo", "inspect", "--raw", "--tls-verify=false", "docker://"+ref)), &m))
		return m
	}
	index := raw(repo + ":" + strings.ReplaceAll(digest, ":", "-"))
	require.Len(t, index.Manifests, 5)
	kinds := map[string]int{}
	for _, d := range index.Manifests {
		m := raw(repo + "@" + d.Digest)
		assert.Equal(t, digest, m.Subject.Digest)
		blob := command(t, "curl", "-sf", "http://"+registry+"/v2/app/blobs/"+m.Layers[0].Digest)
		kinds[d.ArtifactType]++
		if d.ArtifactType == "application/rim+cbor" {
			file := filepath.Join(dir, "values.cbor")
			command(t, "curl", "-sf", "-o", file, "http://"+registry+"/v2/app/blobs/"+m.Layers[0].Digest)
			shown := showCoRIM(t, dir, file)
			for _, value := range []string{"reference-values", "sha-256;", "1.2.840.113741.1.13.1"} {
				assert.Contains(t, shown, value)
			}
			continue
		}
		checkEnvelope(t, dir, public, blob)
	}
	assert.Equal(t, map[string]int{"application/vnd.in-toto+json": 4, "application/rim+cbor": 1}, kinds)

	testPage(t, cconvert(t, source, "--runtime", "sim", "--to", registry+"/app:simulated"))
}

// showCoRIM has Veraison's tool read a CoRIM. It shows signed ones only, so it signs it first.
func showCoRIM(t *testing.T, dir, file string) string {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	point, err := k.PublicKey.Bytes()
	require.NoError(t, err)
	d, err := k.Bytes()
	require.NoError(t, err)
	text := base64.RawURLEncoding.EncodeToString
	jwk, meta, signed := filepath.Join(dir, "key.jwk"), filepath.Join(dir, "meta.json"),
		filepath.Join(dir, "signed.cbor")
	require.NoError(t, os.WriteFile(jwk, fmt.Appendf(nil, `{"kty":"EC","crv":"P-256","x":%q,"y":%q,"d":%q}`,
		text(point[1:33]), text(point[33:]), text(d)), 0o600))
	require.NoError(t, os.WriteFile(meta, []byte(`{"signer":{"name":"test"}}`), 0o600))
	command(t, "go", "tool", "-C", "cocli", "cocli", "corim", "sign", "--file="+file, "--key="+jwk, "--meta="+meta,
		"--output="+signed)
	return command(t, "go", "tool", "-C", "cocli", "cocli", "corim", "display", "--show-tags", "--file="+signed)
}

// checkEnvelope checks an envelope's signature with OpenSSL (DSSE 1.0, "Signature Definition").
func checkEnvelope(t *testing.T, dir, public, blob string) {
	t.Helper()
	var e struct {
		PayloadType, Payload string
		Signatures           []struct{ Sig string }
	}
	require.NoError(t, json.Unmarshal([]byte(blob), &e))
	payload, err := base64.StdEncoding.DecodeString(e.Payload)
	require.NoError(t, err)
	require.Len(t, e.Signatures, 1)
	sig, err := base64.StdEncoding.DecodeString(e.Signatures[0].Sig)
	require.NoError(t, err)
	message, signature := filepath.Join(dir, "message"), filepath.Join(dir, "signature")
	require.NoError(t, os.WriteFile(message,
		fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(e.PayloadType), e.PayloadType, len(payload), payload), 0o644))
	require.NoError(t, os.WriteFile(signature, sig, 0o644))
	command(t, "openssl", "pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin", "-in", message, "-sigfile",
		signature)
}

// testPage looks at the page of inspect in a browser: with scripts it can be searched, and it is drawn.
func testPage(t *testing.T, image string) {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "page.html")
	command(t, program, "inspect", "--html", file, image)
	browser := func(args ...string) string {
		return command(t, "chromium", append([]string{
			"--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
			"--window-size=1080,1600", "--user-data-dir=" + filepath.Join(dir, "profile"),
		}, args...)...)
	}
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	// What a person would type, typed before the page is looked at.
	searching := filepath.Join(dir, "searching.html")
	require.NoError(t, os.WriteFile(searching, []byte(strings.Replace(string(text), "</script>",
		"const box = document.getElementById('search'); box.value = 'hosts'; box.dispatchEvent(new "+
			"Event('input'));</script>", 1)), 0o644))
	dom := browser("--dump-dom", "file://"+searching)
	assert.Contains(t, dom, `<body class="scripted">`)
	assert.Regexp(t, `<tr hidden=""><td[^>]*><code>/app</code>`, dom)
	assert.Regexp(t, `<tr><td[^>]*><code>/cconvert/app/hosts</code>`, dom)
	assert.Regexp(t, `<tr hidden=""><th><code>PATH</code>`, dom, "all tables are searched")
	// Without scripts nothing is missing but the search.
	without := filepath.Join(dir, "without.html")
	require.NoError(t, os.WriteFile(without,
		[]byte(strings.Replace(string(text), "script-src 'unsafe-inline'", "script-src 'none'", 1)), 0o644))
	plain := browser("--dump-dom", "file://"+without)
	assert.NotContains(t, plain, `<body class="scripted">`)
	for _, row := range []string{
		"<code>/app</code>", "<code>/cconvert/app/hosts</code>", "<code>PATH</code>", "MRENCLAVE", "not measured",
	} {
		assert.Contains(t, plain, row)
	}

	reportFits(t, file)

	shot := filepath.Join(dir, "page.png")
	browser("--screenshot="+shot, "file://"+file)
	f, err := os.Open(shot)
	require.NoError(t, err)
	defer f.Close()
	picture, err := png.Decode(f)
	require.NoError(t, err)
	seen := map[[3]uint32]int{}
	for y := range picture.Bounds().Dy() {
		for x := range picture.Bounds().Dx() {
			r, g, b, _ := picture.At(x, y).RGBA()
			seen[[3]uint32{r >> 8, g >> 8, b >> 8}]++
		}
	}
	assert.Greater(t, seen[[3]uint32{0xf2, 0x84, 0x82}], 500, "the enclave image in the map of the memory")
	assert.Greater(t, seen[[3]uint32{0xe4, 0xe9, 0xf2}], 5000, "the heap")
	if keep := os.Getenv("CCONVERT_KEEP_SCREENSHOT"); keep != "" {
		command(t, "cp", shot, keep)
	}
}
