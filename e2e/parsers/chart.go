package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"

	kedav1alpha1 "github.com/kedacore/keda/v2/apis/keda/v1alpha1"
	helm "helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/lint"
	"helm.sh/helm/v3/pkg/lint/support"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	sigsyaml "sigs.k8s.io/yaml"
)

// needed are the values that have no default.
const needed = `
image: {repository: registry.example/cconvert, digest: "sha256:` + zeros + `"}
registries: {secret: registries}
service: {rules: "version: 1"}
`

const zeros = "0000000000000000000000000000000000000000000000000000000000000000"

// wanted are values over those for which the chart must make objects that Kubernetes takes, and how many.
var wanted = map[string]struct {
	values  string
	objects int
}{
	"as they are":     {"", 10},
	"no service":      {"autoscaling: {mode: none}\nservice: {enabled: false}", 6},
	"a trial":         {"nats: {replicas: 1}", 9},
	"KEDA":            {"autoscaling: {mode: keda, min: 0}", 10},
	"another's queue": {"nats: {url: \"tls://nats.example:4222\", caSecret: ca}", 5},
	"OpenShift": {`
podSecurityContext: {runAsUser: null, fsGroup: null}
nats: {podSecurityContext: {runAsUser: null, fsGroup: null}}
`, 10},
	"everything": {`
imagePullSecrets: [{name: pull}]
worker:
  attestKey: {secret: attest}
  args: [--image-timeout, 2h]
  podAnnotations: {a: b}
  nodeSelector: {disk: fast}
  tolerations: [{key: a, operator: Exists}]
  affinity: {nodeAffinity: {}}
  extraEnv: [{name: HTTPS_PROXY, value: "http://proxy.example:3128"}]
  extraVolumes: [{name: more, emptyDir: {}}]
  extraVolumeMounts: [{name: more, mountPath: /more}]
service:
  registriesSecret: reader
  ingress: {host: cconvert.example, className: nginx, annotations: {a: b}, tlsSecret: tls}
  rules: "version: 1\n# \"quoted\": {{ and braces }}\n"
  files: {build.pub: "-----BEGIN"}
  tls: {secret: tls}
  podAnnotations: {a: b}
registries: {secret: registries, file: .dockerconfigjson}
nats: {storageClass: fast, nodeSelector: {disk: fast}, tolerations: [{key: a, operator: Exists}]}
`, 11},
}

// incomplete are values that lack something, refused are values over those that are needed which the chart must not
// take; and what it says of them.
var incomplete, refused = map[string][2]string{
	"no image":  {"service: {rules: x}", "image.repository"},
	"no digest": {"image: {repository: a}\nservice: {rules: x}", "image.digest"},
	"a tag":     {"image: {repository: a, digest: latest}", "digest"},
	"no rules":  {"image: {repository: a, digest: \"sha256:" + zeros + "\"}", "service.rules"},
}, map[string][2]string{
	"a mistake":       {"workers: {replicas: 2}", "workers"},
	"KEDA elsewhere":  {"autoscaling: {mode: keda}\nnats: {url: \"nats://n:4222\"}", "keda"},
	"a password":      {"nats: {url: \"nats://user:password@n:4222\"}", "url"},
	"TLS of its own":  {"nats: {caSecret: ca}", "caSecret"},
	"less than least": {"autoscaling: {mode: hpa, min: 3, max: 2}", "autoscaling.min"},
	"two servers":     {"nats: {url: \"nats://a:4222,nats://b:4222\"}", "url"},
	"the rules twice": {"service: {rules: x, files: {rules.yaml: y}}", "rules.yaml"},
}

