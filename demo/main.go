// Command demo shows in a minute what cconvert does: it converts a small image with the simulated runtime, runs it, has
// its secrets released to it, checks that it is this image which runs, and shows that changed ones are refused. It
// needs nothing but Go.
package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/cconvert/cconvert/internal/freeport"
)

const (
	page     = "Hello from a confidential image.\n"
	password = "correct horse battery staple"
	report   = "bin/demo.html"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func say(format string, args ...any) {
	if info, err := os.Stdout.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
		format = "\033[1m" + format + "\033[0m"
	}
	fmt.Printf("\n"+format+"\n", args...)
}

func run() error {
	dir, err := os.MkdirTemp("", "cconvert-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	address, err := freeAddress()
	if err != nil {
		return err
	}
	source := strings.TrimPrefix(server.URL, "http://") + "/demo/web:1"

	say("1. An ordinary image: a web server, started by a script. Pushed to %s", source)
	if err := pushImage(source, address, page); err != nil {
		return fmt.Errorf("making the image: %w", err)
	}

	say("2. The owner's side, on a machine that the owner trusts: keys, a secret, and a server that releases it.")
	key := filepath.Join(dir, "enclave-key.pem")
	owner, err := newOwner(dir, key)
	if err != nil {
		return err
	}
	defer owner.stop()

	say("3. Convert the image. The simulated runtime needs no SGX; nothing of the image is run. It is to get a\n" +
		"password and a certificate, from this server only.")
	converter := func(source, key string) func(...string) (string, error) {
		return func(more ...string) (string, error) {
			args := []string{
				source, "--runtime", "sim", "--key", key, "--secrets", owner.secrets, "--secret", "env:PASSWORD",
				"--secret", "tls:/run/tls",
			}
			return cconvert(append(args, more...)...)
		}
	}
	convert := converter(source, key)
	converted, err := convert()
	if err != nil {
		return err
	}
	fmt.Println(converted)

	say("4. What it would start, and with which identity:")
	facts, err := cconvert("inspect", converted)
	if err != nil {
		return err
	}
	fmt.Println(facts)

	say("5. Is that true? Everything is computed again from the image, and compared with what is expected: this\n" +
		"key. If it is, a policy is written by which the server releases the secrets to this enclave, and to no other.")
	expected := []string{"--signer-key", key, "--source", source, "--allow-simulated", "--secrets-from", owner.pin}
	if err := owner.allow(append(expected, converted)...); err != nil {
		return err
	}

	c, err := newContainer(filepath.Join(dir, "root"), converted, convert)
	if err != nil {
		return err
	}
	say("6. Run it, %s. The loader verifies signature, measurement and every file first; then the enclave proves\n"+
		"to the owner's server what it is, and gets its secrets.", c.how())
	if err := c.start(); err != nil {
		return err
	}
	defer func() { _ = c.stop() }() // which does nothing after the first time
	got, err := fetch("https://" + address + "/")
	if err != nil {
		return fmt.Errorf("fetching the page: %w", err)
	}
	if want := fmt.Sprintf("%sIts password has %d characters.\n", page, len(password)); got != want {
		return fmt.Errorf("the page is %q", got)
	}
	fmt.Printf("GET https://%s/ -> %s", address, got)

	say("7. Is it this image that answers there? Anybody can ask: the server's certificate has a quote about its key.")
	verified, err := cconvert(append([]string{"verify", converted, "--endpoint", address}, expected...)...)
	if err != nil {
		return err
	}
	fmt.Println(verified)
	if err := c.stop(); err != nil {
		return err
	}

	if _, err := cconvert("inspect", converted, "--html", report); err != nil {
		return err
	}
	say("8. Change one byte of one file, as the owner of the machine could, and run it again.")
	changed := strings.Replace(page, "H", "J", 1)
	if err := c.tamper("app/page.html", []byte(changed)); err != nil {
		return err
	}
	if err := c.ends(exitRefused); err != nil {
		return err
	}

	say("9. So somebody converts an image with that change, with a key of his own. It starts, and gets no secrets.")
	if err := pushImage(source+"-changed", address, changed); err != nil {
		return fmt.Errorf("making the changed image: %w", err)
	}
	other := filepath.Join(dir, "other-key.pem")
	if _, err := cconvert("keygen", "--out", other); err != nil {
		return err
	}
	convert = converter(source+"-changed", other)
	if converted, err = convert(); err != nil {
		return err
	}
	if c, err = newContainer(filepath.Join(dir, "changed"), converted, convert); err != nil {
		return err
	}
	if err := c.ends(exitNoSecrets); err != nil {
		return err
	}

	say("10. What the owner's server decided, each line with the digest of the one before:")
	decisions, err := cconvert("release", "log", owner.log)
	if err != nil {
		return err
	}
	fmt.Println(decisions)
	if strings.Count(decisions, "  released  ") != 1 || strings.Count(decisions, "  refused  ") != 1 {
		return errors.New("the log does not say what happened")
	}
	say("That is the whole idea: what was measured is what runs, and gets the secrets, or nothing does.")
	fmt.Printf("%s shows the image as a page: open it in a browser.\n"+
		"Now your own image: bin/cconvert docker-daemon:APP --runtime sim --to docker-daemon:APP-sim\n", report)
	return nil
}

func freeAddress() (string, error) {
	port, err := freeport.Find()
	return net.JoinHostPort("127.0.0.1", port), err
}

// pushImage makes the image from the server's program, a page and a script.
func pushImage(ref, address, page string) error {
	program, err := os.ReadFile("bin/demo-server")
	if err != nil {
		return err
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range []struct {
		name, content string
		mode          int64
	}{
		{"app/server", string(program), 0o755},
		{"app/page.html", page, 0o644},
		{
			"app/start", "#!/app/server\nlisten " + address + "\npage /app/page.html\ntls /run/tls\n" +
				"password PASSWORD\n", 0o755,
		},
	} {
		if err := w.WriteHeader(&tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.content))}); err != nil {
			return err
		}
		if _, err := io.WriteString(w, f.content); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(b.Bytes())), nil
	})
	if err != nil {
		return err
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Created = "linux", "amd64",
		v1.Time{Time: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	config.Config.Entrypoint = []string{"/app/start"}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		return err
	}
	tag, err := name.NewTag(ref)
	if err != nil {
		return err
	}
	return remote.Write(tag, img)
}

// cconvert runs the program that was built and returns its standard output.
func cconvert(args ...string) (string, error) {
	fmt.Println("$ cconvert", strings.Join(args, " "))
	cmd := command(args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	return strings.TrimSpace(string(out)), err
}

func command(args ...string) *exec.Cmd {
	cmd := exec.Command("bin/cconvert", args...)
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "CCONVERT_") { // the settings of whoever tries this are not for it
			cmd.Env = append(cmd.Env, kv)
		}
	}
	return cmd
}

// fetch gets a page. Who answers is shown by the quote in the certificate, which is looked at afterwards.
func fetch(url string) (string, error) {
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return "", err
		}
		resp, err := client.Do(req)
		if err == nil {
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			return string(b), err
		}
		select {
		case <-ctx.Done():
			return "", errors.Join(ctx.Err(), err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
