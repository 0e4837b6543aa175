package libos

import (
	"bytes"
	"context"
	"crypto/sha256"
	debugelf "debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/blakesmith/ar"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/cconvert/cconvert/pkg/cache"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
	"github.com/cconvert/cconvert/pkg/image/store"
	"github.com/cconvert/cconvert/pkg/rootfs"
	"github.com/cconvert/cconvert/pkg/rootfs/elf"
)

// LoadOptions say where a runtime comes from.
type LoadOptions struct {
	// Source is docker://REF, oci:DIR, dir:PREFIX or deb:FILE[,FILE…]; empty for the backend's own.
	Source string
	// Libs is where the loader's libraries are, if not in Source: a directory or deb:FILE[,FILE…].
	Libs string
	// Digest pins the image that Source names, Layer the runtime's layer, as "sha256:…".
	Digest, Layer string
	// Image says how images are fetched; Insecure allows HTTP.
	Image    registry.Options
	Insecure bool
	// Cache keeps packed runtimes between runs; nil: they are not kept.
	Cache cache.Store
}

// Source is a set of files to take a runtime from.
type Source interface {
	// Find lists the regular files whose path ends in the suffix, which begins with a slash.
	Find(suffix string) []string
	// List lists the names in a directory.
	List(dir string) []string
	// Read reads files, following symbolic links.
	Read(ctx context.Context, paths ...string) (map[string][]byte, error)
	Close() error
}

const maxRuntimeFile = 256 << 20

// OpenSource opens what LoadOptions.Source names.
func OpenSource(ctx context.Context, source string, o LoadOptions) (Source, error) {
	kind, rest, _ := strings.Cut(source, ":")
	switch kind {
	case "dir":
		return openDir(rest)
	case "deb":
		return openDebs(ctx, strings.Split(rest, ","))
	}
	ref, err := image.ParseReference(source, o.Insecure)
	if err != nil {
		return nil, err
	}
	img, err := store.Open(ctx, ref, o.Image)
	if err != nil {
		return nil, err
	}
	s := &treeSource{close: img.Close}
	var indexes []*rootfs.Index
	var room rootfs.Room
	for _, l := range img.Layers {
		index, err := scanLayer(ctx, l)
		if err == nil {
			err = room.Take(index)
		}
		if err != nil {
			img.Close()
			return nil, err
		}
		indexes = append(indexes, index)
		s.open, s.digests = append(s.open, l.Open), append(s.digests, l.Digest)
	}
	if s.tree, err = rootfs.Merge(indexes); err != nil {
		img.Close()
		return nil, err
	}
	return s, nil
}

func scanLayer(ctx context.Context, l *image.Layer) (*rootfs.Index, error) {
	r, err := l.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return rootfs.Scan(ctx, r, l.Digest, rootfs.Options{})
}

// dirSource is a directory of this machine, which the user named.
type dirSource struct{ root string }

func openDir(dir string) (Source, error) {
	info, err := os.Stat(dir)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("%s is not a directory", dir)
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil { // walking does not follow the first link
		return nil, err
	}
	return dirSource{dir}, nil
}

// skipped are directories of an installation prefix in which no runtime lies.
var skipped = []string{"share", "include", "src", "doc", "proc", "sys", "dev", "home", "tmp"}

func (s dirSource) Find(suffix string) []string {
	var found []string
	_ = filepath.WalkDir(s.root, func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			if d != nil && d.IsDir() {
				return fs.SkipDir
			}
		case d.IsDir() && p != s.root && slices.Contains(skipped, d.Name()):
			return fs.SkipDir
		case !d.IsDir() && strings.HasSuffix(p, suffix):
			if info, err := os.Stat(p); err == nil && info.Mode().IsRegular() {
				found = append(found, p)
			}
		}
		return nil
	})
	return found
}

