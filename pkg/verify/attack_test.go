package verify_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
	"github.com/cconvert/cconvert/pkg/image/store"
	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/recipe"
	"github.com/cconvert/cconvert/pkg/sgx"
	"github.com/cconvert/cconvert/pkg/verify"
)

// victim is an image that an attacker changes who can write to the registry, and has no key that is expected.
type victim struct {
	t      *testing.T
	reg    *fixture.Registry
	from   string
	expect verify.Expectations
	n      int
}

func newVictim(t *testing.T, change func(*convert.Options)) *victim {
	t.Helper()
	a := &victim{t: t, reg: fixture.NewRegistry(t)}
	a.from = a.reg.Push(t, "src:1", sample(t))
	o := options(t, a.from)
	if change != nil {
		change(&o)
	}
	run(t, o, signer(t), a.reg.Host+"/dst:1")
	public, err := signer(t).Public(context.Background())
	require.NoError(t, err)
	a.expect = verify.Expectations{AllowSimulated: true, MRSigner: []sgx.Measurement{sgx.MRSigner(public)}}
	return a
}

func (a *victim) image() (v1.Image, *tampered) {
	a.t.Helper()
	tag, err := name.NewTag(a.reg.Host + "/dst:1")
	require.NoError(a.t, err)
	original, err := remote.Image(tag)
	require.NoError(a.t, err)
	x := &tampered{t: a.t}
	x.layers, err = original.Layers()
	require.NoError(a.t, err)
	config, err := original.ConfigFile()
	require.NoError(a.t, err)
	x.config = config.DeepCopy()
	return original, x
}

// attack changes the image, and returns the checks that fail.
func (a *victim) attack(withSource bool, change func(*tampered)) []string {
	a.t.Helper()
	original, x := a.image()
	change(x)
	a.n++
	ref := fmt.Sprintf("%s/attack:%d", a.reg.Host, a.n)
	x.push(ref, original)
	return a.failed(ref, withSource)
}

