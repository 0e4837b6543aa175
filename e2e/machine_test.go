//go:build e2e

// Package e2e converts real images, made from Debian's packages, between a real registry and Docker,
// and runs what comes out. It needs root and what .ci/run installs.
package e2e

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/freeport"
)

var (
	project = func() string {
		dir, err := filepath.Abs("..")
		if err != nil {
			panic(err)
		}
		return dir
	}()
	program = filepath.Join(project, "bin/cconvert")
	key     string // made for each run: published test keys are refused
)

// command runs a program and returns its standard output; its standard error is in the failure.
func command(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := try(name, args...)
	require.NoError(t, err)
	return out
}

func try(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, stderr.String())
	}
	return strings.TrimSpace(string(out)), err
}

// cconvert converts with the run's key and returns the line that it prints.
func cconvert(t testing.TB, args ...string) string {
	t.Helper()
	return command(t, program, append(args, "--key", key)...)
}

// freePort returns a port that nothing listens on.
func freePort(t testing.TB) string {
	t.Helper()
	port, err := freeport.Find()
	require.NoError(t, err)
	return port
}

// startRegistry runs Debian's docker-registry on loopback and returns its port.
func startRegistry(t testing.TB) string {
	t.Helper()
	_, port, err := net.SplitHostPort(startRegistryAt(t, "127.0.0.1"))
	require.NoError(t, err)
	return port
}

// startRegistryAt runs it on an address of this machine, and returns that with the port.
func startRegistryAt(t testing.TB, address string) string {
	t.Helper()
	dir, host := t.TempDir(), net.JoinHostPort(address, freePort(t))
	config := filepath.Join(dir, "config.yml")
	require.NoError(t, os.WriteFile(config, fmt.Appendf(nil,
		"version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s/data}}\nhttp: {addr: '%s'}\n", dir,
		host), 0o600))
	cmd := exec.Command("docker-registry", "serve", config)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	eventually(t, "the registry answers", func() error {
		c, err := net.Dial("tcp", host)
		if err == nil {
			c.Close()
		}
		return err
	})
	return host
}

func eventually(t testing.TB, what string, f func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}

// debian makes a root filesystem with packages from Debian, once for all runs of this checkout.
func debian(t testing.TB, packages string) string {
	t.Helper()
	file, err := makeDebian(packages)
	require.NoError(t, err)
	return file
}

// roots are those that are made, or being made, by their packages.
var roots sync.Map

func makeDebian(packages string) (file string, err error) {
	made, _ := roots.LoadOrStore(packages, sync.OnceValues(func() (string, error) {
		file := filepath.Join(project, "bin", "e2e", cmp.Or(strings.ReplaceAll(packages, ",", "+"), "minimal")+".tar")
		if _, err := os.Stat(file); err == nil {
			return file, nil
		}
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return "", err
		}
		part := file + ".part.tar"
		args := []string{"--quiet", "--variant=minbase", "--skip=cleanup", "bookworm", part}
		if packages != "" {
			minimal, err := makeDebian("")
			if err != nil {
				return "", err
			}
			// The image's package manager installs them, as a Dockerfile has it do, and marks which were asked for.
			args = []string{
				"--quiet", "--variant=custom", "--setup-hook=tar -C \"$1\" -xf '" + minimal + "'",
				`--customize-hook=chroot "$1" env -u APT_CONFIG DEBIAN_FRONTEND=noninteractive apt-get install -q -y ` +
					"-o APT::Install-Recommends=false " + strings.ReplaceAll(packages, ",", " "), "bookworm", part,
			}
		}
		if _, err := try("mmdebstrap", args...); err != nil {
			return "", err
		}
		return file, os.Rename(part, file)
	}))
	return made.(func() (string, error))()
}

// makeAhead makes the root filesystems of the corpus while other tests run: most of the time that takes is waiting for
// packages.
func makeAhead() {
	for _, packages := range []string{
		"python3", "redis-server", "redis-server,gosu", "nginx-light", "nodejs", java, "memcached", "php-fpm", "ruby",
		"perl", daemons, pythons, numbers, scripts, nodes,
		apache, databases, mixed,
	} {
		_, _ = makeDebian(packages) // whoever needs it is told what is wrong
	}
}

// buildImage has Docker make an image from an archive and the lines of a Dockerfile, and pushes it.
func buildImage(t testing.TB, name, archive, dockerfile string) {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.Link(archive, filepath.Join(dir, "root.tar")))
	require.NoError(t,
		os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM scratch\nADD root.tar /\n"+dockerfile), 0o644))
	command(t, "docker", "build", "-q", "-t", name, dir)
	t.Cleanup(func() { _, _ = try("docker", "rmi", "-f", name) })
	command(t, "docker", "push", "-q", name)
}

// container is a running container.
type container struct {
	t    testing.TB
	name string
}

// start runs an image in the background, on the host's network if the options name no other. They go before the image.
func start(t testing.TB, image string, options, args []string) *container {
	t.Helper()
	c := &container{t, fmt.Sprintf("cconvert-e2e-%d", time.Now().UnixNano())}
	if !slices.Contains(options, "--network") {
		options = append([]string{"--network", "host"}, options...)
	}
	command(t, "docker", slices.Concat([]string{"run", "-d", "--name", c.name}, options, []string{image}, args)...)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(c.logs())
		}
		_, _ = try("docker", "rm", "-f", "-v", c.name)
	})
	return c
}

func (c *container) logs() string {
	out, _ := exec.Command("docker", "logs", c.name).CombinedOutput()
	return string(out)
}

// wait returns the exit code.
func (c *container) wait() string {
	c.t.Helper()
	return command(c.t, "docker", "wait", c.name)
}

// stop stops the container as its image says and fails if it takes longer than five seconds.
func (c *container) stop() {
	c.t.Helper()
	begin := time.Now()
	command(c.t, "docker", "stop", "--time", "30", c.name)
	require.Less(c.t, time.Since(begin), 5*time.Second, "stopping the container")
}
