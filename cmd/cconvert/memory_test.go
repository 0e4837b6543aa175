package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
)

// What the memory that is made ready is worth for a warm conversion, beside a collector that is put off alone.
func BenchmarkHeap(b *testing.B) {
	dir := b.TempDir()
	entries := []fixture.Entry{fixture.Program("bin/app", fixture.ELF(""))}
	for i := range 20_000 {
		entries = append(entries, fixture.File(fmt.Sprintf("srv/%d/%d", i/100, i), fmt.Sprint(i)))
	}
	path, err := layout.Write(filepath.Join(dir, "in"), empty.Index)
	require.NoError(b, err)
	img := fixture.Image(b, v1.Config{Entrypoint: []string{"/bin/app"}}, fixture.Layer(b, entries...))
	require.NoError(b, path.AppendImage(img,
		layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "1"})))
	key, err := filepath.Abs("../../testdata/vectors/test-signing-key.pem")
	require.NoError(b, err)
	for _, variant := range []struct{ name, tags string }{{"made-ready", "none"}, {"put-off-alone", "plainheap"}} {
		program := filepath.Join(dir, variant.name)
		build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-tags", variant.tags, "-o", program,
			".")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		out, err := build.CombinedOutput()
		require.NoError(b, err, string(out))
		convert := func() {
			cmd := exec.Command(program, "oci:"+dir+"/in:1", "--runtime", "sim", "--key", key,
				"--to", "oci:"+dir+"/out:1")
			cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_CACHE_HOME="+dir+"/cache")
			out, err := cmd.CombinedOutput()
			require.NoError(b, err, string(out))
		}
		convert()
		b.Run(variant.name, func(b *testing.B) {
			for b.Loop() {
				convert()
			}
		})
	}
}
