package main

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/image"
)

// A page in place of a list of tags, or of repositories, is no list: what it should have listed was not looked at, so
// the batch has not done all.
func TestPageInPlaceOfAList(t *testing.T) {
	reg, home := fixture.NewRegistry(t), t.TempDir()
	for _, repo := range []string{"team/a", "team/b"} {
		reg.Push(t, repo+":1", fixture.Image(t, v1.Config{Cmd: []string{"/a"}},
			fixture.Layer(t, fixture.Program("a", fixture.ELF("")), fixture.File("own", repo))))
	}
	key, err := filepath.Abs("../../testdata/vectors/test-signing-key.pem")
	require.NoError(t, err)
	for name, how := range map[string]struct {
		path, link, body, kind, entry string
		code                          int
	}{
		"tags json": {
			"/v2/team/b/tags/list", "", `{"status":"maintenance"}`, "application/json", "registry", 200,
		},
		"tags empty json": {"/v2/team/b/tags/list", "", `{}`, "application/json", "registry", 200},
		"tags html":       {"/v2/team/b/tags/list", "", `<html>`, "text/html", "registry", 200},
		"tags 2nd page json": {
			"/v2/team/b/tags/list", "first", `{"status":"maintenance"}`, "application/json", "repository", 200,
		},
		"tags 2nd page 404": {"/v2/team/b/tags/list", "first", `<html>not here`, "text/html", "registry", 404},
		"catalog 2nd page json": {
			"/v2/_catalog", "first", `{"status":"maintenance"}`, "application/json", "registry", 200,
		},
	} {
		t.Run(name, func(t *testing.T) {
			reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
				if r.URL.Path != how.path {
					return false
				}
				if how.link != "" && r.URL.Query().Get("last") == "" {
					w.Header().Set("Link", fmt.Sprintf("<%s?last=1>; rel=\"next\"", r.URL.Path))
					_, _ = w.Write([]byte(`{"name":"team/b","tags":["1"],"repositories":["team/a"]}`))
					return true
				}
				w.Header().Set("Content-Type", how.kind)
				w.WriteHeader(how.code)
				_, _ = w.Write([]byte(how.body))
				return true
			})
			from := fmt.Sprintf("registry: '%s', repositories: {allow: ['team/.*']}", reg.Host)
			if how.entry == "repository" {
				from = fmt.Sprintf("repository: '%s/team/b'", reg.Host)
			}
			entry := fmt.Sprintf("- {%s, target: '%s/out/{{.Repository}}:{{.Tag}}'}", from, reg.Host)
			file := filepath.Join(t.TempDir(), "plan.yaml")
			require.NoError(t, os.WriteFile(file, []byte("version: 1\nconvert:\n"+entry+"\n"), 0o600))
			cmd := exec.Command(program, "batch", file, "--insecure", "--key", key)
			cmd.Env = append(os.Environ(), "HOME="+home, "XDG_STATE_HOME="+home, "XDG_CACHE_HOME="+home,
				"XDG_CONFIG_HOME="+home, "CCONVERT_RUNTIME=sim")
			var out strings.Builder
			cmd.Stdout, cmd.Stderr = &out, &out
			err := cmd.Run()
			assert.Error(t, err, "exit code 0, and team/b was not looked at: %s", out.String())
		})
	}
}

// "What a registry lists, or does not, is no reason to go by a later entry, which may ask for less": nor is a page in
// place of the list.
func TestPageHandsAnImageToALaterEntry(t *testing.T) {
	reg, home := fixture.NewRegistry(t), t.TempDir()
	for _, repo := range []string{"team/a", "team/b"} {
		reg.Push(t, repo+":1", fixture.Image(t, v1.Config{Cmd: []string{"/a"}},
			fixture.Layer(t, fixture.Program("a", fixture.ELF("")), fixture.File("own", repo))))
	}
	text := fmt.Sprintf(`version: 1
convert:
- registry: '%[1]s'
  repositories: {allow: ['team/.*']}
  tags: {newest: 3}
  target: '%[1]s/strict/{{.Repository}}:{{.Tag}}'
- {image: '%[1]s/team/b:1', target: '%[1]s/lax/b:1', options: {insecure-args: true}}
`, reg.Host)
	file := filepath.Join(t.TempDir(), "plan.yaml")
	require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	run := func() (string, error) {
		cmd := exec.Command(program, "batch", file, "--insecure", "--dry-run")
		cmd.Env = append(os.Environ(), "HOME="+home, "XDG_STATE_HOME="+home, "XDG_CACHE_HOME="+home,
			"XDG_CONFIG_HOME="+home, "CCONVERT_RUNTIME=sim")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	out, err := run()
	require.NoError(t, err, out)
	require.NotContains(t, out, "/lax/")
	reg.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if r.URL.Path != "/v2/team/b/tags/list" {
			return false
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"status":"maintenance"}`))
		return true
	})
	out, _ = run()
	assert.NotContains(t, out, "/lax/", "the later entry decides on it")
}

// With --insecure a name keeps the port 443, so limits and credentials of a plan that are written with it are its.
func TestPortOfCredsAndLimitsInsecure(t *testing.T) {
	file := filepath.Join(t.TempDir(), "plan.yaml")
	t.Setenv("TEST_PASSWORD", "secret")
	require.NoError(t, os.WriteFile(file, []byte(`version: 1
creds: [{registry: "registry.example:443", user: robot, pass-env: TEST_PASSWORD}]
limits: {"registry.example:443": {requests-per-second: 3}}
convert: [{repository: "registry.example:443/app"}]
`), 0o600))
	p, keys, err := readPlan(file, nil)
	require.NoError(t, err)
	ref, err := image.ParseName("registry.example:443/app:1", true) // as with --insecure
	require.NoError(t, err)
	_, limited := p.Limits[ref.Context().RegistryStr()] // as Worker.limit asks, by the host of the request
	assert.True(t, limited, "no limit for %s: %v", ref.Context().RegistryStr(), p.Limits)
	auth, err := keys.Resolve(ref.Context())
	require.NoError(t, err)
	assert.NotEqual(t, authn.Anonymous, auth, "no credentials for %s", ref.Context().RegistryStr())
	plain, err := image.ParseName("registry.example/app:1", true) // may be spoken to over HTTP, at port 80
	require.NoError(t, err)
	auth, err = keys.Resolve(plain.Context())
	require.NoError(t, err)
	assert.Equal(t, authn.Anonymous, auth, "credentials for port 443 go to %s", plain.Context().RegistryStr())
}
