//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Without Landlock the simulated runtime starts nothing, whatever the image says: whoever starts the container decides.
func TestUnconfined(t *testing.T) {
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	require.NoError(t, os.MkdirAll(root, 0o755))
	source := filepath.Join(dir, "app.c")
	require.NoError(t,
		os.WriteFile(source, []byte("#include <stdio.h>\nint main(void) { puts(\"started\"); return 0; }\n"), 0o644))
	command(t, "gcc", "-static", "-o", root+"/app", source)
	command(t, "tar", "-C", root, "-cf", dir+"/app.tar", ".")
	image, result := "cconvert-e2e/unconfined:1", "cconvert-e2e/unconfined:sim"
	command(t, "docker", "import", "-c", `ENTRYPOINT ["/app"]`, "-c", "ENV CCONVERT_SIM_UNCONFINED=1", dir+"/app.tar",
		image)
	cconvert(t, "docker-daemon:"+image, "--runtime", "sim", "--to", "docker-daemon:"+result)
	t.Cleanup(func() { _, _ = try("docker", "rmi", "-f", image, result) })
	profile := filepath.Join(dir, "seccomp.json")
	require.NoError(t, os.WriteFile(profile, []byte(`{"defaultAction":"SCMP_ACT_ALLOW",
		"syscalls":[{"names":["landlock_create_ruleset"],"action":"SCMP_ACT_ERRNO"}]}`), 0o644))

	_, err := try("docker", "run", "--rm", "--security-opt", "seccomp="+profile, result)
	assert.ErrorContains(t, err, "cannot be confined to its files")
	out, err := try("docker", "run", "--rm", "--security-opt", "seccomp="+profile, "-v",
		"/dev/null:/cconvert/unconfined", result)
	require.NoError(t, err)
	assert.Contains(t, out, "started")
	out, err = try("docker", "run", "--rm", result)
	require.NoError(t, err)
	assert.Contains(t, out, "started")
}
