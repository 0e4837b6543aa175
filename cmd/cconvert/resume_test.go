package main

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
)

// A batch goes on only if it is the one that is meant: of the same plan, with the same key, and not an earlier one
// because the last was interrupted before its images were found.
func TestResume(t *testing.T) {
	reg, home := fixture.NewRegistry(t), t.TempDir()
	push := func(i int) {
		reg.Push(t, fmt.Sprintf("app:%d", i), fixture.Image(t, v1.Config{Cmd: []string{"/a"}},
			fixture.Layer(t, fixture.Program("a", fixture.ELF("")), fixture.File("own", fmt.Sprint(i)))))
	}
	push(0)
	key, err := filepath.Abs("../../testdata/vectors/test-signing-key.pem")
	require.NoError(t, err)
	command := func(args ...string) (*exec.Cmd, *strings.Builder) {
		cmd := exec.Command(program, append([]string{"batch"}, args...)...)
		cmd.Env = append(os.Environ(), "HOME="+home, "XDG_STATE_HOME="+home, "XDG_CACHE_HOME="+home,
			"XDG_CONFIG_HOME="+home, "CCONVERT_RUNTIME=sim")
		var out strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &out
		return cmd, &out
	}
	run := func(args ...string) (string, error) {
		cmd, out := command(append(args, "--insecure", "--key", key)...)
		err := cmd.Run()
		return out.String(), err
	}
	write := func(target string) string {
		file := filepath.Join(t.TempDir(), "plan.yaml")
		text := fmt.Sprintf("version: 1\nconvert:\n- {repository: %[1]s/app, target: '%[1]s/%[2]s:{{.Tag}}'}\n",
			reg.Host, target)
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		return file
	}
	plan := write("out")
	out, err := run(plan)
	require.NoError(t, err, out)
	out, err = run(plan, "--resume")
	require.NoError(t, err, out)
	assert.Contains(t, out, "nothing was left to do")
	out, err = run(write("elsewhere"), "--resume")
	assert.Error(t, err)
	assert.Contains(t, out, "as it was then")

	other := filepath.Join(home, "other.pem")
	_, err = exec.Command(program, "keygen", "--out", other).CombinedOutput()
	require.NoError(t, err)
	cmd, said := command("--resume", "--insecure", "--key", other)
	assert.Error(t, cmd.Run())
	assert.Contains(t, said.String(), "was begun with another key")

	push(1)
	var held atomic.Bool
	release := make(chan struct{})
	reg.Intercept(func(_ http.ResponseWriter, r *http.Request, _ int) bool {
		if strings.HasSuffix(r.URL.Path, "/tags/list") && !held.Swap(true) {
			<-release
		}
		return false
	})
	cmd, said = command(plan, "--insecure", "--key", key)
	require.NoError(t, cmd.Start())
	require.Eventually(t, held.Load, 20*time.Second, 20*time.Millisecond)
	require.NoError(t, cmd.Process.Signal(syscall.SIGINT))
	time.Sleep(200 * time.Millisecond)
	close(release)
	require.Error(t, cmd.Wait(), said.String())
	out, err = run(plan, "--resume")
	assert.Error(t, err)
	assert.Contains(t, out, "its images are still being found, or that was interrupted")
	cmd, said = command("status")
	require.NoError(t, cmd.Run())
	assert.Contains(t, said.String(), "or that was interrupted")
	out, err = run(plan)
	require.NoError(t, err, out)
	assert.Contains(t, out, "1 converted, 1 unchanged")
}
