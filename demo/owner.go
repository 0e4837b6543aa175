package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
)

// owner is the side that has secrets, and a server for them.
type owner struct {
	dir, log string
	// secrets is how images name the server, and pin how it is recognised.
	secrets, pin string
	server       *exec.Cmd
}

var listening = regexp.MustCompile(`listening on (\S+), (pin=sha256/[^"\s]+)`)

// newOwner makes the keys, keeps a password, and starts the server.
func newOwner(dir, key string) (*owner, error) {
	o := &owner{dir: dir, log: filepath.Join(dir, "release.log")}
	given := filepath.Join(dir, "given")
	if err := os.WriteFile(given, []byte(password), 0o600); err != nil {
		return nil, err
	}
	for _, args := range [][]string{
		{"keygen", "--out", key}, {"keygen", "--store", filepath.Join(dir, "store.key")},
		append([]string{"release", "secret", "app-password", "--from", given}, o.store()...),
	} {
		if _, err := cconvert(args...); err != nil {
			return nil, err
		}
	}
	args := append([]string{
		"release", "serve", "--listen", "127.0.0.1:0", "--status-listen=", "--allow-simulated",
		"--policies", o.policies(), "--log", o.log,
	}, o.store()...)
	fmt.Println("$ cconvert", strings.Join(args, " "))
	o.server = command(args...)
	out, err := o.server.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := o.server.Start(); err != nil {
		return nil, err
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if m := listening.FindStringSubmatch(lines.Text()); m != nil {
			fmt.Println(m[0])
			o.pin = strings.TrimPrefix(m[2], "pin=")
			o.secrets = "release=https://" + m[1] + "," + m[2]
			go func() { _, _ = io.Copy(io.Discard, out) }()
			return o, nil
		}
	}
	o.stop()
	return nil, errors.New("the server for secrets did not start")
}

func (o *owner) policies() string { return filepath.Join(o.dir, "policies") }

func (o *owner) store() []string {
	return []string{"--store", filepath.Join(o.dir, "secrets"), "--store-key", filepath.Join(o.dir, "store.key")}
}

// allow writes the policy for an image, and has the server read it.
func (o *owner) allow(args ...string) error {
	args = append([]string{
		"release", "allow", "--secret", "env:PASSWORD=app-password", "--secret", "tls:/run/tls=app.example", "--out",
		filepath.Join(o.policies(), "app.toml"),
	}, args...)
	out, err := cconvert(append(args, o.store()...)...)
	if err != nil {
		return err
	}
	fmt.Println(out)
	return o.server.Process.Signal(syscall.SIGHUP)
}

func (o *owner) stop() {
	_ = o.server.Process.Signal(syscall.SIGTERM)
	_ = o.server.Wait() // ends by the signal
}
