package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"archive/tar"
)

// container runs the converted image: in a user namespace over its files or, where that is not
// allowed, with Docker.
type container struct {
	root    string
	argv    []string
	image   string // for Docker; empty for a user namespace
	cmd     *exec.Cmd
	changed []string // files to be copied into the Docker container
}

const dockerName = "cconvert-demo"

// newContainer unpacks the image and finds out what can run it. For Docker it is converted once more. With
// DEMO_DOCKER set, Docker is used in any case.
func newContainer(root, ref string, convert func(...string) (string, error)) (*container, error) {
	digest, err := name.NewDigest(ref)
	if err != nil {
		return nil, err
	}
	img, err := remote.Image(digest)
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	if err := unpack(root, img); err != nil {
		return nil, err
	}
	c := &container{root: root, argv: config.Config.Entrypoint}
	program, err := filepath.Abs("bin/cconvert")
	if err != nil {
		return nil, err
	}
	probe := exec.Command(program, "version")
	probe.SysProcAttr = namespace("/")
	if os.Getenv("DEMO_DOCKER") == "" && probe.Run() == nil {
		return c, nil
	}
	if exec.Command("docker", "version").Run() == nil {
		c.image = "cconvert-demo:latest"
		_, err := convert("--to", "docker-daemon:"+c.image)
		return c, err
	}
	return nil, errors.New("the image is converted, but cannot be run here: this machine allows neither user " +
		"namespaces (see user_namespaces(7), sysctl kernel.apparmor_restrict_unprivileged_userns) nor Docker")
}

// namespace makes a process root of its own small world.
func namespace(root string) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS | syscall.CLONE_NEWIPC,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Chroot:      root,
		Pdeathsig:   syscall.SIGKILL,
	}
}

// unpack writes the image's files below a directory that nothing can lead out of.
func unpack(dir string, img v1.Image) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	files := mutate.Extract(img)
	defer files.Close()
	for r := tar.NewReader(files); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		p := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
		if p == "" {
			continue
		}
		if err := root.MkdirAll(path.Dir(p), 0o755); err != nil {
			return err
		}
		switch h.Typeflag {
		case tar.TypeDir:
			err = root.MkdirAll(p, 0o755)
		case tar.TypeSymlink:
			err = root.Symlink(h.Linkname, p)
		case tar.TypeReg:
			var f *os.File
			if f, err = root.OpenFile(p, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, os.FileMode(h.Mode).Perm()); err == nil {
				_, err = io.Copy(f, r)
				err = errors.Join(err, f.Close())
			}
		}
		if err != nil {
			return err
		}
	}
}

func (c *container) how() string {
	if c.image != "" {
		return "with Docker"
	}
	return "in a user namespace"
}

// command prepares the start of the image, as its configuration says.
func (c *container) command() (*exec.Cmd, error) {
	if c.image == "" {
		cmd := exec.Command(c.argv[0], c.argv[1:]...)
		cmd.Env, cmd.Dir = []string{}, "/"
		cmd.SysProcAttr = namespace(c.root)
		return cmd, nil
	}
	_ = exec.Command("docker", "rm", "-f", dockerName).Run()
	if err := exec.Command("docker", "create", "--network", "host", "--name", dockerName, c.image).Run(); err != nil {
		return nil, fmt.Errorf("docker create: %w", err)
	}
	for _, f := range c.changed {
		if err := exec.Command("docker", "cp", filepath.Join(c.root, f), dockerName+":/"+f).Run(); err != nil {
			return nil, fmt.Errorf("docker cp: %w", err)
		}
	}
	return exec.Command("docker", "start", "--attach", dockerName), nil
}

func (c *container) start() error {
	cmd, err := c.command()
	if err != nil {
		return err
	}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	c.cmd = cmd
	return cmd.Start()
}

// stop ends the container, if it runs.
func (c *container) stop() error {
	if c.cmd == nil {
		return nil
	}
	defer func() { c.cmd = nil }()
	if c.image != "" {
		return exec.Command("docker", "rm", "-f", dockerName).Run()
	}
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	_ = c.cmd.Wait() // ends by the signal
	return nil
}

// tamper replaces a file of the image.
func (c *container) tamper(file string, content []byte) error {
	c.changed = append(c.changed, file)
	return os.WriteFile(filepath.Join(c.root, file), content, 0o644)
}

// Exit codes of images that do not start their program.
const (
	exitRefused   = 4   // the loader's: something was changed
	exitNoSecrets = 125 // the agent's
)

// ends runs the image and expects an exit code.
func (c *container) ends(code int) error {
	defer func() { c.cmd = nil }()
	if err := c.start(); err != nil {
		return err
	}
	timeout := time.AfterFunc(20*time.Second, func() { _ = c.cmd.Process.Kill() })
	defer timeout.Stop()
	var exit *exec.ExitError
	if err := c.cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != code {
		return fmt.Errorf("the changed image was not refused: %w", err)
	}
	fmt.Println("exit code", code)
	return nil
}
