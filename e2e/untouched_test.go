//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
	"github.com/cconvert/cconvert/pkg/image/store"
	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/libos"
)

// inRoot is the variable by which this test's own program becomes an image's program: in another root, as
// the image's user.
const inRoot = "CCONVERT_E2E_IN_ROOT"

type inside struct {
	Root, Program, Dir string
	Argv, Env          []string
	UID, GID           int
}

func TestMain(m *testing.M) {
	if text := os.Getenv(inRoot); text != "" {
		var in inside
		err := json.Unmarshal([]byte(text), &in)
		for _, step := range []func() error{
			func() error { return syscall.Chroot(in.Root) },
			func() error { return syscall.Chdir(in.Dir) },
			func() error { return syscall.Setgroups([]int{in.GID}) },
			func() error { return syscall.Setgid(in.GID) },
			func() error { return syscall.Setuid(in.UID) },
			func() error { return syscall.Exec(in.Program, in.Argv, in.Env) },
		} {
			if err == nil {
				err = step()
			}
		}
		fmt.Fprintln(os.Stderr, "starting the program:", err)
		os.Exit(1)
	}
	os.Exit(withKey(m.Run))
}

func withKey(run func() int) int {
	dir, err := os.MkdirTemp("", "cconvert-e2e-")
	if err == nil {
		defer os.RemoveAll(dir)
		key = filepath.Join(dir, "key.pem")
		_, err = try(program, "keygen", "--out", key)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "making a key:", err)
		return 1
	}
	if os.Getenv("CI") != "" { // all tests are run
		go makeAhead()
	}
	return run()
}

