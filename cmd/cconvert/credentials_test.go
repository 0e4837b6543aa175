package main

import (
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
)

// Source and target have users of their own, also in one registry, and a file of credentials stands for both. A
// certificate that nobody vouches for is taken if that is asked for, and else not.
func TestCredentials(t *testing.T) {
	blobs := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	var wrong []string // requests by somebody else than who may make them
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, ok := r.BasicAuth()
		if !ok {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		want := map[bool]string{true: "reader:a:b", false: "writer:c"}[strings.HasPrefix(r.URL.Path, "/v2/src/")]
		if r.URL.Path != "/v2/" && user != "both" && user+":"+password != want {
			wrong = append(wrong, user+" "+r.URL.Path)
			w.WriteHeader(http.StatusForbidden)
			return
		}
		blobs.ServeHTTP(w, r)
	}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	host := strings.TrimPrefix(server.URL, "https://")
	source, err := name.ParseReference(host + "/src/app:1")
	require.NoError(t, err)
	img := fixture.Image(t, v1.Config{Cmd: []string{"/app"}}, fixture.Layer(t, fixture.Program("app", fixture.ELF(""))))
	require.NoError(t, remote.Write(source, img, remote.WithTransport(server.Client().Transport),
		remote.WithAuth(authn.FromConfig(authn.AuthConfig{Username: "both", Password: "x"}))))
	key, err := filepath.Abs("../../testdata/vectors/test-signing-key.pem")
	require.NoError(t, err)
	dir := t.TempDir()
	auths := filepath.Join(dir, "auth.json")
	require.NoError(t, os.WriteFile(auths, fmt.Appendf(nil, `{"auths": {%q: {"auth": %q}}}`, host,
		base64.StdEncoding.EncodeToString([]byte("both:x"))), 0o600))
	run := func(env []string, args ...string) (string, error) {
		cmd := exec.Command(program, args...)
		cmd.Env = append(append(os.Environ(), "HOME="+dir, "XDG_CONFIG_HOME="+dir, "XDG_CACHE_HOME="+dir), env...)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	convert := func(env []string, to string, more ...string) (string, error) {
		return run(env, append([]string{
			source.String(), "--to", host + "/" + to, "--runtime", "sim", "--key", key, "--no-cache",
		}, more...)...)
	}
	out, err := convert(nil, "dest/app:1", "--tls-verify=false", "--src-creds", "reader:a:b", "--dest-creds",
		"writer:c")
	require.NoError(t, err, out)
	assert.Empty(t, wrong)
	out, err = convert([]string{"CCONVERT_SRC_CREDS=reader:a:b", "CCONVERT_DEST_CREDS=writer:c"}, "dest/app:2",
		"--tls-verify=false")
	require.NoError(t, err, out)
	assert.Empty(t, wrong)
	out, err = convert(nil, "dest/app:3", "--tls-verify=false", "--authfile", auths)
	require.NoError(t, err, out)
	out, err = run(nil, "inspect", host+"/dest/app:3", "--tls-verify=false", "--authfile", auths)
	require.NoError(t, err, out)

	out, err = convert(nil, "dest/app:4", "--tls-verify=false", "--src-creds", "reader:a:b")
	assert.Error(t, err, out)
	out, err = convert(nil, "dest/app:4", "--authfile", auths)
	assert.Error(t, err)
	assert.Contains(t, out, "certificate")
	out, err = convert(nil, "dest/app:4", "--src-creds", "hunter2")
	assert.Error(t, err)
	assert.NotContains(t, out, "hunter2")
	assert.Contains(t, out, "USER:PASSWORD expected")
	out, err = convert(nil, "dest/app:4", "--authfile", filepath.Join(dir, "none"))
	assert.Error(t, err)
	assert.Contains(t, out, "no such file")
	if out, err = run(nil, "convert", "--help"); assert.NoError(t, err) {
		assert.NotContains(t, out, "hidden")
	}
}
