package deploy_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/yaml"

	"github.com/cconvert/cconvert/internal/deploy"
	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/libos"
)

const shop = `# The shop, as its owners wrote it.
apiVersion: apps/v1
kind: StatefulSet
metadata:
  name: shop
spec:
  serviceName: shop   # headless
  selector: {matchLabels: {app: shop}}
  template:
    metadata:
      labels: {app: shop}
    spec:
      initContainers:
        - name: wait
          image: busybox:1
          command: [sh, -c, "until nc -z db 5432; do sleep 1; done"]
      containers:
        # The cache.
        - name: cache
          image: registry.example/redis:7 # the good one
          command: ["redis-server"]
          args: ["--save", ""]

          env:
            - name: DB_HOST
              value: db
            - {name: LANG, value: C}
          readinessProbe:
            exec: {command: [redis-cli, ping]}
          volumeMounts:
            - {name: config, mountPath: /etc/redis}
          securityContext:
            capabilities: {drop: [ALL]}
            readOnlyRootFilesystem: true
        - name: sidecar
          image: other:1
      volumes:
        - name: config
          configMap: {name: redis}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: redis}
data:
  redis.conf: |
    # kept
    save ""
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: nightly, namespace: shop}
spec:
  schedule: "0 3 * * *"
  jobTemplate:
    spec:
      template:
        spec:
          restartPolicy: Never
          containers:
          - image: registry.example/redis:7
            name: dump
`

// shopFinder knows one image.
func shopFinder(c *inspect.Converted) deploy.Finder {
	return func(name string) (*deploy.Counterpart, string, error) {
		if name != "registry.example/redis:7" {
			return nil, "there is none", nil
		}
		return &deploy.Counterpart{Image: image, Converted: c, Notice: "it is old"}, "", nil
	}
}

func TestRewrite(t *testing.T) {
	group := int64(107)
	c := redis()
	c.Program.Argv = []string{"redis-server", "--save", ""}
	c.Program.Env = map[string]any{"LANG": "C", "PATH": "/bin"}
	out, notes, err := deploy.Rewrite([]byte(shop), shopFinder(c), deploy.Options{
		Target: deploy.Intel, DeviceGroup: &group, By: "cconvert deploy", PullSecrets: []string{"pull"},
	})
	require.NoError(t, err)
	text := string(out)
	for _, kept := range []string{
		"# The shop, as its owners wrote it.\n", "  serviceName: shop   # headless\n", "        # The cache.\n",
		"image: " + image + " # the good one\n", "    # kept\n    save \"\"\n", "  schedule: \"0 3 * * *\"\n",
		"          command: [sh, -c, \"until nc -z db 5432; do sleep 1; done\"]\n", "\n\n          env:\n",
	} {
		assert.Contains(t, text, kept)
	}
	docs := strings.Split(text, "---\n")
	require.Len(t, docs, 5, "two claims are new")
	var set appsv1.StatefulSet
	require.NoError(t, yaml.UnmarshalStrict([]byte(docs[0]), &set))
	pod := set.Spec.Template.Spec
	cache := pod.Containers[0]
	assert.Empty(t, cache.Command)
	assert.Empty(t, cache.Args)
	assert.Equal(t, "1Gi", cache.Resources.Limits.Name("sgx.intel.com/epc", resource.BinarySI).String())
	assert.Equal(t, "250m", cache.Resources.Requests.Cpu().String())
	assert.EqualValues(t, 999, *cache.SecurityContext.RunAsUser)
	assert.True(t, *cache.SecurityContext.ReadOnlyRootFilesystem)
	assert.Equal(t, []int64{107}, pod.SecurityContext.SupplementalGroups)
	assert.EqualValues(t, 999, *pod.SecurityContext.FSGroup)
	assert.Equal(t, "pull", pod.ImagePullSecrets[0].Name)
	assert.Equal(t, "true", pod.NodeSelector["intel.feature.node.kubernetes.io/sgx"])
	assert.Equal(t, "sgx.intel.com/epc", pod.Tolerations[0].Key)
	assert.Equal(t, "shop-cache-data", pod.Volumes[1].PersistentVolumeClaim.ClaimName)
	assert.Equal(t, "/data", cache.VolumeMounts[1].MountPath)
	assert.Equal(t, "aesmd", set.Spec.Template.Annotations["sgx.intel.com/quote-provider"])
	assert.Equal(t, "other:1", pod.Containers[1].Image)
	assert.Nil(t, pod.Containers[1].SecurityContext)
	assert.Len(t, pod.InitContainers[0].Command, 3)
	var job batchv1.CronJob
	require.NoError(t, yaml.UnmarshalStrict([]byte(docs[2]), &job))
	assert.Equal(t, image, job.Spec.JobTemplate.Spec.Template.Spec.Containers[0].Image)
	var claim corev1.PersistentVolumeClaim
	require.NoError(t, yaml.UnmarshalStrict([]byte(docs[4]), &claim))
	assert.Equal(t, "shop", claim.Namespace)

	var said []string
	for _, n := range notes {
		said = append(said, n.String())
	}
	all := strings.Join(said, "\n")
	for _, want := range []string{
		"StatefulSet/shop, container wait: it stays as it is, and is not confidential: there is none",
		"StatefulSet/shop, container cache: it is old",
		"container cache: command and args are left out: they are measured, as they are",
		"container cache: the variable DB_HOST has no effect",
		"container cache: the program cannot open what is mounted at /etc/redis",
		"container cache: the command of readinessProbe runs outside of the enclave",
		"container sidecar: it stays as it is",
		"CronJob/nightly, container dump: a volume of 1Gi is claimed for /data",
	} {
		assert.Contains(t, all, want)
	}
	assert.NotContains(t, all, "LANG")

	// The same again changes nothing more.
	again, _, err := deploy.Rewrite(out, func(name string) (*deploy.Counterpart, string, error) {
		if name != image {
			return nil, "there is none", nil
		}
		return &deploy.Counterpart{Image: image, Converted: c}, "", nil
	}, deploy.Options{Target: deploy.Intel, DeviceGroup: &group})
	require.NoError(t, err)
	assert.Equal(t, text, string(again))
}

