package verify_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/image/registry"
	"github.com/cconvert/cconvert/pkg/image/store"
	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/libos/gramine"
	"github.com/cconvert/cconvert/pkg/libos/gramine/sim"
	"github.com/cconvert/cconvert/pkg/recipe"
	"github.com/cconvert/cconvert/pkg/sgx"
	"github.com/cconvert/cconvert/pkg/verify"
)

func parse(t testing.TB, s string) image.Reference {
	t.Helper()
	r, err := image.ParseReference(s, false)
	require.NoError(t, err)
	return r
}

func open(t testing.TB, s string) *image.Image {
	t.Helper()
	img, err := store.Open(context.Background(), parse(t, s), registry.Options{FirstPause: time.Millisecond})
	require.NoError(t, err)
	t.Cleanup(func() { img.Close() })
	return img
}

// signer is the vectors' key, or a new one.
func signer(t testing.TB) *sgx.Key {
	t.Helper()
	b, err := os.ReadFile("../../testdata/vectors/test-signing-key.pem")
	require.NoError(t, err)
	k, err := sgx.ParseKey(b, nil)
	require.NoError(t, err)
	return k
}

func options(t testing.TB, from string) convert.Options {
	t.Helper()
	file := filepath.Join(t.TempDir(), "runtime")
	require.NoError(t, os.WriteFile(file, []byte(fixture.ELF("")), 0o755))
	return convert.Options{
		Source: parse(t, from), Backend: sim.Backend{}, Runtime: libos.LoadOptions{Source: file},
		Launch:  launch.Options{Memory: 64 << 20, Threads: 2},
		Enclave: libos.EnclaveOptions{Attestation: "none", LogLevel: "error"},
		StoreOptions: convert.StoreOptions{
			Image: registry.Options{FirstPause: time.Millisecond}, AllowRollback: true, ReplaceSigner: true,
		},
	}
}

// enclaved are options with a runtime of Gramine's shape, whose enclave a debugger can read: the test's key is public.
func enclaved(t testing.TB, from string) convert.Options {
	t.Helper()
	o := options(t, from)
	pal, err := os.ReadFile("../../testdata/vectors/pal/pal-twosegments.so")
	require.NoError(t, err)
	o.Backend, o.Runtime.Source = gramine.Backend{}, "dir:"+fixture.Gramine(t, pal)
	o.Enclave.Debug = true
	return o
}

func run(t testing.TB, o convert.Options, key *sgx.Key, to string) *convert.Result {
	t.Helper()
	o.Gate.Open = !o.Gate.Strict
	p, err := convert.Prepare(context.Background(), o)
	require.NoError(t, err)
	defer p.Close()
	public, signature, err := convert.Sign(context.Background(), p, key)
	require.NoError(t, err)
	r, err := convert.Finish(context.Background(), p, public, signature, parse(t, to), o.StoreOptions)
	require.NoError(t, err)
	return r
}

func sample(t testing.TB) v1.Image {
	return fixture.Image(t, v1.Config{
		Entrypoint: []string{"/bin/app", "--serve"}, Cmd: []string{"arg"},
		Env: []string{"A=1", "LD_PRELOAD=/x.so", "B=2"}, User: "1000", WorkingDir: "/srv",
		StopSignal: "SIGINT", Labels: map[string]string{"mine": "kept"}, Volumes: map[string]struct{}{"/data": {}},
	},
		fixture.Layer(t, fixture.Program("usr/bin/app", fixture.ELF("")), fixture.Symlink("bin", "usr/bin"),
			fixture.File("etc/conf", "x"), fixture.File("opt/a", "a"), fixture.File("opt/b", "b"),
			fixture.Symlink("opt/current", "a")),
		fixture.Layer(t, fixture.File("srv/a", "1"), fixture.File("srv/b", "2"), fixture.File("etc/.wh.conf", "")))
}

// tampered is a converted image in the hands of somebody who can write to the registry.
type tampered struct {
	t      *testing.T
	layers []v1.Layer
	config *v1.ConfigFile
}

// Layers of the sample, converted.
const (
	base = iota
	second
	runtimeLayer
	enclaveLayer
)

// edit changes a layer's entries.
func (x *tampered) edit(layer int, change func([]fixture.Entry) []fixture.Entry) {
	x.t.Helper()
	x.layers[layer] = fixture.Layer(x.t, change(entries(x.t, x.layers[layer]))...)
}