// untouched runs the image's program as it is, under strace, through the exchange, and fails for every
// file that it opens and that the manifest does not list by that spelling.
func untouched(t *testing.T, s *sample, converted string) {
	t.Helper()
	ref, err := image.ParseReference(converted, true)
	require.NoError(t, err)
	img, err := store.Open(context.Background(), ref, registry.Options{})
	require.NoError(t, err)
	defer img.Close()
	m, err := inspect.Read(context.Background(), img, inspect.Options{})
	require.NoError(t, err)

	root := s.unpack(t)
	for _, dir := range []string{"proc", "dev", "tmp", "run"} {
		require.NoError(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	for _, dir := range []string{"proc", "dev"} {
		command(t, "mount", "--rbind", "/"+dir, filepath.Join(root, dir))
		t.Cleanup(func() { _, _ = try("umount", "-R", "-l", filepath.Join(root, dir)) })
	}
	require.NoError(t, os.Chmod(filepath.Join(root, "tmp"), 0o1777))
	require.NoError(t, os.Chmod(root, 0o755))
	require.NoError(t, os.Chmod(filepath.Dir(root), 0o755))
	in := inside{
		Root: root, Program: m.Program.Entrypoint, Dir: m.Program.WorkDir, Argv: m.Program.Argv, UID: m.Program.UID,
		GID: m.Program.GID,
	}
	require.NoError(t, os.MkdirAll(filepath.Join(root, in.Dir), 0o755))
	for name, v := range m.Program.Env {
		if v, ok := v.(string); ok && name != "LD_LIBRARY_PATH" { // which is the runtime's
			in.Env = append(in.Env, name+"="+v)
		}
	}
	text, err := json.Marshal(in)
	require.NoError(t, err)
	trace := filepath.Join(t.TempDir(), "trace")
	cmd := exec.Command("strace", "-f", "-y", "-s", "4096", "-e", "trace=open,openat,openat2,execve", "-o", trace,
		os.Args[0])
	cmd.Env = append(os.Environ(), inRoot+"="+string(text))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := os.Create(trace + ".out")
	require.NoError(t, err)
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	require.NoError(t, cmd.Start())
	eventually(t, "the untouched program answers", func() error { return s.ask(s.port) })
	time.Sleep(200 * time.Millisecond)
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
	time.AfterFunc(5*time.Second, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	_ = cmd.Wait()
	killInside(t, root)
	require.Error(t, s.ask(s.port), "nothing answers any more")
	checkTrace(t, trace, in, m)
}

// killInside ends what still runs in another root, such as workers that left the process group.
func killInside(t *testing.T, root string) {
	t.Helper()
	roots, err := filepath.Glob("/proc/[0-9]*/root")
	require.NoError(t, err)
	for _, r := range roots {
		if to, err := os.Readlink(r); err == nil && to == root {
			pid, err := strconv.Atoi(path.Base(path.Dir(r)))
			require.NoError(t, err)
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	time.Sleep(200 * time.Millisecond)
}

var opened = regexp.MustCompile(
	`^\d+ +(open|openat|openat2|execve)\((?:AT_FDCWD<([^>]*)>, |\d+<([^>]*)>, )?"((?:[^"\\]|\\.)*)"(.*)= (-?\d+)`)

func checkTrace(t *testing.T, trace string, in inside, m *inspect.Converted) {
	t.Helper()
	trusted := map[string]bool{}
	for _, f := range m.Trusted {
		trusted[strings.TrimPrefix(f.URI, "file:")] = true
	}
	f, err := os.Open(trace)
	require.NoError(t, err)
	defer f.Close()
	count, started := 0, false
	seen := map[string]bool{}
	octal := regexp.MustCompile(`\\[0-7]{1,3}`)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// Calls that another process interrupted stand in two lines, of which the first has the path.
		line := strings.Replace(lines.Text(), " <unfinished ...>", ") = 0", 1)
		call := opened.FindStringSubmatch(line)
		if call == nil {
			continue
		}
		name, err := strconv.Unquote(`"` + octal.ReplaceAllStringFunc(call[4], func(s string) string {
			n, _ := strconv.ParseUint(s[1:], 8, 16)
			return fmt.Sprintf(`\%03o`, n)
		}) + `"`)
		require.NoError(t, err, line)
		if !started { // until then it is this test's program
			started = call[1] == "execve" && name == in.Program
			if !started {
				continue
			}
		}
		if strings.HasPrefix(call[6], "-") {
			continue
		}
		if !path.IsAbs(name) {
			dir, ok := strings.CutPrefix(call[2]+call[3], in.Root)
			require.True(t, ok, line)
			name = path.Join("/", dir, name)
		}
		if name = path.Clean(name); seen[name] {
			continue
		}
		seen[name] = true
		where, writable := throughMounts(name, m.Program.Mounts)
		info, err := os.Stat(filepath.Join(in.Root, inTree(in.Root, name)))
		switch {
		case err != nil || !info.Mode().IsRegular(), writable: // directories, devices, files that are gone
		case strings.HasPrefix(name, "/proc/"), strings.HasPrefix(name, "/sys/"), strings.HasPrefix(name, "/dev/"):
		// compiled anew, since its time is not known inside
		case strings.HasSuffix(name, ".pyc") && trusted[sourceOf(where)]:
		case name == "/etc/resolv.conf", name == "/etc/hosts", name == "/etc/hostname": // the host's
		default:
			count++
			assert.True(t, trusted[where], "%s is opened and not listed (as %s)", name, where)
		}
	}
	require.True(t, started, "the program was not started")
	t.Logf("%d files were opened", count)
}

// sourceOf returns the path of the module that a file below __pycache__ was compiled from (PEP 3147).
func sourceOf(compiled string) string {
	module, _, _ := strings.Cut(path.Base(compiled), ".")
	return path.Join(path.Dir(path.Dir(compiled)), module+".py")
}

// throughMounts returns the path that the host is asked for, and whether it is in a writable place.
func throughMounts(p string, mounts []libos.Mount) (string, bool) {
	for i := len(mounts) - 1; i >= 0; i-- { // a later mount is further down
		m := mounts[i]
		if p == m.Path || strings.HasPrefix(p, m.Path+"/") {
			if m.Type != "" {
				return p, true
			}
			return strings.TrimSuffix(strings.TrimPrefix(m.URI, "file:"), "/") + strings.TrimPrefix(p, m.Path), false
		}
	}
	return p, false
}

// inTree follows symbolic links as they lead inside the root.
func inTree(root, p string) string {
	for range 40 {
		parts := strings.Split(strings.TrimPrefix(p, "/"), "/")
		at, again := "", false
		for i, part := range parts {
			next := at + "/" + part
			if target, err := os.Readlink(root + next); err == nil {
				if !path.IsAbs(target) {
					target = path.Join("/", at, target)
				}
				p = path.Join(append([]string{target}, parts[i+1:]...)...)
				again = true
				break
			}
			at = next
		}
		if !again {
			return p
		}
	}
	return p
}
