package agent

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/protectedfs"
)

// What an agent is told by its package's constants is what conversions write: it does not know their packages.
func TestPlacesOfConversions(t *testing.T) {
	assert.Equal(t, libos.AgentConfigPath, ConfigPath)
	assert.Equal(t, libos.EncryptedPath, ListPath)
	assert.Equal(t, launch.CiphertextsDir, CiphertextsDir)
	assert.Equal(t, protectedfs.NodeSize, nodeSize)
}

// The agents are in images, measured and hashed at each start: what knows images or registries is not part of them.
func TestAgentsAreSmall(t *testing.T) {
	for _, name := range []string{"cconvert-agent", "cconvert-agent-sim"} {
		out := filepath.Join(t.TempDir(), name)
		build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -buildid=", "-o", out,
			"../../cmd/"+name)
		build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
		text, err := build.CombinedOutput()
		require.NoError(t, err, string(text))
		program, err := libos.ReadAgent(out)
		require.NoError(t, err)
		a, err := libos.NewAgent(program)
		require.NoError(t, err)
		assert.Less(t, a.Layer.Size, 3_000_000, name)
		if name == "cconvert-agent" {
			assert.Less(t, len(program), 7_000_000)
		}

		deps, err := exec.Command("go", "list", "-deps", "../../cmd/"+name).Output()
		require.NoError(t, err)
		for _, foreign := range []string{"go-containerregistry", "nats", "k8s.io", "/pkg/image", "/pkg/convert"} {
			assert.False(t, strings.Contains(string(deps), foreign), "%s: %s", name, foreign)
		}
	}
}
