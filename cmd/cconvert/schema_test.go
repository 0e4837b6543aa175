package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/invopop/jsonschema"
	validator "github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/internal/keyserver"
	"github.com/cconvert/cconvert/internal/queue"
	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/cache"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/recipe"
	"github.com/cconvert/cconvert/pkg/sgx"
	"github.com/cconvert/cconvert/pkg/verify"
)

// schemas are the types of every JSON output, by the name of their schema in docs/schemas.
var schemas = map[string]any{
	"convert":          convert.Result{},
	"analyze":          convert.Analysis{},
	"measure":          measured{},
	"inspect":          inspect.Converted{},
	"inspect-files":    []libos.FileEntry{},
	"inspect-enclaves": []inspect.EnclaveFile{},
	"verify":           verify.Report{},
	"diff":             []inspect.Difference{},
	"rebuild":          verify.Rebuilt{},
	"reference":        attest.Enclave{},
	"enclave-identity": attest.Identity{},
	"recipe":           recipe.Recipe{},
	"runtime":          runtimeFacts{},
	"cache":            []cache.Entry{},
	"key":              keyInfo{},
	"quote":            quoteFacts{},
	"release-log":      keyserver.Decision{},
	"batch":            []queue.Record{},
	"version":          versionFacts{},
}

const schemaDir = "../../docs/schemas"

// The schemas in the repository are those of the types, and what the program prints keeps to them.
func TestSchemas(t *testing.T) {
	for name, v := range schemas {
		// Keys may be added without a new version: readers have to take that.
		r := jsonschema.Reflector{AllowAdditionalProperties: true, DoNotReference: true, Anonymous: true}
		r.Mapper = func(t reflect.Type) *jsonschema.Schema {
			if t == reflect.TypeFor[sgx.Measurement]() {
				return &jsonschema.Schema{Type: "string", Pattern: "^[0-9a-f]{64}$"}
			}
			return nil
		}
		s := r.Reflect(v)
		s.Title = "cconvert " + name
		b, err := json.MarshalIndent(s, "", "  ")
		require.NoError(t, err)
		file := filepath.Join(schemaDir, name+".json")
		if os.Getenv("UPDATE_GOLDEN") != "" {
			require.NoError(t, os.MkdirAll(schemaDir, 0o755))
			require.NoError(t, os.WriteFile(file, append(b, '\n'), 0o644))
		}
		have, err := os.ReadFile(file)
		require.NoError(t, err)
		assert.Equal(t, string(b)+"\n", string(have), "%s: make it anew with UPDATE_GOLDEN=1", name)
	}

	reg := fixture.NewRegistry(t)
	pushSamples(t, reg)
	dir := t.TempDir()
	key, err := filepath.Abs("../../testdata/vectors/test-signing-key.pem")
	require.NoError(t, err)
	run := func(args ...string) []byte {
		cmd := exec.Command(program, args...)
		cmd.Env = append(os.Environ(), "XDG_CONFIG_HOME="+dir, "XDG_CACHE_HOME="+dir, "XDG_STATE_HOME="+dir, "HOME="+
			dir)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if len(out) == 0 {
			require.NoError(t, err, "%s: %s", args, stderr.String())
		}
		return out
	}
	app, done := reg.Host+"/app:1", reg.Host+"/app:1-confidential"
	facts := filepath.Join(dir, "facts.json")
	run(app, "--runtime", "sim", "--key", key, "--output-json", facts)
	run(app, "--runtime", "sim", "--key", key, "--suffix", "-two", "--isv-svn", "2")
	plan := filepath.Join(dir, "plan.yaml")
	require.NoError(t, os.WriteFile(plan, fmt.Appendf(nil, "version: 1\ndefaults: {options: {runtime: sim}}\nconvert: "+
		"[{image: %s}, {image: %s/absent:1}]\n", app, reg.Host), 0o600))
	require.Error(t, exec.Command("env", "HOME="+dir, "XDG_STATE_HOME="+dir, "XDG_CACHE_HOME="+dir, program, "batch",
		plan, "--key", key).Run(), "one of them is absent")
	result, err := os.ReadFile(facts)
	require.NoError(t, err)
	vectors := filepath.Dir(key)
	for name, out := range map[string][]byte{
		"convert": result,
		"analyze": run("analyze", "--json", app, "--runtime", "sim"),
		"measure": run("measure", "--json", "--enclave", vectors+"/pal/pal-twosegments.so", "--manifest",
			vectors+"/cases/edmm-64g.manifest.sgx"),
		"inspect":          run("inspect", "--json", done),
		"inspect-files":    run("inspect", "--json", "--files", "--layers", done),
		"inspect-enclaves": run("inspect", "--json", reg.Host+"/enclave:1"),
		"verify":           run("verify", "--json", "--any-signer", done),
		"diff":             run("diff", "--json", done, app+"-two"),
		"rebuild":          run("rebuild", "--json", done),
		"reference":        run("reference", "--simulated", done),
		"runtime":          run("runtime", "inspect", "--json", "--runtime", "sim"),
		"cache":            run("cache", "ls", "--json"),
		"key":              run("key", "info", "--json", "--key", key),
		"batch":            run("batch", "results", "--json"),
		"version":          run("version", "--json"),
	} {
		s, err := validator.NewCompiler().Compile(filepath.Join(schemaDir, name+".json"))
		require.NoError(t, err, name)
		v, err := validator.UnmarshalJSON(bytes.NewReader(out))
		require.NoError(t, err, name)
		assert.NoError(t, s.Validate(v), name)
	}
}
