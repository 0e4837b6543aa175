package launch

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/launch/process"
	"github.com/cconvert/cconvert/pkg/packages"
	"github.com/cconvert/cconvert/pkg/reach"
	"github.com/cconvert/cconvert/pkg/rootfs"
)

// SealingKey is the key that the CPU derives for the enclave's signer.
const SealingKey = "_sgx_mrsigner"

var (
	// temporary directories are writable in every container and start empty.
	temporary = []string{"/tmp", "/run", "/var/tmp", "/dev/shm"}
	// stateDirs hold directories that are shipped empty to be written to.
	stateDirs = []string{"/var/log", "/var/cache", "/var/lib", "/var/run"}
	// managed directories belong to package managers, which do not run in an enclave.
	managed = []string{
		"/var/lib/dpkg", "/var/lib/apt", "/var/cache/apt", "/var/cache/debconf", "/var/log/apt", "/var/lib/rpm",
		"/var/lib/dnf",
		"/var/cache/dnf", "/var/cache/yum", "/var/lib/yum", "/var/cache/apk", "/var/lib/pam", "/var/lib/systemd",
		"/var/cache/ldconfig",
	}
	// hostFiles are mounted over by every container engine: no measurement of them could hold.
	hostFiles = []string{"/etc/resolv.conf", "/etc/hosts", "/etc/hostname"}
	// hostTrees are the kernel's, emulated by a library OS.
	hostTrees = []string{"/proc", "/sys", "/dev"}
)

func belowAny(p string, dirs []string) bool {
	return slices.ContainsFunc(dirs, func(d string) bool { return process.Below(p, d) })
}

// files decides what can be read and written.
type files struct {
	spec     *Spec
	tree     *rootfs.Tree
	writable map[string]Mount // by path, free of links
	made     int              // directories below temporary storage
	hostFile []string         // hostFiles and where they lead to
	set      *reach.Set       // what the program reaches
	db       *packages.DB
	policy   Policy
	// what of Spec.Allowed is, for look-ups: an image can have very many names of such files
	allowed  map[string]bool
	choose   func(*rootfs.Node) (reach.File, bool) // whether a file is trusted
	starters map[*rootfs.Node]string               // by the program
}

// chooseWritable finds the places to write to. What the user says goes before what the image declares,
// and that before what containers usually have.
func (f *files) chooseWritable(volumes map[string]struct{}, o Options) error {
	for _, m := range o.Encrypted {
		if err := f.add(Mount{Type: Encrypted, Path: m.Path, Key: m.Key}); err != nil {
			return err
		}
	}
	for _, p := range o.Tmpfs {
		if err := f.add(Mount{Type: Tmpfs, Path: p}); err != nil {
			return err
		}
	}
	for _, p := range f.spec.Profile.Paths.Tmpfs {
		n, real, err := f.tree.Resolve(p)
		// to be made at start, or filled
		if real != "" && (err != nil || n.Type == rootfs.Dir && len(n.Children()) == 0) {
			f.mount(Mount{Type: Tmpfs, Path: real})
		}
	}
	for _, v := range slices.Sorted(maps.Keys(volumes)) {
		if err := f.volume(v); err != nil {
			return err
		}
	}
	for _, p := range temporary {
		n, real, err := f.tree.Resolve(p)
		if belowAny(p, hostTrees) {
			real = p // /dev is the library OS's own: no link of the image is there
		}
		if real == "" {
			return fmt.Errorf("%s: %w", p, err)
		}
		if process.Below(f.spec.Entrypoint, real) || process.Below(f.spec.LibC.Program, real) {
			f.spec.Find(finding.TmpfsSkipped, finding.Warning, p,
				"the program lies here, so nothing can be written here")
			continue
		}
		f.mount(Mount{Type: Tmpfs, Path: real})
		if n != nil && n.Type == rootfs.Dir && real == n.Path {
			f.subdirectories(n, p)
		}
	}
	if _, real, _ := f.tree.Resolve(f.spec.WorkDir); real != "" {
		if m, ok := f.cover(real); ok && m.Type == Tmpfs && m.Path != real {
			f.mount(Mount{Type: Tmpfs, Path: real}) // the program starts in it
		}
	}
	f.madeAtStart()
	for _, p := range stateDirs {
		if n := f.tree.Lookup(p); n != nil && n.Type == rootfs.Dir {
			f.emptyDirs(n)
		}
	}
	return nil
}

// add makes a mount that the user asked for.
func (f *files) add(m Mount) error {
	if !path.IsAbs(m.Path) {
		return fmt.Errorf("%w: the mount %q is not an absolute path", process.ErrImage, m.Path)
	}
	_, real, err := f.tree.Resolve(m.Path)
	if real == "" {
		return fmt.Errorf("the mount %s: %w", m.Path, err)
	}
	if !utf8.ValidString(real) {
		return fmt.Errorf("%w: the mount %s leads to %q, which is not UTF-8", process.ErrImage, m.Path, real)
	}
	if belowAny(real, hostTrees) && !process.Below(real, "/dev/shm") {
		return fmt.Errorf("%w: the mount %s is in a directory of the library OS's own", process.ErrImage, m.Path)
	}
	if process.Below(f.spec.Entrypoint, real) || process.Below(f.spec.LibC.Program, real) {
		return fmt.Errorf("%w: the mount %s would hide the program %s", process.ErrImage, m.Path, f.spec.Entrypoint)
	}
	m.Path = real
	f.mount(m)
	return nil
}