func (a *victim) failed(ref string, withSource bool) []string {
	a.t.Helper()
	var source *image.Image
	if withSource {
		source = open(a.t, a.from)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	r, err := verify.Verify(ctx, open(a.t, ref), source, a.expect, nil, inspect.Options{})
	require.NoError(a.t, err)
	assert.Equal(a.t, len(r.FailedChecks()) == 0, r.Trusted)
	before, _, err := verify.BeforeSigning(ctx, open(a.t, ref), source, a.expect, inspect.Options{})
	if errors.Is(err, convert.ErrNotOurs) { // whatever it is consistent with
		return r.FailedChecks()
	}
	require.NoError(a.t, err)
	assert.Equal(a.t, r.Consistent, before.Consistent, "what is not consistent is not signed")
	return r.FailedChecks()
}

// add puts entries at a layer's end.
func (x *tampered) add(layer int, more ...fixture.Entry) {
	x.t.Helper()
	x.edit(layer, func(l []fixture.Entry) []fixture.Entry { return append(l, more...) })
}

// below puts entries into a layer of the source's, as if it had been so from the beginning.
func (x *tampered) below(more ...fixture.Entry) {
	x.t.Helper()
	x.add(base, more...)
	id, err := x.layers[base].DiffID()
	require.NoError(x.t, err)
	x.recipe(func(r *recipe.Recipe) { r.DiffIDs[base] = id.String() })
}

// insert puts a layer below the runtime's, and into the recipe.
func (x *tampered) insert(l v1.Layer) {
	x.t.Helper()
	id, err := l.DiffID()
	require.NoError(x.t, err)
	x.recipe(func(r *recipe.Recipe) { r.DiffIDs = append(r.DiffIDs, id.String()) })
	x.layers = append(x.layers[:runtimeLayer:runtimeLayer], append([]v1.Layer{l}, x.layers[runtimeLayer:]...)...)
}

// Whoever can write to the registry cannot have another program run, or the image trusted for what it is not.
func TestAttacks(t *testing.T) {
	const manifestFile = "cconvert/app/entrypoint.manifest.sgx"
	manifest := func(change func(string) string) func(*tampered) {
		return func(x *tampered) {
			x.file(enclaveLayer, manifestFile, func(b []byte) []byte { return []byte(change(string(b))) })
		}
	}
	a := newVictim(t, nil)
	assert.Empty(t, a.attack(true, func(*tampered) {}))
	for what, c := range map[string]struct {
		check  string
		source bool // the attack is seen with the source only
		change func(*tampered)
	}{
		"another epoch": {verify.CheckPolicy, false, func(x *tampered) {
			x.recipe(func(r *recipe.Recipe) { r.Epoch = 99; r.Options.Args = []string{"a lie"} })
			x.config.Config.Labels[recipe.LabelEpoch] = "99"
			x.config.Config.Env = append(x.config.Config.Env, "LD_LIBRARY_PATH=/opt")
		}},
		"an attribute of overlay file systems": {verify.CheckLayers, false, func(x *tampered) {
			x.edit(enclaveLayer, func(l []fixture.Entry) []fixture.Entry {
				l[0].Header.Format, l[0].Header.PAXRecords = tar.FormatPAX,
					map[string]string{"SCHILY.xattr.trusted.overlay.redirect": "/srv"}
				return l
			})
		}},
		"another owner in the enclave's layer": {verify.CheckPolicy, false, func(x *tampered) {
			x.edit(enclaveLayer, func(l []fixture.Entry) []fixture.Entry { l[0].Header.Uid = 4711; return l })
		}},
		"a directory more in the enclave's layer": {verify.CheckPolicy, false, func(x *tampered) {
			x.add(enclaveLayer, fixture.Dir("cconvert/app/dir"))
		}},
		"an owner in the runtime's layer": {verify.CheckOnTop, false, func(x *tampered) {
			x.edit(runtimeLayer, func(l []fixture.Entry) []fixture.Entry { l[0].Header.Uid = 4711; return l })
		}},
		"a file of the program in the runtime's layer": {verify.CheckOnTop, false, func(x *tampered) {
			x.add(runtimeLayer, fixture.File("cconvert/app/x", "x"))
		}},
		"a whiteout behind the manifest": {verify.CheckPolicy, false, func(x *tampered) {
			x.add(enclaveLayer, fixture.File("cconvert/app/.wh.entrypoint.manifest.sgx", ""))
		}},
		"a library where the loader looks": {verify.CheckOnTop, false, func(x *tampered) {
			x.below(fixture.Program("cconvert/gramine/lib/glibc-hwcaps/x86-64-v2/libprotobuf-c.so.1", fixture.ELF("")))
		}},
		"a link in the place of the enclave's directory": {verify.CheckOnTop, false, func(x *tampered) {
			x.below(fixture.Symlink("cconvert", "/opt"))
		}},
		"a library that a later layer removes": {verify.CheckOnTop, false, func(x *tampered) {
			x.below(fixture.File("cconvert/gramine/lib/libc.so.6", "evil"))
			x.insert(fixture.Layer(t, fixture.File(".wh.cconvert", "")))
		}},
		"a library that an opaque root hides": {verify.CheckOnTop, false, func(x *tampered) {
			x.below(fixture.File("cconvert/gramine/lib/libc.so.6", "evil"))
			x.insert(fixture.Layer(t, fixture.File(".wh..wh..opq", "")))
		}},
		"a link to the enclave's directory": {verify.CheckOnTop, false, func(x *tampered) {
			x.below(fixture.Symlink("srv/x", "../cconvert/gramine/lib"))
		}},
		"a path through a link to the root": {verify.CheckOnTop, false, func(x *tampered) {
			x.below(fixture.Symlink("srv/root", "/"))
			x.insert(fixture.Layer(t, fixture.File("srv/root/cconvert/gramine/lib/libc.so.6", "evil")))
		}},
		"a link that AUFS names hide": {verify.CheckLayers, false, func(x *tampered) {
			x.below(fixture.Symlink("srv/.wh..wh.x/root", "/"))
			x.insert(fixture.Layer(t, fixture.File("srv/.wh..wh.x/root/cconvert/gramine/lib/tls/libc.so.6", "evil")))
		}},
		"a hard link to a link": {verify.CheckOnTop, false, func(x *tampered) {
			x.below(fixture.Symlink("opt/r", "/"), fixture.Hardlink("opt/h", "opt/r"))
			x.insert(fixture.Layer(t, fixture.File("opt/h/cconvert/gramine/lib/tls/libc.so.6", "evil")))
		}},
		"a global header with a file's name": {verify.CheckLayers, false, func(x *tampered) {
			x.below(fixture.Entry{Header: tar.Header{
				Typeflag: tar.TypeXGlobalHeader, Name: "usr/bin/app", PAXRecords: map[string]string{"comment": "x"},
			}})
		}},
		"an empty directory of the loader's": {verify.CheckOnTop, false, func(x *tampered) {
			x.below(fixture.Dir("cconvert/gramine"))
		}},
		"a layer in between": {verify.CheckSource, true, func(x *tampered) {
			x.insert(fixture.Layer(t, fixture.File("var/lib/unlisted", "evil")))
		}},
		"another variable outside": {verify.CheckSource, true, func(x *tampered) {
			x.recipe(func(r *recipe.Recipe) {
				r.Options.Env = []string{"A=1"}
				r.Replaced["Env"] = json.RawMessage(`["A=evil","LD_PRELOAD=/x.so","B=2"]`)
			})
			x.config.Config.Env[0] = "A=evil"
		}},
		"a health check": {verify.CheckSource, true, func(x *tampered) {
			x.config.Config.Healthcheck = &v1.HealthConfig{Test: []string{"CMD", "/evil"}}
		}},
		"labels": {verify.CheckSource, true, func(x *tampered) { x.config.Config.Labels["mine"] = "changed" }},
		"the clothes of another program": {verify.CheckLayout, false, func(x *tampered) {
			var files []fixture.Entry
			for _, e := range append(entries(t, x.layers[runtimeLayer]), entries(t, x.layers[enclaveLayer])...) {
				switch e.Header.Name {
				case "cconvert/sim/loader":
					files = append(files, fixture.File("gramine/meson_build_output/x/gramine/sgx/libpal.so", e.Body))
				case manifestFile, "cconvert/app/entrypoint.sig":
					files = append(files, fixture.File("gramine/app_files"+e.Header.Name[len("cconvert/app"):], e.Body))
				}
			}
			x.edit(enclaveLayer, func(l []fixture.Entry) []fixture.Entry {
				for i, e := range l {
					if strings.HasSuffix(e.Header.Name, "recipe.json") {
						return append(l[:i:i], l[i+1:]...)
					}
				}
				return l
			})
			x.layers = append(x.layers, fixture.Layer(t, append(files, fixture.Program("gramine/app_files/apploader.sh",
				"#!/bin/bash\nexec /evil\n"), fixture.Program("bin/bash", "evil"))...))
			x.config.Config.Entrypoint, x.config.Config.Env = []string{"/bin/bash", "/gramine/app_files/apploader.sh"},
				nil
		}},
		"a table more in the manifest": {verify.CheckMeasurement, false, manifest(func(s string) string {
			return s + "[zz]\na = 1\n"
		})},
		"an endless enclave": {verify.CheckMeasurement, false, manifest(func(s string) string {
			return strings.Replace(s, `"64M"`, `"4294967296G"`, 1)
		})},
		"endless tables": {verify.CheckMeasurement, false, manifest(func(s string) string {
			return s + "\n[sys." + strings.Repeat("a.", 30_000) + "a]\nb = 1\n"
		})},
		"a key in capitals": {verify.CheckMeasurement, false, manifest(func(s string) string {
			return s + "\n[SGX]\ndebug = false\n"
		})},
		"no TOML": {verify.CheckMeasurement, false, manifest(func(string) string { return "[[[" })},
		"no recipe": {verify.CheckPolicy, false, func(x *tampered) {
			x.file(enclaveLayer, "cconvert/app/recipe.json", func([]byte) []byte { return []byte("{") })
		}},
		"half a signature": {verify.CheckSigStruct, false, func(x *tampered) {
			x.file(enclaveLayer, "cconvert/app/entrypoint.sig", func(b []byte) []byte { return b[:100] })
		}},
		"a manifest that is removed": {verify.CheckOnTop, false, func(x *tampered) {
			x.layers = append(x.layers, fixture.Layer(t, fixture.File("cconvert/app/.wh.entrypoint.manifest.sgx", "")))
		}},
		"a recipe that is removed": {verify.CheckOnTop, false, func(x *tampered) {
			x.layers = append(x.layers, fixture.Layer(t, fixture.File("cconvert/app/.wh.recipe.json", "")))
		}},
		"no runtime": {verify.CheckOnTop, false, func(x *tampered) {
			x.layers = append(x.layers[:runtimeLayer:runtimeLayer], x.layers[enclaveLayer])
		}},
	} {
		t.Run(what, func(t *testing.T) {
			a.t = t
			if !c.source {
				assert.Contains(t, a.attack(false, c.change), c.check)
			}
			assert.Contains(t, a.attack(true, c.change), c.check)
		})
	}
}

// A list does not protect what it leaves out from layers in between: the comparison with the source does.
func TestLayerInBetweenUnderAList(t *testing.T) {
	a := newVictim(t, func(o *convert.Options) { o.Launch.Trust, o.Launch.List = launch.TrustList, []string{"/srv/a"} })
	assert.Equal(t, []string{verify.CheckSource}, a.attack(true, func(x *tampered) {
		x.insert(fixture.Layer(t, fixture.File("srv/b", "evil")))
	}))
}

// A converter who claims another source is found out with that source at hand.
func TestDishonestConverter(t *testing.T) {
	config := v1.Config{
		Entrypoint: []string{"/usr/bin/app", "--steal"}, Env: []string{"A=666"}, User: "1000", WorkingDir: "/srv",
		StopSignal: "SIGINT", Labels: map[string]string{"mine": "kept"}, Volumes: map[string]struct{}{"/data": {}},
	}
	layers, err := sample(t).Layers()
	require.NoError(t, err)
	for what, evil := range map[string]v1.Image{
		"another command": fixture.Image(t, config, layers...),
		"another layer": fixture.Image(t, config,
			append(layers, fixture.Layer(t, fixture.Program("usr/bin/app", fixture.ELF("")+"evil")))...),
	} {
		a := newVictim(t, nil)
		claimed := open(t, a.from).Digest
		run(t, options(t, a.reg.Push(t, "evil:1", evil)), otherKey(t), a.reg.Host+"/dst:1")
		a.expect = verify.Expectations{AllowSimulated: true, AnySigner: true}
		assert.Contains(t, a.attack(true, func(x *tampered) {
			x.file(len(x.layers)-1, "cconvert/app/recipe.json", func(b []byte) []byte {
				var r recipe.Recipe
				require.NoError(t, json.Unmarshal(b, &r))
				return bytes.Replace(b, []byte(r.Source), []byte(claimed), 1)
			})
			x.config.Config.Labels[recipe.LabelBaseDigest] = claimed
		}), verify.CheckSource, what)
	}
}

// Readers of JSON do not agree on keys that are there twice: such a configuration is no image's.
func TestAmbiguousConfiguration(t *testing.T) {
	a := newVictim(t, nil)
	original, _ := a.image()
	raw, err := original.RawConfigFile()
	require.NoError(t, err)
	for i, c := range [][2]string{
		{`"config":{`, `"config":{"Healthcheck":{"Test":["CMD-SHELL","evil"]}},"config":{`},
		{`"User":"1000"`, `"user":"1000","User":"0"`},
		{`"User":"1000"`, `"User":"1000","USER":"0"`},
		{`"User":"1000"`, `"User":"1000","uſer":"0"`},
		{`"rootfs":{`, `"rootfs":{"DIFF_IDS":null,`},
	} {
		config := []byte(strings.Replace(string(raw), c[0], c[1], 1))
		require.NotEqual(t, raw, config)
		m, err := original.Manifest()
		require.NoError(t, err)
		m = m.DeepCopy()
		m.Config.Digest, m.Config.Size, err = v1.SHA256(bytes.NewReader(config))
		require.NoError(t, err)
		tag, err := name.NewTag(fmt.Sprintf("%s/dst:ambiguous%d", a.reg.Host, i))
		require.NoError(t, err)
		require.NoError(t, remote.WriteLayer(tag.Context(), static.NewLayer(config, m.Config.MediaType)))
		body, err := json.Marshal(m)
		require.NoError(t, err)
		req, err := http.NewRequest(http.MethodPut, "http://"+a.reg.Host+"/v2/dst/manifests/"+tag.TagStr(),
			bytes.NewReader(body))
		require.NoError(t, err)
		req.Header.Set("Content-Type", string(m.MediaType))
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		resp.Body.Close()
		require.Equal(t, http.StatusCreated, resp.StatusCode)
		_, err = store.Open(context.Background(), parse(t, tag.String()), registry.Options{})
		assert.ErrorContains(t, err, "is there twice", c[1])
	}
}

// An index that names two images for this platform leads engines to one or the other.
func TestRivals(t *testing.T) {
	a := newVictim(t, nil)
	good, _ := a.image()
	evil := fixture.Image(t, v1.Config{Entrypoint: []string{"/evil"}}, fixture.Layer(t, fixture.Program("evil", "x")))
	for i, p := range []v1.Platform{
		{OS: "linux", Architecture: "amd64"}, {OS: "linux", Architecture: "amd64", Variant: "v1"},
		{OS: "linux", Architecture: "x86_64"}, {OS: "Linux", Architecture: "x86-64"},
	} {
		index := mutate.AppendManifests(empty.Index,
			mutate.IndexAddendum{
				Add: good, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}},
			},
			mutate.IndexAddendum{Add: evil, Descriptor: v1.Descriptor{Platform: &p}})
		tag, err := name.NewTag(fmt.Sprintf("%s/dst:index%d", a.reg.Host, i))
		require.NoError(t, err)
		require.NoError(t, remote.WriteIndex(tag, index))
		assert.Equal(t, []string{verify.CheckPlatform}, a.failed(tag.String(), true))
	}
}

