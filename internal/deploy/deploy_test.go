package deploy_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/yaml"

	"github.com/cconvert/cconvert/internal/deploy"
	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/recipe"
	"github.com/cconvert/cconvert/pkg/sgx"
)

const image = "registry.example/team/My_App@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// redis is an image that needs all there is: another user, ports, a volume, quotes.
func redis() *inspect.Converted {
	c := &inspect.Converted{
		Layout: inspect.LayoutOurs, User: "redis", Ports: []string{"9000/udp", "6379/tcp"},
		Enclave:   sgx.Settings{EnclaveSize: 1 << 30},
		MREnclave: sgx.Measurement(bytes.Repeat([]byte{0xab}, 32)),
		Program: libos.Program{
			UID: 999, GID: 999,
			Mounts: []libos.Mount{{Type: "tmpfs", Path: "/tmp"}, {Type: "encrypted", Path: "/data"}},
		},
		Recipe: &recipe.Recipe{Options: recipe.Options{Attestation: "dcap"}},
	}
	c.Recipe.Runtime.Kind = "gramine"
	c.LibOS = &libos.Enclave{Direct: []string{
		"/cconvert/gramine/direct/loader", "/cconvert/gramine/direct/libpal.so", "init", libos.App,
	}}
	return c
}

func root() *inspect.Converted {
	return &inspect.Converted{
		Layout: inspect.LayoutOurs, Enclave: sgx.Settings{EnclaveSize: 1 << 30}, Recipe: &recipe.Recipe{},
	}
}

func write(t *testing.T, c *inspect.Converted, o deploy.Options) string {
	t.Helper()
	o.Image = image
	text, err := deploy.Write(c, o)
	require.NoError(t, err)
	return string(text)
}

// decode reads what was written as strictly as the Kubernetes API does.
func decode(t *testing.T, text string) (d appsv1.Deployment, claims []corev1.PersistentVolumeClaim) {
	t.Helper()
	for _, doc := range strings.Split(text, "---\n")[1:] {
		if strings.Contains(doc, "kind: Deployment") {
			require.NoError(t, yaml.UnmarshalStrict([]byte(doc), &d))
			continue
		}
		if strings.Contains(doc, "kind: Service") {
			var s corev1.Service
			require.NoError(t, yaml.UnmarshalStrict([]byte(doc), &s))
			assert.Empty(t, validation.IsDNS1035Label(s.Name))
			assert.Equal(t, d.Spec.Template.Labels, s.Spec.Selector)
			assert.Len(t, s.Spec.Ports, len(d.Spec.Template.Spec.Containers[0].Ports))
			for _, p := range s.Spec.Ports {
				assert.Empty(t, validation.IsValidPortName(p.Name), p.Name)
			}
			continue
		}
		var claim corev1.PersistentVolumeClaim
		require.NoError(t, yaml.UnmarshalStrict([]byte(doc), &claim))
		claims = append(claims, claim)
	}
	return d, claims
}

// A path is the image's: what is in it is one text in what is written, or it is refused.
func TestOddPaths(t *testing.T) {
	group := int64(107)
	odd := func(path string) *inspect.Converted {
		c := redis()
		c.Program.Mounts = []libos.Mount{{Type: "encrypted", Path: path}}
		return c
	}
	for _, path := range []string{
		"/a: b", "/a #b", "/- x", `/"q"`, "/'q'", "/a\\b", "/é", "/ ", "/%a", "/&a *b !c | > @ `", "/{{.a}}",
		"/" + strings.Repeat("long ", 60),
	} {
		d, _ := decode(t, write(t, odd(path), deploy.Options{Target: deploy.Intel, DeviceGroup: &group}))
		assert.Equal(t, path, d.Spec.Template.Spec.Containers[0].VolumeMounts[0].MountPath)
		var f struct {
			Services map[string]struct{ Volumes []string }
		}
		text := write(t, odd(path), deploy.Options{Target: deploy.Compose, DeviceGroup: &group})
		require.NoError(t, yaml.Unmarshal([]byte(text), &f), path)
		assert.True(t, strings.HasSuffix(f.Services["my-app"].Volumes[1], ":"+path), "%q %q", path, f.Services)
	}
	for _, path := range []string{"/a\nkind: Pod", "/a\u2028b", "/a\u0085b", "/\x7f", "/\t", "/\xff"} {
		_, err := deploy.Write(odd(path), deploy.Options{Target: deploy.Intel, Image: image, DeviceGroup: &group})
		assert.ErrorIs(t, err, deploy.ErrOption, "%q", path)
	}
}

