package convert_test

import (
	"context"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/recipe"
)

// Variables that act on a dynamic linker reach the program by the manifest, and the runtime's loader not at all.
func TestVariablesOfTheLoader(t *testing.T) {
	reg := fixture.NewRegistry(t)
	kept := []string{"A=1", "LD_LIBRARY_PATH=/opt", "LDX=1", "XLD_PRELOAD=x", "MY_LD_PRELOAD=/x", "ld_preload=x"}
	dropped := []string{
		"LD_PRELOAD=/x.so", "LD_AUDIT=/x.so", "LD_PROFILE=x", "LD_PROFILE_OUTPUT=/srv", "LD_DEBUG=all",
		"LD_DEBUG_OUTPUT=/srv/x", "LD_BIND_NOW=1", "LD_ORIGIN_PATH=/x", "LD_TRACE_LOADED_OBJECTS=1", "LD_SHOW_AUXV=1",
		"LD_HWCAP_MASK=0", "LD_UNKNOWN", "GLIBC_TUNABLES=x",
		// Podman trims names, and takes those of the host that begin with what is before a "*".
		" LD_PRELOAD=/x", "\tLD_AUDIT=/x", "\vGLIBC_TUNABLES=x", "L*", "*",
	}
	config := v1.Config{Entrypoint: []string{"/app"}, Env: append(dropped, kept...)}
	from := reg.Push(t, "src:1", fixture.Image(t, config, fixture.Layer(t, fixture.Program("app", fixture.ELF("")))))
	_, err := run(context.Background(), t, options(t, from), reg.Host+"/dst:1")
	require.NoError(t, err)
	tag, err := name.NewTag(reg.Host + "/dst:1")
	require.NoError(t, err)
	img, err := remote.Image(tag)
	require.NoError(t, err)
	c, err := img.ConfigFile()
	require.NoError(t, err)
	assert.Equal(t, kept, c.Config.Env)
}

func TestRecipeProfileIsBounded(t *testing.T) {
	text := "version = 1\n# " + strings.Repeat("x", 64<<10)
	_, _, err := recipe.Options{Profile: "mine", ProfileText: text}.Decisions()
	assert.ErrorContains(t, err, "more than 65536 bytes")
}
