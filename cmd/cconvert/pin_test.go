package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/internal/queue"
)

// All images of a batch get the same runtime, however its name is written.
func TestRuntimeWithoutTransport(t *testing.T) {
	b := newPlanBench(t)
	reg := fixture.NewRegistry(t)
	reg.Push(t, "gramine:stable", gramineImage(t, "pal-twosegments.so"))
	reg.Push(t, "app:1", fixture.Image(t, v1.Config{Entrypoint: []string{"/bin/app"}},
		fixture.Layer(t, fixture.Program("bin/app", fixture.ELF("")))))
	results := filepath.Join(b.home, "results.json")
	for _, name := range []string{"docker://" + reg.Host, reg.Host} {
		plan := b.plan(fmt.Sprintf(`version: 1
defaults: {options: {runtime: 'gramine=%s/gramine:stable', debug: true, memory: 64M, threads: 2}}
convert:
- {image: '%s/app:1'}
`, name, reg.Host))
		out, code := b.run("batch", plan, "--key", b.key, "--output-json", results)
		require.Zero(t, code, out)
		text, err := os.ReadFile(results)
		require.NoError(t, err)
		var records []queue.Record
		require.NoError(t, json.Unmarshal(text, &records))
		assert.NotEmpty(t, records[0].Job.Runtime.Digest, name)
	}
}
