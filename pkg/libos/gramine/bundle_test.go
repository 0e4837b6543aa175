package gramine

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/cache"
	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/launch/libc"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/manifest"
)

func install(t *testing.T, without string) string {
	t.Helper()
	prefix := t.TempDir()
	dir := filepath.Join(prefix, "lib/gramine")
	for name, content := range map[string]string{
		"sgx/loader": fixture.ELF(""), "sgx/libpal.so": fixture.ELF(""), "direct/libpal.so": fixture.ELF(""),
		"libsysdb.so": "x\x00" + strings.Repeat("ab", 20) + "\x00y", "runtime/musl/ld-musl-x86_64.so.1": "musl",
	} {
		if name == without {
			continue
		}
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o755))
	}
	return prefix
}

func TestLoadDirectory(t *testing.T) {
	b, err := Backend{}.Load(context.Background(), libos.LoadOptions{Source: "dir:" + install(t, "")})
	require.NoError(t, err)
	assert.Equal(t, strings.Repeat("ab", 20), b.Version)
	assert.True(t, b.Musl)
	assert.True(t, b.Pinned)
	assert.Contains(t, b.Files, libosPath)
	assert.Contains(t, b.Files, Prefix+"/licenses/LGPL-3.0.txt")

	// The layer in the image is what was read.
	blob, err := b.Layer.Blob()
	require.NoError(t, err)
	z, err := gzip.NewReader(bytes.NewReader(blob))
	require.NoError(t, err)
	archive, err := io.ReadAll(z)
	require.NoError(t, err)
	back, err := libos.NewBundle(archive)
	require.NoError(t, err)
	assert.Equal(t, b.Layer.Digest, back.Layer.Digest)
	assert.Equal(t, b.Meta, back.Meta)
	for p, f := range b.Files {
		assert.Equal(t, f.SHA256, back.Files[p].SHA256, p)
	}
	assert.Len(t, back.Files, len(b.Files))
	again, err := Backend{}.Load(context.Background(), libos.LoadOptions{Source: "dir:" + install(t, "")})
	require.NoError(t, err)
	assert.Equal(t, b.Layer.Digest, again.Layer.Digest, "the same files, the same layer")

	_, err = Backend{}.Load(context.Background(),
		libos.LoadOptions{Source: "dir:" + install(t, ""), Layer: "sha256:other"})
	assert.ErrorContains(t, err, "not the pinned sha256:other")
	for _, name := range wanted {
		_, err := Backend{}.Load(context.Background(), libos.LoadOptions{Source: "dir:" + install(t, name)})
		assert.ErrorIs(t, err, libos.ErrNoRuntime, name)
	}
}

func TestPatchLoaderRefuses(t *testing.T) {
	for want, file := range map[string]string{
		"reading the loader":    "no program",
		"not dynamically":       fixture.ELF(""),
		"not dynamically linke": fixture.ELF("/lib64/ld-linux-x86-64.so.2"),
	} {
		_, err := patchLoader([]byte(file))
		assert.ErrorContains(t, err, want)
	}
}

// A runtime from a registry is fetched once; a moved tag is noticed; what is in the cache is checked.
func TestLoadFromRegistryOnce(t *testing.T) {
	reg, dir := fixture.NewRegistry(t), t.TempDir()
	image := func(commit string) v1.Image {
		dir := "opt/g/lib/gramine/"
		return fixture.Image(t, v1.Config{}, fixture.Layer(t,
			fixture.Program(dir+"sgx/loader", fixture.ELF("")), fixture.Program(dir+"sgx/libpal.so", fixture.ELF("")),
			fixture.Program(dir+"direct/libpal.so", fixture.ELF("")),
			fixture.File(dir+"libsysdb.so", "\x00"+strings.Repeat(commit, 20)+"\x00")))
	}
	load := func(digest string) (*libos.Bundle, string) {
		reg.Intercept(nil)
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel() // who loads it can be done before others are
		b, err := Backend{}.Load(ctx, libos.LoadOptions{
			Source: "docker://" + reg.Host + "/gramine:stable", Cache: cache.Open(dir, cache.DefaultLimit),
			Digest: digest,
		})
		require.NoError(t, err)
		return b, strings.Join(reg.Requests(), "\n")
	}
	reg.Push(t, "gramine:stable", image("ab"))
	first, requests := load("")
	assert.Contains(t, requests, "/blobs/")
	assert.False(t, first.Pinned)
	second, requests := load("")
	assert.NotContains(t, requests, "/blobs/", "the layers are not fetched again")
	assert.Equal(t, first.Meta, second.Meta)
	for _, when := range []string{"kept", "removed meanwhile"} {
		blob, err := second.Layer.Blob()
		require.NoError(t, err, when)
		sum := sha256.Sum256(blob)
		assert.Equal(t, first.Layer.Digest, "sha256:"+hex.EncodeToString(sum[:]), when)
		assert.Len(t, blob, first.Layer.Size, when)
		for p, f := range first.Files {
			want, err := first.Content(p)
			require.NoError(t, err, when)
			content, err := second.Content(p)
			require.NoError(t, err, when)
			assert.Equal(t, want, content, when+": "+p)
			assert.Equal(t, f.SHA256, second.Files[p].SHA256)
			assert.Len(t, content, second.Files[p].Size)
		}
		require.NoError(t, os.RemoveAll(filepath.Join(dir, "runtime-layer")))
		require.NoError(t, os.RemoveAll(filepath.Join(dir, "runtime-file")))
		if when == "kept" {
			reg.Intercept(func(w http.ResponseWriter, _ *http.Request, _ int) bool {
				w.WriteHeader(http.StatusNotFound)
				return true
			})
			_, err := second.Layer.Blob()
			require.Error(t, err)
			reg.Intercept(nil) // what failed once may succeed
		}
	}

	reg.Push(t, "gramine:stable", image("cd"))
	moved, _ := load("")
	assert.NotEqual(t, first.Layer.Digest, moved.Layer.Digest)
	pinned, requests := load(first.SourceDigest)
	assert.True(t, pinned.Pinned)
	assert.Equal(t, first.Layer.Digest, pinned.Layer.Digest)
	assert.Empty(t, requests, "a pinned runtime that is known needs no registry")

	kept, err := cache.Open(dir, cache.DefaultLimit).List()
	require.NoError(t, err)
	for _, e := range kept {
		require.NoError(t, os.WriteFile(filepath.Join(dir, e.Key), make([]byte, 100), 0o600))
	}
	again, _ := load(first.SourceDigest)
	assert.Equal(t, first.Layer.Digest, again.Layer.Digest)
}

