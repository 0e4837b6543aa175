//go:build e2e

package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// sample is a real image and what it must do when it runs.
type sample struct {
	name, packages, dockerfile string
	port                       string
	use                        func(t *testing.T, s *sample, c *container)
}

func samples(t *testing.T) []*sample {
	t.Helper()
	redis, nginx := freePort(t), freePort(t)
	return []*sample{
		{
			name: "redis", packages: "redis-server", port: redis, use: useRedis,
			dockerfile: `VOLUME /data
WORKDIR /data
ENTRYPOINT ["redis-server", "--save", "", "--port", "` + redis + `"]`,
		},
		{
			name: "nginx", packages: "nginx-light", port: nginx, use: useNginx,
			dockerfile: `RUN ["/bin/sed", "-i", "s/listen 80 default_server/listen 127.0.0.1:` + nginx + `/; /listen \\[::\\]/d", "/etc/nginx/sites-available/default"]
STOPSIGNAL SIGQUIT
CMD ["nginx", "-g", "daemon off;"]`,
		},
		{
			name: "python", packages: "python3-minimal", use: usePython,
			dockerfile: `USER nobody
CMD ["python3", "-c", "import os, signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *a: sys.exit(0))\ntry:\n  planted = open('/planted').read()\nexcept OSError as e:\n  planted = e.strerror\nprint('hello from', os.getuid(), planted, sys.argv, flush=True)\ntime.sleep(600)"]`,
		},
	}
}

func named(t *testing.T, name string) *sample {
	t.Helper()
	for _, s := range samples(t) {
		if s.name == name {
			return s
		}
	}
	t.Fatalf("there is no image %s", name)
	return nil
}