func TestKubernetes(t *testing.T) {
	group := int64(107)
	for _, target := range []deploy.Target{deploy.Intel, deploy.AKS, deploy.Alibaba} {
		d, claims := decode(t, write(t, redis(), deploy.Options{
			Target: target, Replicas: 2, Processes: 3, DeviceGroup: &group, Namespace: "team", Storage: "5Gi",
			PullSecrets: []string{"pull"},
		}))
		assert.Equal(t, "my-app", d.Name)
		assert.Equal(t, "team", d.Namespace)
		assert.EqualValues(t, 2, *d.Spec.Replicas)
		assert.Equal(t, d.Spec.Selector.MatchLabels, d.Spec.Template.Labels)
		pod := d.Spec.Template.Spec
		assert.Equal(t, "pull", pod.ImagePullSecrets[0].Name)
		assert.Equal(t, strings.Repeat("ab", 32), d.Spec.Template.Annotations["cconvert.dev/mrenclave"])
		assert.Equal(t, "384Mi", pod.Containers[0].Resources.Requests.Memory().String())
		assert.Equal(t, "250m", pod.Containers[0].Resources.Requests.Cpu().String())
		assert.True(t, *pod.Containers[0].SecurityContext.ReadOnlyRootFilesystem)
		assert.Equal(t, []int64{107}, pod.SecurityContext.SupplementalGroups)
		assert.True(t, *pod.SecurityContext.RunAsNonRoot)
		assert.EqualValues(t, redis().Program.UID, *pod.SecurityContext.RunAsUser)
		assert.EqualValues(t, redis().Program.GID, *pod.SecurityContext.RunAsGroup)
		assert.EqualValues(t, redis().Program.GID, *pod.SecurityContext.FSGroup, "who can write to the volume")
		assert.False(t, *pod.AutomountServiceAccountToken)
		require.Len(t, claims, 1)
		storage := claims[0].Spec.Resources.Requests[corev1.ResourceStorage]
		assert.Equal(t, "5Gi", storage.String())
		assert.Equal(t, claims[0].Name, pod.Volumes[0].PersistentVolumeClaim.ClaimName)
		c := pod.Containers[0]
		assert.Equal(t, image, c.Image)
		assert.Empty(t, c.Args)
		assert.Empty(t, c.Command)
		assert.EqualValues(t, 6379, c.ReadinessProbe.TCPSocket.Port.IntVal)
		assert.Len(t, c.Ports, 2)
		limit := func(name string) string { q := c.Resources.Limits[corev1.ResourceName(name)]; return q.String() }
		switch target {
		case deploy.Intel:
			assert.Equal(t, "3Gi", limit("sgx.intel.com/epc"))
			assert.Equal(t, "1", limit("sgx.intel.com/enclave"))
			assert.Equal(t, "1", limit("sgx.intel.com/provision"))
			assert.Equal(t, "aesmd", d.Spec.Template.Annotations["sgx.intel.com/quote-provider"])
			assert.Equal(t, "true", pod.NodeSelector["intel.feature.node.kubernetes.io/sgx"])
		case deploy.AKS:
			assert.Equal(t, "3Gi", limit("sgx.intel.com/epc"))
			assert.Equal(t, "aesmd", pod.Volumes[1].Name)
		case deploy.Alibaba:
			assert.Equal(t, "3072", limit("alibabacloud.com/sgx_epc_MiB"))
		}
	}
	d, claims := decode(t, write(t, root(), deploy.Options{Target: deploy.AKS, LegacyEPC: true, Name: "x"}))
	q := d.Spec.Template.Spec.Containers[0].Resources.Limits["kubernetes.azure.com/sgx_epc_mem_in_MiB"]
	assert.Equal(t, "1024", q.String())
	assert.Empty(t, claims)
	security := d.Spec.Template.Spec.SecurityContext
	assert.Equal(t, corev1.SeccompProfileTypeRuntimeDefault, security.SeccompProfile.Type)
	assert.Nil(t, security.RunAsNonRoot)
	assert.Nil(t, security.FSGroup)
	assert.Empty(t, d.Spec.Template.Spec.Containers[0].SecurityContext.Capabilities.Add)

	low := root()
	low.Ports = []string{"80/tcp"}
	d, _ = decode(t, write(t, low, deploy.Options{Target: deploy.AKS, Name: "x"}))
	assert.Equal(t, []corev1.Capability{"NET_BIND_SERVICE"},
		d.Spec.Template.Spec.Containers[0].SecurityContext.Capabilities.Add)
}

