// Package occlum writes how an image starts as the configuration of Occlum: Occlum.json, and a bom.yaml that lists
// every file with its digest for Occlum's copy_bom. Occlum puts the files into a file system of its own; what its
// enclave measures is the digest of that file system's root, and whoever builds it decides on that. So nothing here is
// a measurement, and package occlum is no [libos.Backend].
//
// The formats are those of occlum 0.31.0, the last release (docs/occlum_json.md and docs/copy_bom.md there).
package occlum

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"sigs.k8s.io/yaml"

	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/rootfs"
)

// Names of what Export returns, and of the directory that has the unpacked image.
const (
	ConfigFile = "Occlum.json"
	BOMFile    = "bom.yaml"
	RootFS     = "rootfs"
)

// Export returns the files of a configuration by their names, and what the user should know of the image in Occlum. The
// image is unpacked as RootFS beside them.
func Export(
	spec *launch.Spec, tree *rootfs.Tree, enclave libos.EnclaveOptions,
) (map[string][]byte, []finding.Finding, error) {
	config, err := json.MarshalIndent(configOf(spec, tree, enclave), "", "  ")
	if err != nil {
		return nil, nil, err
	}
	list, err := bomOf(spec, tree)
	if err != nil {
		return nil, nil, err
	}
	text, err := yaml.Marshal(list)
	if err != nil {
		return nil, nil, err
	}
	return map[string][]byte{ConfigFile: append(config, '\n'), BOMFile: text}, preflight(spec, tree), nil
}

// The parts of Occlum.json.
type (
	config struct {
		Limits      limits      `json:"resource_limits"`
		Process     processPart `json:"process"`
		EntryPoints []string    `json:"entry_points"`
		Env         env         `json:"env"`
		Metadata    metadata    `json:"metadata"`
		Feature     feature     `json:"feature"`
		Mount       []mount     `json:"mount"`
	}
	limits struct {
		KernelHeap  string `json:"kernel_space_heap_size"`
		KernelStack string `json:"kernel_space_stack_size"`
		User        string `json:"user_space_size"`
		Threads     int    `json:"max_num_of_threads"`
	}
	processPart struct {
		Stack string `json:"default_stack_size"`
		Heap  string `json:"default_heap_size"`
		Mmap  string `json:"default_mmap_size"`
	}
	env struct {
		Default   []string `json:"default"`
		Untrusted []string `json:"untrusted"`
	}
	id struct {
		High string `json:"high"`
		Low  string `json:"low"`
	}
	metadata struct {
		Product    uint16 `json:"product_id"`
		Version    uint16 `json:"version_number"`
		Debuggable bool   `json:"debuggable"`
		KSS        bool   `json:"enable_kss"`
		Family     id     `json:"family_id"`
		ExtProduct id     `json:"ext_prod_id"`
	}
	feature struct {
		AMX      int  `json:"amx"`
		PKRU     int  `json:"pkru"`
		IOUring  int  `json:"io_uring"`
		EDMM     bool `json:"enable_edmm"`
		POSIXShm bool `json:"enable_posix_shm"`
	}
	mount struct {
		Target  string        `json:"target"`
		Type    string        `json:"type"`
		Source  string        `json:"source,omitempty"`
		Options *mountOptions `json:"options,omitempty"`
	}
	mountOptions struct {
		MAC    *string `json:"MAC,omitempty"` // Occlum's build fills it in
		Layers []mount `json:"layers,omitempty"`
	}
)

// ownThreads are those that Occlum needs beside the program's.
const ownThreads = 8

func configOf(s *launch.Spec, tree *rootfs.Tree, o libos.EnclaveOptions) config {
	mac := ""
	c := config{
		Limits: limits{
			KernelHeap: "64MB", KernelStack: "1MB", User: fmt.Sprintf("%dMB", s.Memory>>20),
			Threads: s.Threads + ownThreads,
		},
		Process:     processPart{Stack: "4MB", Heap: "32MB", Mmap: "100MB"},
		EntryPoints: []string{s.Entrypoint},
		Env:         env{Default: []string{}, Untrusted: []string{}},
		Metadata: metadata{
			Product: o.ISVProdID, Version: o.ISVSVN, Debuggable: o.Debug,
			Family: id{"0x0", "0x0"}, ExtProduct: id{"0x0", "0x0"},
		},
		Feature: feature{EDMM: o.EDMM},
		Mount: []mount{
			// What was built, which is checked, and over it what the program writes, encrypted.
			{Target: "/", Type: "unionfs", Options: &mountOptions{Layers: []mount{
				{
					Target: "/", Type: "sefs", Source: "./build/mount/__ROOT",
					Options: &mountOptions{MAC: &mac},
				},
				{Target: "/", Type: "sefs", Source: "./run/mount/__ROOT"},
			}}},
			{Target: "/proc", Type: "procfs"},
			{Target: "/dev", Type: "devfs"},
		},
	}
	for _, v := range s.Env {
		if v.PassThrough {
			c.Env.Untrusted = append(c.Env.Untrusted, v.Name)
		} else {
			c.Env.Default = append(c.Env.Default, v.Name+"="+v.Value)
		}
	}
	for _, m := range s.Mounts {
		if m.Type == launch.Tmpfs && m.Path != "/dev/shm" && direct(tree, m.Path) {
			c.Mount = append(c.Mount, mount{Target: m.Path, Type: "ramfs"})
		}
	}
	for _, p := range s.Allowed { // as asked for: the host's, unchecked
		c.Mount = append(c.Mount, mount{Target: p, Type: "hostfs", Source: "." + p})
	}
	return c
}

