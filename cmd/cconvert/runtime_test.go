package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/internal/queue"
)

type bench struct {
	t    *testing.T
	home string
	key  string
}

func newPlanBench(t *testing.T) *bench {
	key, err := filepath.Abs("../../testdata/vectors/test-signing-key.pem")
	require.NoError(t, err)
	return &bench{t, t.TempDir(), key}
}

func (b *bench) run(args ...string) (string, int) {
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), "HOME="+b.home, "XDG_STATE_HOME="+b.home, "XDG_CACHE_HOME="+b.home,
		"XDG_CONFIG_HOME="+b.home)
	out, _ := cmd.CombinedOutput()
	return string(out), cmd.ProcessState.ExitCode()
}

func (b *bench) plan(text string) string {
	file := filepath.Join(b.t.TempDir(), "plan.yaml")
	require.NoError(b.t, os.WriteFile(file, []byte(text), 0o600))
	return file
}

func gramineImage(t *testing.T, pal string, more ...fixture.Entry) v1.Image {
	text, err := os.ReadFile("../../testdata/vectors/pal/" + pal)
	require.NoError(t, err)
	files := more
	for name, content := range fixture.GramineFiles(text) {
		files = append(files, fixture.Program("usr/lib/gramine/"+name, content))
	}
	return fixture.Image(t, v1.Config{Entrypoint: []string{"/bin/app"}}, fixture.Layer(t, files...))
}

// Whoever may push to a source registry does not choose the runtime of other images.
func TestRuntimeIsATarget(t *testing.T) {
	b := newPlanBench(t)
	src, conf := fixture.NewRegistry(t), fixture.NewRegistry(t)
	app := fixture.Program("bin/app", fixture.ELF(""))
	conf.Push(t, "gramine:stable", gramineImage(t, "pal-twosegments.so"))
	src.Push(t, "app:1", fixture.Image(t, v1.Config{Entrypoint: []string{"/bin/app"}}, fixture.Layer(t, app)))
	plan := b.plan(fmt.Sprintf(`version: 1
defaults:
  target: '%[2]s/{{.Repository}}:{{.Tag}}'
  options: {runtime: 'gramine=docker://%[2]s/gramine:stable', debug: true, memory: 64M, threads: 2}
convert:
- {registry: %[1]s}
`, src.Host, conf.Host))
	runtimeOf := func(results string) (digest string, statuses string) {
		text, err := os.ReadFile(results)
		require.NoError(t, err)
		var records []queue.Record
		require.NoError(t, json.Unmarshal(text, &records))
		for _, r := range records {
			statuses += fmt.Sprintln(r.Job.Source, r.Status, r.MREnclave, r.Job.Runtime.Digest, r.Error)
			if strings.HasSuffix(r.Job.Source, "/app:1") {
				digest = r.MREnclave.String()
			}
		}
		return digest, statuses
	}
	results := filepath.Join(b.home, "results.json")
	out, code := b.run("batch", plan, "--key", b.key, "--output-json", results)
	require.Zero(t, code, out)
	before, said := runtimeOf(results)
	t.Log(said)
	trusted := conf.Digest(t, "gramine:stable")

	// The stranger may push to src alone.
	src.Push(t, "gramine:stable", gramineImage(t, "pal-foursegments.so", app))
	out, code = b.run("batch", plan, "--key", b.key, "--output-json", results)
	t.Log(code, out)
	_, said = runtimeOf(results)
	t.Log(said)
	assert.Equal(t, trusted, conf.Digest(t, "gramine:stable"), "the runtime's tag was replaced by a stranger's image")
	out, code = b.run("batch", plan, "--key", b.key, "--output-json", results)
	t.Log(code, out)
	after, said := runtimeOf(results)
	t.Log(said)
	assert.Equal(t, before, after, "app:1 is signed with the stranger's runtime in its enclave")
}

// A registry that lists a name of its own choice does not keep the images of others from being converted.
func TestLongNameInACatalog(t *testing.T) {
	b := newPlanBench(t)
	good, evil := fixture.NewRegistry(t), fixture.NewRegistry(t)
	good.Push(t, "app:1", fixture.Image(t, v1.Config{Entrypoint: []string{"/bin/app"}},
		fixture.Layer(t, fixture.Program("bin/app", fixture.ELF("")))))
	evil.Intercept(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if strings.HasSuffix(r.URL.Path, "/_catalog") {
			fmt.Fprintf(w, `{"repositories":[%q]}`, strings.Repeat("<", 3<<20))
			return true
		}
		return false
	})
	plan := b.plan(fmt.Sprintf(`version: 1
defaults: {options: {runtime: sim}}
convert:
- {repository: %[1]s/app}
- {registry: %[2]s}
`, good.Host, evil.Host))
	out, code := b.run("batch", plan, "--key", b.key)
	t.Log(code, out[:min(len(out), 3000)])
	assert.NotEmpty(t, good.Digest(t, "app:1-confidential"), "the other registry's image is converted")
}