// A library of another architecture, found first, is passed over, and one beside the preferred place wins.
func TestReadLibrary(t *testing.T) {
	dir := t.TempDir()
	other := strings.Replace(fixture.ELF(""), "\x3e\x00", "\xb7\x00", 1)
	for name, content := range map[string]string{
		"aarch64/libx.so.1": other, "b/libx.so.1": fixture.ELF(""), "c/libx.so.1": fixture.ELF(""),
	} {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o755))
	}
	s, err := libos.OpenSource(context.Background(), "dir:"+dir, libos.LoadOptions{})
	require.NoError(t, err)
	at, _, err := libos.ReadLibrary(context.Background(), s, "libx.so.1", "", "")
	require.NoError(t, err)
	assert.Equal(t, filepath.Join(dir, "b/libx.so.1"), at)
	at, _, err = libos.ReadLibrary(context.Background(), s, "libx.so.1", filepath.Join(dir, "c"), "")
	require.NoError(t, err)
	assert.Equal(t, filepath.Join(dir, "c/libx.so.1"), at)
	at, _, err = libos.ReadLibrary(context.Background(), s, "none.so", "", "")
	require.NoError(t, err)
	assert.Empty(t, at)
}

// The runtime's dynamic linker looks nowhere in the image for what to load.
func TestPatchLinker(t *testing.T) {
	for from, to := range steering {
		assert.Len(t, to, len(from))
		assert.True(t, strings.HasPrefix(to, "/dev/null/"))
	}
	assert.Len(t, noVariants, len(variants))
	linker := "\x7fELF\x00/etc/ld.so.cache\x00/etc/ld.so.preload\x00\x48\xb8glibc-hw\x48\xb8-hwcaps/\x00/etc/ld.so.conf"
	assert.Equal(t,
		"\x7fELF\x00/dev/null/.cache\x00/dev/null/.preload\x00\x48\xb8cconv-hw\x48\xb8-hwcaps/\x00/etc/ld.so.conf",
		string(patchLinker([]byte(linker))))
}

// The runtime's glibc loads no converters of the image's: they only make the list longer.
func TestConvertersAreNotListed(t *testing.T) {
	list := []manifest.TrustedFile{
		{URI: "file:/usr/lib64/gconv/UTF-16.so"}, {URI: "file:/usr/lib64/gconv-other"}, {URI: "file:/app"},
	}
	for policy, want := range map[launch.Policy]int{launch.TrustAuto: 2, launch.TrustAll: 3, launch.TrustList: 3} {
		spec := &launch.Spec{
			Policy: policy, LibC: libc.Needs{Gconv: "/usr/lib64/gconv", Kinds: []libc.Kind{libc.GLIBC}},
		}
		for choice, want := range map[libc.Choice]int{libc.Auto: want, libc.Image: 3} {
			spec.LibC.Choice = choice
			m := &manifest.Manifest{
				Table: manifest.Table{"loader": manifest.Table{"env": manifest.Table{}}}, Trusted: slices.Clone(list),
			}
			in := libos.Input{Spec: spec, Bundle: &libos.Bundle{Meta: libos.Meta{GLIBC: "2.40"}}}
			libC{in, m, &libos.Sealed{}}.choose()
			assert.Len(t, m.Trusted, want, "%s %s", policy, choice)
		}
	}
}
