package manifest

import (
	"path"
	"slices"
	"strings"

	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/launch/process"
)

// mount is what a manifest says of one.
type mount struct{ kind, path, host string }

// mounts are those of the manifest, and the one of the root that is always there.
func (m *Manifest) mounts() []mount {
	all := []mount{{path: "/", host: "/"}}
	list, _ := m.Section("fs")["mounts"].([]any)
	for _, v := range list {
		t, _ := v.(Table)
		kind, _ := t["type"].(string)
		p, _ := t["path"].(string)
		uri, _ := t["uri"].(string)
		all = append(all, mount{kind, path.Clean(p), path.Clean(strings.TrimPrefix(uri, "file:"))})
	}
	return all
}

// onlyCiphertexts reports whether a file is allowed for an agent alone, which compares ciphertexts: by every other name
// the library OS decrypts it.
func (m *Manifest) onlyCiphertexts(uri any) bool {
	text, ok := uri.(string)
	host, isFile := strings.CutPrefix(text, "file:")
	all := m.mounts()
	if !ok || !isFile || !slices.Contains(all, mount{"", launch.CiphertextsDir + host, host}) {
		return false
	}
	for _, of := range all {
		if strings.HasPrefix(of.path, launch.CiphertextsDir+"/") && of.path == launch.CiphertextsDir+of.host {
			continue // an agent's as well
		}
		place := ""
		switch {
		case of.kind != "" && of.kind != "chroot":
			continue
		case process.Below(host, of.host):
			place = path.Join(of.path, strings.TrimPrefix(host, of.host))
		case process.Below(of.host, host):
			place = of.path
		default:
			continue
		}
		if innermost(all, place).kind != string(launch.Encrypted) {
			return false
		}
	}
	return true
}

// innermost returns the mount that a path is in. Of two at the same path it is the later one.
func innermost(all []mount, p string) (in mount) {
	for _, m := range all {
		if process.Below(p, m.path) && len(m.path) >= len(in.path) {
			in = m
		}
	}
	return in
}