func (s dirSource) List(dir string) []string {
	entries, _ := os.ReadDir(dir)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func (s dirSource) Read(_ context.Context, paths ...string) (map[string][]byte, error) {
	contents := map[string][]byte{}
	for _, p := range paths {
		info, err := os.Stat(p)
		if err != nil {
			return nil, err
		}
		if info.Size() > maxRuntimeFile {
			return nil, fmt.Errorf("%s has %d bytes, more than %d", p, info.Size(), maxRuntimeFile)
		}
		if contents[p], err = os.ReadFile(p); err != nil {
			return nil, err
		}
	}
	return contents, nil
}

func (s dirSource) Close() error { return nil }

// treeSource are layers of an image or the contents of packages.
type treeSource struct {
	tree    *rootfs.Tree
	open    []func(context.Context) (io.ReadCloser, error)
	digests []string // of what they open
	close   func() error
}

func (s *treeSource) Find(suffix string) []string {
	var found []string
	_ = s.tree.Walk(func(n *rootfs.Node) error {
		if !strings.HasSuffix(n.Path, suffix) {
			return nil
		}
		if target, _, err := s.tree.Follow(n); err == nil && target.Type == rootfs.Regular {
			found = append(found, n.Path)
		}
		return nil
	})
	return found
}

func (s *treeSource) List(dir string) []string {
	n, _, err := s.tree.Resolve(dir)
	if err != nil {
		return nil
	}
	var names []string
	for _, c := range n.Children() {
		names = append(names, c.Name())
	}
	return names
}

// Read goes through each layer that holds a wanted file once more.
func (s *treeSource) Read(ctx context.Context, paths ...string) (map[string][]byte, error) {
	origins := make([]map[string]bool, len(s.open))
	nodes := map[string]*rootfs.Node{}
	for _, p := range paths {
		n, _, err := s.tree.Resolve(p)
		if err != nil {
			return nil, err
		}
		if origins[n.Layer] == nil {
			origins[n.Layer] = map[string]bool{}
		}
		origins[n.Layer][n.Origin()] = true
		nodes[p] = n
	}
	byLayer := make([]map[string][]byte, len(s.open))
	for i, want := range origins {
		if want == nil {
			continue
		}
		r, err := s.open[i](ctx)
		if err != nil {
			return nil, err
		}
		byLayer[i], err = rootfs.Extract(ctx, r, s.digests[i], want, maxRuntimeFile, nil)
		r.Close()
		if err != nil {
			return nil, err
		}
	}
	contents := map[string][]byte{}
	for p, n := range nodes {
		content, ok := byLayer[n.Layer][n.Origin()]
		if !ok || sha256.Sum256(content) != n.SHA256 {
			return nil, &fs.PathError{Op: "read", Path: p, Err: fs.ErrNotExist}
		}
		contents[p] = content
	}
	return contents, nil
}

func (s *treeSource) Close() error {
	if s.close == nil {
		return nil
	}
	return s.close()
}

// openDebs reads the contents of Debian packages (deb(5)).
func openDebs(ctx context.Context, files []string) (Source, error) {
	s := &treeSource{}
	var indexes []*rootfs.Index
	for _, file := range files {
		archive, err := debContents(file)
		if err != nil {
			return nil, fmt.Errorf("reading the package %s: %w", file, err)
		}
		sum := sha256.Sum256(archive)
		index, err := rootfs.Scan(ctx, bytes.NewReader(archive), "sha256:"+hex.EncodeToString(sum[:]), rootfs.Options{})
		if err != nil {
			return nil, fmt.Errorf("reading the package %s: %w", file, err)
		}
		indexes = append(indexes, index)
		s.digests = append(s.digests, index.Digest)
		s.open = append(s.open, func(context.Context) (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(archive)), nil
		})
	}
	var err error
	s.tree, err = rootfs.Merge(indexes)
	return s, err
}

// debContents returns the member data.tar of a package, without its compression.
func debContents(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for r := ar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil, errors.New("it has no data.tar")
		}
		if err != nil {
			return nil, err
		}
		name, compression, _ := strings.Cut(strings.TrimSuffix(strings.TrimSpace(h.Name), "/"), ".tar")
		if name != "data" {
			continue
		}
		var plain io.Reader = r
		switch compression {
		case ".xz":
			plain, err = xz.NewReader(r)
		case ".zst":
			var z *zstd.Decoder
			if z, err = zstd.NewReader(r); err == nil {
				defer z.Close()
				plain = z
			}
		case ".gz", "": // told apart when scanned
		default:
			err = fmt.Errorf("data.tar%s is compressed in an unknown way", compression)
		}
		if err != nil {
			return nil, err
		}
		b, err := io.ReadAll(io.LimitReader(plain, maxBundle+1))
		if err == nil && len(b) > maxBundle {
			err = fmt.Errorf("its content has more than %d bytes", maxBundle)
		}
		return b, err
	}
}

// ReadLibrary finds a shared library for x86-64 by its name and reads it: in a directory where it is
// there, otherwise anywhere but below notBelow. The path is empty if there is none.
func ReadLibrary(
	ctx context.Context, s Source, name, preferred, notBelow string,
) (at string, content []byte, err error) {
	candidates := s.Find("/" + name)
	slices.SortStableFunc(candidates, func(a, b string) int {
		return boolToInt(path.Dir(a) != preferred) - boolToInt(path.Dir(b) != preferred)
	})
	for _, p := range candidates {
		if notBelow != "" && strings.HasPrefix(p, notBelow+"/") {
			continue
		}
		contents, err := s.Read(ctx, p)
		if err != nil {
			return "", nil, err
		}
		facts, err := elf.Parse(bytes.NewReader(contents[p]))
		if err == nil && facts.Class == debugelf.ELFCLASS64 && facts.Machine == debugelf.EM_X86_64 {
			return p, contents[p], nil
		}
	}
	return "", nil, nil
}

func boolToInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// ErrPinned says that a runtime is not the one that was pinned.
var ErrPinned = errors.New("another runtime than before")

// LoadError says that a runtime could not be loaded, and why.
type LoadError struct {
	From string // the source
	Err  error
}

func (e *LoadError) Error() string {
	return fmt.Sprintf("loading the runtime from %s: %v", e.From, e.Err)
}
func (e *LoadError) Unwrap() error { return e.Err }

// ErrNoRuntime says that a source holds no runtime.
var ErrNoRuntime = errors.New("no runtime found")

// FindRuntime finds the directory that holds the given files.
func FindRuntime(s Source, files ...string) (string, error) {
	for _, p := range s.Find("/" + files[0]) {
		dir := strings.TrimSuffix(p, "/"+files[0])
		complete := true
		for _, f := range files[1:] {
			complete = complete && slices.Contains(s.List(path.Join(dir, path.Dir(f))), path.Base(f))
		}
		if complete {
			return dir, nil
		}
	}
	return "", fmt.Errorf("%w: no directory holds %s", ErrNoRuntime, strings.Join(files, ", "))
}
