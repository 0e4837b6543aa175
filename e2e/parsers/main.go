// Command parsers reads the files of deploy/ by the parsers of what they are for, and ends with an error where one of
// them would not be taken; or policies in Rego, which it evaluates; or values of the Helm chart,
// which it renders. It is a module of its own: cconvert needs none of this.
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	kedav1alpha1 "github.com/kedacore/keda/v2/apis/keda/v1alpha1"
	"github.com/rhysd/actionlint"
	tektonv1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	sigsyaml "sigs.k8s.io/yaml"
)

func main() {
	read := run
	if len(os.Args) > 2 {
		read = map[string]func(string) error{"policies": policies, "values": values}[os.Args[2]]
	}
	if err := read(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "parsers:", err)
		os.Exit(1)
	}
}

// run reads what is in a directory like deploy/.
func run(dir string) error {
	kubernetes, err := filepath.Glob(filepath.Join(dir, "kubernetes", "*.yaml"))
	if err != nil || len(kubernetes) == 0 {
		return fmt.Errorf("%s has no manifests for Kubernetes: %w", dir, err)
	}
	for _, file := range append(kubernetes, filepath.Join(dir, "tekton", "task.yaml")) {
		if err := objects(file); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	if err := chart(filepath.Join(dir, "helm", "cconvert"), filepath.Join(dir, "kubernetes")); err != nil {
		return fmt.Errorf("the Helm chart: %w", err)
	}
	return workflow(filepath.Join(dir, "github"))
}

// kinds are those that may stand in the files, each by a type of its own.
var kinds = map[string]func() any{
	"v1/Namespace": func() any { return &corev1.Namespace{} }, "v1/Service": func() any { return &corev1.Service{} },
	"v1/ServiceAccount": func() any {
		return &corev1.ServiceAccount{}
	}, "v1/ConfigMap": func() any { return &corev1.ConfigMap{} },
	"apps/v1/StatefulSet": func() any {
		return &appsv1.StatefulSet{}
	}, "apps/v1/Deployment": func() any { return &appsv1.Deployment{} },
	"autoscaling/v2/HorizontalPodAutoscaler": func() any { return &autoscalingv2.HorizontalPodAutoscaler{} },
	"policy/v1/PodDisruptionBudget":          func() any { return &policyv1.PodDisruptionBudget{} },
	"networking.k8s.io/v1/NetworkPolicy":     func() any { return &networkingv1.NetworkPolicy{} },
	"networking.k8s.io/v1/Ingress":           func() any { return &networkingv1.Ingress{} },
	"keda.sh/v1alpha1/ScaledObject":          func() any { return &kedav1alpha1.ScaledObject{} },
	"tekton.dev/v1/Task":                     func() any { return &tektonv1.Task{} },
}

func objects(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	_, err = parse(text)
	return err
}

// parse reads the objects of a file, by their kinds and names.
func parse(text []byte) (map[string]any, error) {
	found := map[string]any{}
	for r := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text))); ; {
		doc, err := r.Read()
		if errors.Is(err, io.EOF) {
			return found, nil
		}
		if err != nil {
			return nil, err
		}
		name, o, err := object(doc)
		if err != nil {
			return nil, err
		}
		found[name] = o
	}
}

func object(text []byte) (name string, o any, err error) {
	var t struct {
		metav1.TypeMeta
		Metadata metav1.ObjectMeta
	}
	if err := sigsyaml.Unmarshal(text, &t); err != nil {
		return "", nil, err
	}
	kind := t.APIVersion + "/" + t.Kind
	make, ok := kinds[kind]
	if !ok {
		return "", nil, fmt.Errorf("there is no %s", kind)
	}
	o = make()
	if err := sigsyaml.UnmarshalStrict(text, o); err != nil {
		return "", nil, fmt.Errorf("%s: %w", kind, err)
	}
	if task, ok := o.(*tektonv1.Task); ok {
		task.SetDefaults(context.Background())
		if err := task.Validate(context.Background()); err != nil {
			return "", nil, fmt.Errorf("%s: %w", kind, err)
		}
	}
	return t.Kind + "/" + t.Metadata.Name, o, nil
}

// workflow reads the action by way of a workflow that uses it, in a repository as GitHub has them.
func workflow(dir string) error {
	repository, err := os.MkdirTemp("", "parsers-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(repository)
	file := filepath.Join(repository, ".github/workflows/example.yml")
	for from, to := range map[string]string{
		"example.yml": file, "action.yml": filepath.Join(repository, "deploy/github/action.yml"),
	} {
		text, err := os.ReadFile(filepath.Join(dir, from))
		if err == nil {
			err = os.MkdirAll(filepath.Dir(to), 0o700)
		}
		if err == nil {
			err = os.WriteFile(to, text, 0o600)
		}
		if err != nil {
			return err
		}
	}
	if err := os.Mkdir(filepath.Join(repository, ".git"), 0o700); err != nil {
		return err
	}
	project, err := actionlint.NewProject(repository)
	if err != nil {
		return err
	}
	l, err := actionlint.NewLinter(os.Stdout, &actionlint.LinterOptions{})
	if err != nil {
		return err
	}
	problems, err := l.LintFile(file, project)
	if err != nil {
		return err
	}
	if len(problems) > 0 {
		return fmt.Errorf("%s: %d problems", dir, len(problems))
	}
	return nil
}