// What was accepted is said as it is.
func TestAcceptedIsSaid(t *testing.T) {
	a := newVictim(t, func(o *convert.Options) { o.Enclave.Debug = true })
	assert.Equal(t, []string{verify.CheckDebug}, a.attack(true, func(*tampered) {}))
	a.expect.AllowDebug = true
	r := check(t, a.reg.Host+"/dst:1", a.expect, nil)
	assert.True(t, r.Trusted)
	for _, c := range r.Checks {
		assert.NotContains(t, c.Detail, "cannot be read by a debugger")
	}
	a.expect.AllowSimulated = false
	assert.Equal(t, []string{verify.CheckSimulated}, a.failed(a.reg.Host+"/dst:1", true))
}

// The loader is not measured: a runtime of the attacker's own, under a genuine signature, is not taken for vouched for.
func TestLoaderThatNobodyVouchedFor(t *testing.T) {
	a := newVictim(t, func(o *convert.Options) { *o = enclaved(t, o.Source.String()) })
	a.expect.AllowDebug = true
	ref := a.reg.Host + "/dst:1"
	r := check(t, ref, a.expect, nil)
	assert.True(t, r.Consistent)
	assert.False(t, r.Trusted)
	assert.Empty(t, r.FailedChecks())
	assert.Equal(t, []string{verify.CheckRuntimeIs}, r.Unmet())
	layer := r.Recipe.Runtime.Digest

	known := filepath.Join(t.TempDir(), "known.toml")
	require.NoError(t, os.WriteFile(known, fmt.Appendf(nil, "[[runtime]]\nname = 'mine'\nlayer = %q\n", layer), 0o600))
	table, err := verify.ReadRuntimes(known)
	require.NoError(t, err)
	for what, c := range map[string]struct {
		change func(*verify.Expectations)
		unmet  []string
	}{
		"accepted": {func(e *verify.Expectations) { e.AnyRuntime = true }, nil},
		"expected": {func(e *verify.Expectations) { e.RuntimeDigest = []string{layer} }, nil},
		"known":    {func(e *verify.Expectations) { e.Known = table }, nil},
		"another": {func(e *verify.Expectations) {
			e.RuntimeDigest = []string{"sha256:other"}
		}, []string{verify.CheckRuntimeIs}},
		"another, though any is accepted": {func(e *verify.Expectations) {
			e.RuntimeDigest, e.AnyRuntime = []string{"sha256:other"}, true
		}, []string{verify.CheckRuntimeIs}},
		"others are known": {func(e *verify.Expectations) {
			e.Known = []verify.KnownRuntime{{Name: "x", Layer: "sha256:other"}}
		}, []string{verify.CheckRuntimeIs}},
	} {
		e := a.expect
		c.change(&e)
		r := check(t, ref, e, nil)
		assert.Equal(t, c.unmet, r.Unmet(), what)
		assert.Equal(t, c.unmet == nil, r.Trusted, what)
	}
	for _, bad := range []string{"x = 1", "[[runtime]]\nname = 'x'", "[[runtime]]\nname = 'x'\nlayer = 'y'", "[["} {
		require.NoError(t, os.WriteFile(known, []byte(bad), 0o600))
		_, err := verify.ReadRuntimes(known)
		assert.ErrorIs(t, err, verify.ErrPolicy, bad)
	}
}

// An image without labels, made from one that has ours, is no reason to panic.
func TestNoLabels(t *testing.T) {
	a := newVictim(t, nil)
	img := sample(t)
	config, err := img.ConfigFile()
	require.NoError(t, err)
	config = config.DeepCopy()
	config.Config.Labels = map[string]string{recipe.LabelBaseDigest: "sha256:other"}
	img, err = mutate.ConfigFile(img, config)
	require.NoError(t, err)
	a.from = a.reg.Push(t, "src:labelled", img)
	run(t, options(t, a.from), signer(t), a.reg.Host+"/dst:1")
	assert.Contains(t, a.attack(true, func(x *tampered) { x.config.Config.Labels = nil }), verify.CheckConfig)
}
