package verify_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/libos/gramine/sim"
	"github.com/cconvert/cconvert/pkg/recipe"
	"github.com/cconvert/cconvert/pkg/release"
	"github.com/cconvert/cconvert/pkg/sgx"
	"github.com/cconvert/cconvert/pkg/sgx/quote/simulated"
	"github.com/cconvert/cconvert/pkg/verify"
)

// agentBackend is the simulation with an agent of its own.
type agentBackend struct {
	libos.Backend
	version string
}

func (a agentBackend) Agent() ([]byte, error) {
	return []byte(fixture.ELF("") + release.ConfigMarker + a.version), nil
}

// getting are options by which the program gets secrets.
func getting(o convert.Options, places ...string) convert.Options {
	o.Backend, o.Enclave.Attestation = agentBackend{o.Backend, ""}, "dcap"
	o.Launch.Memory, o.Launch.Threads = 0, 0
	o.Launch.Secrets = &launch.Secrets{
		Servers: []release.Server{{Address: "https://kms.example:8443", Pins: []release.Pin{{1}}}},
	}
	for _, p := range places {
		slot, err := release.ParseSlot(p)
		if err != nil {
			panic(err)
		}
		o.Launch.Secrets.Want = append(o.Launch.Secrets.Want, slot)
	}
	return o
}

// knowing reads images as a version with this agent does.
func knowing(version string) inspect.Options {
	return inspect.Options{Backends: []libos.Backend{agentBackend{sim.Backend{}, version}}}
}

var agentPlaces = []string{"env:A", "file:/run/secrets/token", "tls:/run/secrets/tls"}

// agentVictim converts an image of one layer, and returns the reference and what is expected of it.
func agentVictim(t *testing.T) (reg *fixture.Registry, from, to string, expect verify.Expectations) {
	t.Helper()
	reg = fixture.NewRegistry(t)
	from = reg.Push(t, "src:1", fixture.Image(t, v1.Config{Entrypoint: []string{"app"}, User: "7:8"},
		fixture.Layer(t, fixture.Program("bin/app", fixture.ELF("")), fixture.File("etc/conf", "x"))))
	to = reg.Host + "/dst:1"
	run(t, getting(options(t, from), agentPlaces...), signer(t), to)
	public, err := signer(t).Public(context.Background())
	require.NoError(t, err)
	return reg, from, to, verify.Expectations{AllowSimulated: true, MRSigner: []sgx.Measurement{sgx.MRSigner(public)}}
}

func verified(t *testing.T, ref, source string, e verify.Expectations, o inspect.Options) *verify.Report {
	t.Helper()
	var from *image.Image
	if source != "" {
		from = open(t, source)
	}
	r, err := verify.Verify(context.Background(), open(t, ref), from, e, nil, o)
	require.NoError(t, err)
	return r
}

