package nocore

import (
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// asChild is the variable by which this program is one that may be looked into, or not.
const asChild = "CCONVERT_TEST_NOCORE"

const getDumpable = 3 // PR_GET_DUMPABLE (prctl(2))

func TestMain(m *testing.M) {
	switch os.Getenv(asChild) {
	case "":
		os.Exit(m.Run())
	case "set":
		Set()
	case "set, and another program":
		Set()
		self, err := os.Executable()
		if err == nil {
			err = syscall.Exec(self, os.Args, []string{asChild + "=none"})
		}
		panic(err)
	}
	may, _, _ := syscall.RawSyscall(syscall.SYS_PRCTL, getDumpable, 0, 0)
	os.Exit(10 + int(may))
}

// The kernel writes a core of a process, but of none that does not want it, until it becomes another program.
func TestSet(t *testing.T) {
	for how, want := range map[string]int{"none": 11, "set": 10, "set, and another program": 11} {
		self, err := os.Executable()
		require.NoError(t, err)
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), asChild+"="+how)
		require.Error(t, cmd.Run())
		assert.Equal(t, want, cmd.ProcessState.ExitCode(), how)
	}
}