// file changes the content of a file.
func (x *tampered) file(layer int, p string, change func([]byte) []byte) {
	x.t.Helper()
	found := false
	x.edit(layer, func(list []fixture.Entry) []fixture.Entry {
		for i, e := range list {
			if e.Header.Name == p {
				found = true
				list[i].Body = string(change([]byte(e.Body)))
				list[i].Header.Size = int64(len(list[i].Body))
			}
		}
		return list
	})
	require.True(x.t, found, "%s is in layer %d", p, layer)
}

func (x *tampered) recipe(change func(*recipe.Recipe)) {
	x.t.Helper()
	x.file(enclaveLayer, libos.RecipePath[1:], func(b []byte) []byte {
		var r recipe.Recipe
		require.NoError(x.t, json.Unmarshal(b, &r))
		change(&r)
		b, err := json.MarshalIndent(r, "", "  ")
		require.NoError(x.t, err)
		return append(b, '\n')
	})
}

func entries(t testing.TB, l v1.Layer) []fixture.Entry {
	t.Helper()
	r, err := l.Uncompressed()
	require.NoError(t, err)
	defer r.Close()
	var list []fixture.Entry
	for archive := tar.NewReader(r); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return list
		}
		require.NoError(t, err)
		b, err := io.ReadAll(archive)
		require.NoError(t, err)
		list = append(list, fixture.Entry{Header: *h, Body: string(b)})
	}
}

// push puts the image together again, with all digests that belong to it, and returns its name.
func (x *tampered) push(ref string, from v1.Image) {
	x.t.Helper()
	mt, err := from.MediaType()
	require.NoError(x.t, err)
	img := mutate.MediaType(fixture.Image(x.t, v1.Config{}), mt)
	img, err = mutate.AppendLayers(img, x.layers...)
	require.NoError(x.t, err)
	c, err := img.ConfigFile()
	require.NoError(x.t, err)
	x.config.RootFS = c.RootFS
	img, err = mutate.ConfigFile(img, x.config)
	require.NoError(x.t, err)
	tag, err := name.NewTag(ref)
	require.NoError(x.t, err)
	require.NoError(x.t, remote.Write(tag, img))
}

func flip(at int) func([]byte) []byte {
	return func(b []byte) []byte { b[at] ^= 1; return b }
}

func check(t testing.TB, ref string, e verify.Expectations, source *image.Image) *verify.Report {
	t.Helper()
	r, err := verify.Verify(context.Background(), open(t, ref), source, e, nil, inspect.Options{})
	require.NoError(t, err)
	return r
}