// mount makes a mount unless there is one at the path.
func (f *files) mount(m Mount) {
	if _, ok := f.writable[m.Path]; ok {
		return
	}
	if m.Type == Encrypted {
		m.Target = m.Path
		if m.Key == "" {
			m.Key = SealingKey
		}
	}
	f.writable[m.Path] = m
}

// enclaveDir is where conversions put the enclave: libos.Root.
const enclaveDir = "/cconvert"

// CiphertextsDir is where an agent sees Spec.Ciphertexts.
const CiphertextsDir = enclaveDir + "/ciphertexts"

// volume makes a VOLUME of the image an encrypted directory.
func (f *files) volume(v string) error {
	if !path.IsAbs(v) {
		v = "/" + v
	}
	if slices.Contains(strings.Split(v, "/"), "..") {
		return fmt.Errorf("%w: engines differ in where the volume %q is", process.ErrImage, v)
	}
	// Links of the kernel's lead out of its directories, to "/" as well: /proc/self/root.
	var through []*rootfs.Node
	_, real, err := f.tree.Through(v, func(dir *rootfs.Node) { through = append(through, dir) })
	kernels := process.LeadsInto(v, through, "/proc", "/dev") || process.LeadsInto(real, nil, "/proc", "/dev")
	if kernels && !process.Below(path.Clean(v), "/dev/shm") {
		return fmt.Errorf("%w: the volume %q is among what is the kernel's, and can lead anywhere", process.ErrImage, v)
	}
	if real == "" {
		return fmt.Errorf("the volume %s: %w", v, err)
	}
	if !utf8.ValidString(real) {
		return fmt.Errorf("%w: the volume %q is not UTF-8", process.ErrImage, real)
	}
	for _, p := range []string{path.Clean(v), real} { // engines follow links, or do not
		if process.Below(p, enclaveDir) || process.Below(enclaveDir, p) {
			return fmt.Errorf("%w: the volume %q would hide %s, where the enclave is, and keep it after an upgrade",
				process.ErrImage, v, enclaveDir)
		}
	}
	if belowAny(real, temporary) {
		f.mount(Mount{Type: Tmpfs, Path: real})
		f.spec.Find(finding.VolumeTemporary, finding.Info, v,
			"this volume is in a directory for temporary files: it is temporary storage in the enclave")
		return nil
	}
	if belowAny(real, hostTrees) {
		f.spec.Find(finding.VolumeSkipped, finding.Warning, v,
			"this volume is in a directory of the library OS's own: nothing is mounted there")
		return nil
	}
	if _, ok := f.writable[real]; ok {
		return nil
	}
	if process.Below(f.spec.Entrypoint, real) || process.Below(f.spec.LibC.Program, real) {
		f.spec.Find(finding.VolumeSkipped, finding.Warning, v,
			"the program lies in this volume: it stays readable as it is in "+
				"the image, and nothing can be written to it")
		return nil
	}
	f.mount(Mount{Type: Encrypted, Path: real})
	f.spec.Find(finding.VolumeSealed, finding.Warning, v,
		"what is written to this volume is sealed to one CPU and one signer: no "+
			"other machine can read it, unless --encrypt-mount names a key that is provisioned")
	return nil
}

// maxSubdirectories is how many directories below temporary storage are made again in it.
const maxSubdirectories = 200

// subdirectories makes the directories that the image ships in temporary storage exist there, which
// starts empty: each is temporary storage of its own.
func (f *files) subdirectories(dir *rootfs.Node, root string) {
	for _, c := range dir.Children() {
		if c.Type != rootfs.Dir || !utf8.ValidString(c.Path) {
			continue
		}
		if f.made++; f.made > maxSubdirectories {
			f.spec.Find(finding.HiddenDirs, finding.Warning, c.Path, "the image has more directories in "+root+
				" than are made again: this one does not exist for the program")
			return
		}
		f.mount(Mount{Type: Tmpfs, Path: c.Path})
		f.subdirectories(c, root)
	}
}

// emptyDirs mounts temporary storage on the directories that the image ships empty, or with empty
// files and links to the console only. It stays on the directories that exist, because a mount hides
// everything below it.
func (f *files) emptyDirs(dir *rootfs.Node) {
	if slices.Contains(managed, dir.Path) || f.hidden(dir.Path) || !utf8.ValidString(dir.Path) {
		return
	}
	leaf := true
	for _, c := range dir.Children() {
		if c.Type == rootfs.Dir {
			f.emptyDirs(c)
		}
		if (c.Type != rootfs.Regular || c.Size > 0) && !f.toConsole(c) {
			leaf = false
		}
	}
	if leaf && !slices.Contains(stateDirs, dir.Path) {
		f.mount(Mount{Type: Tmpfs, Path: dir.Path})
	}
}

// console are the names of standard output, to which images link their log files.
var console = []string{
	"/dev/stdout", "/dev/stderr", "/dev/tty", "/dev/console", "/dev/fd/1", "/dev/fd/2", "/proc/self/fd/1",
	"/proc/self/fd/2",
}

func (f *files) toConsole(n *rootfs.Node) bool {
	if n.Type != rootfs.Symlink {
		return false
	}
	_, real, _ := f.tree.Follow(n)
	return slices.Contains(console, real)
}

// cover returns the innermost mount at or above a path.
func (f *files) cover(p string) (Mount, bool) {
	for ; ; p = path.Dir(p) {
		if m, ok := f.writable[p]; ok {
			return m, true
		}
		if p == "/" {
			return Mount{}, false
		}
	}
}

// hidden reports whether a path of the image cannot be seen by the program: a mount or the kernel's own
// files are there.
func (f *files) hidden(p string) bool {
	_, covered := f.cover(p)
	return covered || belowAny(p, hostTrees)
}