func useRedis(t *testing.T, s *sample, c *container) {
	ask := func(request, want string) error {
		conn, err := net.DialTimeout("tcp", "127.0.0.1:"+s.port, time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		fmt.Fprintf(conn, "%s\r\n", request)
		r := bufio.NewReader(conn)
		line, err := r.ReadString('\n')
		if strings.HasPrefix(line, "$") {
			line, err = r.ReadString('\n')
		}
		if err == nil && strings.TrimSpace(line) != want {
			err = fmt.Errorf("the answer is %q", line)
		}
		return err
	}
	eventually(t, "SET", func() error { return ask("SET key value", "+OK") })
	require.NoError(t, ask("GET key", "value"))
	c.stop()
}

func useNginx(t *testing.T, s *sample, c *container) {
	eventually(t, "GET /", func() error {
		resp, err := http.Get("http://127.0.0.1:" + s.port + "/")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err == nil && (resp.StatusCode != http.StatusOK || !strings.Contains(string(b), "nginx")) {
			err = fmt.Errorf("%s: %.100s", resp.Status, b)
		}
		return err
	})
	c.stop()
}

func usePython(t *testing.T, _ *sample, c *container) {
	eventually(t, "the line is printed", func() error {
		if l := c.logs(); !strings.Contains(l, "hello from 65534") {
			return fmt.Errorf("%s", l)
		}
		return nil
	})
	c.stop()
}

// From registry to registry, read back by other tools, and run with Docker.
func TestRealImages(t *testing.T) {
	port := startRegistry(t)
	dir := t.TempDir()
	for _, s := range samples(t) {
		t.Run(s.name, func(t *testing.T) {
			registry := "127.0.0.1:" + port
			source := registry + "/src/" + s.name + ":1"
			buildImage(t, source, debian(t, s.packages), s.dockerfile)

			facts := filepath.Join(dir, s.name+".json")
			out := cconvert(t, source, "--runtime", "sim", "--to", registry+"/confidential/"+s.name+":1", "--output-json", facts)
			_, digest, _ := strings.Cut(out, "@")

			// The same again by another name of the registry, with other jobs, elsewhere.
			again := cconvert(t, strings.Replace(source, "127.0.0.1", "localhost", 1), "--runtime", "sim", "-j", "1", "--to", "oci:"+dir+"/"+s.name+":1")
			assert.True(t, strings.HasSuffix(again, "@"+digest), "%s, not %s", again, digest)

			// Independent readers agree.
			var remote struct{ Digest string }
			require.NoError(t, json.Unmarshal([]byte(command(t, "skopeo", "inspect", "--tls-verify=false", "docker://"+registry+"/confidential/"+s.name+":1")), &remote))
			assert.Equal(t, digest, remote.Digest)
			layout := filepath.Join(dir, s.name+"-copy")
			command(t, "skopeo", "copy", "-q", "--src-tls-verify=false", "docker://"+registry+"/confidential/"+s.name+":1", "oci:"+layout+":1")
			bundle := filepath.Join(dir, s.name+"-bundle")
			command(t, "umoci", "unpack", "--image", layout+":1", bundle)
			info, err := os.Stat(filepath.Join(bundle, "rootfs/cconvert/app/entrypoint.sig"))
			require.NoError(t, err)
			assert.EqualValues(t, 1808, info.Size())
			require.NoError(t, os.RemoveAll(bundle))

			var described struct {
				MREnclave    string `json:"mr_enclave"`
				TrustedFiles int    `json:"trusted_files"`
				Timings      map[string]float64
			}
			b, err := os.ReadFile(facts)
			require.NoError(t, err)
			require.NoError(t, json.Unmarshal(b, &described))
			t.Logf("%s: %d trusted files, %.2f s, MRENCLAVE %s", s.name, described.TrustedFiles, described.Timings["total"], described.MREnclave)
			assert.Contains(t, command(t, program, "inspect", "--json", registry+"/confidential/"+s.name+":1"), described.MREnclave)

			image := "cconvert-e2e/" + s.name + ":1"
			id := cconvert(t, source, "--runtime", "sim", "--to", "docker-daemon:"+image)
			t.Cleanup(func() { _, _ = try("docker", "rmi", "-f", image) })
			assert.Equal(t, id, command(t, "docker", "image", "inspect", "--format", "{{.Id}}", image))
			c := start(t, image, nil, nil)
			s.use(t, s, c)
			assert.Contains(t, c.logs(), "nothing is confidential")
		})
	}
	for _, s := range realRuntime(t) {
		t.Run("gramine "+s.name, func(t *testing.T) { runReal(t, port, s) })
	}
}

// A file that is not in the manifest cannot be read, a file that was changed stops the start.
func TestSimulationProtects(t *testing.T) {
	port := startRegistry(t)
	s := named(t, "python")
	source := "127.0.0.1:" + port + "/src/python:1"
	buildImage(t, source, debian(t, s.packages), s.dockerfile)
	image := "cconvert-e2e/protect:1"
	cconvert(t, "docker-daemon:"+source, "--runtime", "sim", "--to", "docker-daemon:"+image)
	t.Cleanup(func() { _, _ = try("docker", "rmi", "-f", image) })
	dir := t.TempDir()
	planted := filepath.Join(dir, "planted")
	require.NoError(t, os.WriteFile(planted, []byte("planted"), 0o644))

	plain := start(t, source, []string{"-v", planted + ":/planted:ro"}, nil)
	eventually(t, "without confinement the file is read", func() error { return has(plain.logs(), "65534 planted") })
	confined := start(t, image, []string{"-v", planted + ":/planted:ro"}, []string{"ignored"})
	eventually(t, "with confinement it is not", func() error { return has(confined.logs(), "65534 Permission denied ['-c']") })
	assert.Contains(t, confined.logs(), `the arguments ["ignored"] are ignored`)

	for path, change := range map[string]string{
		"/etc/os-release":                       "/etc/os-release was changed",
		"/cconvert/app/entrypoint.manifest.sgx": "was changed after signing",
		"/cconvert/app/entrypoint.sig":          "SIGSTRUCT is not valid",
	} {
		changed := filepath.Join(dir, "changed")
		c := start(t, image, nil, nil)
		command(t, "docker", "cp", "-L", c.name+":"+path, changed)
		b, err := os.ReadFile(changed)
		require.NoError(t, err)
		b[len(b)/2] ^= 1
		require.NoError(t, os.WriteFile(changed, b, 0o644))
		require.NoError(t, os.Chmod(changed, 0o644))
		tampered := start(t, image, []string{"-v", changed + ":" + path + ":ro"}, nil)
		assert.Equal(t, "4", tampered.wait(), path)
		assert.Contains(t, tampered.logs(), change)
	}
}

// A disk that fills up leaves no image, and is said.
func TestFullDisk(t *testing.T) {
	port := startRegistry(t)
	s := named(t, "python")
	source := "127.0.0.1:" + port + "/full:1"
	buildImage(t, source, debian(t, s.packages), s.dockerfile)
	disk := t.TempDir()
	command(t, "mount", "-t", "tmpfs", "-o", "size=20m", "none", disk)
	t.Cleanup(func() { _, _ = try("umount", "-l", disk) })
	for _, to := range []string{"oci:" + disk + "/layout:1", "docker-archive:" + disk + "/a.tar:a:1"} {
		_, err := try(program, source, "--runtime", "sim", "--key", key, "--to", to)
		require.Error(t, err)
		assert.ErrorContains(t, err, "no space left on device")
		assert.ErrorContains(t, err, "the disk is full")
		assert.ErrorContains(t, err, "exit status 1")
		_, err = try(program, "inspect", to)
		assert.Error(t, err, "no image is there")
	}
	left, err := filepath.Glob(disk + "/*.tar*")
	require.NoError(t, err)
	assert.Empty(t, left)
}

func has(s, want string) error {
	if !strings.Contains(s, want) {
		return fmt.Errorf("%q is not in %q", want, s)
	}
	return nil
}
