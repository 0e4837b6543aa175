//go:build linux

package startcheck

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// asHeadless has this program be one whose first thread ends, while others go on.
const asHeadless = "CCONVERT_TEST_HEADLESS"

func init() {
	if os.Getenv(asHeadless) == "" {
		return
	}
	runtime.LockOSThread() // to the first thread
	go func() {
		time.Sleep(time.Minute)
		os.Exit(0)
	}()
	_, _, _ = syscall.Syscall(syscall.SYS_EXIT, 0, 0, 0)
}

// A process is weighed as long as any of its threads lives.
func TestProcessWithoutItsFirstThread(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), asHeadless+"=1")
	require.NoError(t, cmd.Start())
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	require.Eventually(t, func() bool {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
		return err == nil && taken(status) == 0
	}, 10*time.Second, 10*time.Millisecond, "its first thread has ended")
	assert.Positive(t, taken(statusOf(cmd.Process.Pid)))
}
