package gramine

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/finding"
	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/launch/libc"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/libos/gramine/enclave"
)

const glibcInterp, muslInterp = "/lib64/ld-linux-x86-64.so.2", "/lib/ld-musl-x86_64.so.1"

// libcChoice is what the user asks of seal.
var libcChoice libc.Choice

// seal makes the manifest of an image whose program needs a version of glibc and, after a blank, iconv.
func seal(
	t *testing.T, needs string, env []string, b *libos.Bundle, overlay string, entries ...Entry,
) (*libos.Sealed, string) {
	t.Helper()
	tree := Tree(t, launch.Options{}.Keep(), nil, entries...)
	version, imports, _ := strings.Cut(needs, " ")
	program := tree.Lookup("/app").ELF
	program.NeedsGLIBC = version
	if imports != "" {
		program.Imports = []string{"iconv_open"}
	}
	config, err := json.Marshal(v1.ConfigFile{Config: v1.Config{Cmd: []string{"/app"}, Env: env}})
	require.NoError(t, err)
	spec, err := launch.Examine(context.Background(), tree).Build(context.Background(), config,
		launch.Options{Memory: 64 << 20, Threads: 1, LibC: libcChoice})
	require.NoError(t, err)
	in := libos.Input{Spec: spec, Bundle: b, Tree: tree, Overlay: overlay}
	s, err := Backend{}.Seal(context.Background(), in)
	require.NoError(t, err)
	return s, string(s.Manifest)
}

func bundle() *libos.Bundle {
	b := &libos.Bundle{
		Files: map[string]libos.RuntimeFile{},
		Meta: libos.Meta{Kind: "gramine", Layout: enclave.Version, GLIBC: "2.39", Musl: true,
			GLIBCData: libos.DataPaths{
				Cache: "/opt/g/etc/ld.so.cache", Localtime: "/opt/g/etc/localtime", Zoneinfo: "/opt/g/share/zoneinfo",
				Locales: "/opt/g/locale",
			}},
	}
	for p, content := range map[string]string{
		palPath: ELF(""), libosPath: "libos", loaderPath: "loader",
		glibcDir + "/libc.so.6": "c", glibcDir + "/ld-linux-x86-64.so.2": "ld", muslDir +
			"/ld-musl-x86_64.so.1": "musl",
	} {
		b.Files[p] = libos.NewRuntimeFile([]byte(content))
	}
	return b
}

func codesOf(s *libos.Sealed) string {
	var codes []string
	for _, f := range s.Findings {
		if f.Code != finding.ArgumentsFixed && f.Code != finding.NoPackages {
			codes = append(codes, f.Code)
		}
	}
	return strings.Join(codes, " ")
}

// libraryPath returns the value of LD_LIBRARY_PATH in a manifest; "-" where it is unset.
func libraryPath(text string) string {
	for line := range strings.Lines(text) {
		if v, ok := strings.CutPrefix(line, "env.LD_LIBRARY_PATH = "); ok {
			return strings.Trim(strings.TrimSpace(v), `"`)
		}
	}
	return "-"
}