// The parts of bom.yaml.
type (
	bom struct {
		Targets []target `json:"targets"`
	}
	target struct {
		Target string   `json:"target"`
		Mkdirs []string `json:"mkdirs,omitempty"`
		Links  []link   `json:"createlinks,omitempty"`
		Copy   []from   `json:"copy,omitempty"`
	}
	link struct {
		Src  string `json:"src"`
		Name string `json:"linkname"`
	}
	from struct {
		From  string `json:"from"`
		Files []file `json:"files"`
	}
	file struct {
		Name    string `json:"name"`
		Hash    string `json:"hash"`
		AutoDep bool   `json:"autodep"` // libraries are listed
	}
)

// direct reports whether a path is that of a directory, or of one that can be made: no part of it is anything else,
// such as a link, under whose target it is, too.
func direct(tree *rootfs.Tree, p string) bool {
	for ; p != "/"; p = path.Dir(p) {
		if n := tree.Lookup(p); n != nil && n.Type != rootfs.Dir {
			return false
		}
	}
	return true
}

// maxRounds is how many times links are looked for that lead to others: as many as one path can have.
const maxRounds = 40

// bomOf lists the files that the program may read by their directories, with the links that lead to them and the
// directories in which the program can work.
func bomOf(s *launch.Spec, tree *rootfs.Tree) (*bom, error) {
	targets := map[string]*target{}
	in := func(dir string) *target {
		if targets[dir] == nil {
			targets[dir] = &target{Target: dir}
		}
		return targets[dir]
	}
	reached := map[string]bool{"/": true} // files, and directories that have some
	reach := func(p string) {
		for ; !reached[p]; p = path.Dir(p) {
			reached[p] = true
		}
	}
	listed := map[string]bool{}
	for _, f := range s.Trusted {
		if n := tree.Lookup(f.Path); n == nil || n.Type != rootfs.Regular || n.SHA256 != f.SHA256 || listed[f.Path] {
			continue // it takes the place of a link for Gramine, which Occlum gets as it is
		}
		listed[f.Path] = true
		if !utf8.ValidString(f.Path) {
			return nil, fmt.Errorf("the name of the file %q is not UTF-8, which a list of files for Occlum is", f.Path)
		}
		reach(f.Path)
		dir, name := path.Split(f.Path)
		t := in(path.Clean(dir))
		if t.Copy == nil {
			t.Copy = []from{{From: path.Join(RootFS, dir)}}
		}
		t.Copy[0].Files = append(t.Copy[0].Files, file{Name: name, Hash: hex.EncodeToString(f.SHA256[:])})
	}
	places := []string{s.WorkDir, "/tmp", "/root", "/run", "/var/tmp", "/etc", "/dev", "/proc"}
	for _, m := range s.Mounts {
		if m.Type != launch.Bind {
			places = append(places, m.Path)
		}
	}
	for _, p := range places {
		if p == "/" || !direct(tree, p) {
			continue
		}
		reach(p)
		in("/").Mkdirs = append(in("/").Mkdirs, strings.TrimPrefix(path.Clean(p), "/"))
	}
	slices.Sort(in("/").Mkdirs)
	in("/").Mkdirs = slices.Compact(in("/").Mkdirs)
	var links []*rootfs.Node
	_ = tree.Walk(func(n *rootfs.Node) error {
		if n.Type == rootfs.Symlink && utf8.ValidString(n.Path) && utf8.ValidString(n.Link) {
			links = append(links, n)
		}
		return nil
	})
	// A link makes the directory that it is in one that others lead to.
	for round, more := 0, true; more && round < maxRounds; round++ {
		more = false
		links = slices.DeleteFunc(links, func(n *rootfs.Node) bool {
			if _, real, err := tree.Follow(n); err != nil || !reached[real] {
				return false
			}
			dir, name := path.Split(n.Path)
			t := in(path.Clean(dir))
			t.Links = append(t.Links, link{n.Link, name})
			reach(n.Path)
			more = true
			return true
		})
	}
	list := &bom{}
	for _, t := range targets {
		list.Targets = append(list.Targets, *t)
	}
	slices.SortFunc(list.Targets, func(a, b target) int { return strings.Compare(a.Target, b.Target) })
	return list, nil
}
