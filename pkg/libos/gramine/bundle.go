// Package gramine is the library OS Gramine: what an image needs of an installation, and the manifest for it.
package gramine

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/libos/gramine/enclave"
	"github.com/cconvert/cconvert/pkg/rootfs/elf"
	"github.com/cconvert/cconvert/templates"
)

// DefaultSource is the project's own image.
const DefaultSource = "docker://docker.io/gramineproject/gramine:stable-jammy"

// Prefix is where the runtime lies in a converted image.
const Prefix = libos.Root + "/gramine"

const (
	loaderPath = Prefix + "/loader"
	palPath    = Prefix + "/libpal.so"
	libosPath  = Prefix + "/libsysdb.so"
	glibcDir   = Prefix + "/runtime/glibc"
	muslDir    = Prefix + "/runtime/musl"

	directLoader = Prefix + "/direct/loader"
	directPAL    = Prefix + "/direct/libpal.so"

	// bundleVersion rises whenever the same source would give another layer.
	bundleVersion = 3
)

// Backend is Gramine.
type Backend struct{}

// Kind is "gramine".
func (Backend) Kind() string { return "gramine" }

// Load finds a Gramine installation by its files and packs what an image needs of it.
func (Backend) Load(ctx context.Context, o libos.LoadOptions) (*libos.Bundle, error) {
	b := &loading{ctx: ctx, o: o, name: o.Source}
	if b.name == "" {
		b.name = DefaultSource
	}
	bundle, err := b.load()
	if err == nil && o.Layer != "" && bundle.Layer.Digest != o.Layer {
		err = fmt.Errorf("%w: its layer is %s, not the pinned %s", libos.ErrPinned, bundle.Layer.Digest, o.Layer)
	}
	if err != nil {
		return nil, &libos.LoadError{From: b.name, Err: err}
	}
	return bundle, nil
}

// Image returns the image that has the installation, if it is in one.
func (Backend) Image(o libos.LoadOptions) (ref image.Reference, ok bool, err error) {
	source := cmp.Or(o.Source, DefaultSource)
	if kind, _, _ := strings.Cut(source, ":"); kind == "dir" || kind == "deb" {
		return ref, false, nil
	}
	ref, err = image.ParseReference(source, o.Insecure)
	return ref, err == nil, err
}

type loading struct {
	ctx    context.Context
	o      libos.LoadOptions
	name   string
	digest string // of the image, where the source is one
	pinned bool
}

func (l *loading) load() (*libos.Bundle, error) {
	source, key, err := l.resolve()
	if err != nil {
		return nil, err
	}
	b, err := libos.Cached(l.ctx, l.o.Cache, key, func(ctx context.Context) ([]byte, error) {
		now := *l
		now.ctx = ctx
		s, err := libos.OpenSource(ctx, source, l.o)
		if err != nil {
			return nil, err
		}
		defer s.Close()
		return now.pack(s)
	})
	if err != nil {
		return nil, err
	}
	b.Source, b.SourceDigest, b.Pinned = l.name, l.digest, l.pinned
	return b, nil
}

// resolve turns a tag into a digest, once, so that what is reported is what is used.
func (l *loading) resolve() (source, key string, err error) {
	ref, ok, err := Backend{}.Image(l.o)
	if err != nil {
		return "", "", err
	}
	if !ok {
		l.pinned = true // the files are what they are
		return l.name, "", nil
	}
	if ref.Transport != image.Registry {
		l.pinned = true
		return l.name, "", nil
	}
	l.digest = l.o.Digest
	_, tagged := ref.Name.(interface{ TagStr() string })
	l.pinned = l.digest != "" || !tagged
	if l.digest == "" {
		if l.digest, err = registry.ResolveTag(l.ctx, ref, l.o.Image); err != nil {
			return "", "", err
		}
	}
	if l.o.Libs == "" { // files of this machine can change under a name
		sum := sha256.Sum256(fmt.Append(nil, "gramine ", bundleVersion, " ", l.digest))
		key = "runtime/" + hex.EncodeToString(sum[:])
	}
	return "docker://" + ref.Name.Context().Name() + "@" + l.digest, key, nil
}

// wanted are the files that make a directory a runtime's.
var wanted = []string{"libsysdb.so", "sgx/loader", "sgx/libpal.so", "direct/libpal.so"}

func (l *loading) pack(s libos.Source) ([]byte, error) {
	dir, err := libos.FindRuntime(s, wanted...)
	if err != nil {
		return nil, err
	}
	paths := map[string]string{ // where from: where to
		path.Join(dir, "sgx/loader"):       loaderPath,
		path.Join(dir, "sgx/libpal.so"):    palPath,
		path.Join(dir, "libsysdb.so"):      libosPath,
		path.Join(dir, "direct/libpal.so"): directPAL,
	}
	// Every library once, under the name by which programs ask for it.
	for _, name := range s.List(path.Join(dir, "runtime/glibc")) {
		if sharedLibrary.MatchString(name) && !strings.Contains(name, "gramine") &&
			!strings.HasPrefix(name, "libthread_db") {
			paths[path.Join(dir, "runtime/glibc", name)] = path.Join(glibcDir, name)
		}
	}
	musl := path.Join(dir, "runtime/musl/ld-musl-x86_64.so.1")
	hasMusl := slices.Contains(s.List(path.Dir(musl)), path.Base(musl))
	if hasMusl {
		paths[musl] = path.Join(muslDir, path.Base(musl))
	}
	contents, err := s.Read(l.ctx, slices.Sorted(maps.Keys(paths))...)
	if err != nil {
		return nil, err
	}
	files := map[string]libos.File{}
	for from, to := range paths {
		files[to] = libos.File{Path: to, Mode: 0o755, Content: contents[from]}
	}
	if err := l.loaderLibraries(s, dir, files); err != nil {
		return nil, err
	}
	files[directLoader] = libos.File{Path: directLoader, Link: path.Base(directPAL)}
	for name, text := range templates.RuntimeLicenses() {
		p := path.Join(Prefix, "licenses", name)
		files[p] = libos.File{Path: p, Mode: 0o644, Content: text}
	}
	m := libos.Meta{Kind: "gramine", Layout: enclave.Version, Musl: hasMusl, Version: commit(files[libosPath].Content)}
	if libc, ok := files[path.Join(glibcDir, "libc.so.6")]; ok {
		m.GLIBC, m.GLIBCData = patchedVersion(files), dataPaths(libc.Content)
	}
	if err := l.checkOffsets(s); err != nil {
		return nil, err
	}
	return libos.PackRuntime(m, slices.Collect(maps.Values(files)))
}

