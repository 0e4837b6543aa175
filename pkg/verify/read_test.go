package verify_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/launch/libc"
	"github.com/cconvert/cconvert/pkg/launch/process"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/libos/gramine"
	"github.com/cconvert/cconvert/pkg/profile"
	"github.com/cconvert/cconvert/pkg/sgx"
	"github.com/cconvert/cconvert/pkg/verify"
)

// gscImage is an image of the shape that Gramine Shielded Containers make.
func gscImage(t *testing.T) v1.Image {
	t.Helper()
	pal, err := os.ReadFile("../../testdata/vectors/pal/pal-twosegments.so")
	require.NoError(t, err)
	const lib = "gramine/meson_build_output/lib/x86_64-linux-gnu/gramine/"
	text := fmt.Sprintf(`[libos]
entrypoint = "/usr/bin/app"
[loader]
entrypoint = { uri = "file:/%slibsysdb.so", sha256 = "%x" }
argv = ["app"]
[sgx]
enclave_size = "64M"
max_threads = 4
trusted_files = [ { uri = "file:/usr/bin/app", sha256 = "%x" } ]
`, lib, sha256.Sum256([]byte("libos")), sha256.Sum256([]byte("program")))
	e, err := gramine.NewEnclave(pal, []byte(text))
	require.NoError(t, err)
	m, err := sgx.Measure(context.Background(), e.Layout)
	require.NoError(t, err)
	s := e.SigStruct(m, sgx.Date{Year: 2026, Month: 2, Day: 28})
	key := signer(t)
	public, err := key.Public(context.Background())
	require.NoError(t, err)
	signature, err := key.Sign(context.Background(), s.ToBeSigned())
	require.NoError(t, err)
	require.NoError(t, s.Attach(public, signature))
	return fixture.Image(t, v1.Config{Entrypoint: []string{"/bin/bash", "/gramine/app_files/apploader.sh"}},
		fixture.Layer(t, fixture.Program("usr/bin/app", "program"), fixture.Program("bin/bash", "x")),
		fixture.Layer(t, fixture.Program(lib+"sgx/libpal.so", string(pal)), fixture.File(lib+"libsysdb.so", "libos")),
		fixture.Layer(t, fixture.File("gramine/app_files/entrypoint.manifest.sgx", text),
			fixture.File("gramine/app_files/entrypoint.sig", string(s.Bytes())),
			fixture.Program("gramine/app_files/apploader.sh", "#!/bin/sh\n")))
}

func TestGSC(t *testing.T) {
	reg := fixture.NewRegistry(t)
	ref := reg.Push(t, "gsc:1", gscImage(t))
	c, err := inspect.Read(context.Background(), open(t, ref), inspect.Options{})
	require.NoError(t, err)
	assert.Equal(t, inspect.LayoutGSC, c.Layout)
	assert.Equal(t, "/usr/bin/app", c.Program.Entrypoint)
	assert.Equal(t, 1, c.Trusted[0].Layer)
	assert.NotEmpty(t, c.Areas)

	assert.Equal(t, []string{verify.CheckLayout},
		check(t, ref, verify.Expectations{MRSigner: []sgx.Measurement{c.MRSigner}}, nil).FailedChecks(),
		"what starts it is not verified")
	r := check(t, ref, verify.Expectations{Layout: inspect.LayoutGSC, MRSigner: []sgx.Measurement{c.MRSigner}}, nil)
	assert.True(t, r.Trusted, "%v", r.Checks)
	policy := checkOf(r, verify.CheckPolicy)
	assert.Equal(t, verify.Skipped, policy.Status)
	assert.Contains(t, policy.Detail, "claims no policy")

	r = check(t, ref, verify.Expectations{
		Layout: inspect.LayoutGSC, MRSigner: []sgx.Measurement{c.MRSigner}, RuntimeDigest: []string{"sha256:00"},
	}, nil)
	assert.Contains(t, r.FailedChecks(), verify.CheckRuntimeIs, "no expectation is passed over")

	x := &tampered{t: t}
	x.layers, err = gscImage(t).Layers()
	require.NoError(t, err)
	x.file(0, "usr/bin/app", flip(0))
	x.config, err = gscImage(t).ConfigFile()
	require.NoError(t, err)
	x.push(reg.Host+"/gsc:2", gscImage(t))
	assert.Equal(t, []string{verify.CheckFiles, verify.CheckAnyIdentity},
		check(t, reg.Host+"/gsc:2", verify.Expectations{Layout: inspect.LayoutGSC}, nil).FailedChecks())
}

