// Command demo shows in a minute what cconvert does: it converts a small image with the simulated
// runtime, runs it, changes one byte of it, and shows that it is refused. It needs nothing but Go.
package main

import (
	"archive/tar"
	"bytes"
	"context"
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

const page = "Hello from a confidential image.\n"

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
	if err := pushImage(source, address); err != nil {
		return fmt.Errorf("making the image: %w", err)
	}

	say("2. Convert it. The simulated runtime needs no SGX; nothing of the image is run.")
	key := filepath.Join(dir, "enclave-key.pem")
	if _, err := cconvert("keygen", "--out", key); err != nil {
		return err
	}
	convert := func(more ...string) (string, error) {
		return cconvert(append([]string{source, "--runtime", "sim", "--key", key, "--memory", "256M", "--threads", "8"},
			more...)...)
	}
	converted, err := convert()
	if err != nil {
		return err
	}
	fmt.Println(converted)

	say("3. What it would start, and with which identity:")
	facts, err := cconvert("inspect", converted)
	if err != nil {
		return err
	}
	fmt.Println(facts)

	say("4. Is that true? Everything is computed again from the image, and compared with what is expected: this key.")
	verified, err := cconvert("verify", converted, "--signer-key", key, "--source", source, "--allow-simulated")
	if err != nil {
		return err
	}
	fmt.Println(verified)

	c, err := newContainer(filepath.Join(dir, "root"), converted, convert)
	if err != nil {
		return err
	}
	say("5. Run it, %s. The loader verifies signature, measurement and every file first.", c.how())
	if err := c.start(); err != nil {
		return err
	}
	got, err := fetch("http://" + address + "/")
	if stopErr := c.stop(); err == nil {
		err = stopErr
	}
	if err != nil {
		return fmt.Errorf("fetching the page: %w", err)
	}
	if got != page {
		return fmt.Errorf("the page is %q", got)
	}
	fmt.Printf("GET http://%s/ -> %s", address, got)

	say("6. Change one byte of one file, as the owner of the machine could, and run it again.")
	if err := c.tamper("app/page.html", []byte(strings.Replace(page, "H", "J", 1))); err != nil {
		return err
	}
	if err := c.refuses(); err != nil {
		return err
	}
	say("Refused. That is the whole idea: what was measured is what runs, or nothing does.")
	return nil
}

func freeAddress() (string, error) {
	port, err := freeport.Find()
	return net.JoinHostPort("127.0.0.1", port), err
}

// pushImage makes the image from the server's program, a page and a script.
func pushImage(ref, address string) error {
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
		{"app/start", "#!/app/server\nlisten " + address + "\npage /app/page.html\n", 0o755},
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
	cmd := exec.Command("bin/cconvert", args...)
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "CCONVERT_") { // the settings of whoever tries this are not for it
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	return strings.TrimSpace(string(out)), err
}

func fetch(url string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return "", err
		}
		resp, err := http.DefaultClient.Do(req)
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