// chart renders a Helm chart with Helm's libraries, and compares it with the plain manifests.
func chart(dir, plain string) error {
	c, err := loader.LoadDir(dir)
	if err != nil {
		return err
	}
	var least map[string]any
	if err := sigsyaml.Unmarshal([]byte(needed), &least); err != nil {
		return err
	}
	for _, m := range lint.All(dir, least, "cconvert", true).Messages {
		if m.Severity >= support.WarningSev {
			return m
		}
	}
	for what, w := range wanted {
		found, err := render(c, needed, w.values)
		if err == nil && len(found) != w.objects {
			err = fmt.Errorf("there are %d objects, not %d", len(found), w.objects)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	for what, r := range incomplete {
		if err := refuses(c, r[1], r[0]); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	for what, r := range refused {
		if err := refuses(c, r[1], needed, r[0]); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	if err := sameSpecs(c, "", plain, "nats.yaml", "worker.yaml", "service.yaml", "autoscaler.yaml"); err != nil {
		return err
	}
	return sameSpecs(c, wanted["KEDA"].values, plain, "keda.yaml")
}

// refuses reports that a chart takes values, or says something else of them.
func refuses(c *helm.Chart, says string, values ...string) error {
	_, err := render(c, values...)
	if err == nil || !strings.Contains(err.Error(), says) {
		return fmt.Errorf("an error about %s expected: %w", says, err)
	}
	return nil
}

// values renders the chart in a directory like deploy/ with its file values.yaml.
func values(dir string) error {
	text, err := os.ReadFile(filepath.Join(dir, "values.yaml"))
	if err != nil {
		return err
	}
	c, err := loader.LoadDir(filepath.Join(dir, "helm", "cconvert"))
	if err != nil {
		return err
	}
	_, err = render(c, string(text))
	return err
}

// render returns the objects that a chart makes for values. Of several, the later ones replace members of the earlier.
func render(c *helm.Chart, texts ...string) (map[string]any, error) {
	values := map[string]any{}
	for _, text := range texts {
		if err := sigsyaml.Unmarshal([]byte(text), &values); err != nil {
			return nil, err
		}
	}
	all, err := chartutil.ToRenderValues(c, values, chartutil.ReleaseOptions{
		Name: "cconvert", Namespace: "cconvert", IsInstall: true,
	}, chartutil.DefaultCapabilities)
	if err != nil {
		return nil, err
	}
	files, err := engine.Render(c, all)
	if err != nil {
		return nil, err
	}
	found := map[string]any{}
	for name, text := range files {
		if strings.HasSuffix(name, ".txt") || strings.TrimSpace(text) == "" {
			continue
		}
		objects, err := parse([]byte(text))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		for k, o := range objects {
			if _, twice := found[k]; twice {
				return nil, fmt.Errorf("%s is there twice", k)
			}
			found[k] = o
		}
	}
	return found, nil
}

// sameSpecs reports in what the pods and scalers that the chart makes for values differ from those of plain manifests.
func sameSpecs(c *helm.Chart, values, plain string, files ...string) error {
	have, err := render(c, needed, values)
	if err != nil {
		return err
	}
	for _, file := range files {
		text, err := os.ReadFile(filepath.Join(plain, file))
		if err != nil {
			return err
		}
		objects, err := parse(text)
		if err != nil {
			return err
		}
		for name, o := range objects {
			kind, short, _ := strings.Cut(name, "/")
			if kind == "Service" && short == "cconvert" { // which has the name of the release
				continue
			}
			other := have[kind+"/cconvert-"+short]
			if other == nil {
				return fmt.Errorf("the chart has no %s", name)
			}
			a, err := specOf(o)
			if err != nil {
				return err
			}
			b, err := specOf(other)
			if err != nil {
				return err
			}
			if !reflect.DeepEqual(a, b) {
				return fmt.Errorf("%s differs: %v in %s, %v in the chart", name, a, file, b)
			}
		}
	}
	return nil
}

// specOf is what must be the same of an object, without what names it and what it is named by.
func specOf(o any) (v any, err error) {
	switch o := o.(type) {
	case *appsv1.Deployment:
		for i, volume := range o.Spec.Template.Spec.Volumes {
			if volume.Secret != nil {
				o.Spec.Template.Spec.Volumes[i].Secret.Optional = nil // the chart leaves the volume out
			}
		}
		for i := range o.Spec.Template.Spec.Containers {
			o.Spec.Template.Spec.Containers[i].ImagePullPolicy = "" // a digest says all
		}
		v = o.Spec.Template.Spec
	case *appsv1.StatefulSet:
		if a := o.Spec.Template.Spec.Affinity; a != nil {
			for i := range a.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution {
				a.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution[i].PodAffinityTerm.LabelSelector = nil
			}
		}
		v = []any{o.Spec.Template.Spec, o.Spec.Replicas, o.Spec.VolumeClaimTemplates, o.Spec.PodManagementPolicy}
	case *autoscalingv2.HorizontalPodAutoscaler:
		v = o.Spec
	case *kedav1alpha1.ScaledObject:
		v = o.Spec
	default:
		return nil, nil
	}
	text, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	named := regexp.MustCompile(`cconvert-(nats|worker|service|rules)`).ReplaceAllString(string(text), "$1")
	if err := json.Unmarshal([]byte(named), &v); err != nil {
		return nil, errors.New("no JSON: " + named)
	}
	return v, nil
}