// The entrypoint of GSC finds the loader by a search: of several, another one may be started than was measured.
func TestSeveralPALs(t *testing.T) {
	reg := fixture.NewRegistry(t)
	x := &tampered{t: t}
	var err error
	x.layers, err = gscImage(t).Layers()
	require.NoError(t, err)
	x.add(0, fixture.Program("gramine/meson_build_output/lib64/gramine/sgx/libpal.so", "other"))
	x.config, err = gscImage(t).ConfigFile()
	require.NoError(t, err)
	x.push(reg.Host+"/gsc:1", gscImage(t))
	_, err = inspect.Read(context.Background(), open(t, reg.Host+"/gsc:1"), inspect.Options{})
	assert.ErrorIs(t, err, inspect.ErrNotConverted)
}

func TestReadRefuses(t *testing.T) {
	reg := fixture.NewRegistry(t)
	_, err := inspect.Read(context.Background(), open(t, reg.Push(t, "src:1", sample(t))), inspect.Options{})
	assert.ErrorIs(t, err, inspect.ErrNotConverted)
	_, err = verify.Verify(context.Background(), open(t, reg.Host+"/src:1"), nil,
		verify.Expectations{AllowSimulated: true}, nil, inspect.Options{})
	assert.ErrorIs(t, err, inspect.ErrNotConverted)
}

func TestCompare(t *testing.T) {
	reg := fixture.NewRegistry(t)
	o := options(t, reg.Push(t, "src:1", sample(t)))
	run(t, o, signer(t), reg.Host+"/a:1")
	read := func(name string) *inspect.Converted {
		c, err := inspect.ReadLayers(context.Background(), open(t, reg.Host+"/"+name), inspect.Options{})
		require.NoError(t, err)
		return c
	}
	a := read("a:1")
	list, err := inspect.Compare(a, a)
	require.NoError(t, err)
	assert.Empty(t, list)

	o.Launch.Args, o.Launch.Memory, o.Enclave.ISVSVN = []string{"else"}, 128<<20, 2
	run(t, o, otherKey(t), reg.Host+"/b:1")
	other := reg.Push(t, "src:2", fixture.Image(t, v1.Config{Entrypoint: []string{"/bin/app"}},
		fixture.Layer(t, fixture.Program("bin/app", fixture.ELF("")), fixture.File("srv/a", "other"),
			fixture.File("srv/c", "3"))))
	o2 := options(t, other)
	run(t, o2, signer(t), reg.Host+"/c:1")
	for name, want := range map[string][]string{
		"b:1": {
			"~ options --arg: null → [\"else\"]", "~ enclave size: 67108864 → 134217728", "~ enclave SVN: 0 → 2",
			"~ signer MRSIGNER", "~ manifest loader.argv: [\"/bin/app\",\"--serve\",\"arg\"] → " +
				"[\"/bin/app\",\"--serve\",\"else\"]", "~ manifest sgx.enclave_size",
		},
		"c:1": {
			"~ source digest", "~ files file:/srv/a:", "layer 1", "+ files file:/srv/c", "- files file:/srv/b",
			"- manifest loader.env.A = \"1\"",
		},
	} {
		list, err := inspect.Compare(a, read(name))
		require.NoError(t, err)
		var text strings.Builder
		for _, d := range list {
			fmt.Fprintln(&text, d)
		}
		for _, w := range want {
			assert.Contains(t, text.String(), w, name)
		}
	}
}

