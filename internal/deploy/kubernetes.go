package deploy

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

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

// object is a part of an object of Kubernetes, by the names of its API. The types of k8s.io/api would be a tenth of the
// program, and are started with it; the tests read what is written with them, strictly.
type object = map[string]any

// quantity is a size of Kubernetes that is not negative (k8s.io/apimachinery/pkg/api/resource, "Quantity").
var quantity = regexp.MustCompile(`^([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]{1,2})?$`)

// kubernetes writes a Deployment, and a claim for each encrypted mount.
func (w *workload) kubernetes() ([]byte, error) {
	if !quantity.MatchString(w.Storage) {
		return nil, fmt.Errorf("%w: the size %q of a volume is not one such as 5Gi", ErrOption, w.Storage)
	}
	labels := object{"app.kubernetes.io/name": w.Name}
	meta := func(name string) object {
		m := object{"name": name, "labels": labels}
		if w.Namespace != "" {
			m["namespace"] = w.Namespace
		}
		return m
	}
	var objects, volumes []object
	for _, path := range w.sealed {
		name := w.volumeName(path)
		volumes = append(volumes, object{"name": name, "persistentVolumeClaim": object{"claimName": name}})
		objects = append(objects, object{
			"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta(name),
			"spec": object{
				"accessModes": []string{"ReadWriteOnce"},
				"resources":   object{"requests": object{"storage": w.Storage}},
			},
		})
	}
	for _, dir := range w.filled {
		volumes = append(volumes, object{"name": w.volumeName(dir), "emptyDir": object{}})
	}
	container := w.container()
	// A token that is mounted has no digest: the program could not read it.
	pod := object{
		"automountServiceAccountToken": false, "containers": []object{container}, "securityContext": w.podSecurity(),
	}
	podMeta := object{"labels": labels}
	if !w.Simulated() {
		w.schedule(pod)
	}
	switch {
	case !w.quotes():
	case w.Target == Intel:
		podMeta["annotations"] = object{intelQuotes: "aesmd"}
	default:
		volumes = append(volumes, object{"name": "aesmd", "hostPath": object{"path": aesmDir, "type": "Directory"}})
		mounts, _ := container["volumeMounts"].([]object)
		container["volumeMounts"] = append(mounts, object{"name": "aesmd", "mountPath": aesmDir})
	}
	if len(volumes) > 0 {
		pod["volumes"] = volumes
	}
	spec := object{
		"replicas": w.Replicas, "selector": object{"matchLabels": labels},
		"template": object{"metadata": podMeta, "spec": pod},
	}
	if len(w.sealed) > 0 { // two pods must not have the files open
		spec["strategy"] = object{"type": "Recreate"}
	}
	objects = append(objects,
		object{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta(w.Name), "spec": spec})
	var b bytes.Buffer
	for _, o := range objects {
		text, err := yaml.Marshal(o)
		if err != nil {
			return nil, err
		}
		b.WriteString("---\n")
		b.Write(text)
	}
	return b.Bytes(), nil
}

// podSecurity is as whom the pod runs. The program's user is measured, and owns what the library OS writes to; volumes
// belong to whoever has made them, unless they are given to a group.
func (w *workload) podSecurity() object {
	s := object{"seccompProfile": object{"type": "RuntimeDefault"}}
	if w.root() {
		return s
	}
	s["runAsNonRoot"], s["runAsUser"], s["runAsGroup"] = true, w.Program.UID, w.Program.GID
	if len(w.sealed)+len(w.filled) > 0 {
		s["fsGroup"] = w.Program.GID
	}
	if !w.Simulated() {
		s["supplementalGroups"] = []int64{*w.DeviceGroup}
	}
	return s
}

// security is what the container may do. Ports below 1024 are the host's to give (ip_unprivileged_port_start).
func (w *workload) security() object {
	capabilities := object{"drop": []string{"ALL"}}
	if slices.ContainsFunc(w.ports, func(p port) bool { return p.number < 1024 }) {
		capabilities["add"] = []string{"NET_BIND_SERVICE"}
	}
	return object{"allowPrivilegeEscalation": false, "capabilities": capabilities}
}