// A command of a container would start the program outside of the enclave, whatever the image lets the host choose.
func TestRewriteNoCommand(t *testing.T) {
	pod := "kind: Pod\nmetadata: {name: p}\nspec:\n  containers:\n  - name: a\n    image: registry.example/redis:7\n" +
		"    command: [sh]\n    args: [-c, id]\n"
	for _, host := range []bool{false, true} {
		c := root()
		c.Program = libos.Program{Argv: []string{"redis-server"}, HostArgs: host}
		c.Program.UID = 0
		out, notes, err := deploy.Rewrite([]byte(pod+"  securityContext: {runAsUser: 7}\n"), shopFinder(c),
			deploy.Options{Target: deploy.AKS})
		require.NoError(t, err)
		assert.NotContains(t, string(out), "command:")
		assert.Equal(t, host, strings.Contains(string(out), "args:"))
		assert.Contains(t, notes[1].Text, "left out")
		assert.Contains(t, notes[2].Text, "runAsUser 7 is not the program's, which is 0, measured")
	}
}

// Containers that stay as they are because nobody knows their place are told.
func TestRewriteUntouched(t *testing.T) {
	text := "kind: Pod\nmetadata: {name: p}\nspec:\n  containers:\n  - name: a\n    image: registry.example/redis:7\n" +
		"  ephemeralContainers:\n  - {name: debug, image: tools}\n---\nkind: Rollout\nmetadata: {name: r}\nspec:\n" +
		"  template:\n    spec:\n      containers:\n      - {name: b, image: registry.example/redis:7}\n---\n" +
		"kind: ConfigMap\nmetadata: {name: c}\ndata: {image: \"\"}\n"
	_, notes, err := deploy.Rewrite([]byte(text), shopFinder(root()), deploy.Options{Target: deploy.AKS})
	require.NoError(t, err)
	var said []string
	for _, n := range notes {
		said = append(said, n.String())
	}
	assert.Contains(t, said, "Pod/p, container debug: it stays as it is, and is not confidential: it is for debugging "+
		"the others")
	assert.Contains(t, said, "Rollout/r, container b: it stays as it is, and is not confidential: objects of this "+
		"kind are not known")
	assert.NotContains(t, strings.Join(said, "\n"), "ConfigMap")
}

func TestRewriteRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"kind: Deployment\nspec: {{ .Values.spec }}\n": "not YAML",
		"kind: Service\n": "no containers",
		"kind: Pod\nspec:\n  containers:\n  - image: registry.example/redis:7\n    volumeMounts:\n" +
			"    - {name: v, mountPath: /cconvert/app/}\n": "would hide what starts the enclave",
		"kind: Pod\nspec:\n  containers:\n  - image: registry.example/redis:7\n    volumeMounts:\n" +
			"    - {name: v, mountPath: /x/..}\n": "mounted at / would hide",
		`{"kind": "Pod", "spec": {"containers": [{"image": "registry.example/redis:7"}]}}`: "style",
	} {
		_, _, err := deploy.Rewrite([]byte(text), shopFinder(root()), deploy.Options{Target: deploy.AKS})
		assert.ErrorIs(t, err, deploy.ErrOption, text)
		assert.ErrorContains(t, err, want)
	}
	_, _, err := deploy.Rewrite([]byte(shop), shopFinder(redis()), deploy.Options{Target: deploy.Intel})
	assert.ErrorContains(t, err, "--device-group")
	_, _, err = deploy.Rewrite([]byte(shop), shopFinder(redis()), deploy.Options{Target: deploy.Docker})
	assert.ErrorContains(t, err, "no meaning for the target docker")
}
