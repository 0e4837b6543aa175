package deploy

import (
	"bytes"
	"cmp"
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
	labels := object{"app.kubernetes.io/name": w.Name}
	meta := func(name string) object {
		m := object{"name": name, "labels": labels}
		if w.Namespace != "" {
			m["namespace"] = w.Namespace
		}
		return m
	}
	var objects []object
	for _, path := range w.sealed {
		objects = append(objects, w.claim(meta(w.volumeName(path))))
	}
	container := w.container()
	// A token that is mounted has no digest: the program could not read it.
	pod := object{
		"automountServiceAccountToken": false, "containers": []object{container}, "securityContext": w.podSecurity(),
	}
	if len(w.PullSecrets) > 0 {
		var list []object
		for _, name := range w.PullSecrets {
			list = append(list, object{"name": name})
		}
		pod["imagePullSecrets"] = list
	}
	podMeta := object{"labels": labels}
	if notes := w.annotations(); len(notes) > 0 {
		podMeta["annotations"] = notes
	}
	if !w.Simulated() {
		if w.Target == Intel {
			pod["nodeSelector"] = object{intelNode: "true"}
		}
		pod["tolerations"] = []object{w.toleration()}
	}
	var volumes, mounts []object
	for _, v := range w.volumes() {
		volumes, mounts = append(volumes, v.volume()), append(mounts, v.mount())
	}
	if len(volumes) > 0 {
		pod["volumes"], container["volumeMounts"] = volumes, mounts
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
	if len(w.ports) > 0 {
		objects = append(objects, w.service(meta(w.Name), labels))
	}
	return documents(objects)
}

// documents writes objects one after the other.
func documents(objects []object) ([]byte, error) {
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

// claim asks for the storage of an encrypted mount.
func (w *workload) claim(meta object) object {
	return object{
		"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta,
		"spec": object{
			"accessModes": []string{"ReadWriteOnce"},
			"resources":   object{"requests": object{"storage": w.Storage}},
		},
	}
}

// service has other pods find the ports under one name.
func (w *workload) service(meta, labels object) object {
	var ports []object
	for _, p := range w.ports {
		ports = append(ports, object{
			"name": fmt.Sprintf("%s-%d", p.protocol, p.number), "port": p.number, "targetPort": p.number,
			"protocol": strings.ToUpper(p.protocol),
		})
	}
	return object{
		"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": object{"selector": labels, "ports": ports},
	}
}

// volume is one that a pod mounts at a path of the container.
type volume struct {
	name, path string
	source     object
}

func (v volume) volume() object {
	o := object{"name": v.name}
	for k, s := range v.source {
		o[k] = s
	}
	return o
}

func (v volume) mount() object { return object{"name": v.name, "mountPath": v.path} }

// volumes are those that the image and the target need.
func (w *workload) volumes() (list []volume) {
	for _, p := range w.sealed {
		name := w.volumeName(p)
		list = append(list, volume{name, p, object{"persistentVolumeClaim": object{"claimName": name}}})
	}
	for _, p := range w.filled {
		list = append(list, volume{w.volumeName(p), p, object{"emptyDir": object{}}})
	}
	for _, m := range w.Program.Mounts { // an enclave has these in its memory
		if w.Simulated() && m.Type == "tmpfs" {
			list = append(list, volume{w.volumeName(m.Path), m.Path, object{"emptyDir": object{}}})
		}
	}
	if w.quotes() && w.Target != Intel {
		list = append(list, volume{"aesmd", aesmDir, object{"hostPath": object{"path": aesmDir, "type": "Directory"}}})
	}
	return list
}

// Annotations of pods, which policies of a cluster can look at.
const (
	noteMREnclave = "cconvert.dev/mrenclave"
	noteMRSigner  = "cconvert.dev/mrsigner"
)

// annotations are those of the pod.
func (w *workload) annotations() object {
	notes := object{}
	if w.measured() {
		notes[noteMREnclave], notes[noteMRSigner] = w.MREnclave.String(), w.MRSigner.String()
	}
	if w.quotes() && w.Target == Intel {
		notes[intelQuotes] = "aesmd"
	}
	return notes
}

// podSecurity is what all containers of the pod have in common. Volumes belong to whoever has made them, unless they
// are given to a group.
func (w *workload) podSecurity() object {
	s := object{"seccompProfile": object{"type": "RuntimeDefault"}}
	if w.root() {
		return s
	}
	for k, v := range w.user() {
		s[k] = v
	}
	if len(w.sealed)+len(w.filled) > 0 {
		s["fsGroup"] = w.Program.GID
	}
	if !w.Simulated() {
		s["supplementalGroups"] = []int64{*w.DeviceGroup}
	}
	if w.lowPort() {
		// A capability is of no use to a user who is not root.
		s["sysctls"] = []object{{"name": unprivilegedPorts, "value": "0"}}
	}
	return s
}

// unprivilegedPorts is the first port that any user may listen on.
const unprivilegedPorts = "net.ipv4.ip_unprivileged_port_start"

// user is as whom the program runs: it is measured, and owns what the library OS writes to.
func (w *workload) user() object {
	if w.root() || w.Program.UID < 0 { // the latter is known by name alone
		return nil
	}
	return object{"runAsNonRoot": true, "runAsUser": w.Program.UID, "runAsGroup": w.Program.GID}
}

// security is what the container may do.
func (w *workload) security() object {
	capabilities := object{"drop": []string{"ALL"}}
	if add := w.capabilities(); len(add) > 0 {
		capabilities["add"] = add
	}
	s := object{"allowPrivilegeEscalation": false, "capabilities": capabilities}
	if !w.writesImage() {
		s["readOnlyRootFilesystem"] = true
	}
	return s
}

// container is the program's. It has no arguments: they are measured, and others would be ignored.
func (w *workload) container() object {
	c := object{
		"name": w.Name, "image": w.Options.Image,
		"securityContext": w.security(),
	}
	c["resources"] = w.resources()
	var ports []object
	for _, p := range w.ports {
		ports = append(ports, object{"containerPort": p.number, "protocol": strings.ToUpper(p.protocol)})
	}
	if i := slices.IndexFunc(w.ports, func(p port) bool { return p.protocol == "tcp" }); i >= 0 {
		c["readinessProbe"] = w.probe(w.ports[i].number)
	}
	if len(ports) > 0 {
		c["ports"] = ports
	}
	return c
}

// What a container asks for if nobody says more: a quarter of a CPU, and what the library OS takes of the host's
// memory.
const (
	usualCPU    = "250m"
	usualMemory = 128 << 20 // bytes, for each process
)

// resources are what the container asks for.
func (w *workload) resources() object {
	requests := object{
		"cpu": cmp.Or(w.CPU, usualCPU), "memory": cmp.Or(w.Memory, binary(uint64(w.Processes)*usualMemory)),
	}
	if e := w.Encrypted; e != nil {
		requests["ephemeral-storage"] = binary(roundUp(e.Bytes()))
	}
	r := object{"requests": requests}
	if limits := w.limits(); len(limits) > 0 {
		r["limits"] = limits
	}
	return r
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

// toleration is of the taint that the maker of the cluster suggests, to keep other work off the nodes with SGX.
func (w *workload) toleration() object {
	key := map[Target]string{Intel: intelEPC, AKS: intelEPC, Alibaba: alibabaEPC}[w.Target]
	if w.LegacyEPC {
		key = aksLegacyEPC
	}
	return object{"key": key, "operator": "Exists", "effect": "NoSchedule"}
}