// An image that gets secrets says from whom and which, is rebuilt and signed again, and tells of another agent.
func TestAgent(t *testing.T) {
	_, from, to, expect := agentVictim(t)
	r := verified(t, to, "", expect, knowing(""))
	trusted(t, r)
	assert.Equal(t, agentPlaces, r.Agent.Places())
	assert.Contains(t, checkOf(r, verify.CheckAgent).Detail, "https://kms.example:8443 (pin=sha256/")
	assert.Equal(t, libos.AgentPath, r.Program.Entrypoint)
	assert.Equal(t, []string{"app"}, r.Program.Argv)

	r = verified(t, to, from, expect, knowing(""))
	assert.Equal(t, []string{verify.CheckSecretsFrom}, r.Unmet(), "whose secrets they are has to be expected")
	assert.Equal(t, verify.OK, checkOf(r, verify.CheckChanges).Status)
	accepted := expect
	accepted.AnySecrets = true
	trusted(t, verified(t, to, from, accepted, knowing("")))
	accepted.AnySecrets, accepted.SecretsFrom = false, []string{release.Pin{1}.String()}
	trusted(t, verified(t, to, from, accepted, knowing("")))
	accepted.SecretsFrom = []string{release.Pin{2}.String()}
	assert.Equal(t, []string{verify.CheckSecretsFrom}, verified(t, to, "", accepted, knowing("")).Unmet())

	r = verified(t, to, "", expect, knowing("of another version"))
	assert.Equal(t, []string{verify.CheckAgentIs}, r.Unmet())
	program, err := agentBackend{}.Agent()
	require.NoError(t, err)
	named := expect
	named.AgentDigest = []string{fmt.Sprintf("%x", sha256.Sum256(program))}
	trusted(t, verified(t, to, "", named, knowing("of another version")))
	named.AgentDigest = []string{strings.Repeat("0", 64)}
	assert.Equal(t, []string{verify.CheckAgentIs}, verified(t, to, "", named, knowing("of another version")).Unmet())
	named.MREnclave = []sgx.Measurement{r.MREnclave}
	trusted(t, verified(t, to, "", named, knowing("of another version")))

	named.AnyRuntime, named.AnySecrets = true, true
	before, p, err := verify.BeforeSigning(context.Background(), open(t, to), nil, named, knowing("of another version"))
	require.NoError(t, err)
	assert.Contains(t, before.Unmet(), verify.CheckAgentIs, "who signs has to say that it is the agent")
	assert.Nil(t, p)
	named.AgentDigest = []string{fmt.Sprintf("%x", sha256.Sum256(program))}
	before, p, err = verify.BeforeSigning(context.Background(), open(t, to), nil, named, knowing("of another version"))
	require.NoError(t, err)
	require.NotNil(t, p, "%v", before.Unmet())

	again, err := verify.Rebuild(context.Background(), open(t, to), verify.RebuildOptions{
		Source: parse(t, from), Read: knowing("of another version"), Convert: options(t, from),
	})
	require.NoError(t, err)
	assert.True(t, again.Same, "%v", again.Why)
}

