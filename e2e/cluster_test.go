//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// hosts are containers on a network of their own.
type hosts struct {
	t       *testing.T
	network string
	image   string
	gateway string // this machine, as they see it
}

// newHosts makes a network, and an image with NATS of Debian's package and cconvert.
func newHosts(t *testing.T) *hosts {
	id := fmt.Sprint("cconvert-e2e-", time.Now().UnixNano())
	h := &hosts{t: t, network: id, image: id}
	root := t.TempDir()
	for from, to := range map[string]string{
		"/usr/sbin/nats-server": "usr/bin/nats-server", program: "usr/bin/cconvert",
		"/lib/x86_64-linux-gnu/libc.so.6": "lib/x86_64-linux-gnu/libc.so.6",
		"/lib64/ld-linux-x86-64.so.2":     "lib64/ld-linux-x86-64.so.2",
	} {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(root, to)), 0o755))
		command(t, "cp", "-L", from, filepath.Join(root, to))
	}
	require.NoError(t, os.Mkdir(filepath.Join(root, "tmp"), 0o777))
	command(t, "sh", "-c", fmt.Sprintf("tar -C %s -c . | docker import - %s", root, h.image))
	command(t, "docker", "network", "create", h.network)
	t.Cleanup(func() {
		_, _ = try("docker", "network", "rm", h.network)
		_, _ = try("docker", "rmi", h.image)
	})
	h.gateway = command(t, "docker", "network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", h.network)
	return h
}

// start runs a container and returns its address.
func (h *hosts) start(host string, options []string, args ...string) string {
	h.t.Helper()
	all := append([]string{
		"run", "-d", "--name", h.network + "-" + host, "--hostname", host, "--network", h.network, "--network-alias",
		host,
	}, options...)
	command(h.t, "docker", append(append(all, h.image), args...)...)
	h.t.Cleanup(func() {
		if h.t.Failed() {
			out, _ := exec.Command("docker", "logs", "--tail", "20", h.network+"-"+host).CombinedOutput()
			h.t.Logf("%s: %s", host, out)
		}
		_, _ = try("docker", "rm", "-f", h.network+"-"+host)
	})
	return command(h.t, "docker", "inspect", "-f", "{{(index .NetworkSettings.Networks \""+h.network+"\").IPAddress}}",
		h.network+"-"+host)
}

// partition is how long a worker is cut off.
const partition = time.Minute

// The queue is on a cluster of three, of which one stops; a worker is cut off from all for a minute, with what it had
// begun, and comes back when others have done it.
func TestFleetOnACluster(t *testing.T) {
	h := newHosts(t)
	source, target := startRegistryAt(t, h.gateway), startRegistryAt(t, h.gateway)
	images, bases := fleetSize(t)
	f := newFleet(t, source, images, bases)
	quiet := f.batch("quiet", f.plan(target+"/quiet"))
	require.Len(t, quiet, images)

	var urls []string
	for i := range 3 {
		ip := h.start(fmt.Sprint("nats", i), nil, "nats-server", "-js", "-sd", "/tmp/js", "--server_name",
			fmt.Sprint("nats", i), "--cluster_name", "cconvert",
			"--cluster", "nats://0.0.0.0:6222", "--routes", "nats://nats0:6222,nats://nats1:6222,nats://nats2:6222")
		urls = append(urls, "nats://"+ip+":4222")
	}
	all := strings.Join(urls, ",")
	for i := range 3 {
		h.start(fmt.Sprint("worker", i),
			[]string{"-v", key + ":/key.pem:ro", "-v", f.runtime + ":" + f.runtime + ":ro", "-e", "HOME=/tmp"},
			"cconvert", "worker", "--insecure", "--nats", all, "--key", "/key.pem", "--files", f.dir, "--parallel", "1",
			"--lease", "3s", "--attempts", "20", "--retry-pause", "200ms")
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var repos []string
	for b := range bases {
		repos = append(repos, fmt.Sprintf("loud/base%d", b))
	}
	w, watching := watch(ctx, target, repos)
	healed := make(chan struct{})
	go func() {
		defer close(healed)
		for len(w.tags()) < 5 && ctx.Err() == nil { // the work has begun
			time.Sleep(10 * time.Millisecond)
		}
		_, _ = try("docker", "network", "disconnect", "-f", h.network, h.network+"-worker1")
		_, _ = try("docker", "stop", "-t", "1", h.network+"-nats2")
		time.Sleep(partition)
		_, err := try("docker", "network", "connect", h.network, h.network+"-worker1")
		assert.NoError(t, err)
	}()
	loud := f.batch("loud", f.plan(target+"/loud"), "--nats", all, "--lease", "3s")
	<-healed
	// The worker that came back gives what it had begun no other turn: a second batch finds all done.
	time.Sleep(5 * time.Second)
	again := f.batch("again", f.plan(target+"/loud"), "--nats", all, "--lease", "3s")
	stop()
	watching.Wait()

	require.Len(t, loud, images)
	for tag, r := range loud {
		assert.Contains(t, []string{"converted", "unchanged"}, r.Status, "%s: %s", tag, r.Error)
		assert.Equal(t, quiet[tag].Digest, r.Digest, tag)
		assert.Equal(t, "unchanged", again[tag].Status, "%s: %s", tag, again[tag].Error)
		assert.Equal(t, quiet[tag].Digest, again[tag].Digest, tag)
	}
	assert.Empty(t, w.bad, "what tags named all along")
	for tag, digest := range w.tags() {
		assert.Equal(t, quiet[strings.TrimPrefix(tag, "loud/")].Digest, digest, tag)
	}
}