// Everything that somebody with the right to write to the registry could change, one at a time, and the check
// that finds it.
func TestTampering(t *testing.T) {
	reg := fixture.NewRegistry(t)
	from := reg.Push(t, "src:1", sample(t))
	run(t, options(t, from), signer(t), reg.Host+"/dst:1")
	public, err := signer(t).Public(context.Background())
	require.NoError(t, err)
	expect := verify.Expectations{AllowSimulated: true, MRSigner: []sgx.Measurement{sgx.MRSigner(public)}}
	r := check(t, reg.Host+"/dst:1", expect, open(t, from))
	require.True(t, r.Trusted, "%v", r.Checks)

	const manifestFile, sigFile = "cconvert/app/entrypoint.manifest.sgx", "cconvert/app/entrypoint.sig"
	add := func(entries ...fixture.Entry) func(*tampered) {
		return func(x *tampered) { x.layers = append(x.layers, fixture.Layer(x.t, entries...)) }
	}
	config := func(change func(*v1.Config)) func(*tampered) { return func(x *tampered) { change(&x.config.Config) } }
	cases := map[string]struct {
		change func(*tampered)
		want   string
		says   string
	}{
		"a byte of a base file": {func(x *tampered) {
			x.file(second, "srv/a", flip(0))
		}, verify.CheckFiles, `"/srv/a" in layer 2`},
		"a file over a measured one": {add(fixture.File("srv/a", "evil")), verify.CheckOnTop, `has "/srv/a"`},
		"a file over a measured one, found": {
			add(fixture.File("srv/a", "evil")), verify.CheckFiles, `"/srv/a" in layer 5`,
		},
		"a file that was not there, on top": {add(fixture.File("srv/new", "x")), verify.CheckOnTop, `has "/srv/new"`},
		"a file that was not there, below": {func(x *tampered) {
			x.edit(base, func(l []fixture.Entry) []fixture.Entry { return append(l, fixture.File("opt/new", "x")) })
		}, verify.CheckPolicy, "file:/opt/new"},
		"a whiteout": {add(fixture.File("srv/.wh.a", "")), verify.CheckOnTop, `removes "/srv/a"`},
		"an opaque directory": {
			add(fixture.File("srv/.wh..wh..opq", "")), verify.CheckFiles, `"/srv/a" is not in the image`,
		},
		"a file beside the enclave": {func(x *tampered) {
			x.edit(enclaveLayer, func(l []fixture.Entry) []fixture.Entry {
				return append(l, fixture.File("etc/ld.so.preload", "x"))
			})
		}, verify.CheckOnTop, "/etc/ld.so.preload"},
		"a file in the enclave's directory": {func(x *tampered) {
			x.edit(enclaveLayer, func(l []fixture.Entry) []fixture.Entry {
				return append(l, fixture.File("cconvert/app/more", "x"))
			})
		}, verify.CheckPolicy, "/cconvert/app/more"},
		"the loader": {func(x *tampered) {
			x.file(runtimeLayer, "cconvert/sim/loader", func(b []byte) []byte { return append(b, 0) })
		}, verify.CheckRuntime, "the recipe has the runtime"},
		"the enclave image": {func(x *tampered) {
			x.file(runtimeLayer, "cconvert/sim/loader", flip(9))
		}, verify.CheckMeasurement, "the enclave would be"},
		"the library OS": {func(x *tampered) {
			x.file(runtimeLayer, "cconvert/sim/loader", flip(9))
		}, verify.CheckRuntime, "has the digest"},
		"a file in the runtime's layer": {func(x *tampered) {
			x.edit(runtimeLayer, func(l []fixture.Entry) []fixture.Entry {
				return append(l, fixture.File("lib/evil.so", "x"))
			})
		}, verify.CheckOnTop, "/lib/evil.so"},
		"the manifest": {func(x *tampered) {
			x.file(enclaveLayer, manifestFile, func(b []byte) []byte {
				return bytes.Replace(b, []byte(`"--serve"`), []byte(`"--leak"`), 1)
			})
		}, verify.CheckMeasurement, "the enclave would be"},
		"the manifest, explained": {func(x *tampered) {
			x.file(enclaveLayer, manifestFile, func(b []byte) []byte {
				return bytes.Replace(b, []byte(`"--serve"`), []byte(`"--leak"`), 1)
			})
		}, verify.CheckPolicy, "loader.argv"},
		"hosts": {func(x *tampered) {
			x.file(enclaveLayer, "cconvert/app/hosts", flip(0))
		}, verify.CheckFiles, "/cconvert/app/hosts"},
		"the reasons": {func(x *tampered) {
			x.file(enclaveLayer, "cconvert/app/files.json", flip(2))
		}, verify.CheckPolicy, "files.json"},
		"the entrypoint": {config(func(c *v1.Config) {
			c.Entrypoint = []string{"/bin/app"}
		}), verify.CheckConfig, "config.Entrypoint"},
		"the arguments": {config(func(c *v1.Config) {
			c.Cmd = []string{"more"}
		}), verify.CheckConfig, "config.Cmd"},
		"a variable": {config(func(c *v1.Config) {
			c.Env[0] = "A=2"
		}), verify.CheckConfig, "config.Env"},
		"a variable for the loader": {config(func(c *v1.Config) {
			c.Env = append(c.Env, "LD_AUDIT=/srv/a")
		}), verify.CheckConfig, "config.Env"},
		"the user": {config(func(c *v1.Config) {
			c.User = "0"
		}), verify.CheckPolicy, "loader.uid"},
		"the working directory": {config(func(c *v1.Config) {
			c.WorkingDir = "/"
		}), verify.CheckPolicy, "fs.start_dir"},
		"a volume": {config(func(c *v1.Config) {
			c.Volumes = nil
		}), verify.CheckPolicy, "fs.mounts"},
		"the stop signal": {config(func(c *v1.Config) {
			c.StopSignal = "SIGKILL"
		}), verify.CheckConfig, "config.StopSignal"},
		"a health check": {config(func(c *v1.Config) {
			c.Healthcheck = &v1.HealthConfig{Test: []string{"CMD", "/bin/app"}}
		}), verify.CheckSource, "config.Healthcheck"},
		"the label with the measurement": {config(func(c *v1.Config) {
			c.Labels["cconvert.mrenclave"] = "00"
		}), verify.CheckConfig, "cconvert.mrenclave"},
		"the label with the source": {config(func(c *v1.Config) {
			c.Labels["org.opencontainers.image.base.digest"] = "sha256:00"
		}), verify.CheckConfig, "base.digest"},
		"the order of layers": {func(x *tampered) {
			x.layers[base], x.layers[second] = x.layers[second], x.layers[base]
		}, verify.CheckLayers, "another order"},
		"a layer less": {func(x *tampered) {
			x.layers = slices.Delete(x.layers, second, second+1)
		}, verify.CheckLayers, "not those that were converted"},
		"a symlink's target": {func(x *tampered) {
			x.edit(base, func(l []fixture.Entry) []fixture.Entry { l[len(l)-1].Header.Linkname = "b"; return l })
		}, verify.CheckFiles, `"/opt/current" in layer 1`},
		"a directory link's target": {func(x *tampered) {
			x.edit(base, func(l []fixture.Entry) []fixture.Entry { l[1].Header.Linkname = "opt"; return l })
		}, verify.CheckPolicy, ""},
		"the recipe's source": {func(x *tampered) {
			x.recipe(func(r *recipe.Recipe) { r.Source = "sha256:" + strings.Repeat("0", 64) })
		}, verify.CheckConfig, "base.digest"},
		"the recipe's runtime": {func(x *tampered) {
			x.recipe(func(r *recipe.Recipe) { r.Runtime.Digest = "sha256:00" })
		}, verify.CheckRuntime, "the recipe has"},
		"the recipe's options": {func(x *tampered) {
			x.recipe(func(r *recipe.Recipe) { r.Options.Args = []string{"y"} })
		}, verify.CheckPolicy, "loader.argv"},
		"the recipe's policy": {func(x *tampered) {
			x.recipe(func(r *recipe.Recipe) { r.Options.Trust, r.Options.List = "list", []string{"/srv/a"} })
		}, verify.CheckPolicy, ""},
		"the recipe's date": {func(x *tampered) {
			x.recipe(func(r *recipe.Recipe) { r.Date = "2020-01-01" })
		}, verify.CheckAttributes, "2020-01-01"},
		"the recipe's overlay": {func(x *tampered) {
			x.recipe(func(r *recipe.Recipe) { r.Overlay = "[loader]\nlog_level = \"all\"\n" })
		}, verify.CheckPolicy, "loader.log_level"},
		"the recipe's layers": {func(x *tampered) {
			x.recipe(func(r *recipe.Recipe) { r.DiffIDs = r.DiffIDs[1:] })
		}, verify.CheckLayers, "not those that were converted"},
		"the recipe's epoch": {func(x *tampered) {
			x.recipe(func(r *recipe.Recipe) { r.Epoch = 1 })
		}, verify.CheckConfig, fmt.Sprintf("cconvert.epoch is \"%d\"", recipe.FormatEpoch)},
		"everything signed with another key": {func(x *tampered) {
			x.resign(func(*sgx.SigStruct) {})
		}, verify.CheckMRSigner, "expected is"},
		"another SVN, signed again": {func(x *tampered) {
			x.resign(func(s *sgx.SigStruct) { s.ISVSVN = 9 })
		}, verify.CheckAttributes, "the SVN"},
		"debug, signed again": {func(x *tampered) {
			x.resign(func(s *sgx.SigStruct) { s.Attributes.Flags |= sgx.FlagDebug })
		}, verify.CheckDebug, "keeps no secrets"},
		"another mask, signed again": {func(x *tampered) {
			x.resign(func(s *sgx.SigStruct) { s.AttributesMask.Flags &^= sgx.FlagDebug })
		}, verify.CheckAttributes, "the mask of the flags"},
		"no signature": {func(x *tampered) {
			x.edit(enclaveLayer, func(l []fixture.Entry) []fixture.Entry {
				return slices.DeleteFunc(l, func(e fixture.Entry) bool { return e.Header.Name == sigFile })
			})
		}, verify.CheckSigStruct, "there is none"},
		"a link in the place of the manifest": {func(x *tampered) {
			x.edit(enclaveLayer, linkInstead(manifestFile))
		}, verify.CheckMeasurement, ""},
	}
	// Every field of the SIGSTRUCT, and reserved bytes of each kind.
	for what, at := range map[string]int{
		"header": 0, "vendor": 0x10, "date": 0x14, "header2": 0x18, "swdefined": 0x28, "reserved1": 0x2c,
		"reserved1 end": 0x7f, "modulus": 0x80, "exponent": 0x200,
		"signature": 0x204, "miscselect": 0x384, "miscmask": 0x388, "reserved2": 0x38c, "family": 0x390,
		"attributes": 0x3a0, "xfrm": 0x3a8, "mask": 0x3b0, "xfrm mask": 0x3b8,
		"mrenclave": 0x3c0, "reserved3": 0x3e0, "product": 0x400, "svn": 0x402, "reserved4": 0x404,
		"reserved4 end": 0x40f, "q1": 0x410, "q2": 0x590, "end": 1807,
	} {
		cases["SIGSTRUCT: "+what] = struct {
			change func(*tampered)
			want   string
			says   string
		}{func(x *tampered) { x.file(enclaveLayer, sigFile, flip(at)) }, verify.CheckSigStruct, ""}
	}
	tag, err := name.NewTag(reg.Host + "/dst:1")
	require.NoError(t, err)
	original, err := remote.Image(tag)
	require.NoError(t, err)
	stored := slices.Sorted(maps.Keys(forms))
	for i, what := range slices.Sorted(maps.Keys(cases)) {
		c, ref, form := cases[what], fmt.Sprintf("%s/tampered:%d", reg.Host, i), stored[i%len(stored)]
		t.Run(what, func(t *testing.T) {
			x := &tampered{t: t}
			x.layers, err = original.Layers()
			require.NoError(t, err)
			config, err := original.ConfigFile()
			require.NoError(t, err)
			x.config = config.DeepCopy()
			c.change(x)
			x.push(ref, original)
			// It is seen in whatever form somebody has stored the image since.
			recompress(t, ref, ref+form, forms[form].kind, forms[form].pack)
			for _, ref := range []string{ref, ref + form} {
				r, err := verify.Verify(context.Background(), open(t, ref), open(t, from), expect, nil,
					inspect.Options{})
				if err != nil { // not even to be read
					assert.Contains(t, err.Error(), c.says)
					assert.Equal(t, "a link in the place of the manifest", what)
					continue
				}
				assert.False(t, r.Trusted, ref)
				i := slices.IndexFunc(r.Checks, func(k verify.Check) bool { return k.Name == c.want })
				require.GreaterOrEqual(t, i, 0)
				assert.Equal(t, verify.Failed, r.Checks[i].Status, "%s: %v", ref, r.Checks)
				assert.Contains(t, strings.Join(r.Checks[i].Problems, "\n"), c.says)
			}
		})
	}
}

