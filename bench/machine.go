package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/cconvert/cconvert/internal/freeport"
)

// mixed are the packages of the image: servers, interpreters and a virtual machine, about 550 MB.
const mixed = "redis-server,nginx,nodejs,openjdk-17-jre-headless,python3"

// prepare makes what is measured, once for all runs in this directory.
func (b *bench) prepare(ctx context.Context) (err error) {
	if b.program, err = filepath.Abs("bin/cconvert"); err != nil {
		return err
	}
	if b.key, err = filepath.Abs("testdata/vectors/test-signing-key.pem"); err != nil {
		return err
	}
	if err := os.MkdirAll(b.dir, 0o755); err != nil {
		return err
	}
	// Nothing of the user's is used or changed.
	for name, dir := range map[string]string{"XDG_CACHE_HOME": "cache", "XDG_CONFIG_HOME": "config", "HOME": "home"} {
		if err := os.Setenv(name, filepath.Join(b.dir, dir)); err != nil {
			return err
		}
	}
	if err := b.standIn(); err != nil {
		return err
	}
	root := filepath.Join("bin/e2e", strings.ReplaceAll(mixed, ",", "+")+".tar") // which the end-to-end tests have made
	if _, err := os.Stat(root); err != nil {
		fmt.Fprintln(os.Stderr, "making the image")
		if err := os.MkdirAll(filepath.Dir(root), 0o755); err != nil {
			return err
		}
		if _, err := command(ctx, "mmdebstrap", "--quiet", "--variant=minbase", "--include="+mixed, "bookworm", root+
			".part.tar"); err != nil {
			return err
		}
		if err := os.Rename(root+".part.tar", root); err != nil {
			return err
		}
	}
	if b.registry, err = startRegistry(ctx, filepath.Join(b.dir, "registry")); err != nil {
		return err
	}
	layer, err := tarball.LayerFromFile(root, tarball.WithCompressionLevel(gzip.DefaultCompression))
	if err != nil {
		return err
	}
	if err := b.registry.push("mixed:1", v1.Config{Cmd: []string{"redis-server"}}, layer); err != nil {
		return err
	}
	b.mixed, b.image = layer, b.registry.host+"/mixed:1"
	digest, err := layer.Digest()
	if err != nil {
		return err
	}
	b.layer = filepath.Join(b.dir, "registry/docker/registry/v2/blobs/sha256", digest.Hex[:2], digest.Hex, "data")
	// The runtime is packed once, for all images.
	_, err = b.convert(ctx, b.image, b.registry.host+"/mixed:out")
	return err
}

// standIn makes a runtime of the size of Gramine's, in enclave and in layer. The simulation's own is the whole of
// cconvert, which takes many times longer to measure.
func (b *bench) standIn() error {
	pal, err := os.ReadFile("testdata/vectors/pal/pal-bigbss.so")
	if err != nil {
		return err
	}
	rest := make([]byte, 4<<20)
	if _, err := rand.NewChaCha8([32]byte{}).Read(rest); err != nil {
		return err
	}
	b.runtime = filepath.Join(b.dir, "runtime")
	return os.WriteFile(b.runtime, append(pal, rest...), 0o755)
}

func (b *bench) close() { b.registry.stop() }

// registry is Debian's docker-registry on loopback.
type registry struct {
	host string
	cmd  *exec.Cmd
}

func startRegistry(ctx context.Context, dir string) (*registry, error) {
	port, err := freeport.Find()
	if err != nil {
		return nil, err
	}
	host := net.JoinHostPort("127.0.0.1", port)
	config := dir + ".yml"
	text := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: "+
		"{rootdirectory: %s}}\nhttp: {addr: '%s'}\n", dir, host)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	r := &registry{host, exec.CommandContext(ctx, "docker-registry", "serve", config)}
	if err := r.cmd.Start(); err != nil {
		return nil, err
	}
	for range 100 {
		resp, err := http.Get("http://" + host + "/v2/")
		if err == nil {
			resp.Body.Close()
			return r, nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	r.stop()
	return nil, fmt.Errorf("the registry does not answer")
}

func (r *registry) push(repoTag string, config v1.Config, layers ...v1.Layer) error {
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		return err
	}
	c, err := img.ConfigFile()
	if err != nil {
		return err
	}
	c = c.DeepCopy()
	c.OS, c.Architecture, c.Config = "linux", "amd64", config
	if img, err = mutate.ConfigFile(img, c); err != nil {
		return err
	}
	tag, err := name.NewTag(r.host + "/" + repoTag)
	if err != nil {
		return err
	}
	return remote.Write(tag, img)
}

func (r *registry) stop() {
	_ = r.cmd.Process.Kill()
	_ = r.cmd.Wait()
}

// forgetPeak is done before a program starts whose peak is measured: the system counts to it what the process that
// started it once had (proc(5), clear_refs).
func forgetPeak() error {
	debug.FreeOSMemory()
	return os.WriteFile("/proc/self/clear_refs", []byte("5"), 0)
}

// finished is a command that ended well.
type finished struct {
	took time.Duration
	peak int64 // resident memory in bytes, of the largest of its processes
	out  string
}

// command runs a program. The output is kept; what it says on standard error is in the error.
func command(ctx context.Context, name string, args ...string) (finished, error) {
	var out, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := forgetPeak(); err != nil {
		return finished{}, err
	}
	begin := time.Now()
	err := cmd.Run()
	f := finished{took: time.Since(begin), out: strings.TrimSpace(out.String())}
	if err != nil {
		return f, fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, stderr.String())
	}
	if u, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		f.peak = u.Maxrss << 10
	}
	return f, nil
}

// timeOf returns how long a command takes, without anything that comes before.
func timeOf(ctx context.Context, before func() error, name string, args ...string) func() (time.Duration, error) {
	return func() (time.Duration, error) {
		if before != nil {
			if err := before(); err != nil {
				return 0, err
			}
		}
		f, err := command(ctx, name, args...)
		return f.took, err
	}
}

// read returns a file's size, after reading all of it: what is measured afterwards finds it in memory.
func read(file string) (int64, error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return io.Copy(io.Discard, f)
}