func TestDocker(t *testing.T) {
	group := int64(107)
	assert.Equal(t, "docker run --detach --name my-app --device /dev/sgx_enclave --device /dev/sgx_provision --volume "+
		"/var/run/aesmd:/var/run/aesmd --group-add 107"+
		" --publish 6379:6379/tcp --publish 9000:9000/udp --volume my-app-data:/data "+image+"\n",
		write(t, redis(), deploy.Options{Target: deploy.Docker, DeviceGroup: &group}))
	assert.Equal(t, "docker run --detach --name my-app --security-opt seccomp=unconfined --entrypoint "+
		"/cconvert/gramine/direct/loader --publish 6379:6379/tcp --publish 9000:9000/udp --volume my-app-data:/data "+
		image+
		" /cconvert/gramine/direct/libpal.so init /cconvert/app/entrypoint\n",
		write(t, redis(), deploy.Options{Target: deploy.Docker, Direct: true}))
}

// The Compose file is one for Compose itself.
func TestCompose(t *testing.T) {
	group := int64(107)
	text := write(t, redis(), deploy.Options{Target: deploy.Compose, DeviceGroup: &group})
	var f struct {
		Services map[string]struct {
			Image    string
			Devices  []string
			GroupAdd []string `json:"group_add"`
		}
		Volumes map[string]any
	}
	require.NoError(t, yaml.Unmarshal([]byte(text), &f))
	assert.Equal(t, image, f.Services["my-app"].Image)
	assert.Contains(t, f.Volumes, "my-app-data")
	if os.Getenv("CI") == "" {
		if _, err := exec.LookPath("docker-compose"); err != nil {
			return // the end-to-end tests and CI have it
		}
	}
	cmd := exec.Command("docker-compose", "-f", "-", "config", "-q")
	cmd.Stdin, cmd.Dir = strings.NewReader(text), t.TempDir()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	assert.NoError(t, cmd.Run(), "%s\n%s", out.String(), text)
}

// What root starts with all capabilities dropped gets back those that its program needs, by its profile; what another
// user starts gets none.
func TestCapabilities(t *testing.T) {
	for _, c := range []struct {
		uid     int
		program libos.Program
		trusted []libos.FileEntry
		recipe  recipe.Options
		want    []corev1.Capability
	}{
		{program: libos.Program{Entrypoint: "/usr/sbin/nginx"}, want: []corev1.Capability{
			"CHOWN", "DAC_OVERRIDE", "SETGID", "SETUID",
		}},
		{program: libos.Program{Entrypoint: "/usr/sbin/nginx", UID: 5}},
		{program: libos.Program{Entrypoint: "/usr/bin/python3"}},
		{program: libos.Program{Entrypoint: "/start"}, trusted: []libos.FileEntry{
			{URI: "file:/usr/bin/memcached", Reason: "named at start"},
			{URI: "file:/usr/sbin/nginx", Reason: "package"},
		}, want: []corev1.Capability{"SETGID", "SETUID"}},
		{program: libos.Program{Entrypoint: "/start"}, recipe: recipe.Options{
			Profile: "ours", ProfileText: "[host]\ncapabilities = [\"NET_RAW\"]\n",
		}, want: []corev1.Capability{"NET_RAW"}},
	} {
		converted := root()
		converted.Program, converted.Trusted, converted.Recipe.Options = c.program, c.trusted, c.recipe
		group := int64(1)
		d, _ := decode(t, write(t, converted, deploy.Options{Target: deploy.AKS, Name: "x", DeviceGroup: &group}))
		assert.Equal(t, c.want, d.Spec.Template.Spec.Containers[0].SecurityContext.Capabilities.Add, c.program)
	}
}

