//go:build linux && amd64

package startcheck

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"strings"
	"syscall"
	"time"

	"github.com/moby/sys/reexec"
	"golang.org/x/sys/unix"
)

// childCommand is the name under which this program starts itself to become the loader.
const childCommand = "cconvert-startcheck"

func init() { reexec.Register(childCommand, child) }

// setup is what the child is told on its standard input.
type setup struct {
	Root      string
	Files     map[string]File
	Argv, Env []string
}

// nobody is the user and group who owns nothing.
const nobody = 65534

// maxOutput is how much of the loader's output is kept.
const maxOutput = 8 << 10

// Run starts the loader and watches it until it asks for EINIT, which it is never given.
func Run(ctx context.Context, c Command) (*Result, error) {
	for p := range c.Files {
		if !path.IsAbs(p) || path.Clean(p) != p || strings.ContainsRune(p, 0) {
			return nil, fmt.Errorf("%q is not a clean path", p)
		}
	}
	timeout := c.Timeout
	if timeout == 0 {
		timeout = defaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	root, err := os.MkdirTemp("", "cconvert-start-") // it stays empty: the child puts a file system of its own there
	if err != nil {
		return nil, err
	}
	defer os.Remove(root)
	input, err := json.Marshal(setup{root, c.Files, c.Argv, c.Env})
	if err != nil {
		return nil, err
	}
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer ours.Close()
	defer theirs.Close()

	var output tail
	cmd := exec.CommandContext(ctx, reexec.Self())
	cmd.Args = []string{childCommand}
	cmd.Env, cmd.Dir = []string{}, "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &output, &output
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.WaitDelay = time.Second
	uid, gid := os.Geteuid(), os.Getegid()
	if uid == 0 { // files of the kernel's that root owns would open without any capability
		uid, gid = nobody, nobody
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID |
			unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: gid, Size: 1}},
		Credential:  &syscall.Credential{NoSetGroups: os.Geteuid() != 0},

		GidMappingsEnableSetgroups: os.Geteuid() == 0, // to leave its groups
		Pdeathsig:                  syscall.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%w: making namespaces: %w", ErrUnsupported, err)
	}
	theirs.Close()
	kill := func() { _ = cmd.Process.Kill() }
	r, err := watch(ctx, ours, cmd.Process.Pid, kill)
	kill()
	waitErr := cmd.Wait()
	switch {
	case ctx.Err() != nil && errors.Is(ctx.Err(), context.DeadlineExceeded):
		return nil, fmt.Errorf("the loader did not ask for EINIT within %s: %s", timeout, &output)
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, errNotStarted):
		return nil, fmt.Errorf("%w: %w: %s", ErrUnsupported, waitErr, &output)
	case err != nil:
		return nil, fmt.Errorf("%w: %s", err, &output)
	}
	r.Output = output.String()
	return r, nil
}

func socketPair() (a, b *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs"), nil
}

// tail keeps the end of what is written.
type tail struct{ b []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if more := len(t.b) - maxOutput; more > 0 {
		t.b = append(t.b[:0], t.b[more:]...)
	}
	return len(p), nil
}

func (t *tail) String() string { return strings.TrimSpace(string(t.b)) }

// child runs in the new namespaces, and becomes the loader.
func child() {
	err := become()
	fmt.Fprintln(os.Stderr, "preparing the loader:", err)
	os.Exit(1)
}

func become() error {
	text, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	var s setup
	if err := json.Unmarshal(text, &s); err != nil {
		return err
	}
	if err := s.enter(); err != nil {
		return err
	}
	return s.execute()
}

// processors is what the loader learns of this machine.
const processors = "/sys/devices/system"

// enter makes the file system that the loader sees, and leaves the other one.
func (s setup) enter() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	size := 16 << 20 // for what a loader writes
	for _, f := range s.Files {
		size += len(f.Content) + os.Getpagesize()
	}
	if err := unix.Mount("tmpfs", s.Root, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV,
		fmt.Sprintf("mode=755,size=%d,nr_inodes=10000", size)); err != nil {
		return fmt.Errorf("mounting a file system in memory: %w", err)
	}
	for p, f := range s.Files { // in the new, empty file system: there are no links that a path could follow
		mode := os.FileMode(0o644)
		if f.Executable {
			mode = 0o755
		}
		if err := os.MkdirAll(s.Root+path.Dir(p), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(s.Root+p, f.Content, mode); err != nil {
			return err
		}
	}
	for _, dir := range []string{"/proc", processors, "/dev", "/tmp", "/old"} {
		if err := os.MkdirAll(s.Root+dir, 0o755); err != nil {
			return err
		}
	}
	// what is mapped of /dev/zero and shared is counted nowhere
	for _, dev := range []string{"/dev/null", "/dev/urandom"} {
		if err := os.WriteFile(s.Root+dev, nil, 0o644); err != nil {
			return err
		}
		if err := unix.Mount(dev, s.Root+dev, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mounting %s: %w", dev, err)
		}
	}
	if err := unix.Mount(processors, s.Root+processors, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mounting %s: %w", processors, err)
	}
	readOnly := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(unix.AT_FDCWD, s.Root+processors, 0, readOnly); err != nil {
		return fmt.Errorf("making %s read-only: %w", processors, err)
	}
	if err := unix.Mount("proc", s.Root+"/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_RDONLY,
		""); err != nil {
		return fmt.Errorf("mounting /proc: %w", err)
	}
	if err := unix.PivotRoot(s.Root, s.Root+"/old"); err != nil {
		return fmt.Errorf("entering the file system: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	return unix.Unmount("/old", unix.MNT_DETACH)
}
