package convert_test

import (
	"os"
	"path/filepath"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/libos/gramine/sim"
)

// An image is unpacked into one directory, whatever its names and links say.
func TestUnpackStaysInside(t *testing.T) {
	reg := fixture.NewRegistry(t)
	outside := t.TempDir()
	name := reg.Push(t, "hostile:1", fixture.Image(t, v1.Config{Cmd: []string{"/app"}},
		fixture.Layer(t, fixture.Program("app", fixture.ELF("")), fixture.Symlink("out", outside),
			fixture.Symlink("up", "../../../../../../.."), fixture.Symlink("etc/passwd", "/etc/passwd")),
		fixture.Layer(t, fixture.File("out/evil", "x"), fixture.File("up/tmp/evil", "x"),
			fixture.Hardlink("copy", "app"))))
	ref, err := image.ParseReference(name, false)
	require.NoError(t, err)
	e, err := convert.NewExport(t.Context(), convert.Options{
		Source: ref, Backend: sim.Backend{}, Enclave: libos.EnclaveOptions{Attestation: "none", LogLevel: "error"},
	})
	require.NoError(t, err)
	defer e.Close()
	parent := t.TempDir()
	dir := filepath.Join(parent, "root")
	require.NoError(t, e.Unpack(t.Context(), dir))
	for _, d := range []string{outside, parent} {
		entries, err := os.ReadDir(d)
		require.NoError(t, err)
		for _, entry := range entries {
			assert.Equal(t, "root", entry.Name(), "outside of the directory")
		}
	}
	app, err := os.ReadFile(filepath.Join(dir, "copy"))
	require.NoError(t, err)
	assert.Equal(t, fixture.ELF(""), string(app))
	link, err := os.Readlink(filepath.Join(dir, "etc/passwd"))
	require.NoError(t, err)
	assert.Equal(t, "/etc/passwd", link)
	assert.Error(t, e.Unpack(t.Context(), dir), "it is not empty")
}