// container is the program's. It has no arguments: they are measured, and others would be ignored.
func (w *workload) container() object {
	c := object{
		"name": w.Name, "image": w.Options.Image,
		"securityContext": w.security(),
	}
	resources := object{}
	if limits := w.limits(); len(limits) > 0 {
		resources["limits"] = limits
	}
	if e := w.Encrypted; e != nil {
		resources["requests"] = object{"ephemeral-storage": binary(roundUp(e.Bytes()))}
	}
	if len(resources) > 0 {
		c["resources"] = resources
	}
	var ports, mounts []object
	for _, p := range w.ports {
		ports = append(ports, object{"containerPort": p.number, "protocol": strings.ToUpper(p.protocol)})
	}
	if i := slices.IndexFunc(w.ports, func(p port) bool { return p.protocol == "tcp" }); i >= 0 {
		c["readinessProbe"] = w.probe(w.ports[i].number)
	}
	for _, path := range slices.Concat(w.sealed, w.filled) {
		mounts = append(mounts, object{"name": w.volumeName(path), "mountPath": path})
	}
	if len(ports) > 0 {
		c["ports"] = ports
	}
	if len(mounts) > 0 {
		c["volumeMounts"] = mounts
	}
	return c
}

// limits are the resources of SGX that the container takes of its node.
func (w *workload) limits() object {
	mebibytes := strconv.FormatUint((w.epc()+1<<20-1)>>20, 10)
	switch {
	case w.Simulated(): // it runs on any node
		return nil
	case w.Target == Alibaba:
		return object{alibabaEPC: mebibytes}
	case w.Target == AKS && w.LegacyEPC:
		return object{aksLegacyEPC: mebibytes}
	}
	limits := object{intelEPC: binary(w.epc())}
	if w.Target == Intel {
		limits[intelEnclave] = "1"
		if w.quotes() {
			limits[intelProvision] = "1"
		}
	}
	return limits
}

// binary writes a size in bytes with the largest suffix that divides it.
func binary(n uint64) string {
	for i, suffix := range []string{"Ti", "Gi", "Mi", "Ki"} {
		if unit := uint64(1) << (40 - 10*i); n >= unit && n%unit == 0 {
			return strconv.FormatUint(n/unit, 10) + suffix
		}
	}
	return strconv.FormatUint(n, 10)
}

// probe asks for a port from outside: what a probe starts in the container is not in the enclave. How often, and how
// often in vain, is as the image's health check has it.
func (w *workload) probe(port int32) object {
	p := object{"tcpSocket": object{"port": port}}
	if !w.checked() {
		return p
	}
	// What is 0 is left to Kubernetes.
	set := func(name string, n int32) {
		if n != 0 {
			p[name] = n
		}
	}
	seconds := func(d time.Duration) int32 {
		return int32(min((max(d, 0)+time.Second-1)/time.Second, time.Hour/time.Second))
	}
	set("initialDelaySeconds", seconds(w.Health.StartPeriod))
	set("periodSeconds", seconds(w.Health.Interval))
	set("timeoutSeconds", seconds(w.Health.Timeout))
	set("failureThreshold", int32(min(max(w.Health.Retries, 0), 100)))
	return p
}

// schedule has the pod run on nodes with SGX.
func (w *workload) schedule(pod object) {
	if w.Target == Intel {
		pod["nodeSelector"] = object{intelNode: "true"}
	}
	// Clusters often keep other work off the nodes with SGX; these are the taints that their makers suggest.
	key := map[Target]string{Intel: intelEPC, AKS: intelEPC, Alibaba: alibabaEPC}[w.Target]
	if w.LegacyEPC {
		key = aksLegacyEPC
	}
	pod["tolerations"] = []object{{"key": key, "operator": "Exists", "effect": "NoSchedule"}}
}