// What a conversion's other options could take away from the agent, or put in its place, is an error before.
func TestOptionsAgainstTheAgent(t *testing.T) {
	reg := fixture.NewRegistry(t)
	from := reg.Push(t, "src:1", fixture.Image(t, v1.Config{Entrypoint: []string{"/app"}},
		fixture.Layer(t, fixture.Program("app", fixture.ELF("")))))
	allow := func(p string) func(*convert.Options) {
		return func(o *convert.Options) { o.Launch.AllowedFiles = []string{p} }
	}
	overlay := func(text string) func(*convert.Options) { return func(o *convert.Options) { o.Overlay = text } }
	mount := func(p string) func(*convert.Options) {
		return overlay("[[fs.mounts]]\npath = \"" + p + "\"\nuri = \"file:/host\"\n" +
			"[sgx]\nallowed_files = [\"file:/host/\"]\n")
	}
	for what, change := range map[string]func(*convert.Options){
		"/cconvert/app/agent.json is not measured":        allow(libos.AgentConfigPath),
		"/cconvert/agent/cconvert-agent is not measured":  allow(libos.AgentPath),
		"the host may change /cconvert":                   overlay("[sgx]\nallowed_files = ['file:/cconvert']\n"),
		"the host may change /cconvert/app":               overlay("[sgx]\nallowed_files = ['file:/cconvert/app/']\n"),
		`a mount at "/cconvert/agent" covers`:             mount("/cconvert/agent"),
		`a mount at "/cconvert/app/agent.json" covers`:    mount("/cconvert/app/agent.json"),
		"tls:/run/secrets/tls is not in a directory that": mount("/run/secrets/tls"),
		"file:/run/secrets/token is not in a directory":   mount("/run/secrets/token"),
		"the enclave starts /app, not the agent":          overlay("[libos]\nentrypoint = \"/app\"\n"),
		"the agent needs an enclave of 1 GB":              overlay("[sgx]\nenclave_size = \"256M\"\n"),
		"with 10 threads, and it has":                     overlay("[sgx]\nmax_threads = 4\n"),
		"sgx.remote_attestation is not dcap":              overlay("[sgx]\nremote_attestation = \"none\"\n"),
		"attestation none: the agent that gets secrets":   func(o *convert.Options) { o.Enclave.Attestation = "none" },
		"a key of the name cconvert-secrets is made": func(o *convert.Options) {
			o.Launch.Encrypted = []launch.Mount{{Path: "/data", Key: launch.SecretsKey}}
		},
		"has more than 1048576 bytes": func(o *convert.Options) {
			o.Launch.Secrets.Servers[0].Pins = nil
			o.Launch.Secrets.Servers[0].CA = manyCertificates(t)
		},
	} {
		o := getting(options(t, from), agentPlaces...)
		change(&o)
		_, err := convert.Prepare(context.Background(), o)
		assert.ErrorContains(t, err, what)
	}
	o := getting(options(t, from), agentPlaces...)
	mount("/run/secrets/")(&o) // another path than the agent's mount, to a list
	_, err := convert.Prepare(context.Background(), o)
	assert.ErrorContains(t, err, "is not in a directory that")

	// Others may stay beside it, and what the library OS puts there itself.
	linked := reg.Push(t, "linked:1", fixture.Image(t, v1.Config{Entrypoint: []string{"/app"}},
		fixture.Layer(t, fixture.Program("app", fixture.ELF("/lib/ld-musl-x86_64.so.1")),
			fixture.Program("lib/ld-musl-x86_64.so.1", fixture.ELF("")))))
	o = getting(enclaved(t, linked), agentPlaces...)
	p, err := convert.Prepare(context.Background(), o)
	require.NoError(t, err)
	assert.Contains(t, string(p.Manifest), "/cconvert/app/interp/")
	require.NoError(t, p.Close())
	o = getting(options(t, from), agentPlaces...)
	o.Launch.AllowedFiles = []string{"/host"}
	o.Launch.Encrypted = []launch.Mount{{Path: "/data", Key: "app"}}
	o.Launch.Secrets.Want = append(o.Launch.Secrets.Want, release.Slot{Kind: release.KindKey, Name: "app"})
	run(t, o, signer(t), reg.Host+"/dst:1")
	r := verified(t, reg.Host+"/dst:1", "", verify.Expectations{
		AllowSimulated: true, AnySigner: true, AllowChanges: true,
	}, knowing(""))
	trusted(t, r)
	changes := strings.Join(checkOf(r, verify.CheckChanges).Problems, "\n")
	assert.Contains(t, changes, "sgx.allowed_files")
	assert.NotContains(t, changes, "could not be converted")
}

// manyCertificates is more than an agent is told.
func manyCertificates(t *testing.T) string {
	t.Helper()
	p, err := simulated.New("a test", time.Now())
	require.NoError(t, err)
	one := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Root.Certificate.Raw}))
	return strings.Repeat(one, 2<<20/len(one))
}

// The agent is one blob in all images, and in none that gets no secrets.
func TestAgentsLayer(t *testing.T) {
	reg := fixture.NewRegistry(t)
	var digests []string
	for i, secrets := range []bool{true, true, false} {
		from := reg.Push(t, fmt.Sprintf("src:%d", i), fixture.Image(t, v1.Config{Entrypoint: []string{"/app"}},
			fixture.Layer(t, fixture.Program("app", fixture.ELF("")+strings.Repeat("x", i)))))
		o := options(t, from)
		if secrets {
			o = getting(o, "env:A"+strings.Repeat("A", i))
		}
		to := fmt.Sprintf("%s/dst:%d", reg.Host, i)
		run(t, o, signer(t), to)
		img := open(t, to)
		if !secrets {
			assert.Len(t, img.Layers, 3)
			continue
		}
		require.Len(t, img.Layers, 4)
		digests = append(digests, img.Layers[2].Digest)
	}
	assert.Equal(t, digests[0], digests[1])
}

