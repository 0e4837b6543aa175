package nocore

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const asChild = "CCONVERT_TEST_NOCORE"

func TestMain(m *testing.M) {
	how := os.Getenv(asChild)
	if how == "" {
		os.Exit(m.Run())
	}
	runtime.LockOSThread()
	if how == "set" {
		Set()
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_CORE, &limit); err != nil {
		panic(err)
	}
	limit.Cur = limit.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &limit); err != nil {
		panic(err)
	}
	if len(os.Args) > 1 { // as another program
		panic(syscall.Exec("/bin/sh", []string{"sh", "-c", "kill -SEGV $$"}, nil))
	}
	panic("a crash")
}

// A process that crashes leaves a core, but for one that does not want to, until it becomes another program.
func TestSet(t *testing.T) {
	for _, c := range []struct {
		how  string
		args []string
		want bool
	}{{"none", nil, true}, {"set", nil, false}, {"set", []string{"exec"}, true}} {
		self, err := os.Executable()
		require.NoError(t, err)
		cmd := exec.Command(self, c.args...)
		cmd.Dir = t.TempDir()
		cmd.Env = append(os.Environ(), asChild+"="+c.how, "GOTRACEBACK=crash")
		var exit *exec.ExitError
		require.True(t, errors.As(cmd.Run(), &exit), c)
		status, ok := exit.Sys().(syscall.WaitStatus)
		require.True(t, ok && status.Signaled(), c)
		if c.how == "none" && !status.CoreDump() {
			t.Skip("this system writes no cores")
		}
		assert.Equal(t, c.want, status.CoreDump(), c)
	}
}