func linkInstead(p string) func([]fixture.Entry) []fixture.Entry {
	return func(l []fixture.Entry) []fixture.Entry {
		for i, e := range l {
			if e.Header.Name == p {
				l[i] = fixture.Symlink(p, "/srv/a")
			}
		}
		return l
	}
}

// resign changes the SIGSTRUCT and signs it with another key.
func (x *tampered) resign(change func(*sgx.SigStruct)) {
	x.t.Helper()
	key := otherKey(x.t)
	x.file(enclaveLayer, libos.SigPath[1:], func(b []byte) []byte {
		s, err := sgx.ParseSigStruct(b)
		require.NoError(x.t, err)
		change(s)
		public, err := key.Public(context.Background())
		require.NoError(x.t, err)
		signature, err := key.Sign(context.Background(), s.ToBeSigned())
		require.NoError(x.t, err)
		require.NoError(x.t, s.Attach(public, signature))
		x.config.Config.Labels[recipe.LabelMRSigner] = s.MRSigner().String()
		x.recipe(func(r *recipe.Recipe) { x.config.Config.Labels[recipe.LabelIdentity] = r.Identity(s.MRSigner()) })
		return s.Bytes()
	})
}

var other *sgx.Key

func otherKey(t testing.TB) *sgx.Key {
	t.Helper()
	if other == nil {
		var err error
		other, err = sgx.GenerateKey(rand.Reader)
		require.NoError(t, err)
	}
	return other
}
