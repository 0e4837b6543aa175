package deploy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"
)

// Names of resources and annotations.
const (
	intelEPC       = "sgx.intel.com/epc"
	intelEnclave   = "sgx.intel.com/enclave"
	intelProvision = "sgx.intel.com/provision"
	intelQuotes    = "sgx.intel.com/quote-provider"
	intelNode      = "intel.feature.node.kubernetes.io/sgx"
	aksLegacyEPC   = "kubernetes.azure.com/sgx_epc_mem_in_MiB"
	alibabaEPC     = "alibabacloud.com/sgx_epc_MiB"
)

// kubernetes writes a Deployment, and a claim for each encrypted mount.
func (w *workload) kubernetes() ([]byte, error) {
	labels := map[string]string{"app.kubernetes.io/name": w.Name}
	pod := corev1.PodSpec{
		// A token that is mounted has no digest: the program could not read it.
		AutomountServiceAccountToken: new(false),
		Containers:                   []corev1.Container{w.container()},
	}
	meta := metav1.ObjectMeta{Labels: labels, Annotations: map[string]string{}}
	if !w.root() && !w.Simulated() {
		pod.SecurityContext = &corev1.PodSecurityContext{SupplementalGroups: []int64{*w.DeviceGroup}}
	}
	var objects []any
	for _, path := range w.sealed {
		name := w.volumeName(path)
		storage, err := resource.ParseQuantity(w.Storage)
		if err != nil {
			return nil, fmt.Errorf("%w: the size %q of a volume: %w", ErrOption, w.Storage, err)
		}
		pod.Volumes = append(pod.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name},
		}})
		objects = append(objects, corev1.PersistentVolumeClaim{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolumeClaim"},
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: w.Namespace, Labels: labels},
			Spec: corev1.PersistentVolumeClaimSpec{
				AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
				Resources: corev1.VolumeResourceRequirements{
					Requests: corev1.ResourceList{corev1.ResourceStorage: storage},
				},
			},
		})
	}
	if !w.Simulated() {
		w.schedule(&pod, &meta)
	}
	d := appsv1.Deployment{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apps/v1", Kind: "Deployment"},
		ObjectMeta: metav1.ObjectMeta{Name: w.Name, Namespace: w.Namespace, Labels: labels},
		Spec: appsv1.DeploymentSpec{
			Replicas: &w.Replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: meta, Spec: pod},
		},
	}
	if len(w.sealed) > 0 { // two pods must not have the files open
		d.Spec.Strategy.Type = appsv1.RecreateDeploymentStrategyType
	}
	return documents(append(objects, d))
}

// container is the program's. It has no arguments: they are measured, and others would be ignored.
func (w *workload) container() corev1.Container {
	c := corev1.Container{
		Name: w.Name, Image: w.Options.Image,
		SecurityContext: &corev1.SecurityContext{
			AllowPrivilegeEscalation: new(false), Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		},
	}
	limits := corev1.ResourceList{}
	count := func(name string, n uint64) {
		limits[corev1.ResourceName(name)] = *resource.NewQuantity(int64(n), resource.DecimalSI)
	}
	mebibytes := (w.epc() + 1<<20 - 1) >> 20
	switch {
	case w.Simulated(): // it runs on any node
	case w.Target == Alibaba:
		count(alibabaEPC, mebibytes)
	case w.Target == AKS && w.LegacyEPC:
		count(aksLegacyEPC, mebibytes)
	default:
		limits[intelEPC] = *resource.NewQuantity(int64(w.epc()), resource.BinarySI)
		if w.Target == Intel {
			count(intelEnclave, 1)
			if w.quotes() {
				count(intelProvision, 1)
			}
		}
	}
	c.Resources = corev1.ResourceRequirements{Limits: limits}
	for _, p := range w.ports {
		c.Ports = append(c.Ports,
			corev1.ContainerPort{ContainerPort: p.number, Protocol: corev1.Protocol(strings.ToUpper(p.protocol))})
		if c.ReadinessProbe == nil && p.protocol == "tcp" {
			c.ReadinessProbe = w.probe(p.number)
		}
	}
	for _, path := range w.sealed {
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: w.volumeName(path), MountPath: path})
	}
	return c
}

// probe asks for a port from outside: what a probe starts in the container is not in the enclave. How often, and how
// often in vain, is as the image's health check has it.
func (w *workload) probe(port int32) *corev1.Probe {
	p := &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(
		port)}}}
	if !w.checked() {
		return p
	}
	seconds := func(d time.Duration) int32 {
		return int32(min((max(d, 0)+time.Second-1)/time.Second, time.Hour/time.Second))
	}
	p.InitialDelaySeconds, p.PeriodSeconds, p.TimeoutSeconds = seconds(w.Health.StartPeriod),
		seconds(w.Health.Interval), seconds(w.Health.Timeout)
	p.FailureThreshold = int32(min(max(w.Health.Retries, 0), 100))
	return p
}

// schedule has the pod run on nodes with SGX, and reach the service that signs quotes.
func (w *workload) schedule(pod *corev1.PodSpec, meta *metav1.ObjectMeta) {
	if w.Target == Intel {
		pod.NodeSelector = map[string]string{intelNode: "true"}
	}
	// Clusters often keep other work off the nodes with SGX; these are the taints that their makers suggest.
	key := map[Target]string{Intel: intelEPC, AKS: intelEPC, Alibaba: alibabaEPC}[w.Target]
	if w.LegacyEPC {
		key = aksLegacyEPC
	}
	pod.Tolerations = []corev1.Toleration{{
		Key: key, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule,
	}}
	switch {
	case !w.quotes():
	case w.Target == Intel:
		meta.Annotations[intelQuotes] = "aesmd"
	default:
		directory := corev1.HostPathDirectory
		pod.Volumes = append(pod.Volumes, corev1.Volume{
			Name: "aesmd", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: aesmDir,
				Type: &directory}},
		})
		pod.Containers[0].VolumeMounts = append(pod.Containers[0].VolumeMounts,
			corev1.VolumeMount{Name: "aesmd", MountPath: aesmDir})
	}
}

// documents writes objects as one YAML stream, without the parts that a cluster fills in.
func documents(objects []any) ([]byte, error) {
	var b bytes.Buffer
	for _, o := range objects {
		raw, err := json.Marshal(o)
		if err != nil {
			return nil, err
		}
		var tree map[string]any
		if err := json.Unmarshal(raw, &tree); err != nil {
			return nil, err
		}
		delete(tree, "status")
		prune(tree)
		text, err := yaml.Marshal(tree)
		if err != nil {
			return nil, err
		}
		b.WriteString("---\n")
		b.Write(text)
	}
	return b.Bytes(), nil
}

// prune drops what is empty: the API's types write some of it.
func prune(tree map[string]any) {
	for k, v := range tree {
		if sub, ok := v.(map[string]any); ok {
			prune(sub)
			if len(sub) == 0 {
				delete(tree, k)
			}
		}
		if v == nil {
			delete(tree, k)
		}
	}
}