// A conversion with every option comes out the same when it is repeated from its recipe.
func TestRebuild(t *testing.T) {
	reg := fixture.NewRegistry(t)
	from := reg.Push(t, "src:1", sample(t))
	other := reg.Push(t, "src:2", fixture.Image(t, v1.Config{Entrypoint: []string{"/bin/app"}},
		fixture.Layer(t, fixture.Program("bin/app", fixture.ELF("")))))
	for what, change := range allOptions(t) {
		o := options(t, from)
		change(&o)
		run(t, o, signer(t), reg.Host+"/dst:1")
		img := open(t, reg.Host+"/dst:1")
		again := verify.RebuildOptions{
			Source: parse(t, from), Convert: convert.Options{StoreOptions: convert.StoreOptions{Image: o.Image}},
		}
		r, err := verify.Rebuild(context.Background(), img, again)
		require.NoError(t, err, what)
		assert.True(t, r.Same, "%s: %v", what, r.Why)
		assert.Equal(t, img.Digest, r.Again)
		again.Runtime = &o.Runtime
		r, err = verify.Rebuild(context.Background(), img, again)
		require.NoError(t, err, what)
		assert.True(t, r.Same, "%s with its runtime: %v", what, r.Why)

		expect := verify.Expectations{AllowSimulated: true, AnySigner: true, AllowDebug: true, AllowChanges: true}
		report := check(t, reg.Host+"/dst:1", expect, open(t, from))
		assert.True(t, report.Trusted, "%s: %v", what, report.Checks)

		again.Source = parse(t, other)
		if r, err = verify.Rebuild(context.Background(), img, again); err == nil {
			assert.False(t, r.Same)
			assert.Contains(t, r.Why[0], "the image was made from")
		}
	}
}

// allOptions are conversions that decide something, each in its way.
func allOptions(t *testing.T) map[string]func(*convert.Options) {
	overlay := func(text string) func(*convert.Options) {
		return func(o *convert.Options) {
			o.Overlay = text
		}
	}
	own, err := profile.Parse("mine", []byte("description = \"mine\"\n[enclave]\nsize = \"128M\"\nthreads = 5\n"))
	require.NoError(t, err)
	return map[string]func(*convert.Options){
		"nothing":   func(*convert.Options) {},
		"arguments": func(o *convert.Options) { o.Launch.Args = []string{"a", ""} },
		"none":      func(o *convert.Options) { o.Launch.Args = []string{} },
		"host":      func(o *convert.Options) { o.Launch.HostArgs = true },
		"environment": func(o *convert.Options) {
			o.Launch.Env = []process.EnvVar{{Name: "X", Value: "a=b"}, {Name: "Y", PassThrough: true}}
		},
		"mounts": func(o *convert.Options) {
			o.Launch.Tmpfs, o.Launch.Encrypted = []string{"/scratch"}, []launch.Mount{{Path: "/data", Key: "mine"}}
		},
		"allowed": func(o *convert.Options) { o.Launch.AllowedFiles = []string{"/srv/a"} },
		"list":    func(o *convert.Options) { o.Launch.Trust, o.Launch.List = launch.TrustList, []string{"/srv/a"} },
		"all":     func(o *convert.Options) { o.Launch.Trust = launch.TrustAll },
		"libc":    func(o *convert.Options) { o.Launch.LibC = libc.Image },
		"profile": func(o *convert.Options) { o.Launch.Profile = profile.Find("java") },
		"own": func(o *convert.Options) {
			o.Launch.Profile, o.Launch.Memory, o.Launch.Threads = own, 0, 0
		},
		"enclave": func(o *convert.Options) {
			o.Launch.Memory, o.Launch.Threads = 128<<20, 3
			o.Enclave = libos.EnclaveOptions{
				EDMM: true, Debug: true, ISVProdID: 4, ISVSVN: 5, Attestation: "dcap", LogLevel: "all",
			}
		},
		"date":    func(o *convert.Options) { o.Date = &sgx.Date{Year: 2020, Month: 1, Day: 2} },
		"overlay": overlay("[sgx]\nuse_exinfo = true\ntrusted_files = [\"file:/srv/b\"]\n[loader.env]\nZ = \"1\"\n"),
	}
}
