package queue

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cconvert/cconvert/pkg/image"
)

// message is what is queued of a job: the key of its record, the request, and its registries.
func message(r *Record) []byte {
	hosts := []string{RegistryOf(r.Job.Source), RegistryOf(r.Job.Target), RegistryOf(r.Job.Runtime.Source)}
	return fmt.Appendf(nil, "%s.%s %d %s", r.Batch, r.ID, r.Request, strings.Join(hosts, " "))
}

// A message names so many hosts, of so many bytes: those of source, target and runtime.
const (
	maxHosts = 3
	maxHost  = 300
)

// HostsIn returns the registries that a message names, each once.
func HostsIn(message []byte) (hosts []string) {
	fields := strings.SplitN(string(message), " ", 2+maxHosts+1)
	for _, host := range fields[min(2, len(fields)):min(2+maxHosts, len(fields))] {
		if host != "" && len(host) <= maxHost && !slices.Contains(hosts, host) {
			hosts = append(hosts, host)
		}
	}
	return hosts
}

// RegistryOf returns the registry of a reference, under the one name by which a Watcher is told of it; empty: it is in
// none, or cannot be read.
func RegistryOf(reference string) string {
	ref, err := image.ParseReference(reference, true)
	if err != nil || ref.Transport != image.Registry {
		return ""
	}
	return ref.Name.Context().RegistryStr()
}
