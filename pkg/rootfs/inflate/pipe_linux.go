package inflate

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// enlarge makes room in a pipe for as much as an unprivileged process may have (pipe(7)), so that its ends
// wait less often for each other.
func enlarge(pipe io.Reader) {
	f, ok := pipe.(*os.File)
	if !ok {
		return
	}
	if c, err := f.SyscallConn(); err == nil {
		_ = c.Control(func(fd uintptr) {
			_, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, 1<<20) // it works as it is, too
		})
	}
}