// The agent starts first: that its layer holds something else is a difference, whatever the configuration says.
func TestDiffOfAgents(t *testing.T) {
	reg, from, to, _ := agentVictim(t)
	a := &victim{t: t, reg: reg, from: from}
	read := func(ref string) *inspect.Converted {
		c, err := inspect.Read(context.Background(), open(t, ref), knowing(""))
		require.NoError(t, err)
		return c
	}
	for content, differs := range map[string]bool{"": false, strings.Repeat("\x00", 512): true} {
		other := a.swap("other", 2, append(a.plain(2), content...), types.OCIUncompressedLayer, nil)
		list, err := inspect.Compare(read(to), read(other))
		require.NoError(t, err)
		assert.Equal(t, differs, len(list) > 0, "%v", list)
	}
}

// What gets the secrets, and where they go, cannot be changed without being seen.
func TestTamperingWithTheAgent(t *testing.T) {
	const runtimeAt, agentAt, enclaveAt = 1, 2, enclaveLayer
	reg, _, to, expect := agentVictim(t)
	tag, err := name.NewTag(to)
	require.NoError(t, err)
	original, err := remote.Image(tag)
	require.NoError(t, err)
	config := func(change func(*release.Config)) func(*tampered) {
		return func(x *tampered) {
			x.file(enclaveAt, libos.AgentConfigPath[1:], func(b []byte) []byte {
				c, err := release.ParseConfig(b)
				require.NoError(t, err)
				change(c)
				b, err = c.Marshal()
				require.NoError(t, err)
				return b
			})
		}
	}
	entry := func(p string, change func(*fixture.Entry)) func(*tampered) {
		return func(x *tampered) {
			x.edit(enclaveAt, func(l []fixture.Entry) []fixture.Entry {
				i := slices.IndexFunc(l, func(e fixture.Entry) bool { return e.Header.Name == p })
				require.GreaterOrEqual(t, i, 0)
				change(&l[i])
				return l
			})
		}
	}
	for what, c := range map[string]struct {
		change func(*tampered)
		want   string
	}{
		"another agent": {func(x *tampered) {
			x.file(agentAt, libos.AgentPath[1:], func(b []byte) []byte { return append(b, 'x') })
		}, verify.CheckFiles},
		"another agent, and the recipe says so": {func(x *tampered) {
			var sum string
			x.file(agentAt, libos.AgentPath[1:], func(b []byte) []byte {
				b = append(b, 'x')
				sum = fmt.Sprintf("%x", sha256.Sum256(b))
				return b
			})
			x.recipe(func(r *recipe.Recipe) { r.Agent = sum })
		}, verify.CheckFiles},
		"an agent that is not executable": {func(x *tampered) {
			x.edit(agentAt, func(l []fixture.Entry) []fixture.Entry {
				for i := range l {
					l[i].Header.Mode = 0o644
				}
				return l
			})
		}, verify.CheckPolicy},
		"a file beside the agent": {func(x *tampered) {
			x.add(agentAt, fixture.File("cconvert/agent/config", "x"))
		}, verify.CheckOnTop},
		"a file of the runtime in the agent's layer": {func(x *tampered) {
			x.add(agentAt, fixture.Program("cconvert/sim/loader", fixture.ELF("")))
		}, verify.CheckOnTop},
		"a file of the image in the agent's layer": {func(x *tampered) {
			x.add(agentAt, fixture.Program("bin/app", fixture.ELF("")+"x"))
		}, verify.CheckOnTop},
		"no agent": {func(x *tampered) {
			x.layers = append(x.layers[:agentAt:agentAt], x.layers[agentAt+1:]...)
		}, verify.CheckLayers},
		"the agent below the runtime": {func(x *tampered) {
			x.layers[runtimeAt], x.layers[agentAt] = x.layers[agentAt], x.layers[runtimeAt]
		}, verify.CheckOnTop},
		"another server": {config(func(c *release.Config) {
			c.Servers[0].Address = "https://evil.example:8443"
		}), verify.CheckFiles},
		"another pin":     {config(func(c *release.Config) { c.Servers[0].Pins[0][0]++ }), verify.CheckPolicy},
		"another program": {config(func(c *release.Config) { c.Exec = "/bin/evil" }), verify.CheckPolicy},
		"one more secret": {config(func(c *release.Config) {
			c.Want = append(c.Want, release.Slot{Kind: release.KindEnv, Name: "B"})
		}), verify.CheckPolicy},
		"a longer patience": {config(func(c *release.Config) { c.Seconds = 3600 }), verify.CheckPolicy},
		"no configuration": {func(x *tampered) {
			x.edit(enclaveAt, func(l []fixture.Entry) []fixture.Entry {
				return slices.DeleteFunc(l, func(e fixture.Entry) bool {
					return e.Header.Name == libos.AgentConfigPath[1:]
				})
			})
		}, verify.CheckAgent},
		"a configuration that is none": {func(x *tampered) {
			x.file(enclaveAt, libos.AgentConfigPath[1:], func([]byte) []byte { return []byte("{}") })
		}, verify.CheckAgent},
		"another server in the recipe": {func(x *tampered) {
			x.recipe(func(r *recipe.Recipe) { r.Options.Secrets.Servers[0].Address = "https://evil.example:8443" })
		}, verify.CheckPolicy},
		"no secrets in the recipe": {func(x *tampered) {
			x.recipe(func(r *recipe.Recipe) { r.Options.Secrets = nil })
		}, verify.CheckAgent},
		"another agent in the recipe": {func(x *tampered) {
			x.recipe(func(r *recipe.Recipe) { r.Agent = strings.Repeat("0", 64) })
		}, verify.CheckAgent},
		"the program without the agent": {func(x *tampered) {
			x.file(enclaveAt, libos.ManifestPath[1:], func(b []byte) []byte {
				return bytes.Replace(b, []byte(libos.AgentPath+`"`), []byte(`/bin/app"`), 1)
			})
		}, verify.CheckAgent},
		"files that are not encrypted": {func(x *tampered) {
			x.file(enclaveAt, libos.ManifestPath[1:], func(b []byte) []byte {
				return bytes.Replace(b, []byte(`type = "encrypted"`), []byte(`type = "chroot"   `), 1)
			})
		}, verify.CheckPolicy},
		"files for everybody": {
			entry("run/secrets/", func(e *fixture.Entry) { e.Header.Mode = 0o777 }), verify.CheckPolicy,
		},
		"files of another user": {
			entry("run/secrets/", func(e *fixture.Entry) { e.Header.Uid = 9 }), verify.CheckPolicy,
		},
		"files elsewhere": {
			entry("run/secrets/", func(e *fixture.Entry) { e.Header.Name = "run/others/" }), verify.CheckOnTop,
		},
		"a link in the place of the directory": {
			entry("run/secrets/", func(e *fixture.Entry) { *e = fixture.Symlink("run/secrets", "/host") }),
			verify.CheckOnTop,
		},
		"a file where secrets go": {func(x *tampered) {
			x.add(enclaveAt, fixture.File("run/secrets/token", "chosen"))
		}, verify.CheckOnTop},
	} {
		t.Run(what, func(t *testing.T) {
			x := &tampered{t: t}
			x.layers, err = original.Layers()
			require.NoError(t, err)
			file, err := original.ConfigFile()
			require.NoError(t, err)
			x.config = file.DeepCopy()
			c.change(x)
			ref := fmt.Sprintf("%s/tampered:%x", reg.Host, sha256.Sum256([]byte(what)))
			x.push(ref, original)
			r := verified(t, ref, "", expect, knowing(""))
			assert.False(t, r.Trusted)
			assert.Contains(t, r.FailedChecks(), c.want)
		})
	}
}