// Ranges of ports are written out, and every volume has a name of its own that Kubernetes takes.
func TestNames(t *testing.T) {
	c := root()
	c.Ports = []string{"8000-8002/tcp", "53/UDP", "8001/tcp"}
	long := "/" + strings.Repeat("very-long/", 10)
	for _, path := range []string{"/a/b", "/a-b", "/é", "/A/b", long + "1", long + "2", "/data"} {
		c.Program.Mounts = append(c.Program.Mounts, libos.Mount{Type: "encrypted", Path: path})
	}
	d, claims := decode(t, write(t, c, deploy.Options{Target: deploy.Intel}))
	var ports []string
	for _, p := range d.Spec.Template.Spec.Containers[0].Ports {
		ports = append(ports, fmt.Sprintf("%d/%s", p.ContainerPort, p.Protocol))
	}
	assert.Equal(t, []string{"53/UDP", "8000/TCP", "8001/TCP", "8002/TCP"}, ports)
	names := map[string]bool{}
	for _, claim := range claims {
		names[claim.Name] = true
		assert.Empty(t, validation.IsDNS1123Label(claim.Name), claim.Name)
	}
	assert.Len(t, names, len(c.Program.Mounts))
	assert.Contains(t, names, "my-app-data")
	assert.Contains(t, names, "my-app-a-b")
}

// An image's health check runs outside the enclave: the port is probed instead, as often.
func TestHealthCheck(t *testing.T) {
	c := root()
	c.Ports = []string{"53/udp", "8080/tcp"}
	c.Health = &v1.HealthConfig{
		Test: []string{"CMD", "/check"}, Interval: 90 * time.Second, Timeout: 1500 * time.Millisecond,
		StartPeriod: time.Minute, Retries: 4,
	}
	d, _ := decode(t, write(t, c, deploy.Options{Target: deploy.Intel}))
	probe := d.Spec.Template.Spec.Containers[0].ReadinessProbe
	assert.EqualValues(t, 8080, probe.TCPSocket.Port.IntVal)
	assert.Equal(t, []int32{60, 90, 2, 4},
		[]int32{probe.InitialDelaySeconds, probe.PeriodSeconds, probe.TimeoutSeconds, probe.FailureThreshold})
	assert.Contains(t, write(t, c, deploy.Options{Target: deploy.Docker}), " --no-healthcheck ")
	assert.Contains(t, write(t, c, deploy.Options{Target: deploy.Compose}), "disable: true")
	c.Health.Test = []string{"NONE"}
	assert.NotContains(t, write(t, c, deploy.Options{Target: deploy.Docker}), "healthcheck")
	c.Health = &v1.HealthConfig{Test: []string{"CMD"}, Interval: -1, Retries: 1 << 40, StartPeriod: 1 << 62}
	d, _ = decode(t, write(t, c, deploy.Options{Target: deploy.Intel}))
	assert.EqualValues(t, 3600, d.Spec.Template.Spec.Containers[0].ReadinessProbe.InitialDelaySeconds)
}

