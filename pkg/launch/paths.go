package launch

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"sort"
	"strings"
	"unicode/utf8"

	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/launch/process"
	"github.com/cconvert/cconvert/pkg/rootfs"
)

// A library OS asks the host for a file by the path as the program spelled it, after "." and ".." are
// gone, and looks that spelling up among the trusted files. So each spelling must lead somewhere:
//
//   - a link to a file is listed with the target's digest, beside the target;
//   - a link to a directory is a mount of the directory it leads to, once for each spelling of the
//     link's own path, since links below a mounted directory are met under the mount's path too;
//   - mounts below a directory that is linked to must be repeated under the link.

const maxMounts = 20_000

// unitDirs are where systemd has its units, which nothing reads in a container.
var unitDirs = []string{"/etc/systemd", "/usr/lib/systemd", "/lib/systemd"}

// chooseTrusted lists the files that the program may read, and the mounts that make all spellings of
// their paths lead to them.
func (f *files) chooseTrusted(list []string) error {
	if err := f.applyPolicy(list); err != nil {
		return err
	}
	for _, p := range hostFiles {
		f.hostFile = append(f.hostFile, p)
		if _, real, _ := f.tree.ResolveParent(p); real != "" {
			f.hostFile = append(f.hostFile, real)
		}
		if _, real, _ := f.tree.Resolve(p); real != "" {
			f.hostFile = append(f.hostFile, real)
		}
	}
	var links []Mount // every directory link, at its path free of links
	hiddenFiles := map[string][]string{}
	f.walk(f.tree.Root(), f.over("/", nil), func(n *rootfs.Node, over *Mount) {
		if over != nil && over.Shipped {
			if n.Type == rootfs.Symlink {
				if m, ok := f.linkAmongEncrypted(n); ok {
					links = append(links, m)
				}
			}
			return
		}
		if !f.visible(n, over, hiddenFiles) {
			return
		}
		if n.Type != rootfs.Dir && f.mayChange(n.Path) {
			return // the user lets the host change it: no digest could hold
		}
		switch n.Type {
		case rootfs.Regular:
			f.trust(n.Path, n)
		case rootfs.Symlink:
			if m, ok := f.link(n); ok {
				links = append(links, m)
			}
		case rootfs.CharDevice, rootfs.BlockDevice, rootfs.FIFO:
			f.spec.Find(finding.DeviceNode, finding.Info, n.Path,
				"a device or pipe is not measured and cannot be opened")
		}
	})
	for _, p := range slices.Sorted(maps.Keys(hiddenFiles)) {
		switch f.writable[p].Type {
		case Encrypted:
			f.spec.Find(finding.VolumeHides, finding.Warning, p, named(hiddenFiles[p])+
				" of the image cannot be read: this directory holds encrypted files only, and starts empty")
		default:
			f.spec.Find(finding.HiddenFiles, finding.Warning, p, named(hiddenFiles[p])+
				" of the image cannot be seen: this directory is temporary storage and starts empty")
		}
	}
	slices.SortFunc(f.spec.Trusted, func(a, b TrustedFile) int {
		if a.Reason != b.Reason {
			if c := cmp.Compare(a.Reason.Rank(), b.Reason.Rank()); c != 0 {
				return c
			}
		}
		if c := strings.Compare(a.Package, b.Package); c != 0 {
			return c
		}
		return strings.Compare(a.Path, b.Path)
	})
	f.spec.Mounts = f.allMounts(links)
	f.summarise()
	return nil
}

// named speaks of files by the name of the first and the number of the others.
func named(files []string) string {
	if len(files) == 1 {
		return files[0]
	}
	return fmt.Sprintf("%s and %d other files", files[0], len(files)-1)
}

// walk visits what is below a directory and not the library OS's own, with the mount that it lies under, nil
// if none.
func (f *files) walk(dir *rootfs.Node, over *Mount, visit func(n *rootfs.Node, over *Mount)) {
	for _, c := range dir.Children() {
		if slices.Contains(hostTrees, c.Path) {
			continue
		}
		over := f.over(c.Path, over)
		visit(c, over)
		f.walk(c, over, visit)
	}
}

// over is the mount at a path or, if there is none, the one above.
func (f *files) over(p string, above *Mount) *Mount {
	if m, ok := f.writable[p]; ok {
		here := m
		return &here
	}
	return above
}

// visible reports whether an entry can be reached by the program at its own path.
func (f *files) visible(n *rootfs.Node, over *Mount, hiddenFiles map[string][]string) bool {
	if slices.Contains(f.hostFile, n.Path) {
		return false
	}
	if over != nil {
		switch {
		case f.toConsole(n):
			f.spec.Find(finding.LinkToConsole, finding.Warning, n.Path,
				"what is written here does not reach the console: it "+
					"stays in temporary storage, in the enclave's memory")
		case n.Type == rootfs.Regular && n.Size > 0, n.Type == rootfs.Symlink:
			hiddenFiles[over.Path] = append(hiddenFiles[over.Path], n.Path)
		}
		return false
	}
	if !utf8.ValidString(n.Path) {
		if n.Type != rootfs.Dir {
			f.spec.Find(finding.NameNotUTF8, finding.Warning, fmt.Sprintf("%q", n.Path),
				"the name is not UTF-8, so a manifest cannot list it: the program cannot read it")
		}
		return false
	}
	return true
}

// mayChange reports whether the user lets the host change what is at a path.
func (f *files) mayChange(p string) bool {
	for ; len(f.allowed) > 0; p = path.Dir(p) {
		if f.allowed[p] {
			return true
		}
		if p == "/" || p == "." {
			break
		}
	}
	return false
}