// patchedVersion is the highest version that any part of the patched C library provides.
func patchedVersion(files map[string]libos.File) string {
	best := ""
	for p, f := range files {
		if path.Dir(p) != glibcDir {
			continue
		}
		if facts, err := elf.Parse(bytes.NewReader(f.Content)); err == nil &&
			elf.CompareVersions(facts.DefinesGLIBC, best) > 0 {
			best = facts.DefinesGLIBC
		}
	}
	return best
}

var sharedLibrary = regexp.MustCompile(`^(lib|ld-).*\.so\.[0-9]+$`)

// loaderLibraries adds the loader's interpreter and libraries, and patches it to use them.
func (l *loading) loaderLibraries(s libos.Source, dir string, files map[string]libos.File) error {
	libs := s
	if l.o.Libs != "" {
		name := l.o.Libs
		if !strings.HasPrefix(name, "deb:") {
			name = "dir:" + name
		}
		var err error
		if libs, err = libos.OpenSource(l.ctx, name, l.o); err != nil {
			return err
		}
		defer libs.Close()
	}
	loader := files[loaderPath]
	facts, err := elf.Parse(bytes.NewReader(loader.Content))
	if err != nil {
		return fmt.Errorf("reading the loader: %w", err)
	}
	if facts.Interp == "" {
		return nil // static: it needs nothing
	}
	if loader.Content, err = patchLoader(loader.Content); err != nil {
		return err
	}
	files[loaderPath] = loader
	// The dynamic linker first: its C library must be of the same build.
	todo, dirOfInterp := append([]string{path.Base(facts.Interp)}, facts.Needed...), ""
	for len(todo) > 0 {
		name := path.Base(todo[0])
		todo = todo[1:]
		to := loaderLibs + "/" + name
		if name == path.Base(facts.Interp) {
			to = loaderInterp
		}
		if _, ok := files[to]; ok {
			continue
		}
		from, content, err := libos.ReadLibrary(l.ctx, libs, name, dirOfInterp, path.Join(dir, "runtime"))
		if err != nil {
			return err
		}
		if from == "" {
			return fmt.Errorf("the loader needs %s, which is not there: name a directory or package that has it with "+
				"--runtime-libs", name)
		}
		if to == loaderInterp {
			dirOfInterp, content = path.Dir(from), patchLinker(content)
		}
		files[to] = libos.File{Path: to, Mode: 0o755, Content: content}
		lib, err := elf.Parse(bytes.NewReader(content))
		if err != nil {
			return fmt.Errorf("reading %s: %w", from, err)
		}
		todo = append(todo, lib.Needed...)
	}
	// Empty files, where a dynamic linker looks for directories of variants first: nothing of an image can be there.
	for _, name := range variantDirs {
		files[loaderLibs+"/"+name] = libos.File{Path: loaderLibs + "/" + name, Mode: 0o644}
	}
	return nil
}

var commitPattern = regexp.MustCompile(`\x00([0-9a-f]{40})\x00`)

// commit finds the commit that a build of the library OS carries.
func commit(libsysdb []byte) string {
	if m := commitPattern.FindSubmatch(libsysdb); m != nil {
		return string(m[1])
	}
	return "unknown"
}

var (
	localtimePattern = regexp.MustCompile(`\x00(/[^\x00]*)/etc/localtime\x00`)
	zoneinfoPattern  = regexp.MustCompile(`\x00(/[^\x00:%]*/share/zoneinfo)\x00`)
	localesPattern   = regexp.MustCompile(`\x00(/[^\x00]*)/locale-archive\x00`)
)

// dataPaths finds the paths that are compiled into a C library.
func dataPaths(libc []byte) libos.DataPaths {
	var d libos.DataPaths
	if m := localtimePattern.FindSubmatch(libc); m != nil {
		d.Localtime = string(m[1]) + "/etc/localtime"
		d.Cache = string(m[1]) + "/etc/ld.so.cache"
	}
	if m := zoneinfoPattern.FindSubmatch(libc); m != nil {
		d.Zoneinfo = string(m[1])
	}
	if m := localesPattern.FindSubmatch(libc); m != nil {
		d.Locales = string(m[1])
	}
	return d
}

// checkOffsets compares the constants that a full installation ships with those that are known here.
func (l *loading) checkOffsets(s libos.Source) error {
	found := s.Find("/_graminelibos_offsets.py")
	if len(found) == 0 {
		return nil // the bare runtime does not carry them
	}
	contents, err := s.Read(l.ctx, found[0])
	if err != nil {
		return err
	}
	g, err := enclave.GeometryOf(enclave.Version)
	if err != nil {
		return err
	}
	return g.Compare(string(contents[found[0]]))
}