func TestCLibrary(t *testing.T) {
	ld := func(p string) Entry { return Program(strings.TrimPrefix(p, "/"), ELF("")) }
	glibc := []Entry{
		Program("app", ELF(glibcInterp)), ld(glibcInterp), File("etc/ld.so.cache", "cache"),
		File("usr/share/zoneinfo/UTC", "z"), Symlink("etc/localtime", "/usr/share/zoneinfo/UTC"),
		File("usr/lib/locale/C.utf8/x", "l"),
	}
	for _, c := range []struct {
		name, needs string
		env         []string
		entries     []Entry
		path, codes string
		trusts      string // one of the runtime's directories
	}{
		{"glibc that is old enough", "2.36", nil, glibc, glibcDir + ":" + interpDir, "", glibcDir},
		{"glibc as new as the runtime's", "2.39", nil, glibc, glibcDir + ":" + interpDir, "", glibcDir},
		{
			"the image's own path is kept", "2.36", []string{"LD_LIBRARY_PATH=/opt/a:/opt/b"}, glibc, glibcDir + ":" +
				interpDir + ":/opt/a:/opt/b", "", glibcDir,
		},
		{
			"no cache: the directories", "2.36", nil, []Entry{
				Program("app", ELF(glibcInterp)), ld("usr" + glibcInterp), Symlink("lib64", "usr/lib64"),
			}, glibcDir + ":/usr/lib64:" + interpDir, "", glibcDir,
		},
		{"glibc that is too new", "2.40", nil, glibc, interpDir, "glibc-too-new", ""},
		{
			"too new, with a path of the image", "2.40", []string{"LD_LIBRARY_PATH=/opt/a"}, glibc, interpDir +
				":/opt/a", "glibc-too-new", "",
		},
		{
			"too new, in a place of its own", "2.40", nil, []Entry{
				Program("app", ELF("/nix/store/g/lib/ld-linux-x86-64.so.2")),
				ld("/nix/store/g/lib/ld-linux-x86-64.so.2"),
			}, interpDir, "glibc-too-new", "",
		},
		{
			"musl", "", nil, []Entry{Program("app", ELF(muslInterp)), ld(muslInterp)}, muslDir + ":" + interpDir, "",
			muslDir,
		},
		{
			"static, with a path of the image", "", []string{"LD_LIBRARY_PATH=/cuda"}, []Entry{Program("app", ELF(""))},
			"/cuda", "syscall-traps", "",
		},
		{"an empty path", "2.40", []string{"LD_LIBRARY_PATH="}, glibc, interpDir, "glibc-too-new", ""},
		{"static", "", nil, []Entry{Program("app", ELF(""))}, "-", "syscall-traps", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, text := seal(t, c.needs, c.env, bundle(), "", c.entries...)
			assert.Equal(t, c.path, libraryPath(text))
			assert.Equal(t, c.codes, codesOf(s))
			for _, dir := range []string{glibcDir, muslDir} {
				assert.Equal(t, dir == c.trusts, strings.Contains(text, "file:"+dir+"/"), dir)
			}
		})
	}
	_, text := seal(t, "2.36", nil, bundle(), "", glibc...)
	for _, mount := range []string{
		`{ path = "/opt/g/etc/ld.so.cache", uri = "file:/etc/ld.so.cache" }`,
		`{ path = "/opt/g/etc/localtime", uri = "file:/usr/share/zoneinfo/UTC" }`,
		`{ path = "/opt/g/share/zoneinfo", uri = "file:/usr/share/zoneinfo" }`,
		`{ path = "/opt/g/locale", uri = "file:/usr/lib/locale" }`,
		`{ path = "/etc/hosts", uri = "file:/cconvert/app/hosts" }`,
	} {
		assert.Contains(t, text, mount)
	}
	assert.Contains(t, text, `{ path = "/cconvert/app/interp/ld-linux-x86-64.so.2", uri = "file:`+glibcInterp+`" }`)

	both := append([]Entry{Program("bin/sh", ELF(muslInterp)), ld(muslInterp)}, glibc...)
	_, text = seal(t, "2.36", nil, bundle(), "", both...)
	assert.Equal(t, glibcDir+":"+muslDir+":"+interpDir, libraryPath(text), "a program of glibc that starts one of musl")
	assert.Contains(t, text, `uri = "file:`+muslInterp+`" }`)

	converters := append([]Entry{File("usr/lib64/gconv/ISO8859-1.so", "x")}, glibc...)
	s, _ := seal(t, "2.36", nil, bundle(), "", converters...)
	assert.NotContains(t, codesOf(s), finding.Gconv, "nobody converts")
	s, _ = seal(t, "2.36 iconv", nil, bundle(), "", converters...)
	assert.Contains(t, codesOf(s), finding.Gconv)

	for choice, want := range map[libc.Choice]string{
		libc.Image: interpDir, libc.Patched: glibcDir + ":" + interpDir, libc.Auto: interpDir,
	} {
		libcChoice = choice
		_, text := seal(t, "2.41", nil, bundle(), "", glibc...)
		assert.Equal(t, want, libraryPath(text), choice)
	}
	libcChoice = ""

	old := bundle()
	old.Musl = false
	s, text = seal(t, "", nil, old, "", Program("app", ELF(muslInterp)), ld(muslInterp))
	assert.Equal(t, interpDir, libraryPath(text), "never the directories of glibc")
	assert.Contains(t, codesOf(s), "syscall-traps")
}

func TestSealWithOverlay(t *testing.T) {
	s, text := seal(t, "", nil, bundle(), `
sgx.allowed_files = ["file:/f"]
sgx.cpu_features = { avx = "required", avx512 = "disabled" }
loader.log_level = "debug"
`, Program("app", ELF("")), File("f", "x"))
	assert.NotContains(t, text, `{ uri = "file:/f"`, "what is allowed has no digest")
	assert.Contains(t, codesOf(s), finding.AVX512)
	assert.Contains(t, codesOf(s), finding.InsecureSetting)

	s, _ = seal(t, "", nil, bundle(), "sgx.cpu_features = { avx = \"required\" }\nsgx.use_exinfo = true\n",
		Program("app", ELF("")))
	assert.NotContains(t, codesOf(s), finding.AVX512)
	assert.NotContains(t, codesOf(s), finding.InsecureSetting)
}