// trust lists a file by one of its paths, if the policy says so.
func (f *files) trust(p string, n *rootfs.Node) {
	why, ok := f.choose(n)
	if !ok {
		if p == n.Path {
			f.spec.LeftOut++
		}
		return
	}
	f.spec.Trusted = append(f.spec.Trusted, TrustedFile{Path: p, SHA256: n.SHA256, Size: n.Size, File: why})
}

// link decides what a symbolic link needs; a link to a directory is returned as a mount.
func (f *files) link(n *rootfs.Node) (Mount, bool) {
	target, real, err := f.tree.Follow(n)
	switch {
	case errors.Is(err, rootfs.ErrLoop):
		f.spec.Find(finding.LinkLoop, finding.Info, n.Path, "the symbolic link leads to itself")
		return Mount{}, false
	case real == "" || slices.Contains(f.hostFile, real):
		return Mount{}, false
	case !utf8.ValidString(real):
		f.spec.Find(finding.NameNotUTF8, finding.Warning, n.Path,
			fmt.Sprintf("the link leads to %q, whose name is not UTF-8: the program cannot read it", real))
		return Mount{}, false
	case target != nil && target.Type != rootfs.Dir && f.mayChange(real):
		// another name of what the host may change
		f.spec.Allowed, f.allowed[n.Path] = append(f.spec.Allowed, n.Path), true
		return Mount{}, false
	case belowAny(real, hostTrees) && belowAny(n.Path, unitDirs): // systemd's way to switch a unit off
		return Mount{}, false
	case belowAny(real, hostTrees):
		f.spec.Find(finding.LinkOutside, finding.Info, n.Path, "the link leads to "+real+
			", which is the library OS's own: it works only by that name")
		return Mount{}, false
	}
	m, covered := f.cover(real)
	if covered {
		return f.linkIntoMount(n, target, real, m)
	}
	switch {
	case err != nil: // leads nowhere, here as in a container
	case target.Type == rootfs.Dir:
		return Mount{Type: Bind, Path: n.Path, Target: real}, true
	case target.Type == rootfs.Regular:
		if m, ok := f.starter(n, target); ok {
			return m, true
		}
		f.trust(n.Path, target)
	}
	return Mount{}, false
}

// linkIntoMount handles a link to a place below a writable mount. A plain mount of the target would
// reach the host's files there.
func (f *files) linkIntoMount(n, target *rootfs.Node, real string, m Mount) (Mount, bool) {
	if m.Shipped {
		return Mount{Type: Encrypted, Path: n.Path, Target: real, Key: m.Key, Shipped: true}, target != nil
	}
	isDir := real == m.Path || target != nil && target.Type == rootfs.Dir
	if m.Type == Encrypted {
		if !isDir {
			f.spec.Find(finding.LinkIntoVolume, finding.Warning, n.Path, "the link leads to "+real+
				" among encrypted files: the program must use that name")
			return Mount{}, false
		}
		return Mount{Type: Encrypted, Path: n.Path, Target: real, Key: m.Key}, true
	}
	if !isDir {
		f.spec.Find(finding.LinkIntoTmpfs, finding.Warning, n.Path, "the link leads to "+real+
			" in temporary storage: the program must use that name")
		return Mount{}, false
	}
	f.spec.Find(finding.LinkIntoTmpfs, finding.Info, n.Path, "the link leads to "+real+
		": both are temporary storage, but files written under one name do not appear under the other")
	return Mount{Type: Tmpfs, Path: n.Path, Target: real}, true // the target's subdirectories are wanted here too
}

// allMounts repeats links and writable mounts under every link that leads above them, and sorts them so
// that parents come first.
func (f *files) allMounts(links []Mount) []Mount {
	points := links
	for _, m := range f.writable {
		points = append(points, m)
	}
	slices.SortFunc(points, func(a, b Mount) int { return cmp.Compare(a.Path, b.Path) })
	// Level by level: if there are too many names, it is the long ones that are left out.
	type spelled struct {
		Mount
		chain []string // the real directories of the links that led here
	}
	mounts := map[string]Mount{}
	var level []spelled
	for _, p := range points {
		level = append(level, spelled{p, []string{path.Dir(p.Path)}})
	}
	for left := maxMounts + len(points); len(level) > 0; {
		var next []spelled
		for _, m := range level {
			if _, ok := mounts[m.Path]; ok {
				continue
			}
			if left--; left < 0 {
				f.spec.Find(finding.TooManyMounts, finding.Warning, m.Path,
					fmt.Sprintf("symbolic links to directories give more "+
						"than %d names: this one and others are left out", maxMounts))
				next = nil
				break
			}
			mounts[m.Path] = m.Mount
			// A link to a directory that contains it leads in circles: what is below has a shorter name.
			circle := slices.ContainsFunc(m.chain, func(dir string) bool { return process.Below(dir, m.Target) })
			if m.Target == "" || m.Type == Encrypted && !m.Shipped || circle {
				continue
			}
			prefix := strings.TrimSuffix(m.Target, "/") + "/"
			for i := sort.Search(len(points), func(i int) bool {
				return points[i].Path >= prefix
			}); i < len(points) && strings.HasPrefix(points[i].Path, prefix) && len(next) <= left; i++ {
				p := points[i]
				p.Path = m.Path + "/" + points[i].Path[len(prefix):]
				next = append(next, spelled{p, append(slices.Clone(m.chain), path.Dir(points[i].Path))})
			}
		}
		level = next
	}
	sorted := make([]Mount, 0, len(mounts))
	for _, m := range mounts {
		if m.Type == Tmpfs {
			m.Target = "" // there is nothing on the host
		}
		sorted = append(sorted, m)
	}
	slices.SortFunc(sorted, func(a, b Mount) int {
		return slices.Compare(strings.Split(a.Path, "/"), strings.Split(b.Path, "/"))
	})
	return sorted
}
