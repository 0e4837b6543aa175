//go:build e2e

package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/cconvert/cconvert/internal/fixture"
)

// redisEntrypoint is what images of Redis start with: root hands over the directory, and starts the server as another
// user.
const redisEntrypoint = `#!/bin/sh
set -e
if [ "$1" = redis-server ] && [ "$(id -u)" = 0 ]; then
	find . \! -user redis -exec chown redis '{}' +
	exec gosu redis "$0" "$@"
fi
exec "$@"
`

// What deploy writes starts the program under the restrictions that are in it: user, capabilities, no new privileges,
// and a root file system that cannot be written to. Docker enforces them here, as a node of Kubernetes does.
func TestDeployments(t *testing.T) {
	registry := "127.0.0.1:" + startRegistry(t)
	classes := t.TempDir()
	command(t, "javac", "--release", "17", "-d", classes, "testdata/Counter.java")
	ports := func(p string) map[string]struct{} { return map[string]struct{}{p: {}} }
	for _, c := range []struct {
		name   string
		config v1.Config
		layers []v1.Layer
		flags  []string
		user   int64 // 0: root
		add    []corev1.Capability
		answer string // of the server; "PONG" is Redis's
	}{
		{
			name:   "nginx",
			config: v1.Config{Cmd: []string{"nginx", "-g", "daemon off;"}, ExposedPorts: ports("80/tcp")},
			layers: []v1.Layer{base(t, "nginx-light")}, answer: "Welcome to nginx",
			add: []corev1.Capability{"CHOWN", "DAC_OVERRIDE", "NET_BIND_SERVICE", "SETGID", "SETUID"},
		},
		{
			name: "redis", config: v1.Config{
				Entrypoint: []string{"docker-entrypoint.sh"}, Cmd: []string{"redis-server", "--protected-mode", "no"},
				WorkingDir: "/data", Volumes: map[string]struct{}{"/data": {}}, ExposedPorts: ports("6379/tcp"),
			},
			layers: []v1.Layer{base(t, "redis-server,gosu"), fixture.Layer(t,
				fixture.Program("usr/local/bin/docker-entrypoint.sh", redisEntrypoint), fixture.Dir("data"))},
			add: []corev1.Capability{"CHOWN", "DAC_OVERRIDE", "SETGID", "SETUID"}, answer: "PONG",
		},
		{
			name: "python", config: v1.Config{
				Cmd: []string{"python3", "-m", "http.server", "80", "--directory", "/srv"}, User: "1000:1001",
				ExposedPorts: ports("80/tcp"),
			},
			layers: []v1.Layer{base(t, "python3"), fixture.Layer(t, fixture.File("srv/index.html", page))},
			user:   1000, add: []corev1.Capability{"NET_BIND_SERVICE"}, answer: page,
		},
		{
			name: "java", config: v1.Config{
				Cmd: []string{"java", "-Xmx64m", "-cp", "/opt", "Counter"}, User: "1000:1001",
				ExposedPorts: ports("8080/tcp"),
			},
			layers: []v1.Layer{base(t, java), fixture.Layer(t,
				fixture.File("opt/Counter.class", hostFile(t, filepath.Join(classes, "Counter.class"))))},
			flags: []string{"--encrypt-mount", "/data"}, user: 1000, answer: "visitor 1",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			tag, err := name.NewTag(registry + "/deployed/" + c.name + ":1")
			require.NoError(t, err)
			require.NoError(t, remote.Write(tag, fixture.Image(t, c.config, c.layers...)))
			cconvert(t, append([]string{tag.String(), "--runtime", "sim"}, c.flags...)...)
			text := command(t, program, "deploy", tag.String()+"-confidential", "--target", "intel")
			var d appsv1.Deployment
			for _, doc := range strings.Split(text, "---\n") {
				if strings.Contains(doc, "kind: Deployment") {
					require.NoError(t, yaml.UnmarshalStrict([]byte(doc), &d))
				}
			}
			pod := d.Spec.Template.Spec
			security := pod.Containers[0].SecurityContext
			assert.Equal(t, c.add, security.Capabilities.Add)
			if c.user != 0 {
				assert.Equal(t, c.user, *pod.SecurityContext.RunAsUser)
			}
			assert.True(t, *security.ReadOnlyRootFilesystem)
			image := pod.Containers[0].Image
			t.Cleanup(func() { _, _ = try("docker", "rmi", "-f", image) })
			volumes := t.TempDir()
			for visitor := 1; visitor <= 2; visitor++ { // a pod that comes after another one
				started := start(t, image, asDocker(t, pod, volumes), nil)
				address := command(t, "docker", "inspect", "-f", "{{.NetworkSettings.IPAddress}}", started.name)
				port := pod.Containers[0].ReadinessProbe.TCPSocket.Port.String()
				eventually(t, "it answers", func() error { return answers(net.JoinHostPort(address, port), c.answer) })
				command(t, "docker", "rm", "-f", started.name)
				c.answer = strings.Replace(c.answer, "visitor 1", "visitor 2", 1)
			}
		})
	}
}

// asDocker returns what Docker is told, so that it starts the first container of a pod as a node does. Claims are
// directories below that of the volumes.
func asDocker(t *testing.T, pod corev1.PodSpec, volumes string) []string {
	t.Helper()
	c := pod.Containers[0]
	options := []string{"--network", "bridge", "--sysctl", "net.ipv4.ip_unprivileged_port_start=1024"}
	for _, s := range pod.SecurityContext.Sysctls {
		options = append(options, "--sysctl", s.Name+"="+s.Value)
	}
	if id := pod.SecurityContext.RunAsUser; id != nil {
		options = append(options, "--user", fmt.Sprintf("%d:%d", *id, *pod.SecurityContext.RunAsGroup))
	}
	for _, capability := range c.SecurityContext.Capabilities.Drop {
		options = append(options, "--cap-drop", string(capability))
	}
	for _, capability := range c.SecurityContext.Capabilities.Add {
		options = append(options, "--cap-add", string(capability))
	}
	require.False(t, *c.SecurityContext.AllowPrivilegeEscalation)
	options = append(options, "--security-opt", "no-new-privileges")
	if *c.SecurityContext.ReadOnlyRootFilesystem {
		options = append(options, "--read-only")
	}
	for _, m := range c.VolumeMounts {
		i := slices.IndexFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name })
		require.GreaterOrEqual(t, i, 0, m.Name)
		if pod.Volumes[i].EmptyDir != nil {
			options = append(options, "--tmpfs", m.MountPath+":exec,mode=0777")
			continue
		}
		dir := filepath.Join(volumes, m.Name)
		if os.Mkdir(dir, 0o755) == nil && pod.SecurityContext.FSGroup != nil {
			require.NoError(t, os.Chown(dir, 0, int(*pod.SecurityContext.FSGroup)))
			require.NoError(t, os.Chmod(dir, 0o775|os.ModeSetgid))
		}
		options = append(options, "--volume", dir+":"+m.MountPath)
	}
	return options
}

func answers(address, want string) error {
	if want == "PONG" {
		c, err := net.Dial("tcp", address)
		if err != nil {
			return err
		}
		defer c.Close()
		fmt.Fprint(c, "PING\r\nQUIT\r\n")
		b, err := io.ReadAll(c)
		if err != nil {
			return err
		}
		return has(string(b), want)
	}
	r, err := http.Get("http://" + address + "/")
	if err != nil {
		return err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err != nil {
		return err
	}
	return has(string(b), want)
}
