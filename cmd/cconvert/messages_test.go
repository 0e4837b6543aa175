package main

import (
	"bytes"
	"encoding/pem"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/ulikunitz/xz"

	"github.com/cconvert/cconvert/internal/fixture"
)

// What goes wrong is told in a line, and what to do in another, whatever a registry answers.
func TestMessages(t *testing.T) {
	dir := t.TempDir()
	key, err := filepath.Abs("../../testdata/vectors/test-signing-key.pem")
	require.NoError(t, err)
	run := func(env []string, args ...string) (string, error) {
		cmd := exec.Command(program, append(args, "--runtime", "sim")...)
		cmd.Dir = dir
		cmd.Env = append(append(os.Environ(), "HOME="+dir, "XDG_CONFIG_HOME="+dir, "XDG_CACHE_HOME="+dir, "PATH="+dir+
			":"+os.Getenv("PATH")), env...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		err := cmd.Run()
		var said []string // without progress
		for line := range strings.Lines(stderr.String()) {
			if !strings.HasPrefix(line, "time=") {
				assert.Empty(t, messageProblem(strings.TrimSpace(line)), line)
				said = append(said, strings.TrimSpace(line))
			}
		}
		return strings.Join(said, "\n"), err
	}
	reg := fixture.NewRegistry(t)
	app := fixture.Layer(t, fixture.Program("app", fixture.ELF("")))
	source := reg.Push(t, "app:1", fixture.Image(t, v1.Config{Cmd: []string{"/app"}}, app))

	secure := httptest.NewTLSServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(secure.Close)
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	host := strings.TrimPrefix(secure.URL, "https://")
	authority := filepath.Join(dir, "ca.pem")
	require.NoError(t, os.WriteFile(authority,
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw}), 0o600))

	var packed bytes.Buffer
	w, err := xz.NewWriter(&packed)
	require.NoError(t, err)
	_, err = w.Write(fixture.Tar(t, fixture.File("x", "y")))
	require.NoError(t, err)
	require.NoError(t, w.Close())
	foreign := reg.Push(t, "xz:1",
		fixture.Image(t, v1.Config{Cmd: []string{"/app"}}, app, static.NewLayer(packed.Bytes(), types.DockerLayer)))

	strict := fixture.NewRegistry(t) // makes no repositories
	strict.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if r.Method != http.MethodPost {
			return false
		}
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w,
			`{"errors":[{"code":"NAME_UNKNOWN","message":"repository name not known to registry"}]}`)
		return true
	})
	talkative := fixture.NewRegistry(t)
	talkative.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if r.URL.Path == "/v2/" {
			return false
		}
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w, strings.Repeat("<p>\nno\n</p>\n", 1000))
		return true
	})
	require.NoError(t,
		os.WriteFile(filepath.Join(dir, "docker-credential-garbage"), []byte("#!/bin/sh\necho '<html>'\n"), 0o755))
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "docker"), 0o755))
	require.NoError(t,
		os.WriteFile(filepath.Join(dir, "docker", "config.json"), []byte(`{"credsStore":"garbage"}`), 0o600))
	text, err := os.ReadFile(key)
	require.NoError(t, err)

	for what, c := range map[string]struct {
		args       []string
		env        []string
		said, hint string
		passing    bool // trying again later may help
	}{
		"a certificate of nobody known": {
			args: []string{host + "/app:1", "--key", key}, said: "certificate", hint: "--ca", passing: true,
		},
		"a name that nobody knows": {
			args: []string{"registry.invalid/app:1", "--key", key}, said: "registry.invalid", hint: "is the name right",
			passing: true,
		},
		"a proxy that is down": {
			args: []string{"registry.invalid/app:1", "--key", key}, env: []string{"HTTPS_PROXY=http://127.0.0.1:1"},
			said: "proxyconnect", hint: "NO_PROXY", passing: true,
		},
		"a file that is no certificate": {
			args: []string{host + "/app:1", "--key", key, "--ca", key}, said: "no certificate in PEM",
		},
		"with its authority": {
			args: []string{host + "/app:1", "--key", key, "--ca", authority}, said: "image not found",
			hint: "check the name",
		},
		"an xz layer": {
			args: []string{foreign, "--key", key}, said: "compressed in a way that images must not be: xz",
			hint: "--dest-compress-format gzip",
		},
		"no repository": {
			args: []string{source, "--key", key, "--to", strict.Host + "/new/app:1"}, said: "repository does not exist",
			hint: "make the repository first",
		},
		"a page for an answer": {
			args: []string{talkative.Host + "/app:1", "--key", key}, said: "access denied", hint: "log in",
		},
		"garbage of a helper": {
			args: []string{source, "--key", key}, env: []string{"DOCKER_CONFIG=" + dir + "/docker"},
			said: "finding credentials failed", hint: "docker-credential",
		},
		"a key on one line": {
			args: []string{source, "--key", "env:ONE_LINE"}, env: []string{"ONE_LINE=" +
				strings.ReplaceAll(string(text), "\n", `\n`)}, said: "where its lines must end", hint: "printf",
		},
		"no image, and no key either": {
			args: []string{reg.Host + "/none:1"}, said: "image not found", hint: "check the name",
		},
	} {
		said, err := run(c.env, c.args...)
		var exit *exec.ExitError
		require.ErrorAs(t, err, &exit, what)
		assert.Equal(t, c.passing, exit.ExitCode() == exitTransient, "%s: exit code %d", what, exit.ExitCode())
		message, hint, _ := strings.Cut(said, "\nhint: ")
		assert.Contains(t, message, c.said, what)
		assert.Contains(t, hint, c.hint, what)
		assert.NotContains(t, message, "\n", "%s: more than a line", what)
		assert.Less(t, len(message), 900, what)
	}
}