func TestRefuses(t *testing.T) {
	for want, f := range map[string]func() (*inspect.Converted, deploy.Options){
		"in the group that may open": func() (*inspect.Converted, deploy.Options) {
			return redis(), deploy.Options{Target: deploy.Intel}
		},
		"there is no target": func() (*inspect.Converted, deploy.Options) {
			return root(), deploy.Options{Target: "moon"}
		},
		"the name \"A\"": func() (*inspect.Converted, deploy.Options) {
			return root(), deploy.Options{Target: deploy.Docker, Name: "A"}
		},
		"direct mode has no meaning": func() (*inspect.Converted, deploy.Options) {
			return redis(), deploy.Options{Target: deploy.Intel, Direct: true}
		},
		"old clusters has no meaning": func() (*inspect.Converted, deploy.Options) {
			return root(), deploy.Options{Target: deploy.Intel, LegacyEPC: true}
		},
		"more than one container has no meaning": func() (*inspect.Converted, deploy.Options) {
			return root(), deploy.Options{Target: deploy.Docker, Replicas: 2}
		},
		"cannot share": func() (*inspect.Converted, deploy.Options) {
			group := int64(1)
			return redis(), deploy.Options{Target: deploy.Compose, Replicas: 2, DeviceGroup: &group}
		},
		"\"81/foo\", which is no port": func() (*inspect.Converted, deploy.Options) {
			c := root()
			c.Ports = []string{"81/foo"}
			return c, deploy.Options{Target: deploy.Intel}
		},
		"more than 1000 ports": func() (*inspect.Converted, deploy.Options) {
			c := root()
			c.Ports = []string{"1-65535"}
			return c, deploy.Options{Target: deploy.Intel}
		},
		"no replicas": func() (*inspect.Converted, deploy.Options) {
			return root(), deploy.Options{Target: deploy.Docker, Replicas: -1}
		},
		"Gramine's runtime": func() (*inspect.Converted, deploy.Options) {
			return root(), deploy.Options{Target: deploy.Docker, Direct: true}
		},
		"the size \"much\"": func() (*inspect.Converted, deploy.Options) {
			c := redis()
			c.Program.UID = 0
			return c, deploy.Options{Target: deploy.AKS, Storage: "much"}
		},
	} {
		c, o := f()
		o.Image = image
		_, err := deploy.Write(c, o)
		assert.ErrorIs(t, err, deploy.ErrOption)
		assert.ErrorContains(t, err, want)
	}
}

// An image that only Docker on this machine has is started by its name, and no registry is asked for it.
func TestLocal(t *testing.T) {
	group := int64(1)
	o := deploy.Options{Image: "app:1", Local: true, DeviceGroup: &group, Target: deploy.Docker}
	text, err := deploy.Write(redis(), o)
	require.NoError(t, err)
	assert.Regexp(t, `^docker run .*--pull never .* app:1\n$`, string(text))
	o.Target = deploy.Compose
	text, err = deploy.Write(redis(), o)
	require.NoError(t, err)
	assert.Contains(t, string(text), "image: app:1\n")
	assert.Contains(t, string(text), "pull_policy: never\n")
	for _, target := range []deploy.Target{deploy.Intel, deploy.AKS, deploy.Alibaba} {
		o.Target = target
		_, err := deploy.Write(redis(), o)
		assert.ErrorIs(t, err, deploy.ErrOption, target)
	}
}

// What a simulated image needs is no enclave: no device, no group, no memory of enclaves. Every file says what it is.
func TestSimulated(t *testing.T) {
	for _, target := range deploy.Targets {
		c := redis()
		c.LibOS, c.Recipe.Runtime.Kind = &libos.Enclave{Simulated: true}, "sim"
		text := write(t, c, deploy.Options{Target: target})
		assert.True(t, strings.HasPrefix(text, "# SIMULATED: "), "%s: %s", target, text)
		for _, of := range []string{
			"/dev/sgx", "aesmd", "sgx.intel.com", "sgx_", "epc", "supplementalGroups", "group_add", "--group-add",
			"tolerations",
		} {
			assert.NotContains(t, text, of, target)
		}
	}
}
