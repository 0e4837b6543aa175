package sim_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/libos/gramine/enclave"
	"github.com/cconvert/cconvert/pkg/libos/gramine/sim"
	"github.com/cconvert/cconvert/pkg/libos/gramine/sim/loader"
)

// run builds a program in which the file that is embedded is the one at the path, if there is any, and runs it.
func run(t *testing.T, main, embedded string) string {
	t.Helper()
	require.NoError(t, os.MkdirAll("testdata", 0o755))
	dir, err := os.MkdirTemp("testdata", "program-") // inside the module
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	require.NoError(t, os.WriteFile(filepath.Join(dir, "main.go"), []byte(main), 0o600))
	place, err := filepath.Abs("embedded/loader")
	require.NoError(t, err)
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{place: embedded}})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600))
	cmd := exec.Command("go", "run", "-overlay", filepath.Join(dir, "overlay.json"), "./"+dir)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	return strings.TrimSpace(string(out))
}

// main prints the digest of the loader that is packed, or why there is no such.
const main = `package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"

	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/libos/gramine/sim"
	"github.com/cconvert/cconvert/pkg/libos/gramine/sim/loader"
)

func main() {
	if INIT {
		loader.Init()
	}
	b, err := sim.Backend{}.Load(context.Background(), libos.LoadOptions{})
	if err != nil {
		fmt.Println(err)
		return
	}
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	text, err := os.ReadFile(self)
	if err != nil {
		panic(err)
	}
	fmt.Println(b.Files[loader.Path].SHA256 == sha256.Sum256(text), b.Version)
}
`

// What is packed starts in the image: the loader that was built into the program, the program itself if it can be the
// loader, and never a program that uses this package and cannot.
func TestLoader(t *testing.T) {
	built := filepath.Join(t.TempDir(), "loader")
	cmd := exec.Command("go", "build", "-o", built, "github.com/cconvert/cconvert/cmd/cconvert-sim-loader")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	b, err := sim.Backend{}.Load(context.Background(), libos.LoadOptions{Source: built})
	require.NoError(t, err)
	info, err := os.Stat(built)
	require.NoError(t, err)
	assert.Less(t, info.Size(), int64(8<<20))

	assert.Equal(t, "false "+b.Version, run(t, strings.ReplaceAll(main, "INIT", "false"), built))
	other := filepath.Join(t.TempDir(), "other")
	require.NoError(t, os.WriteFile(other, []byte(fixture.ELF("")), 0o755))
	assert.Contains(t, run(t, strings.ReplaceAll(main, "INIT", "false"), other), "is of another version")
	assert.Equal(t, "false "+b.Version, run(t, strings.ReplaceAll(main, "INIT", "true"), built))
	assert.Contains(t, run(t, strings.ReplaceAll(main, "INIT", "false"), ""),
		"this program was built without the loader")
	assert.Contains(t, run(t, strings.ReplaceAll(main, "INIT", "true"), ""), "true ")
}

func TestPlaceOfTheLoader(t *testing.T) {
	assert.Regexp(t, fmt.Sprintf(" layout %d$", enclave.Version), loader.Marker)
	assert.True(t, strings.HasPrefix(loader.Path, libos.Root+"/"))
}

// The loader is in every simulated image: what knows images, registries or queues is not part of it.
func TestLoaderIsSmall(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}",
		"github.com/cconvert/cconvert/cmd/cconvert-sim-loader").Output()
	require.NoError(t, err)
	for _, name := range strings.Fields(string(out)) {
		own := strings.HasPrefix(name, "github.com/cconvert/cconvert/")
		known := strings.Contains(name, "/pkg/libos/gramine/") || strings.HasSuffix(name, "/pkg/sgx") ||
			strings.Contains(name, "/pkg/protectedfs") || strings.HasSuffix(name, "/internal/secret") ||
			strings.HasSuffix(name, "/internal/ctxio") || strings.HasSuffix(name, "/internal/nocore") ||
			strings.HasSuffix(name, "/cmd/cconvert-sim-loader")
		assert.True(t, !own || known, name)
	}
}
